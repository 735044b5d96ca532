//! What the watch has seen of the chain, for the lanes to read: the head, and receipts of our own transactions in recent blocks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use alloy::primitives::B256;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::chain::{Head, Receipt};

/// Blocks whose receipts are kept.
const BLOCKS_KEPT: usize = 64;

/// A signal to the lanes that the chain moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// The newest block, once one was seen.
    pub head: Option<Head>,
    /// Since when it is the newest.
    pub since: Option<Instant>,
    /// Counts reorganisations: after one, a lane reads its open transactions anew.
    pub reorganisations: u64,
    /// Counts blocks whose receipts were not read: after one, a lane asks for its transactions by hash.
    pub gaps: u64,
}

/// Shared between the watch, which writes, and the lanes, which read.
#[derive(Debug)]
pub struct ChainView {
    moved: watch::Sender<Moved>,
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
            moved: watch::Sender::new(Moved::default()),
            recent: Mutex::default(),
        }
    }
}

impl ChainView {
    /// The newest block seen.
    pub fn head(&self) -> Option<Head> {
        self.moved.borrow().head
    }

    /// What was seen so far.
    pub fn moved(&self) -> Moved {
        *self.moved.borrow()
    }

    /// A receiver that tells when the chain moves.
    pub fn subscribe(&self) -> watch::Receiver<Moved> {
        self.moved.subscribe()
    }

    /// The receipt of one of our transactions, if it stands in a recent canonical block.
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

    /// Forgets what stood in blocks that left the chain.
    pub fn remove_blocks(&self, removed: &[B256]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent
            .receipts
            .retain(|_, receipt| !removed.contains(&receipt.block_hash));
        recent.blocks.retain(|(block, _)| !removed.contains(block));
    }

    /// Tells the lanes.
    pub fn publish(&self, head: Head, reorganised: bool, gap: bool) {
        self.moved.send_modify(|moved| {
            if moved.head.is_none_or(|known| known.hash != head.hash) {
                moved.since = Some(Instant::now());
            }
            moved.head = Some(head);
            moved.reorganisations += u64::from(reorganised);
            moved.gaps += u64::from(gap);
        });
    }
}

impl Recent {
    fn forget_first(&mut self) {
        if let Some((block, hashes)) = self.blocks.pop_front() {
            for hash in hashes {
                // The transaction may stand in a later block by now.
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
