//! Paying for HTTP resources: ask, read the 402, sign what it asks for if it is not too dear, ask again with the payment.
//!
//! Knows HTTP and the payer's key. Must not know the facilitator's rooms or the seller's. What always holds: nothing is
//! signed above the caller's ceiling or for an unknown token; a purchase never has two payments that can land, because each is written
//! into the [`Journal`] before it leaves and presented again until its outcome is known; a request that carries a payment follows no
//! redirect; and every error says whether money may have moved.
#![warn(missing_docs)]

mod chain;
mod choose;
mod client;
mod error;
mod exchange;
mod journal;
mod purchase;
mod scheme;
mod session;
mod signer;
mod verdict;

use reqwest::header::HeaderMap;

use crate::protocol::{SettleResponse, header};

pub use choose::{PayOptions, SessionUse};
pub use client::{Client, Paid, SessionReceipt};
pub use error::{Broken, BuyerError, Handed, SessionFailure};
pub use exchange::Request;
pub use journal::{Journal, JournalError};
pub use signer::{DigestSigner, KeyError, Signer};

/// Gets `url` and pays for it if asked to.
///
/// For many calls keep a [`Client`]: it keeps its connections, and its journal makes a further call after an error safe. Here the
/// journal ends with the call, so that after an error another call signs another payment.
///
/// # Errors
/// [`BuyerError`]; ask [`BuyerError::money_may_have_moved`] before paying again.
pub async fn pay(url: &str, signer: Signer, options: &PayOptions) -> Result<Paid, BuyerError> {
    Client::new(signer)?.get(url, options).await
}

/// The hash of the transaction that a seller's answer names as its payment. Its presence proves no settlement: an answer
/// with `settlement_pending` names one too.
pub fn extract_payment_id(headers: &HeaderMap) -> Option<String> {
    settlement(headers)
        .map(|settled| settled.transaction)
        .filter(|hash| !hash.is_empty())
}

/// What the seller's answer says about the payment, v2's header first.
fn settlement(headers: &HeaderMap) -> Option<SettleResponse> {
    [header::PAYMENT_RESPONSE, header::X_PAYMENT_RESPONSE]
        .into_iter()
        .find_map(|name| header::decode(headers.get(name)?.to_str().ok()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;
    use serde_json::json;

    fn headers(name: &'static str, transaction: &str) -> HeaderMap {
        let outcome =
            json!({"success": true, "transaction": transaction, "network": "eip155:84532"});
        let value = HeaderValue::from_str(&header::encode(&outcome).unwrap()).unwrap();
        HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), value)])
    }

    #[test]
    fn the_payment_id_is_the_transaction_of_either_result_header() {
        for name in [header::PAYMENT_RESPONSE, header::X_PAYMENT_RESPONSE] {
            assert_eq!(
                extract_payment_id(&headers(name, "0x12")).as_deref(),
                Some("0x12")
            );
        }
        assert_eq!(
            extract_payment_id(&headers(header::PAYMENT_RESPONSE, "")),
            None
        );
        assert_eq!(extract_payment_id(&HeaderMap::new()), None);
    }
}
