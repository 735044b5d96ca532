//! The states of a payment. The table of allowed changes is `payment_transitions` in the ledger's migrations.

use alloy::primitives::B256;
use time::OffsetDateTime;

use crate::protocol::Reason;

/// Where a payment's Transfer stands on the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// The transaction that moved the money: ours, or somebody else's with the same authorization.
    pub transaction: B256,
    /// Position of the Transfer log in its block.
    pub log_index: u64,
    /// The block's height.
    pub block_number: u64,
    /// The block's hash: another hash at this height means a reorganisation.
    pub block_hash: B256,
    /// The block's time.
    pub block_time: OffsetDateTime,
}

impl Location {
    /// Whether it stands at least `confirmations` deep under the block at height `head`; 1 = in a block.
    pub fn is_deep(&self, head: u64, confirmations: u32) -> bool {
        head.saturating_sub(self.block_number) + 1 >= u64::from(confirmations)
    }
}

/// How far a payment got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PaymentState {
    /// Accepted; no bytes exist.
    Queued,
    /// Its bytes are committed and may be on their way; the hash is the newest attempt's.
    Inflight(B256),
    /// In a canonical block, not yet at the promised depth.
    Mined(Location),
    /// At the promised depth.
    Settled(Location),
    /// Settled with nothing: the seller charged 0, which no transaction can show, and the authorization is used up all the same.
    Uncharged,
    /// Beyond the reach of reorganisations.
    Final(Location),
    /// Called failed once, and moved money after all.
    LateSettled(Location),
    /// Ejected before any broadcast; good again when presented again and good.
    Refused(Exit),
    /// Proven unable to move money any more.
    Failed {
        /// Why.
        exit: Exit,
        /// The transaction that had no effect, if there was one.
        transaction: Option<B256>,
    },
}

/// Why a payment left the path to settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The stable code.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

impl PaymentState {
    /// The name in the ledger and in the history.
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

    /// Every name, in the order of a payment's life.
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

    /// Where the money moved, if it did.
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

    /// The transaction to name in an answer.
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
