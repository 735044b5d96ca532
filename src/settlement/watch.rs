//! The watch of a network: looks at new blocks, reads their receipts, promotes and takes back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::{Advance, HeadTracker, RpcError};
use crate::ledger::LedgerError;
use crate::settlement::Site;
use crate::settlement::failpoint::panic_if_asked;
use crate::telemetry::causes;

/// How often to look while nothing is in flight: often enough for fees and the chain's time to be fresh.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the ledger is compared with the chain.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(3);
/// Blocks after which a settled payment counts as final.
const FINAL_AFTER_BLOCKS: u64 = 64;
/// How often a node is asked what producers of blocks want.
const TIP_INTERVAL: Duration = Duration::from_secs(15);
/// The same for what gas costs on a chain without a base fee.
const PRICE_INTERVAL: Duration = Duration::from_secs(3);

/// Gaps between blocks that are remembered, and how many must be known before anything is expected of the next one.
const GAPS_KEPT: usize = 8;
const GAPS_TELLING: usize = 4;

/// The task that watches one network.
#[derive(Debug)]
pub struct Watch {
    site: Arc<Site>,
    tracker: HeadTracker,
    reconciled: Option<Instant>,
    tipped: Option<Instant>,
    priced: Option<Instant>,
    /// Blocks cost more than is allowed.
    dear: bool,
    rhythm: Rhythm,
}

/// When blocks came, to know when not to look for the next.
#[derive(Debug, Default)]
struct Rhythm {
    last: Option<Instant>,
    gaps: VecDeque<Duration>,
}

impl Rhythm {
    fn blocks_came(&mut self, now: Instant, count: usize) {
        if let Some(last) = self.last.replace(now) {
            let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
            self.gaps.push_back(now.duration_since(last) / count);
        }
        while self.gaps.len() > GAPS_KEPT {
            self.gaps.pop_front();
        }
    }

    /// How long to pause when looks are due every `poll`: up to four times as long while no block ever came so soon after the last.
    fn pause(&self, now: Instant, poll: Duration) -> Duration {
        let least = self.gaps.iter().min();
        let (Some(least), Some(last)) = (least, self.last) else {
            return poll;
        };
        if self.gaps.len() < GAPS_TELLING {
            return poll;
        }
        let quiet_until = last + *least * 3 / 4;
        quiet_until
            .saturating_duration_since(now)
            .clamp(poll, poll * 4)
    }
}

impl Watch {
    /// A watch over `site`.
    pub fn new(site: Arc<Site>) -> Self {
        let tracker = HeadTracker::new(site.rpc.clone());
        Self {
            site,
            tracker,
            reconciled: None,
            tipped: None,
            priced: None,
            dear: false,
            rhythm: Rhythm::default(),
        }
    }

