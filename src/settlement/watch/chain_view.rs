//! The chain as the watch has read it: the head, and receipts of our own transactions in recent blocks. The lanes read it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use alloy::primitives::B256;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chain::{Head, Receipt};

const BLOCKS_KEPT: usize = 64;

/// The newest state of the chain, sent to the lanes at each new head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChainTick {
    /// The newest block; `None` before the first one.
    pub head: Option<Head>,
    /// When that block was first read.
    pub since: Option<Instant>,
    /// Number of reorgs. After one, a lane reads its open transactions again from the ledger.
    pub reorganisations: u64,
    /// Counts the heads that were published although receipts of blocks up to them may be missing. After one, a lane asks by hash.
    pub gaps: u64,
}

/// Written by the watch, read by the lanes.
#[derive(Debug)]
pub struct ChainView {
    tick: watch::Sender<ChainTick>,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    receipts: HashMap<B256, Receipt>,
    blocks: VecDeque<(B256, Vec<B256>)>,
}

impl Default for ChainView {
    fn default() -> Self {
        Self {
            tick: watch::Sender::new(ChainTick::default()),
            recent: Mutex::default(),
        }
    }
}

impl ChainView {
    pub fn head(&self) -> Option<Head> {
        self.tick.borrow().head
    }

    /// The newest state.
    pub fn latest(&self) -> ChainTick {
        *self.tick.borrow()
    }

    /// A receiver that is notified at each new head.
    pub fn subscribe(&self) -> watch::Receiver<ChainTick> {
        self.tick.subscribe()
    }

    /// The receipt of one of our transactions, if it is in a recent canonical block.
    pub fn receipt(&self, transaction: B256) -> Option<Receipt> {
        self.recent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .receipts
            .get(&transaction)
            .cloned()
    }

    /// Keeps the receipts of a block's transactions.
    pub fn add_block(&self, block: B256, receipts: Vec<Receipt>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let hashes = receipts
            .iter()
            .map(|receipt| receipt.transaction_hash)
            .collect();
        recent.receipts.extend(
            receipts
                .into_iter()
                .map(|receipt| (receipt.transaction_hash, receipt)),
        );
        recent.blocks.push_back((block, hashes));
        while recent.blocks.len() > BLOCKS_KEPT {
            recent.forget_first();
        }
    }

    /// Drops the receipts of orphaned blocks.
    pub fn remove_blocks(&self, removed: &[B256]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent
            .receipts
            .retain(|_, receipt| !removed.contains(&receipt.block_hash));
        recent.blocks.retain(|(block, _)| !removed.contains(block));
    }

    /// Drops all receipts.
    pub fn forget_blocks(&self) {
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
    }

    /// Publishes a new head to the lanes.
    pub fn publish(&self, head: Head, reorganised: bool, gap: bool) {
        self.tick.send_modify(|tick| {
            if tick.head.is_none_or(|known| known.hash != head.hash) {
                tick.since = Some(Instant::now());
            }
            tick.head = Some(head);
            tick.reorganisations += u64::from(reorganised);
            tick.gaps += u64::from(gap);
        });
    }
}

impl Recent {
    fn forget_first(&mut self) {
        if let Some((block, hashes)) = self.blocks.pop_front() {
            for hash in hashes {
                // The transaction may be in a later block by now.
                if self
                    .receipts
                    .get(&hash)
                    .is_some_and(|receipt| receipt.block_hash == block)
                {
                    self.receipts.remove(&hash);
                }
            }
        }
    }
}
