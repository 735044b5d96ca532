//! Classifies a seller's response to a payment.

use reqwest::StatusCode;
use reqwest::header::LOCATION;

use alloy::primitives::{Address, B256};

use crate::buyer::client::challenge_of;
use crate::buyer::exchange::Answer;
use crate::buyer::{BuyerError, ExchangeError, Paid, SignedPayment, settlement};
use crate::protocol::challenge::network_name;
use crate::protocol::header;
use crate::protocol::text::escaped_start;
use crate::protocol::{Amount, PaymentMethod, Reason, SettleResponse, X402Version};

/// The meaning of a response to a presented payment.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The resource was served.
    Served(Paid),
    /// The seller answered without the resource and without a successful payment result. The payment may still settle.
    NotServed(Paid),
    /// The payment settled and the seller's handler failed: presenting the payment again may return the resource.
    PaidNotServed(Paid),
    /// The outcome is open: present the same payment again. When the time is up, the call ends with this error.
    Undecided(BuyerError),
    /// The call ends with this error; presenting the payment again now would not help.
    Final(BuyerError),
}

/// Refusals after which the payment may still be, or become, valid.
const UNDECIDED: &[Reason] = &[
    Reason::UnexpectedVerifyError,
    Reason::UnexpectedSettleError,
    Reason::RateLimited,
    Reason::SessionInUse,
    Reason::SessionIdRequired,
    Reason::TransferNotFound,
];

/// Classifies the response to the payment `signed`.
pub(super) fn classify(answer: Result<Answer, ExchangeError>, signed: &SignedPayment) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(cause) => {
            let too_long = matches!(cause, ExchangeError::TooLong(_));
            let signed = Box::new(*signed);
            let error = BuyerError::PaidUnanswered { signed, cause };
            return if too_long {
                Verdict::Final(error)
            } else {
                Verdict::Undecided(error)
            };
        }
    };
    let outcome = settlement(&answer.headers);
    let settled = outcome.as_ref().is_some_and(|outcome| outcome.success);
    let status = answer.status;
    // Sellers signal a missing allowance to Permit2 by 412 with a new challenge. Any other 412 is the handler's own response.
    let allowance_missing = status == StatusCode::PRECONDITION_FAILED
        && answer.headers.contains_key(header::PAYMENT_REQUIRED);
    if status == StatusCode::PAYMENT_REQUIRED || allowance_missing {
        return refused(&answer, outcome, signed);
    }
    if status.is_redirection() {
        let location = answer
            .headers
            .get(LOCATION)
            .and_then(|text| text.to_str().ok());
        let location = escaped_start(location.unwrap_or_default(), 200);
        let signed = Box::new(*signed);
        return Verdict::Final(BuyerError::Redirected { signed, location });
    }
    if status.is_server_error() && !settled {
        let (signed, status) = (Box::new(*signed), status.as_u16());
        return Verdict::Undecided(BuyerError::OutcomeUnknown { signed, status });
    }
    let what = outcome
        .as_ref()
        .and_then(|outcome| contradiction(outcome, signed));
    let paid = Paid::new(answer, outcome, Some(*signed));
    if let Some(what) = what {
        let (signed, answer) = (Box::new(*signed), Box::new(paid));
        return Verdict::Final(BuyerError::Contradiction {
            signed,
            what,
            answer,
        });
    }
    if status.is_server_error() {
        Verdict::PaidNotServed(paid)
    } else if status.is_success() || settled {
        Verdict::Served(paid)
    } else {
        Verdict::NotServed(paid)
    }
}

/// The first statement of a successful result that contradicts the payment.
fn contradiction(outcome: &SettleResponse, signed: &SignedPayment) -> Option<String> {
    if !outcome.success {
        return None;
    }
    let names =
        [X402Version::V2, X402Version::V1].map(|version| network_name(version, signed.network));
    let is_own = |name: &String| names.iter().flatten().any(|own| own == name);
    // `Debug` would escape less.
    let short = |text: &str| format!("\"{}\"", escaped_start(text, 80));
    if !outcome.network.is_empty() && !is_own(&outcome.network) {
        return Some(format!(
            "it names the network {}, not {}",
            short(&outcome.network),
            signed.network
        ));
    }
    let (maximum, metered) = (signed.amount, signed.method == PaymentMethod::Metered);
    if let Some(amount) = outcome.amount {
        if metered && amount > maximum {
            return Some(format!(
                "it names the amount {amount}, above the maximum of {maximum}"
            ));
        }
        if !metered && amount != maximum {
            return Some(format!("it names the amount {amount}, not {maximum}"));
        }
    }
    let payer = outcome.payer.as_deref().filter(|payer| !payer.is_empty());
    if let Some(payer) = payer.filter(|payer| payer.parse::<Address>().ok() != Some(signed.payer)) {
        return Some(format!(
            "it names the payer {}, not {}",
            short(payer),
            signed.payer
        ));
    }
    let hash = &outcome.transaction;
    (!hash.is_empty() && !is_hash(hash))
        .then(|| format!("it names {}, which is not a transaction hash", short(hash)))
}

/// Whether a text is a transaction hash: `0x` and 64 hex digits.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 66 && text.starts_with("0x") && text.parse::<B256>().is_ok()
}

/// Classifies a response that asks for a payment again.
fn refused(answer: &Answer, outcome: Option<SettleResponse>, signed: &SignedPayment) -> Verdict {
    let challenge = challenge_of(answer, None);
    let text = outcome
        .as_ref()
        .and_then(|outcome| outcome.error_reason.clone());
    let text = text.or_else(|| challenge.as_ref()?.error.clone());
    let reason = escaped_start(text.as_deref().unwrap_or("no reason given"), 300);
    let code: Option<Reason> = reason.parse().ok();
    // A hash or nothing: whatever else stands there is shown to people as a hash.
    let reported_hash = outcome
        .as_ref()
        .map(|outcome| outcome.transaction.clone())
        .filter(|transaction| is_hash(transaction))
        .unwrap_or_default();
    let signed = Box::new(*signed);
    match code {
        Some(Reason::SettlementPending) => {
            return Verdict::Undecided(BuyerError::Pending {
                signed,
                transaction: reported_hash,
            });
        }
        Some(
            Reason::DuplicateSettlement | Reason::ExactNonceUsed | Reason::Permit2InvalidNonce,
        ) => {
            return Verdict::Undecided(BuyerError::Used {
                signed,
                transaction: reported_hash,
            });
        }
        Some(Reason::Permit2AllowanceRequired) if reported_hash.is_empty() => {
            return Verdict::Final(BuyerError::AllowanceRequired { signed });
        }
        _ => {}
    }
    let offers = challenge
        .map(|challenge| challenge.offers())
        .unwrap_or_default();
    let price = |same_amount: bool| -> Option<Amount> {
        let mut prices = offers
            .iter()
            .map(|offer| &offer.requirements)
            .filter(|offer| {
                offer.network == signed.network
                    && offer.payment_method() == Some(signed.method)
                    && offer.asset == signed.asset
                    && (offer.amount == signed.amount) == same_amount
            });
        prices.next().map(|offer| offer.amount)
    };
    if let (None, Some(price)) = (price(true), price(false)) {
        return Verdict::Final(BuyerError::PriceChanged { signed, price });
    }
    let decided = code.is_some_and(|code| !UNDECIDED.contains(&code)) && reported_hash.is_empty();
    let error = BuyerError::Refused {
        signed,
        reason,
        outcome: outcome.map(Box::new),
    };
    if decided {
        Verdict::Final(error)
    } else {
        Verdict::Undecided(error)
    }
}
