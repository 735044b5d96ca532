//! Pays for HTTP resources: sends a request, reads the 402 challenge, signs an offer within the caller's limits, and sends the request
//! again with the payment. Start with [`Client`], or with [`pay`] for a single call.
//!
//! Knows HTTP and the payer's key. Must not import the facilitator's modules or the seller's. Invariants:
//!
//! - Nothing is signed above the caller's ceiling or for an unknown token.
//! - A purchase never has two payments that can both settle: each payment is written to the [`Journal`] before it is sent, and is
//!   presented again until its outcome is known.
//! - A request that carries a payment follows no redirect.
//! - Sellers that are not on this machine are paid over https alone, unless the caller allows http.
//! - A host that a seller names is reached at public addresses alone.
//! - Every error says whether money may have moved ([`BuyerError::money_may_have_moved`]).
#![warn(missing_docs)]

mod chain;
mod choose;
mod client;
mod early;
mod error;
mod exchange;
mod fees;
mod journal;
mod purchase;
pub(crate) mod reach;
mod scheme;
mod session;
mod signer;
mod status;
mod verdict;

use reqwest::header::HeaderMap;

use crate::protocol::{SettleResponse, header};

pub use choose::{PayOptions, SessionUse};
pub use client::{Client, Paid, SessionReceipt};
pub use error::{BuyerError, ExchangeError, SessionFailure, SignedPayment};
pub use exchange::Request;
pub use journal::{Journal, JournalError};
pub use signer::{DigestSigner, KeyError, Signer};

/// Sends `GET url` and pays for it when the answer is a 402.
///
/// Use a [`Client`] for more than one call: it reuses connections, and its journal makes it safe to call again after an error. The
/// journal of this function ends with the call, so a second call after an error signs a second payment.
///
/// # Errors
/// [`BuyerError`]; check [`BuyerError::money_may_have_moved`] before paying again.
pub async fn pay(url: &str, signer: Signer, options: &PayOptions) -> Result<Paid, BuyerError> {
    Client::new(signer)?.get(url, options).await
}

/// The transaction hash in a seller's payment response header, `None` for any other text. It is no proof of settlement: a response with `settlement_pending` names
/// a hash too.
pub fn extract_payment_id(headers: &HeaderMap) -> Option<String> {
    settlement(headers)
        .map(|settled| settled.transaction)
        .filter(|hash| verdict::is_hash(hash))
}

/// Decodes the seller's payment response header: v2's if it is there, else v1's.
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

    const HASH: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn headers(name: &'static str, transaction: &str) -> HeaderMap {
        let outcome =
            json!({"success": true, "transaction": transaction, "network": "eip155:84532"});
        let value = HeaderValue::from_str(&header::encode(&outcome).unwrap()).unwrap();
        HeaderMap::from_iter([(reqwest::header::HeaderName::from_static(name), value)])
    }

    #[test]
    fn payment_id_is_read_from_v1_and_v2_headers() {
        for name in [header::PAYMENT_RESPONSE, header::X_PAYMENT_RESPONSE] {
            assert_eq!(
                extract_payment_id(&headers(name, HASH)).as_deref(),
                Some(HASH)
            );
        }
        for other in ["", "0x12", "0x12\u{1b}[2K"] {
            let headers = headers(header::PAYMENT_RESPONSE, other);
            assert_eq!(extract_payment_id(&headers), None);
        }
        assert_eq!(extract_payment_id(&HeaderMap::new()), None);
    }
}
