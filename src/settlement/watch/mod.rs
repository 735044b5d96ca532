//! The watch of a network: reads new blocks and their receipts, confirms payments, rolls back reorgs.

mod chain_view;

pub use chain_view::{ChainTick, ChainView};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::{Advance, Head, HeadTracker, RpcError};
use crate::ledger::{LedgerError, RolledBack};
use crate::settlement::ServedNetwork;
use crate::settlement::failpoint::panic_if_asked;
use crate::telemetry::causes;
use crate::telemetry::metrics::{Limit, Step, reached};

/// How often to look for a block while nothing is in flight: often enough for current fees and block time.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the ledger's blocks are compared with the chain.
const COMPARE_INTERVAL: Duration = Duration::from_secs(3);
/// How often they are compared again at once, after some were orphaned.
const COMPARE_ROUNDS: usize = 8;
/// Blocks after which a settled payment is final.
const FINAL_AFTER_BLOCKS: u64 = 64;
/// How often a node is asked for the priority fee.
const TIP_INTERVAL: Duration = Duration::from_secs(15);
/// How often a node is asked for the gas price, on chains without a base fee.
const PRICE_INTERVAL: Duration = Duration::from_secs(3);

/// Block intervals that are remembered, and how many are needed to predict the next block.
const GAPS_KEPT: usize = 8;
const GAPS_NEEDED: usize = 4;

/// The task that watches one network.
#[derive(Debug)]
pub struct Watch {
    served: Arc<ServedNetwork>,
    tracker: HeadTracker,
    compared_at: Option<Instant>,
    tip_read_at: Option<Instant>,
    price_read_at: Option<Instant>,
    /// Gas costs more than the cap, or its price is not known.
    fees_too_high: bool,
    intervals: BlockIntervals,
}

/// Times between recent blocks, to skip polls while no block can come.
#[derive(Debug, Default)]
struct BlockIntervals {
    last: Option<Instant>,
    gaps: VecDeque<Duration>,
}

impl BlockIntervals {
    fn add_blocks(&mut self, now: Instant, count: usize) {
        if let Some(last) = self.last.replace(now) {
            let count = u32::try_from(count).unwrap_or(u32::MAX).max(1);
            self.gaps.push_back(now.duration_since(last) / count);
        }
        while self.gaps.len() > GAPS_KEPT {
            self.gaps.pop_front();
        }
    }

    /// The pause before the next poll: `poll`, or up to four times that while no block has ever come so soon after the last.
    fn pause(&self, now: Instant, poll: Duration) -> Duration {
        let least = self.gaps.iter().min();
        let (Some(least), Some(last)) = (least, self.last) else {
            return poll;
        };
        if self.gaps.len() < GAPS_NEEDED {
            return poll;
        }
        let no_block_until = last + *least * 3 / 4;
        no_block_until
            .saturating_duration_since(now)
            .clamp(poll, poll * 4)
    }
}

impl Watch {
    pub fn new(served: Arc<ServedNetwork>) -> Self {
        let tracker = HeadTracker::new(served.rpc.clone());
        Self {
            served,
            tracker,
            compared_at: None,
            tip_read_at: None,
            price_read_at: None,
            fees_too_high: false,
            intervals: BlockIntervals::default(),
        }
    }

