//! Reads the logs of the latest hour within each provider's limit on blocks per `eth_getLogs` call, which is between five and ten thousand
//! (`docs/architecture.md`, Past logs).

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::chain::error_kind::ErrorKind;
use crate::chain::receipt::Log;
use crate::chain::{Rpc, RpcError};
use crate::payment::Signed;

/// How far back the use of an authorization is searched, in seconds of block time: longer than a failover or an outage lasts.
const LOOK_BACK_S: u64 = 3_600;
/// Lower and upper bound of that in blocks, for slow and fast chains.
const LOOK_BACK_BLOCKS: (u64, u64) = (300, 40_000);
/// Over how many blocks the block time of a chain is measured.
const SAMPLE_BLOCKS: u64 = 1_000;
/// Blocks per call, until a provider rejects that as too many.
const RANGE: u64 = 1_000;
/// If more calls than this remain, the block is searched by bisection over the nonce's state instead, which takes about a dozen calls.
const CALLS_BEFORE_BISECTION: u64 = 16;
/// Most calls in all where a node has pruned that state: with five blocks per call and one block per second they cover twenty minutes. The
/// search starts at the newest blocks, because the log is most likely there.
const CALLS_MAX: u64 = 256;
/// After this many accepted calls, a reduced range is doubled again.
const WIDEN_AFTER: u64 = 50;

/// The block range per `eth_getLogs` call that the network's providers accept, as learned so far.
#[derive(Debug)]
pub(super) struct LogRange {
    /// Blocks per call.
    blocks: AtomicU64,
    /// Calls with that range that were accepted in a row.
    accepted: AtomicU64,
    /// Blocks per hour; 0 until measured.
    blocks_per_hour: AtomicU64,
}

impl Default for LogRange {
    fn default() -> Self {
        Self {
            blocks: AtomicU64::new(RANGE),
            accepted: AtomicU64::new(0),
            blocks_per_hour: AtomicU64::new(0),
        }
    }
}

impl LogRange {
    fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    fn shrink(&self, width: u64) {
        self.accepted.store(0, Ordering::Relaxed);
        self.blocks.fetch_min((width / 2).max(1), Ordering::Relaxed);
    }

    fn record_accepted(&self) {
        let blocks = self.blocks();
        if blocks >= RANGE || self.accepted.fetch_add(1, Ordering::Relaxed) < WIDEN_AFTER {
            return;
        }
        self.accepted.store(0, Ordering::Relaxed);
        let wider = blocks.saturating_mul(2).min(RANGE);
        self.blocks.store(wider, Ordering::Relaxed);
    }
}

/// The contracts and topics of an `eth_getLogs` filter.
type Filter = (Value, Value);

