//! A transaction that a lane follows until its result is recorded.

use alloy::primitives::U256;
use tokio::time::Instant;

use super::batch::RanWith;
use crate::chain::signer::UnsignedTransaction;
use crate::ledger::PendingTransaction;

/// A transaction that this lane follows.
#[derive(Debug)]
pub(super) struct OpenTransaction {
    pub(super) transaction: PendingTransaction,
    pub(super) sent_at: Instant,
    pub(super) polled_at: Instant,
    /// The last broadcast was not accepted by any endpoint, or its outcome is unknown.
    pub(super) not_accepted: bool,
    /// Since when every check has shown that the nonce is used with the promised confirmations and no node has a receipt of ours.
    pub(super) foreign_since: Option<Instant>,
    /// When the newest bytes were written, or read from the ledger.
    pub(super) written_at: Instant,
    /// The head when the newest bytes started to wait.
    pub(super) since_block: Option<u64>,
    /// The head when a fee bump last failed.
    pub(super) bump_failed_at: Option<u64>,
    /// A node rejected the fee as too low.
    pub(super) fee_too_low: bool,
    /// No node will ever accept the newest bytes.
    pub(super) rejected_for_good: bool,
    /// Most that the newest bytes can cost, in wei.
    pub(super) cost_wei: U256,
    /// What is known of its payers; nothing after a restart.
    pub(super) ran: RanWith,
}

impl OpenTransaction {
    pub(super) fn new(transaction: PendingTransaction, polled_at: Instant) -> Self {
        let mut open = Self {
            transaction,
            sent_at: Instant::now(),
            polled_at,
            not_accepted: false,
            foreign_since: None,
            written_at: Instant::now(),
            since_block: None,
            bump_failed_at: None,
            fee_too_low: false,
            rejected_for_good: false,
            cost_wei: U256::ZERO,
            ran: RanWith::default(),
        };
        open.cost_wei = open
            .unsigned()
            .map_or(U256::ZERO, |unsigned| unsigned.cost());
        open
    }

    /// The newest bytes, decoded.
    pub(super) fn unsigned(&self) -> Option<UnsignedTransaction> {
        let payments = &self.transaction;
        let (_, raw) = payments.attempts.last()?;
        UnsignedTransaction::from_signed_bytes(payments.network, raw)
    }
}
