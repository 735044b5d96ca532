//! What a seller's answer to a payment means.

use reqwest::StatusCode;
use reqwest::header::LOCATION;

use alloy::primitives::{Address, B256};

use crate::buyer::client::challenge_of;
use crate::buyer::exchange::Answer;
use crate::buyer::{Broken, BuyerError, Handed, Paid, settlement};
use crate::protocol::challenge::network_name;
use crate::protocol::header;
use crate::protocol::{Amount, Means, Reason, SettleResponse, X402Version};

/// How to go on after the payment was presented.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The purchase has its resource.
    Served(Paid),
    /// The seller answered something else than the resource, and does not say that money moved. The payment may still land.
    Unserved(Paid),
    /// It was paid, and its handler failed: the same payment may bring the resource.
    Owed(Paid),
    /// Not decided. Present the same payment again; when there is no time left, this is the error.
    Undecided(BuyerError),
    /// Presenting it again would bring nothing.
    Final(BuyerError),
}

/// Refusals by which the payment may be, or may become, good all the same.
const UNDECIDED: &[Reason] = &[
    Reason::UnexpectedVerifyError,
    Reason::UnexpectedSettleError,
    Reason::SessionInUse,
    Reason::TransferNotFound,
];

pub(super) fn judge(answer: Result<Answer, Broken>, handed: &Handed) -> Verdict {
    let answer = match answer {
        Ok(answer) => answer,
        Err(broken) => {
            let too_long = matches!(broken, Broken::TooLong(_));
            let handed = Box::new(*handed);
            let error = BuyerError::PaidUnanswered { handed, broken };
            return if too_long {
                Verdict::Final(error)
            } else {
                Verdict::Undecided(error)
            };
        }
    };
    let outcome = settlement(&answer.headers);
    let moved = outcome.as_ref().is_some_and(|outcome| outcome.success);
    let status = answer.status;
    // Sellers tell a missing allowance by another status; of other causes a 412 is an answer like any.
    let asks_again = status == StatusCode::PRECONDITION_FAILED
        && answer.headers.contains_key(header::PAYMENT_REQUIRED);
    if status == StatusCode::PAYMENT_REQUIRED || asks_again {
        return refused(&answer, outcome, handed);
    }
    if status.is_redirection() {
        let location = answer
            .headers
            .get(LOCATION)
            .and_then(|text| text.to_str().ok());
        let location = location.unwrap_or_default().chars().take(200).collect();
        let handed = Box::new(*handed);
        return Verdict::Final(BuyerError::Redirected { handed, location });
    }
    if status.is_server_error() && !moved {
        let (handed, status) = (Box::new(*handed), status.as_u16());
        return Verdict::Undecided(BuyerError::OutcomeUnknown { handed, status });
    }
    let what = outcome
        .as_ref()
        .and_then(|outcome| contradiction(outcome, handed));
    let paid = Paid::new(answer, outcome, Some(*handed));
    if let Some(what) = what {
        let (handed, answer) = (Box::new(*handed), Box::new(paid));
        return Verdict::Final(BuyerError::Contradiction {
            handed,
            what,
            answer,
        });
    }
    if status.is_server_error() {
        Verdict::Owed(paid)
    } else if status.is_success() || moved {
        Verdict::Served(paid)
    } else {
        Verdict::Unserved(paid)
    }
}

/// What a result says that cannot be true of this payment.
fn contradiction(outcome: &SettleResponse, handed: &Handed) -> Option<String> {
    if !outcome.success {
        return None;
    }
    let names =
        [X402Version::V2, X402Version::V1].map(|version| network_name(version, handed.network));
    let known = |name: &String| names.iter().flatten().any(|known| known == name);
    let shown = |text: &str| text.chars().take(80).collect::<String>();
    if !outcome.network.is_empty() && !known(&outcome.network) {
        return Some(format!(
            "it names the network {:?}, not {}",
            shown(&outcome.network),
            handed.network
        ));
    }
    let (signed, metered) = (handed.amount, handed.means == Means::Metered);
    if let Some(amount) = outcome.amount {
        if metered && amount > signed {
            return Some(format!(
                "it names the amount {amount}, above the maximum of {signed}"
            ));
        }
        if !metered && amount != signed {
            return Some(format!("it names the amount {amount}, not {signed}"));
        }
    }
    let payer = outcome.payer.as_deref().filter(|payer| !payer.is_empty());
    if let Some(payer) = payer.filter(|payer| payer.parse::<Address>().ok() != Some(handed.payer)) {
        return Some(format!(
            "it names the payer {:?}, not {}",
            shown(payer),
            handed.payer
        ));
    }
    let hash = &outcome.transaction;
    (!hash.is_empty() && !is_hash(hash))
        .then(|| format!("it names {:?}, which is no transaction hash", shown(hash)))
}

/// Whether a text is the hash of a transaction: 0x and 64 hex digits.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 66 && text.starts_with("0x") && text.parse::<B256>().is_ok()
}

fn refused(answer: &Answer, outcome: Option<SettleResponse>, handed: &Handed) -> Verdict {
    let challenge = challenge_of(answer, None);
    let told = outcome
        .as_ref()
        .and_then(|outcome| outcome.error_reason.clone());
    let told = told.or_else(|| challenge.as_ref()?.error.clone());
    let reason: String = told
        .as_deref()
        .unwrap_or("no reason given")
        .chars()
        .take(300)
        .collect();
    let known: Option<Reason> = reason.parse().ok();
    let named = outcome
        .as_ref()
        .map(|outcome| outcome.transaction.clone())
        .unwrap_or_default();
    let handed = Box::new(*handed);
    match known {
        Some(Reason::SettlementPending) => {
            return Verdict::Undecided(BuyerError::Pending {
                handed,
                transaction: named,
            });
        }
        Some(
            Reason::DuplicateSettlement | Reason::ExactNonceUsed | Reason::Permit2InvalidNonce,
        ) => {
            return Verdict::Undecided(BuyerError::Used {
                handed,
                transaction: named,
            });
        }
        Some(Reason::Permit2AllowanceRequired) if named.is_empty() => {
            return Verdict::Final(BuyerError::AllowanceRequired { handed });
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
                offer.network == handed.network
                    && offer.means() == Some(handed.means)
                    && offer.asset == handed.asset
                    && (offer.amount == handed.amount) == same_amount
            });
        prices.next().map(|offer| offer.amount)
    };
    if let (None, Some(price)) = (price(true), price(false)) {
        return Verdict::Final(BuyerError::PriceChanged { handed, price });
    }
    let decided = known.is_some_and(|known| !UNDECIDED.contains(&known)) && named.is_empty();
    let error = BuyerError::Refused {
        handed,
        reason,
        outcome: outcome.map(Box::new),
    };
    if decided {
        Verdict::Final(error)
    } else {
        Verdict::Undecided(error)
    }
}
