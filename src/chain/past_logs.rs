//! Logs of the latest hour, whatever range a provider allows for one question: some take ten thousand blocks, some five.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::chain::receipt::Log;
use crate::chain::trouble::Trouble;
use crate::chain::{Rpc, RpcError};
use crate::payment::Signed;

/// How far back the use of an authorization is looked for, in seconds of the chain's time: longer than a failover, or an outage, takes.
const LOOK_BACK_S: u64 = 3_600;
/// How many blocks that is at least, on slow chains, and at most, on fast ones.
const LOOK_BACK_BLOCKS: (u64, u64) = (300, 40_000);
/// Over how many blocks the pace of a chain is measured.
const PACE_BLOCKS: u64 = 1_000;
/// Blocks in one question, before a provider has said that this is too many.
const RANGE: u64 = 1_000;
/// Questions that are asked one after the other before the block is searched by the nonce's state instead, which costs a dozen.
const QUESTIONS: u64 = 16;
/// Questions in all where a node does not keep that state: twenty minutes of a chain with a block a second on a plan of five blocks. The
/// newest blocks are the likeliest.
const QUESTIONS_MAX: u64 = 256;
/// A provider's range is tried to be doubled after so many questions that it took.
const WIDEN_AFTER: u64 = 50;

/// What has been learned of a network's providers about logs.
#[derive(Debug)]
pub(super) struct LogRange {
    /// Blocks in one question.
    blocks: AtomicU64,
    /// Questions of that range that were taken in a row.
    taken: AtomicU64,
    /// Blocks in an hour; 0 before it was measured.
    hour: AtomicU64,
}

impl Default for LogRange {
    fn default() -> Self {
        Self {
            blocks: AtomicU64::new(RANGE),
            taken: AtomicU64::new(0),
            hour: AtomicU64::new(0),
        }
    }
}

impl LogRange {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    fn was_too_wide(&self, asked: u64) {
        self.taken.store(0, Ordering::Relaxed);
        self.blocks.fetch_min((asked / 2).max(1), Ordering::Relaxed);
    }

    fn was_taken(&self) {
        let blocks = self.blocks();
        if blocks >= RANGE || self.taken.fetch_add(1, Ordering::Relaxed) < WIDEN_AFTER {
            return;
        }
        self.taken.store(0, Ordering::Relaxed);
        let wider = blocks.saturating_mul(2).min(RANGE);
        self.blocks.store(wider, Ordering::Relaxed);
    }
}

/// Which logs are looked for: contracts and topics as JSON-RPC wants them.
type Filter = (Value, Value);

