//! Why a purchase did not come about, and whether money may have moved all the same.

use crate::protocol::{Amount, SettleResponse};

/// A purchase that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// The URL or the request cannot be used.
    #[error("the request cannot be made: {0}")]
    Request(String),
    /// The seller cannot be reached; nothing was signed.
    #[error("the seller cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The seller's 402 cannot be read.
    #[error("the seller asks for a payment in a way that cannot be read: {0}")]
    Challenge(String),
    /// None of the seller's offers can be paid.
    #[error(
        "the seller makes no offer that can be paid: expected scheme exact by EIP-3009 in a known asset{0}"
    )]
    NoOffer(String),
    /// The price is above the ceiling; nothing was signed.
    #[error("the price is {price} atomic units, and the ceiling is {ceiling}")]
    TooDear {
        /// What the seller asks.
        price: Amount,
        /// What the caller allows.
        ceiling: Amount,
    },
    /// The key failed; nothing was sent.
    #[error("the payment cannot be signed")]
    Signing,
    /// The connection broke after the payment was sent.
    #[error(
        "the connection broke after the payment was sent; present the same payment again before signing another"
    )]
    Interrupted(#[source] reqwest::Error),
    /// The seller answered 402 to the payment.
    #[error("the seller refused the payment: {0}")]
    Refused(String, Option<Box<SettleResponse>>),
    /// The payment is on its way and its outcome still open.
    #[error(
        "the payment is on its way in transaction {transaction}; present the same payment again before signing another"
    )]
    Pending {
        /// The transaction.
        transaction: String,
    },
}

impl PayError {
    /// Whether the payer's money may have moved, or may still move.
    pub fn money_may_move(&self) -> bool {
        match self {
            // Also when it was refused, a signed authorization is in the seller's hands, and it is good until it expires.
            Self::Interrupted(_) | Self::Pending { .. } | Self::Refused(..) => true,
            Self::Request(_)
            | Self::Unreachable(_)
            | Self::Challenge(_)
            | Self::NoOffer(_)
            | Self::TooDear { .. }
            | Self::Signing => false,
        }
    }
}