impl Rpc {
    /// Logs of the latest hour up to a head, from the newest blocks on, until they are `enough`. Where that would take too many calls, the
    /// block in which each authorization's nonce was used is searched instead. The head is the second member of `authorizations`.
    ///
    /// # Errors
    /// [`RpcError::SearchIncomplete`] when the providers' limits end the search early; any other error of the RPC.
    pub(super) async fn recent_logs(
        &self,
        filter: Filter,
        authorizations: (&[Signed<'_>], u64),
        enough: impl Fn(&[Log]) -> bool,
    ) -> Result<Vec<Log>, RpcError> {
        match self
            .recent_logs_partial(filter, authorizations, enough)
            .await?
        {
            (logs, true) => Ok(logs),
            (_, false) => Err(RpcError::SearchIncomplete),
        }
    }

    /// The same, and whether the search is complete: a log that an incomplete search has not found may still exist.
    pub(super) async fn recent_logs_partial(
        &self,
        filter: Filter,
        (authorizations, head): (&[Signed<'_>], u64),
        enough: impl Fn(&[Log]) -> bool,
    ) -> Result<(Vec<Log>, bool), RpcError> {
        let first = (head + 1).saturating_sub(self.blocks_per_hour(head).await?);
        let (mut logs, mut last, mut bisected) = (Vec::new(), head, false);
        for _ in 0..CALLS_MAX {
            let (found, from) = self.logs_up_to(&filter, first, last).await?;
            logs.extend(found);
            if enough(&logs) || from <= first {
                return Ok((logs, true));
            }
            last = from - 1;
            let calls_left = (last - first) / self.log_range.blocks();
            if calls_left > CALLS_BEFORE_BISECTION && !bisected {
                bisected = true;
                match self
                    .logs_at_nonce_use(&filter, authorizations, (first, last))
                    .await
                {
                    Ok(found) => {
                        logs.extend(found);
                        return Ok((logs, true));
                    }
                    // The node has pruned the old state: continue range by range.
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::MissingState | ErrorKind::MissingBlock
                        ) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((logs, false))
    }

    /// Logs of as many blocks as a provider accepts, up to height `last` and not below `first`; and the height of the first of them.
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
                    self.log_range.record_accepted();
                    return Ok((logs, from));
                }
                Err(error) if error.kind() == ErrorKind::RangeTooWide && last > from => {
                    self.log_range.shrink(last - from + 1);
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

    /// Logs of the blocks in which the nonces of the authorizations were used, if these are in the range `within`.
    async fn logs_at_nonce_use(
        &self,
        filter: &Filter,
        authorizations: &[Signed<'_>],
        within: (u64, u64),
    ) -> Result<Vec<Log>, RpcError> {
        let mut logs = Vec::new();
        for signed in authorizations {
            if let Some(block) = self.block_of_nonce_use(*signed, within).await? {
                logs.extend(self.logs_between(filter, block, block).await?);
            }
        }
        Ok(logs)
    }

    /// The block in which a nonce was used, by bisection. `None`: the nonce is unused at height `last`.
    pub(super) async fn block_of_nonce_use(
        &self,
        signed: Signed<'_>,
        (first, last): (u64, u64),
    ) -> Result<Option<u64>, RpcError> {
        if !self.is_nonce_used_at(signed, last).await? {
            return Ok(None);
        }
        // A nonce that was used before `first` yields `first`, whose logs do not contain the use. The state before `first` is not read,
        // because it may be pruned.
        let (mut unused, mut used) = (first.saturating_sub(1), last);
        while used - unused > 1 {
            let middle = unused + (used - unused) / 2;
            if self.is_nonce_used_at(signed, middle).await? {
                used = middle;
            } else {
                unused = middle;
            }
        }
        Ok(Some(used))
    }

    pub(super) async fn is_nonce_used_at(
        &self,
        signed: Signed<'_>,
        block: u64,
    ) -> Result<bool, RpcError> {
        let mut used = self.nonces_used(&[signed], block).await?;
        used.pop().ok_or(RpcError::Malformed("eth_call"))?
    }

    /// How many blocks the chain makes in an hour; measured once per network.
    async fn blocks_per_hour(&self, head: u64) -> Result<u64, RpcError> {
        let known = self.log_range.blocks_per_hour.load(Ordering::Relaxed);
        if known > 0 {
            return Ok(known);
        }
        // On a young chain search everything. Its block time cannot be measured, because its first block may have any timestamp.
        if head <= SAMPLE_BLOCKS {
            return Ok(head + 1);
        }
        let before = head - SAMPLE_BLOCKS;
        let (newest, earlier) = (
            self.block_time_at(head).await?,
            self.block_time_at(before).await?,
        );
        let (Some(newest), Some(earlier)) = (newest, earlier) else {
            return Ok(LOOK_BACK_BLOCKS.0);
        };
        let seconds = u64::try_from(newest - earlier).unwrap_or_default().max(1);
        let blocks = SAMPLE_BLOCKS.saturating_mul(LOOK_BACK_S) / seconds;
        let blocks = blocks.clamp(LOOK_BACK_BLOCKS.0, LOOK_BACK_BLOCKS.1);
        self.log_range
            .blocks_per_hour
            .store(blocks, Ordering::Relaxed);
        Ok(blocks)
    }

    async fn block_time_at(&self, number: u64) -> Result<Option<i64>, RpcError> {
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
    fn range_is_halved_when_rejected_and_doubled_after_many_accepted_calls() {
        let range = LogRange::default();
        let mut rejected = 0;
        while range.blocks() > 5 {
            range.shrink(range.blocks());
            rejected += 1;
        }
        assert_eq!((range.blocks(), rejected), (3, 8));
        for _ in 0..=WIDEN_AFTER {
            range.record_accepted();
        }
        assert_eq!(range.blocks(), 6);
        range.shrink(1);
        assert_eq!(range.blocks(), 1, "at least one block");
    }
}