impl Rpc {
    /// Logs of the latest hour up to the block at height `head`, the newest first, until they are `enough`. Where a provider allows so few
    /// blocks that this takes too many questions, each of the authorizations `of` is looked for in the block in which its nonce was used.
    ///
    /// # Errors
    /// When the RPC fails, or allows so little that the search has to end before it has come to its end.
    pub(super) async fn recent_logs(
        &self,
        filter: Filter,
        of: (&[Signed<'_>], u64),
        enough: impl Fn(&[Log]) -> bool,
    ) -> Result<Vec<Log>, RpcError> {
        match self.recent_logs_so_far(filter, of, enough).await? {
            (logs, true) => Ok(logs),
            (_, false) => Err(RpcError::SearchCutShort),
        }
    }

    /// The same, with whether the search has come to its end: what an unfinished one has not found may be there.
    pub(super) async fn recent_logs_so_far(
        &self,
        filter: Filter,
        (of, head): (&[Signed<'_>], u64),
        enough: impl Fn(&[Log]) -> bool,
    ) -> Result<(Vec<Log>, bool), RpcError> {
        let first = (head + 1).saturating_sub(self.look_back(head).await?);
        let (mut logs, mut last, mut searched) = (Vec::new(), head, false);
        for _ in 0..QUESTIONS_MAX {
            let (found, from) = self.logs_up_to(&filter, first, last).await?;
            logs.extend(found);
            if enough(&logs) || from <= first {
                return Ok((logs, true));
            }
            last = from - 1;
            let questions = (last - first) / self.log_range.blocks();
            if questions > QUESTIONS && !searched {
                searched = true;
                match self.logs_of_uses(&filter, of, (first, last)).await {
                    Ok(found) => {
                        logs.extend(found);
                        return Ok((logs, true));
                    }
                    // The node does not keep old state: question after question.
                    Err(error)
                        if matches!(
                            error.trouble(),
                            Trouble::MissingState | Trouble::MissingBlock
                        ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((logs, false))
    }

    /// Logs of as many blocks as a provider takes, the newest of them at height `last`, none below `first`; and where they begin.
    async fn logs_up_to(
        &self,
        filter: &Filter,
        first: u64,
        last: u64,
    ) -> Result<(Vec<Log>, u64), RpcError> {
        loop {
            let blocks = self.log_range.blocks();
            let from = (last + 1).saturating_sub(blocks).max(first);
            match self.logs_between(filter, from, last).await {
                Ok(logs) => {
                    self.log_range.was_taken();
                    return Ok((logs, from));
                }
                Err(error) if error.trouble() == Trouble::RangeTooWide && last > from => {
                    self.log_range.was_too_wide(last - from + 1);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn logs_between(
        &self,
        (address, topics): &Filter,
        from: u64,
        to: u64,
    ) -> Result<Vec<Log>, RpcError> {
        let filter = json!({
            "address": address, "topics": topics, "fromBlock": format!("0x{from:x}"), "toBlock": format!("0x{to:x}"),
        });
        let logs: Option<Vec<Log>> = self.read("eth_getLogs", (filter,)).await?;
        Ok(logs.unwrap_or_default())
    }

    /// Logs of the blocks in which the nonces of authorizations were used, none of them outside of `within`.
    async fn logs_of_uses(
        &self,
        filter: &Filter,
        of: &[Signed<'_>],
        within: (u64, u64),
    ) -> Result<Vec<Log>, RpcError> {
        let mut logs = Vec::new();
        for signed in of {
            if let Some(block) = self.block_of_use(*signed, within).await? {
                logs.extend(self.logs_between(filter, block, block).await?);
            }
        }
        Ok(logs)
    }

    /// The block in which a nonce was used, by halves. `None`: not within these.
    pub(super) async fn block_of_use(
        &self,
        signed: Signed<'_>,
        (first, last): (u64, u64),
    ) -> Result<Option<u64>, RpcError> {
        if !self.is_used_at(signed, last).await? {
            return Ok(None);
        }
        // One that was used before leads to the first block, whose logs do not have it. That block is not asked: its state may be gone.
        let (mut unused, mut used) = (first.saturating_sub(1), last);
        while used - unused > 1 {
            let middle = unused + (used - unused) / 2;
            if self.is_used_at(signed, middle).await? {
                used = middle;
            } else {
                unused = middle;
            }
        }
        Ok(Some(used))
    }

    pub(super) async fn is_used_at(
        &self,
        signed: Signed<'_>,
        block: u64,
    ) -> Result<bool, RpcError> {
        let mut used = self.nonces_used(&[signed], block).await?;
        used.pop().ok_or(RpcError::Malformed("eth_call"))?
    }

    /// How many blocks the chain makes in an hour; measured once.
    async fn look_back(&self, head: u64) -> Result<u64, RpcError> {
        let known = self.log_range.hour.load(Ordering::Relaxed);
        if known > 0 {
            return Ok(known);
        }
        // A young chain has no pace yet, and its first block any time.
        if head <= PACE_BLOCKS {
            return Ok(head + 1);
        }
        let before = head - PACE_BLOCKS;
        let (newest, earlier) = (self.time_at(head).await?, self.time_at(before).await?);
        let (Some(newest), Some(earlier)) = (newest, earlier) else {
            return Ok(LOOK_BACK_BLOCKS.0);
        };
        let seconds = u64::try_from(newest - earlier).unwrap_or_default().max(1);
        let blocks = PACE_BLOCKS.saturating_mul(LOOK_BACK_S) / seconds;
        let blocks = blocks.clamp(LOOK_BACK_BLOCKS.0, LOOK_BACK_BLOCKS.1);
        self.log_range.hour.store(blocks, Ordering::Relaxed);
        Ok(blocks)
    }

    async fn time_at(&self, number: u64) -> Result<Option<i64>, RpcError> {
        let block = self
            .block("eth_getBlockByNumber", format!("0x{number:x}"))
            .await?;
        Ok(block.map(|head| head.time.unix_timestamp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_halved_when_it_is_refused_and_widened_after_a_while() {
        let range = LogRange::default();
        let mut refused = 0;
        while range.blocks() > 5 {
            range.was_too_wide(range.blocks());
            refused += 1;
        }
        assert_eq!((range.blocks(), refused), (3, 8));
        for _ in 0..=WIDEN_AFTER {
            range.was_taken();
        }
        assert_eq!(range.blocks(), 6);
        range.was_too_wide(1);
        assert_eq!(range.blocks(), 1, "never less than one block");
    }
}
