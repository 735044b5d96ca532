//! An accepted payment, as stored in the ledger.

use std::fmt;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::payment::{PaymentState, PaymentTerms, Who};
use crate::protocol::session::Rail;

/// The ledger's id of a payment: unique, assigned at acceptance, ordered by time of acceptance (UUID v7).
///
/// Other facilitators call the transaction hash *payment id*. Here several payments can share one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PaymentId(pub Uuid);

impl fmt::Display for PaymentId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// An accepted payment.
#[derive(Clone, PartialEq, Eq)]
pub struct Payment {
    pub id: PaymentId,
    pub rail: Rail,
    pub terms: PaymentTerms,
    /// The URL of the resource, if the request named one.
    pub resource: Option<String>,
    pub state: PaymentState,
    /// Whose `/settle` accepted it; `None`: nobody's so far.
    pub caller: Option<Who>,
    /// The confirmations that the payment needs to be settled, fixed at acceptance.
    pub confirmations: u32,
    /// Why the payment is quarantined for the operator, if it is.
    pub quarantine: Option<String>,
    /// Why the transfer does not pay for anything, such as a transfer after the session's expiry. Such a payment is never granted.
    pub unmatched: Option<String>,
    /// It is queued although its success was told: a reorg has undone its transaction. It is sent whatever the gas budgets say.
    pub told: bool,
    pub created_at: OffsetDateTime,
    /// When the row last changed.
    pub updated_at: OffsetDateTime,
}

impl Payment {
    /// Whether another caller than `who` has had the payment accepted.
    pub fn belongs_to_another(&self, who: Who) -> bool {
        self.caller.is_some_and(|owner| owner != who)
    }
}

impl fmt::Debug for Payment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Payment")
            .field("id", &self.id)
            .field("terms", &self.terms)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
