//! A transaction that a lane watches.

use alloy::primitives::U256;
use tokio::time::Instant;

use crate::chain::signer::Order;
use crate::ledger::Unmined;

/// A transaction that this lane watches.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) transaction: Unmined,
    pub(super) sent_at: Instant,
    pub(super) asked_at: Instant,
    /// The last reply left it open whether any node has the bytes.
    pub(super) doubtful: bool,
    /// Since when every look has shown that the nonce is used at depth and that no node has a receipt of ours.
    pub(super) strange_since: Option<Instant>,
    /// When the newest bytes were written, or found in the ledger.
    pub(super) written_at: Instant,
    /// The block above which they wait.
    pub(super) since_block: Option<u64>,
    /// The block above which no better paid bytes could be written.
    pub(super) failed_at: Option<u64>,
    /// A node said that blocks ask for more.
    pub(super) too_cheap: bool,
    /// No node takes the newest bytes as they are, ever.
    pub(super) unfit: bool,
    /// What the newest bytes may cost, in wei.
    pub(super) cost: U256,
}

impl Open {
    pub(super) fn new(transaction: Unmined, asked_at: Instant) -> Self {
        let mut open = Self {
            transaction,
            sent_at: Instant::now(),
            asked_at,
            doubtful: false,
            strange_since: None,
            written_at: Instant::now(),
            since_block: None,
            failed_at: None,
            too_cheap: false,
            unfit: false,
            cost: U256::ZERO,
        };
        open.cost = open.order().map_or(U256::ZERO, |order| order.cost());
        open
    }

    /// What the newest bytes say.
    pub(super) fn order(&self) -> Option<Order> {
        let payments = &self.transaction;
        let (_, raw) = payments.attempts.last()?;
        Order::of_raw(payments.network, raw)
    }
}