    /// Watches until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let network = self.site.policy.network;
        let mut failing = false;
        loop {
            match self.step().await {
                Ok(()) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!(%network, "the RPC answers again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%network, %error, "cannot follow the chain; trying again until it answers");
                    }
                }
            }
            let interval = if self.site.is_busy() {
                self.rhythm.pause(Instant::now(), self.site.poll)
            } else {
                IDLE_INTERVAL
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.site.look_wanted() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// One look at the chain and all that follows from it.
    async fn step(&mut self) -> Result<(), RpcError> {
        panic_if_asked("watch");
        let advance = self.tracker.advance().await?;
        self.site.note_seen();
        if let Some(advance) = advance {
            self.rhythm.blocks_came(Instant::now(), advance.added.len());
            self.price().await;
            self.follow(&advance).await;
            self.say_price();
        }
        let due = |last: Option<Instant>, interval| last.is_none_or(|at| at.elapsed() >= interval);
        if due(self.tipped, TIP_INTERVAL) {
            self.tipped = Some(Instant::now());
            // A chain without tips does not know the question.
            if let Ok(wei) = self.site.rpc.suggested_tip().await {
                self.site.suggest_tip(wei);
            }
            self.ask_for_data_fee().await;
        }
        if due(self.reconciled, RECONCILE_INTERVAL) {
            self.reconciled = Some(Instant::now());
            if let Err(error) = self.reconcile().await {
                tracing::warn!(
                    error = causes(&error),
                    "cannot compare the ledger with the chain"
                );
            }
        }
        Ok(())
    }

    /// Asks a rollup what it takes for data.
    async fn ask_for_data_fee(&self) {
        if self.site.has_data_fee()
            && let Ok(Some(wei)) = self.site.rpc.data_fee().await
        {
            self.site.gas.expect_data_fee(wei);
        }
    }

    /// Says so when blocks cost more than is allowed, and when they do not any more.
    fn say_price(&mut self) {
        let dear = self.site.blocks_are_affordable().err();
        let was_dear = std::mem::replace(&mut self.dear, dear.is_some());
        match dear {
            Some(dear) if !was_dear => tracing::error!("gas too dear: {dear}"),
            None if was_dear => {
                tracing::info!(network = %self.site.policy.network, "gas is affordable again");
            }
            Some(_) | None => {}
        }
    }

    /// Asks what gas costs where blocks do not say; before the first block is known to anybody.
    async fn price(&mut self) {
        let legacy = (self.tracker.head()).is_some_and(|head| head.base_fee_wei.is_none());
        let due = (self.priced).is_none_or(|at| at.elapsed() >= PRICE_INTERVAL);
        if legacy
            && due
            && let Ok(wei) = self.site.rpc.gas_price().await
        {
            self.priced = Some(Instant::now());
            self.site.note_gas_price(wei);
        }
    }

    async fn follow(&mut self, advance: &Advance) {
        let mut gap = advance.skipped;
        let reorganised = !advance.removed.is_empty();
        if reorganised {
            let lowest = advance.added.first().map_or(0, |head| head.number);
            self.take_back(&advance.removed, lowest).await;
        }
        if self.site.is_busy() {
            for block in &advance.added {
                let Ok(receipts) = self.site.rpc.block_receipts(block.hash).await else {
                    // The lanes ask for their transactions by hash; a node in trouble is not asked for every block.
                    gap = true;
                    break;
                };
                let ours = receipts.into_iter();
                let ours = ours.filter(|receipt| self.site.policy.signers.contains(&receipt.from));
                self.site.view.add_block(block.hash, ours.collect());
            }
        }
        if let Some(head) = advance.added.last() {
            self.site.view.publish(*head, reorganised, gap);
            if self.site.take_shallow() {
                self.promote(head.number).await;
            }
        }
    }

    async fn promote(&self, head: u64) {
        let head = self.site.rpc.confirmed_height(head);
        match self
            .site
            .ledger
            .confirm(self.site.policy.network, head)
            .await
        {
            Ok((settled, waiting)) => {
                if waiting {
                    self.site.note_shallow();
                }
                self.site.waiters.wake(settled);
            }
            Err(error) => {
                self.site.note_shallow();
                tracing::warn!(
                    error = causes(&error),
                    "cannot promote payments that reached their depth"
                );
            }
        }
    }

    /// Takes back what stood in blocks, none of them below `lowest`.
    async fn take_back(&self, removed: &[B256], lowest: u64) {
        let network = self.site.policy.network;
        self.site.view.remove_blocks(removed);
        match self.site.ledger.unmine(network, removed, lowest).await {
            Ok(0) => {}
            Ok(transactions) => {
                tracing::warn!(%network, blocks = removed.len(), transactions, "blocks left the chain; their payments are in flight again");
            }
            Err(error) => {
                tracing::error!(%network, error = causes(&error), "cannot take back blocks that left the chain");
            }
        }
    }

    /// Compares what the ledger believes about recent blocks with the chain.
    async fn reconcile(&mut self) -> Result<(), LedgerError> {
        let network = self.site.policy.network;
        let Some(head) = self.tracker.head() else {
            return Ok(());
        };
        let height = self.site.rpc.confirmed_height(head.number);
        let final_height = height.saturating_sub(FINAL_AFTER_BLOCKS);
        let ledger = &self.site.ledger;
        // Blocks above our own head are news from another process, not blocks that are gone.
        let believed = ledger.blocks_between(network, final_height, head.number);
        let (mut gone, mut lowest) = (Vec::new(), head.number);
        for (number, hash) in believed.await? {
            let canonical = match self.tracker.canonical(number) {
                Some(canonical) => Some(canonical),
                // A node that does not have the height, or does not answer, says nothing about the block.
                None => self.site.rpc.canonical(number).await.ok().flatten(),
            };
            if canonical.is_some_and(|canonical| canonical != hash) {
                gone.push(hash);
                lowest = lowest.min(number);
            }
        }
        if gone.is_empty() {
            // Nothing is final while something is not what it seems.
            ledger.finalise(network, final_height).await?;
        } else {
            self.take_back(&gone, lowest).await;
            self.site.view.publish(head, true, true);
        }
        self.promote(head.number).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(150);

    #[test]
    fn between_blocks_that_come_by_the_clock_looks_are_rare_and_around_the_next_one_they_are_not() {
        let mut rhythm = Rhythm::default();
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        for block in 0..3 {
            rhythm.blocks_came(at(block * 2_000), 1);
        }
        assert_eq!(rhythm.pause(at(4_000), POLL), POLL, "too little is known");
        for block in 3..6 {
            rhythm.blocks_came(at(block * 2_000), 1);
        }
        assert_eq!(rhythm.pause(at(10_000), POLL), POLL * 4);
        assert_eq!(
            rhythm.pause(at(11_200), POLL),
            Duration::from_millis(300),
            "as long as it is quiet"
        );
        assert_eq!(rhythm.pause(at(11_500), POLL), POLL);
        assert_eq!(rhythm.pause(at(15_000), POLL), POLL);
    }

    #[test]
    fn one_early_block_is_remembered() {
        let mut rhythm = Rhythm::default();
        let begin = Instant::now();
        for milliseconds in [0, 2_000, 4_000, 6_000, 6_100, 8_000] {
            rhythm.blocks_came(begin + Duration::from_millis(milliseconds), 1);
        }
        let now = begin + Duration::from_secs(8);
        assert_eq!(rhythm.pause(now, POLL), POLL);
    }
}
