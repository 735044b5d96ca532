//! The errors of a purchase, and whether money may have moved.

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::buyer::Paid;
use crate::buyer::journal::JournalError;
use crate::buyer::verdict::is_hash;
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{Amount, Network, PaymentMethod, SettleResponse, field};

/// The terms of a signed payment. Once it was sent, its receiver can have it settled until `valid_before` has passed on chain.
///
/// [`crate::buyer::Client::before_payment`] receives the same terms before they are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedPayment {
    /// The network of the token.
    pub network: Network,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// The account that pays.
    #[serde(with = "field::address")]
    pub payer: Address,
    /// The account that is paid.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// The amount in atomic units of the token; with [`PaymentMethod::Metered`] the maximum.
    pub amount: Amount,
    /// How the money moves.
    #[serde(rename = "means", default)]
    pub method: PaymentMethod,
    /// The EIP-3009 nonce; for Permit2 its nonce as 32 big-endian bytes; for a transfer by the payer's own transaction the tag of its
    /// session.
    #[serde(with = "field::hash")]
    pub nonce: B256,
    /// Unix seconds after which the payment can no longer move money; `None` for a signed transaction, which does not expire.
    pub valid_before: Option<i64>,
}

/// An HTTP exchange without a complete response.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection failed, the request timed out, or the response was not valid HTTP.
    #[error("no HTTP response was received")]
    Transport(#[source] reqwest::Error),
    /// The body exceeds the limit that it holds, in bytes ([`crate::buyer::Client::body_bytes_max`]).
    #[error("the response body is longer than {0} bytes")]
    TooLong(usize),
}

/// Why no payment session could be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFailure {
    /// Neither the seller nor the caller names a facilitator with sessions.
    #[error("neither the seller nor the caller names a facilitator with sessions")]
    NoFacilitator,
    /// The facilitator's URL is not https, or a seller names one that is not public: loopback from elsewhere, or a private address.
    #[error(
        "the facilitator's URL is not usable: expected https and, where the seller names it, a public address"
    )]
    UnsafeUrl,
    /// The facilitator sent no response, or one that is not valid for sessions.
    #[error("the facilitator returned no valid session response")]
    Unanswered,
    /// The facilitator redirects, and session requests follow no redirect. Holds the target without its query.
    #[error("the facilitator redirects to {0}: configure its final URL")]
    Redirected(String),
    /// Sessions support EIP-3009 payments only, and the offer is paid by Permit2.
    #[error("sessions do not support payments by Permit2")]
    PaymentMethod,
    /// The facilitator refused the session; holds its error code.
    #[error("the facilitator refused the session: {0}")]
    Refused(String),
    /// The session has expired already, or ends later than the longest validity that this client signs (one hour).
    #[error("the session expires too early or too late")]
    Expiry,
    /// Rail `transfer` needs an RPC endpoint, a plain account, and a v2 offer with flow `upfront`; holds the missing one.
    #[error("rail transfer cannot be used here: {0}")]
    Transfer(String),
}

