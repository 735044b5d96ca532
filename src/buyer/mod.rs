//! The buyer: one call that meets a 402, pays it and comes back with the resource and a hash.
//!
//! Knows the protocol and an HTTP client. Must not know the facilitator's rooms. What always holds: nothing dearer than the ceiling is
//! signed; the payment goes to the origin that asked for it and nowhere else; one call signs at most one authorization; every
//! error says whether money may have moved.

mod client;
mod error;
mod sign;

use reqwest::header::HeaderMap;

use crate::protocol::{SettleResponse, header};

pub use client::{Client, Paid, PayOptions, Purchase, pay};
pub use error::PayError;
pub use sign::{InvalidKey, Signer};

/// The outcome that a seller reports in its answer's headers, in either dialect.
pub fn settlement_of(headers: &HeaderMap) -> Option<SettleResponse> {
    [header::PAYMENT_RESPONSE, header::X_PAYMENT_RESPONSE]
        .into_iter()
        .find_map(|name| header::decode(headers.get(name)?.to_str().ok()?).ok())
}

/// The *payment id* of the field: the transaction hash in a seller's answer. A hash is no proof of success: look at
/// [`settlement_of`] for that.
pub fn extract_payment_id(headers: &HeaderMap) -> Option<String> {
    settlement_of(headers)
        .map(|settlement| settlement.transaction)
        .filter(|hash| !hash.is_empty())
}
