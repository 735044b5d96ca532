//! The states of a payment. The table of allowed changes is `payment_transitions` in the ledger's migrations.

use alloy::primitives::B256;
use time::OffsetDateTime;

use crate::protocol::Rejection;

/// The position of a payment's `Transfer` event on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The transaction with the transfer. It can be a foreign one that used the same authorization.
    pub transaction: B256,
    /// The index of the `Transfer` log in the block.
    pub log_index: u64,
    pub block_number: u64,
    /// The block's hash. Another hash at this height means a reorg.
    pub block_hash: B256,
    pub block_time: OffsetDateTime,
}

impl Location {
    /// Whether the block at height `head` gives it at least `confirmations` confirmations; 1 = in a block.
    pub fn is_confirmed(&self, head: u64, confirmations: u32) -> bool {
        head.saturating_sub(self.block_number) + 1 >= u64::from(confirmations)
    }
}

/// The state of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentState {
    /// Accepted; no transaction is signed.
    Queued,
    /// A signed transaction is committed and may have been broadcast. The hash is that of the latest attempt.
    Inflight(B256),
    /// In a canonical block, without the required confirmations.
    Mined(Location),
    /// In a canonical block with the required confirmations.
    Settled(Location),
    /// Settled with a charge of 0: there is no transaction, and the authorization counts as used.
    Uncharged,
    /// In a block that can no longer be orphaned.
    Final(Location),
    /// Marked failed earlier, but the transfer was mined after all.
    LateSettled(Location),
    /// Rejected, and no transaction of it is under way. A new request with the same payload is checked again.
    Refused(Rejection),
    /// Proven unable to transfer any more.
    Failed {
        /// Why the payment failed.
        rejection: Rejection,
        /// The transaction without effect, if there was one.
        transaction: Option<B256>,
    },
}

impl PaymentState {
    /// The state's name in the ledger and the history.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Inflight(_) => "inflight",
            Self::Mined(_) => "mined",
            Self::Settled(_) | Self::Uncharged => "settled",
            Self::Final(_) => "final",
            Self::LateSettled(_) => "late_settled",
            Self::Refused(_) => "refused",
            Self::Failed { .. } => "failed",
        }
    }

    /// All names, in the order of a payment's life.
    pub const NAMES: [&'static str; 8] = [
        "queued",
        "inflight",
        "mined",
        "settled",
        "final",
        "late_settled",
        "refused",
        "failed",
    ];

    /// Whether a payment in this state may change to `next`: the rules of the table `payment_transitions`, to which a test of the ledger
    /// compares them. `settled` of a payment without a charge has no transaction, so nothing changes it.
    pub const fn may_become(&self, next: &Self) -> bool {
        match self {
            Self::Queued => matches!(
                next,
                Self::Inflight(_)
                    | Self::Refused(_)
                    | Self::Failed { .. }
                    | Self::Mined(_)
                    | Self::Settled(_)
            ),
            Self::Inflight(_) => matches!(
                next,
                Self::Queued
                    | Self::Mined(_)
                    | Self::Settled(_)
                    | Self::Refused(_)
                    | Self::Failed { .. }
            ),
            Self::Mined(_) => {
                matches!(next, Self::Settled(_) | Self::Inflight(_) | Self::Queued)
            }
            Self::Settled(_) => {
                matches!(next, Self::Final(_) | Self::Inflight(_) | Self::Queued)
            }
            Self::Refused(_) => matches!(
                next,
                Self::Queued
                    | Self::Inflight(_)
                    | Self::Mined(_)
                    | Self::Settled(_)
                    | Self::Uncharged
                    | Self::Failed { .. }
            ),
            Self::Failed { .. } => matches!(next, Self::LateSettled(_)),
            Self::LateSettled(_) => matches!(next, Self::Inflight(_) | Self::Queued),
            Self::Uncharged | Self::Final(_) => false,
        }
    }

    /// The position of the transfer, if it was mined.
    pub const fn location(&self) -> Option<&Location> {
        match self {
            Self::Mined(location)
            | Self::Settled(location)
            | Self::Final(location)
            | Self::LateSettled(location) => Some(location),
            Self::Queued
            | Self::Inflight(_)
            | Self::Uncharged
            | Self::Refused(_)
            | Self::Failed { .. } => None,
        }
    }

    /// The transaction hash for a response.
    pub fn transaction(&self) -> Option<B256> {
        match self {
            Self::Inflight(hash) => Some(*hash),
            Self::Failed { transaction, .. } => *transaction,
            Self::Queued | Self::Uncharged | Self::Refused(_) => None,
            Self::Mined(_) | Self::Settled(_) | Self::Final(_) | Self::LateSettled(_) => {
                self.location().map(|location| location.transaction)
            }
        }
    }
}