/// Why a call ended without its resource. The texts of others in its message are escaped, so that it can be shown on a terminal.
/// [`BuyerError::code`] is stable; [`BuyerError::advice`] says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuyerError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot start")]
    Setup(#[source] reqwest::Error),
    /// The text is not an http or https URL.
    #[error("expected an http or https URL, got {0:?}")]
    Url(String),
    /// The caller's headers contain a payment header; this client adds its own.
    #[error("the request already has a payment header: remove it, the client adds its own")]
    AlreadyPaid,
    /// The first request got no response. Nothing was signed.
    #[error("no response from the seller; nothing was signed")]
    Unanswered(#[source] ExchangeError),
    /// The seller is reached over plain http and is not on this machine; holds its origin. Nothing was signed.
    /// [`crate::buyer::Client::allow_http`] allows it.
    #[error(
        "{0} asks for a payment over plain http, where anybody on the way can change the payee; nothing was signed"
    )]
    InsecureSeller(String),
    /// The seller answered 402 without a readable challenge of x402 v1 or v2. Nothing was signed.
    #[error("the seller answered 402 without a readable x402 challenge; nothing was signed")]
    Challenge,
    /// This client can pay none of the offers; holds their number. Nothing was signed.
    #[error(
        "none of the seller's {0} offers can be paid: expected scheme exact, or upto with its facilitator's address, in a known token"
    )]
    NothingPayable(usize),
    /// Every payable offer is above the ceiling; holds the first one. Nothing was signed.
    #[error(
        "the price is {price} atomic units of {asset} on {network}, above the ceiling of {ceiling}"
    )]
    AboveCeiling {
        /// The seller's price.
        price: Amount,
        /// The caller's limit ([`crate::buyer::PayOptions::ceiling`]).
        ceiling: Amount,
        /// The token.
        asset: Address,
        /// Its network.
        network: Network,
    },
    /// The price exceeds the rest of the client's budget. Nothing was signed.
    #[error(
        "the price is {price} atomic units, and {committed} of the budget of {budget} are spent or may still settle"
    )]
    OverBudget {
        /// The seller's price.
        price: Amount,
        /// The sum of paid purchases and of signed payments that may still settle.
        committed: Amount,
        /// The client's budget ([`crate::buyer::Client::budget`]).
        budget: Amount,
    },
    /// The hook [`crate::buyer::Client::before_payment`] declined. Nothing was signed.
    #[error("the caller declined the payment: {0}")]
    Declined(String),
    /// The caller requires a payment session, and none could be opened. Nothing was signed.
    #[error("no payment session could be negotiated")]
    Session(#[source] SessionFailure),
    /// The payment could not be signed. Nothing was sent.
    #[error("the payment could not be signed, nothing was sent: {0}")]
    Signing(String),
    /// The journal could not be read or written, or the purchase id belongs to another URL. No new payment was sent.
    #[error("the purchase journal cannot be used; no new payment was sent")]
    Journal(#[source] JournalError),
    /// The request with the payment got no complete response. The payment may settle.
    #[error("the payment was sent and the seller did not answer; it may still settle")]
    PaidUnanswered {
        /// The payment that may still settle.
        signed: Box<SignedPayment>,
        /// The failure of the exchange.
        #[source]
        cause: ExchangeError,
    },
    /// The seller answered with a server error to the payment and reports no result. The payment may settle.
    #[error(
        "the payment was sent and the seller answered {status} without a result; it may still settle"
    )]
    OutcomeUnknown {
        /// The payment that may still settle.
        signed: Box<SignedPayment>,
        /// The HTTP status.
        status: u16,
    },
    /// The seller redirects the request with the payment. The redirect was not followed; the payment may settle.
    #[error(
        "the payment was sent and the seller redirects to \"{location}\", which was not followed; it may still settle"
    )]
    Redirected {
        /// The payment that may still settle.
        signed: Box<SignedPayment>,
        /// The `Location` header as sent, shortened to 200 characters and escaped ([`crate::protocol::text::escaped`]).
        location: String,
    },
    /// The payment's transaction is in flight, and presenting the payment again brought no final result.
    #[error("the payment is not settled yet, its transaction is {transaction}")]
    Pending {
        /// The payment that is being settled.
        signed: Box<SignedPayment>,
        /// The transaction hash from the seller.
        transaction: String,
    },
    /// The seller reports that this payment was used already, and serves no resource for it.
    #[error(
        "the seller reports that the payment was already used, in transaction {transaction:?}, and serves nothing for it"
    )]
    Used {
        /// The payment.
        signed: Box<SignedPayment>,
        /// The transaction hash from the seller, empty when there is none.
        transaction: String,
    },
    /// The seller refused the payment, but received it: it may settle until it expires.
    #[error("the seller refused the payment: {reason}")]
    Refused {
        /// The refused payment.
        signed: Box<SignedPayment>,
        /// The seller's reason: a code of x402 or free text, shortened to 300 characters and escaped ([`crate::protocol::text::escaped`]).
        reason: String,
        /// The facilitator's settlement response, when the seller forwarded it: as sent, so escape its texts before you print them.
        outcome: Option<Box<SettleResponse>>,
    },
    /// The seller reports that the payer's allowance to Permit2 is missing, and no permit was sponsored. No money can have moved yet, but
    /// the signed payment can settle once Permit2 is approved, until it expires.
    #[error(
        "the payer has to approve Permit2 ({PERMIT2}) for at least {} atomic units of the token {} on {} first",
        signed.amount, signed.asset, signed.network
    )]
    AllowanceRequired {
        /// The refused payment.
        signed: Box<SignedPayment>,
    },
    /// The seller received the payment for its first price and now asks for another price. Nothing more was signed.
    #[error(
        "the seller received a payment of the {} atomic units that it asked for, and now asks for {price}; nothing more was signed",
        signed.amount
    )]
    PriceChanged {
        /// The payment for the first price.
        signed: Box<SignedPayment>,
        /// The new price.
        price: Amount,
    },
    /// The seller answered, but its reported result does not match the signed payment.
    #[error("the seller answered, but its result contradicts the signed payment: {what}")]
    Contradiction {
        /// The signed payment.
        signed: Box<SignedPayment>,
        /// The mismatch.
        what: String,
        /// The complete response.
        answer: Box<Paid>,
    },
    /// A payment of an earlier call has expired, and nothing proves that it moved no money. Nothing more was signed.
    #[error(
        "an earlier payment for this purchase has expired, and whether it moved money is unknown; nothing more was signed"
    )]
    Unresolved {
        /// The earlier payment.
        signed: Box<SignedPayment>,
        /// The transaction hash that was reported for it.
        transaction: Option<String>,
    },
    /// An open payment with the same payer, payee, token, amount and seller may still settle: this call may be a retry of that purchase
    /// with a different request. Nothing was signed for this call. See [`crate::buyer::PayOptions::another`].
    #[error(
        "an earlier payment of {} atomic units to {} for {place} is open and may still settle{}; this call may be a retry of the same purchase, so nothing was signed for it",
        earlier.amount, earlier.pay_to, until(earlier)
    )]
    MayBeRepeated {
        /// The earlier payment.
        earlier: Box<SignedPayment>,
        /// The URL of its request, without query.
        place: String,
        /// The transaction hash that was reported for it.
        transaction: Option<String>,
    },
}