    /// Watches until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            match self.check_chain().await {
                Ok(()) => {
                    if std::mem::replace(&mut failing, false) {
                        tracing::info!("RPC answers again");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "chain not followed: no usable RPC answer, retrying");
                    }
                }
            }
            let interval = if self.served.is_busy() {
                self.intervals.pause(Instant::now(), self.served.poll)
            } else {
                IDLE_INTERVAL
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.served.watch_woken() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Reads the chain once and does everything that depends on new blocks.
    async fn check_chain(&mut self) -> Result<(), RpcError> {
        panic_if_asked("watch");
        let advance = self.tracker.advance().await?;
        self.served.note_answer();
        if let Some(advance) = advance {
            self.intervals
                .add_blocks(Instant::now(), advance.added.len());
            self.read_gas_price().await;
            self.apply(&advance).await;
            self.log_affordability();
        }
        let due = |last: Option<Instant>, interval| last.is_none_or(|at| at.elapsed() >= interval);
        if due(self.tip_read_at, TIP_INTERVAL) {
            self.tip_read_at = Some(Instant::now());
            // A chain without priority fees does not have this method.
            if let Ok(wei) = self.served.rpc.suggested_priority_fee().await {
                self.served.suggest_tip(wei);
            }
            self.read_data_fee().await;
        }
        if due(self.compared_at, COMPARE_INTERVAL) {
            self.compared_at = Some(Instant::now());
            if let Err(error) = self.compare_until_canonical().await {
                tracing::warn!(
                    error = causes(&error),
                    "recent blocks in the ledger not compared with the chain: retrying"
                );
            }
        }
        Ok(())
    }

    /// Asks a rollup for its data fee.
    async fn read_data_fee(&self) {
        if self.served.has_data_fee()
            && let Ok(Some(wei)) = self.served.rpc.data_fee().await
        {
            self.served.gas.note_data_fee(wei);
        }
    }

    /// Logs when gas stops being affordable, and when it is affordable again.
    fn log_affordability(&mut self) {
        let too_high = self.served.gas_is_affordable().err();
        let was_too_high = std::mem::replace(&mut self.fees_too_high, too_high.is_some());
        match too_high {
            Some(error) if !was_too_high => {
                reached(Limit::MaxFee);
                tracing::error!("gas not affordable: {error}");
            }
            None if was_too_high => {
                tracing::info!("gas affordable again");
            }
            Some(_) | None => {}
        }
    }

    /// Asks for the gas price where blocks have no base fee, before the block is published.
    async fn read_gas_price(&mut self) {
        let legacy = (self.tracker.head()).is_some_and(|head| head.base_fee_wei.is_none());
        let due = (self.price_read_at).is_none_or(|at| at.elapsed() >= PRICE_INTERVAL);
        if legacy
            && due
            && let Ok(wei) = self.served.rpc.gas_price().await
        {
            self.price_read_at = Some(Instant::now());
            self.served.note_gas_price(wei);
        }
    }

    async fn apply(&mut self, advance: &Advance) {
        let mut gap = advance.skipped;
        if advance.skipped {
            // The blocks read before may be orphaned.
            self.served.view.forget_blocks();
        }
        let reorganised = !advance.removed.is_empty();
        if reorganised {
            let lowest = advance.added.first().map_or(0, |head| head.number);
            if let Err(error) = self.roll_back(&advance.removed, lowest).await {
                tracing::error!(error = causes(&error), "reorg not recorded: retrying");
            }
        }
        if self.served.is_busy() {
            for block in &advance.added {
                let Ok(receipts) = self.served.rpc.block_receipts(block.hash).await else {
                    // The lanes ask for their receipts by hash. A failing node is not asked for every block.
                    gap = true;
                    break;
                };
                let ours = receipts.into_iter();
                let ours =
                    ours.filter(|receipt| self.served.policy.signers.contains(&receipt.from));
                self.served.view.add_block(block.hash, ours.collect());
            }
        }
        if let Some(head) = advance.added.last() {
            self.served.view.publish(*head, reorganised, gap);
            if self.served.take_unconfirmed() {
                self.confirm_payments(head.number, &self.tracker.recent_hashes())
                    .await;
            }
        }
    }

    /// Settles payments with enough confirmations in the blocks `canonical`.
    async fn confirm_payments(&self, head: u64, canonical: &[B256]) {
        let head = self.served.rpc.agreed_height(head);
        match self
            .served
            .ledger
            .confirm(self.served.policy.network, head, canonical)
            .await
        {
            Ok((settled, waiting)) => {
                if waiting {
                    self.served.note_unconfirmed();
                }
                for payment in &settled {
                    self.served.note_step(payment.into(), Step::Settled);
                }
                let settled = settled.into_iter().map(|settled| settled.payment);
                self.served.waiters.wake(settled);
            }
            Err(error) => {
                self.served.note_unconfirmed();
                tracing::warn!(
                    error = causes(&error),
                    "confirmed payments not recorded as settled: retrying"
                );
            }
        }
    }

    /// Rolls back orphaned blocks, none of them below `lowest`.
    async fn roll_back(&self, removed: &[B256], lowest: u64) -> Result<(), LedgerError> {
        let network = self.served.policy.network;
        self.served.view.remove_blocks(removed);
        self.served.metrics.reorged(removed.len());
        let rolled_back = self.served.ledger.roll_back(network, removed, lowest);
        let RolledBack {
            transactions,
            payments,
        } = rolled_back.await?;
        if transactions > 0 || payments > 0 {
            tracing::warn!(
                blocks = removed.len(),
                transactions,
                payments,
                "reorg: blocks orphaned, their payments are in flight or queued again"
            );
        }
        Ok(())
    }

    /// Compares the ledger's blocks with the chain, until none is orphaned: below an orphaned block there may be another.
    async fn compare_until_canonical(&mut self) -> Result<(), LedgerError> {
        let Some(head) = self.tracker.head() else {
            return Ok(());
        };
        for _ in 0..COMPARE_ROUNDS {
            if self.compare_blocks(&head).await? {
                break;
            }
            self.served.view.publish(head, true, true);
        }
        Ok(())
    }

    /// Rolls back orphaned blocks of the ledger; confirms and finalises the payments of the others. `false`: blocks were orphaned.
    async fn compare_blocks(&mut self, head: &Head) -> Result<bool, LedgerError> {
        let network = self.served.policy.network;
        let height = self.served.rpc.agreed_height(head.number);
        if height == 0 {
            // Too few endpoints have shown their heads.
            return Ok(true);
        }
        let final_height = height.saturating_sub(FINAL_AFTER_BLOCKS);
        let ledger = &self.served.ledger;
        // Blocks above our own head were recorded by another process; they are not orphaned.
        let recorded = ledger.unfinal_blocks(network, final_height, head.number);
        let recorded = recorded.await?;
        let compared = self.tracker.compare(&recorded, final_height).await;
        let canonical = &compared.canonical;
        ledger.finalise(network, final_height, canonical).await?;
        self.confirm_payments(head.number, canonical).await;
        let lowest = compared.orphaned.iter().map(|(number, _)| *number).min();
        let Some(lowest) = lowest else {
            return Ok(true);
        };
        let orphaned: Vec<B256> = compared.orphaned.iter().map(|(_, hash)| *hash).collect();
        self.roll_back(&orphaned, lowest).await?;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(150);

    #[test]
    fn polls_are_rare_between_regular_blocks_and_frequent_near_the_next() {
        let mut intervals = BlockIntervals::default();
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        for block in 0..3 {
            intervals.add_blocks(at(block * 2_000), 1);
        }
        assert_eq!(
            intervals.pause(at(4_000), POLL),
            POLL,
            "too little is known"
        );
        for block in 3..6 {
            intervals.add_blocks(at(block * 2_000), 1);
        }
        assert_eq!(intervals.pause(at(10_000), POLL), POLL * 4);
        assert_eq!(
            intervals.pause(at(11_200), POLL),
            Duration::from_millis(300),
            "as long as it is quiet"
        );
        assert_eq!(intervals.pause(at(11_500), POLL), POLL);
        assert_eq!(intervals.pause(at(15_000), POLL), POLL);
    }

    #[test]
    fn early_block_is_remembered() {
        let mut intervals = BlockIntervals::default();
        let begin = Instant::now();
        for milliseconds in [0, 2_000, 4_000, 6_000, 6_100, 8_000] {
            intervals.add_blocks(begin + Duration::from_millis(milliseconds), 1);
        }
        let now = begin + Duration::from_secs(8);
        assert_eq!(intervals.pause(now, POLL), POLL);
    }
}