/// The expiry of a payment as text for an error message, empty when it has none.
fn until(signed: &SignedPayment) -> String {
    let end = signed.valid_before;
    end.map_or_else(String::new, |end| format!(" until {end} (Unix seconds)"))
}

impl BuyerError {
    /// A stable code of the error, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Setup(_) => "setup_failed",
            Self::Url(_) => "invalid_url",
            Self::AlreadyPaid => "payment_header_present",
            Self::Unanswered(_) => "seller_unanswered",
            Self::InsecureSeller(_) => "insecure_seller",
            Self::Challenge => "challenge_unreadable",
            Self::NothingPayable(_) => "nothing_payable",
            Self::AboveCeiling { .. } => "above_ceiling",
            Self::OverBudget { .. } => "over_budget",
            Self::Declined(_) => "declined",
            Self::Session(_) => "session_unavailable",
            Self::Signing(_) => "signing_failed",
            Self::Journal(_) => "journal_unusable",
            Self::PaidUnanswered { .. } => "paid_unanswered",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Redirected { .. } => "paid_redirected",
            Self::Pending { .. } => "settlement_pending",
            Self::Used { .. } => "payment_used",
            Self::Refused { .. } => "payment_refused",
            Self::AllowanceRequired { .. } => "allowance_required",
            Self::PriceChanged { .. } => "price_changed",
            Self::Contradiction { .. } => "result_contradicts",
            Self::Unresolved { .. } => "unresolved",
            Self::MayBeRepeated { .. } => "may_be_repeated",
        }
    }

    /// Whether the payer's money may have moved or may still move for this call. True whenever a signed payment was sent, also after a
    /// refusal, because the seller holds the payment until it expires. Calling again for the same purchase with the same journal is safe:
    /// the same payment is presented.
    pub fn money_may_have_moved(&self) -> bool {
        self.signed().is_some()
    }

    /// The signed payment that was sent, if any.
    pub fn signed(&self) -> Option<&SignedPayment> {
        match self {
            Self::PaidUnanswered { signed, .. }
            | Self::OutcomeUnknown { signed, .. }
            | Self::Redirected { signed, .. }
            | Self::Pending { signed, .. }
            | Self::Used { signed, .. }
            | Self::Refused { signed, .. }
            | Self::AllowanceRequired { signed }
            | Self::PriceChanged { signed, .. }
            | Self::Contradiction { signed, .. }
            | Self::Unresolved { signed, .. }
            | Self::MayBeRepeated {
                earlier: signed, ..
            } => Some(signed),
            Self::Setup(_)
            | Self::Url(_)
            | Self::AlreadyPaid
            | Self::Unanswered(_)
            | Self::InsecureSeller(_)
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::AboveCeiling { .. }
            | Self::OverBudget { .. }
            | Self::Declined(_)
            | Self::Session(_)
            | Self::Signing(_)
            | Self::Journal(_) => None,
        }
    }

    /// The transaction hash that the seller or facilitator reported for the payment, never any other text. Verify it on chain.
    pub fn transaction(&self) -> Option<&str> {
        let reported = match self {
            Self::Pending { transaction, .. } | Self::Used { transaction, .. } => Some(transaction),
            Self::Unresolved { transaction, .. } | Self::MayBeRepeated { transaction, .. } => {
                transaction.as_ref()
            }
            Self::Refused { outcome, .. } => outcome.as_ref().map(|outcome| &outcome.transaction),
            Self::Contradiction { answer, .. } => {
                answer.payment.as_ref().map(|payment| &payment.transaction)
            }
            Self::Setup(_)
            | Self::Url(_)
            | Self::AlreadyPaid
            | Self::Unanswered(_)
            | Self::InsecureSeller(_)
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::AboveCeiling { .. }
            | Self::OverBudget { .. }
            | Self::Declined(_)
            | Self::Session(_)
            | Self::Signing(_)
            | Self::Journal(_)
            | Self::PaidUnanswered { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Redirected { .. }
            | Self::AllowanceRequired { .. }
            | Self::PriceChanged { .. } => None,
        };
        reported.map(String::as_str).filter(|hash| is_hash(hash))
    }

    /// What to do next, for people.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Setup(_) | Self::Url(_) | Self::AlreadyPaid | Self::Challenge => {
                "nothing was signed; fix the call or contact the seller"
            }
            Self::Unanswered(_) => "nothing was signed; call again",
            Self::InsecureSeller(_) => {
                "nothing was signed; use the seller's https URL, or allow plain http where you trust the network: --allow-http (Client::allow_http)"
            }
            Self::NothingPayable(_) | Self::AboveCeiling { .. } | Self::OverBudget { .. } => {
                "nothing was signed; raise the limit, or buy elsewhere"
            }
            Self::Declined(_) | Self::Session(_) | Self::Signing(_) | Self::Journal(_) => {
                "no new payment was sent; fix the cause and call again"
            }
            Self::PaidUnanswered { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Pending { .. }
            | Self::Refused { .. }
            | Self::Redirected { .. } => {
                "call again with the same journal: the same payment is presented, and nothing more is signed while it may still settle"
            }
            Self::AllowanceRequired { .. } => {
                "approve Permit2 for the token with a transaction of the payer (once per token), then call again with the same journal: the same \
                 payment is presented"
            }
            Self::PriceChanged { .. } => {
                "the seller holds the payment until it expires; a call after that may sign the new price"
            }
            Self::Used { .. } => {
                "contact the seller with the transaction hash; it owes you the resource"
            }
            Self::Contradiction { .. } => {
                "check the payment on chain; the seller's response is in the error"
            }
            Self::Unresolved { .. } => {
                "check on chain whether the payment's nonce was used; only if not, allow a new payment: --sign-again (PayOptions::sign_again)"
            }
            Self::MayBeRepeated { .. } => {
                "if this is the same purchase, repeat the earlier call with the same method, URL and body: its payment is presented again; if it \
                 is a new purchase, use --another or a --purchase-id (PayOptions::another, PayOptions::purchase_id)"
            }
        }
    }
}
