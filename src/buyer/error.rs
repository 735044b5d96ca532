//! Why nothing was bought, and whether money may have moved nevertheless.

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::buyer::Paid;
use crate::buyer::journal::JournalError;
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{Amount, Means, Network, SettleResponse, field};

/// What was signed and handed out. Until `valid_before` has passed on the chain, whoever got it can have it settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handed {
    /// Where.
    pub network: Network,
    /// In which token.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// Who pays.
    #[serde(with = "field::address")]
    pub payer: Address,
    /// To whom.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// How much, in atomic units of the token; by [`Means::Metered`] at most.
    pub amount: Amount,
    /// By what leave.
    #[serde(default)]
    pub means: Means,
    /// The authorization's nonce, by which the token knows it; by Permit2 the bytes of its number; of a transfer that the payer sends,
    /// its session's tag.
    #[serde(with = "field::hash")]
    pub nonce: B256,
    /// Unix seconds after which it can no longer move money; `None` for a signed transaction, which can be sent for ever.
    pub valid_before: Option<i64>,
}

/// An exchange that brought no complete answer.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The connection, the time or the protocol gave out.
    #[error("the request was not answered")]
    Transport(#[source] reqwest::Error),
    /// The answer is longer than this client reads, in bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
}

/// Why no session could be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionFailure {
    /// Nobody names a facilitator.
    #[error("neither the seller nor the caller names a facilitator with sessions")]
    NoFacilitator,
    /// Its URL is neither https nor on this machine, or a seller elsewhere names a place on this machine.
    #[error("the facilitator that the seller names is neither https nor on its own machine")]
    UnsafeUrl,
    /// No answer, or none that could be understood.
    #[error("the facilitator did not answer as one that offers sessions")]
    Unanswered,
    /// It wants to be asked elsewhere, and nothing that is paid with follows a redirect; holds where to, without its query.
    #[error("the facilitator redirects to {0}: name the URL that answers by itself")]
    Redirected(String),
    /// Sessions are of EIP-3009 payments, and the offer is to be paid by Permit2.
    #[error("a payment by Permit2 has no session")]
    Means,
    /// It refused; holds its code.
    #[error("the facilitator refused the session: {0}")]
    Refused(String),
    /// Its terms are not ones to sign: they expire at once, or after longer than this client signs for.
    #[error("the session expires too early or too late")]
    Expiry,
    /// A transfer by the payer needs a chain to send it to, a plain account, and an offer of the flow `upfront` in v2.
    #[error("rail transfer cannot be used here: {0}")]
    Transfer(String),
}

/// Why a call ended without its resource.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuyerError {
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot start")]
    Setup(#[source] reqwest::Error),
    /// Neither http nor https, or no URL at all.
    #[error("expected an http or https URL, got {0:?}")]
    Url(String),
    /// The caller's headers hold a payment already; this client makes its own.
    #[error("the request carries a payment header already")]
    AlreadyPaid,
    /// No answer, and nothing was signed yet.
    #[error("the seller did not answer; nothing was signed")]
    Unanswered(#[source] Broken),
    /// A 402 without a challenge in either dialect.
    #[error("the seller asks for a payment but does not say which")]
    Challenge,
    /// None of the offers is one that this client can pay; holds how many there were.
    #[error(
        "none of the seller's {0} offers can be paid: expected scheme exact, or upto with its facilitator's address, in a known token"
    )]
    NothingPayable(usize),
    /// Every payable offer is above the ceiling; holds the first one. Nothing was signed.
    #[error(
        "the price is {price} atomic units of {asset} on {network}, above the ceiling of {ceiling}"
    )]
    TooDear {
        /// What is asked for.
        price: Amount,
        /// What the caller allows.
        ceiling: Amount,
        /// The token.
        asset: Address,
        /// Its network.
        network: Network,
    },
    /// The price does not fit into what is left of the client's budget. Nothing was signed.
    #[error(
        "the price is {price} atomic units, and {committed} of the budget of {budget} are spent or may still land"
    )]
    OverBudget {
        /// What is asked for.
        price: Amount,
        /// What was paid or was signed and may still land.
        committed: Amount,
        /// What the client may spend in its life.
        budget: Amount,
    },
    /// The caller's hook refused. Nothing was signed.
    #[error("the caller declined the payment: {0}")]
    Declined(String),
    /// A session was asked for and cannot be had. Nothing was signed.
    #[error("no payment session could be negotiated")]
    Session(#[source] SessionFailure),
    /// The payment could not be made; nothing left this process.
    #[error("the payment could not be signed: {0}")]
    Signing(String),
    /// The journal could not be read or written. Nothing left this process.
    #[error("the purchase journal cannot be used")]
    Journal(#[source] JournalError),
    /// The paid request got no answer.
    #[error("the payment was handed over, and the seller did not answer")]
    PaidUnanswered {
        /// What can still be settled.
        handed: Box<Handed>,
        /// What went wrong.
        #[source]
        broken: Broken,
    },
    /// The seller failed after it got the payment, and does not say what became of it.
    #[error("the payment was handed over, and the seller answered {status} without its outcome")]
    OutcomeUnknown {
        /// What can still be settled.
        handed: Box<Handed>,
        /// The HTTP status.
        status: u16,
    },
    /// The seller wants the paid request to go elsewhere. It was not sent there.
    #[error("the payment was handed over, and the seller answered with a redirect to {location:?}")]
    Redirected {
        /// What can still be settled.
        handed: Box<Handed>,
        /// Where to, as the seller wrote it.
        location: String,
    },
    /// The transaction is under way; the same payment was presented several times without a final answer.
    #[error("the payment is still being settled in transaction {transaction}")]
    Pending {
        /// What is being settled.
        handed: Box<Handed>,
        /// The hash that the seller names.
        transaction: String,
    },
    /// The seller says that this payment has bought its resource already, and does not serve it.
    #[error(
        "the seller says that the payment has been used, in transaction {transaction:?}, and serves nothing for it"
    )]
    Used {
        /// What was paid.
        handed: Box<Handed>,
        /// The hash that the seller names, empty when it names none.
        transaction: String,
    },
    /// The seller refused the payment. It holds it all the same.
    #[error("the seller refused the payment: {reason}")]
    Refused {
        /// What was offered.
        handed: Box<Handed>,
        /// The code or the text that the seller gave.
        reason: String,
        /// The facilitator's answer, when the seller passed it on.
        outcome: Option<Box<SettleResponse>>,
    },
    /// Permit2 may not take the payer's token yet, says the seller, and no permit was sponsored. Nothing can have moved then; but what was
    /// signed can land once Permit2 is approved, until it expires.
    #[error(
        "the payer has to approve Permit2 ({PERMIT2}) for at least {} atomic units of the token {} on {} first",
        handed.amount, handed.asset, handed.network
    )]
    AllowanceRequired {
        /// What was offered.
        handed: Box<Handed>,
    },
    /// The seller holds the payment that it asked for, and now asks for another amount. Nothing more was signed.
    #[error("the seller got the {} atomic units that it asked for and now asks for {price}", handed.amount)]
    PriceChanged {
        /// What was offered.
        handed: Box<Handed>,
        /// What it asks for now.
        price: Amount,
    },
    /// The seller served something, but what it says about the payment is not what was signed.
    #[error("the seller answered, but its result contradicts the payment: {what}")]
    Contradiction {
        /// What was signed.
        handed: Box<Handed>,
        /// What does not fit.
        what: String,
        /// The answer, complete.
        answer: Box<Paid>,
    },
    /// A payment of an earlier call has run out of time, and nothing proves that it did not move money.
    #[error(
        "an earlier payment for this purchase has expired, and whether it moved money is not known"
    )]
    Unresolved {
        /// What was handed over then.
        handed: Box<Handed>,
        /// The hash that was named for it.
        transaction: Option<String>,
    },
    /// An earlier payment of the same payer to the same payee, over the same amount and for a resource of the same seller, is open and may
    /// still land: this call may be the same purchase in other words. Nothing was signed for it.
    #[error(
        "an earlier payment of {} atomic units to {} for {place} is open and may still land{}: nothing was signed for this call, which may be the same purchase in other words",
        earlier.amount, earlier.pay_to, until(earlier)
    )]
    MayBeRepeated {
        /// What was handed over then.
        earlier: Box<Handed>,
        /// What it was for: the URL without its query.
        place: String,
        /// The hash that was named for it.
        transaction: Option<String>,
    },
}

/// Until when something can land, in words.
fn until(handed: &Handed) -> String {
    let end = handed.valid_before;
    end.map_or_else(String::new, |end| format!(" until {end} (Unix seconds)"))
}

impl BuyerError {
    /// The stable name of the case, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Setup(_) => "setup_failed",
            Self::Url(_) => "invalid_url",
            Self::AlreadyPaid => "payment_header_present",
            Self::Unanswered(_) => "seller_unanswered",
            Self::Challenge => "challenge_unreadable",
            Self::NothingPayable(_) => "nothing_payable",
            Self::TooDear { .. } => "above_ceiling",
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

    /// Whether the payer's money may have moved or may still move for this call: whenever something signed left this
    /// process, also after a refusal, because the seller holds it until it expires. A further call for the same purchase
    /// with the same journal is safe: it presents the same payment.
    pub fn money_may_have_moved(&self) -> bool {
        self.handed().is_some()
    }

    /// What was signed and handed out, when anything was.
    pub fn handed(&self) -> Option<&Handed> {
        match self {
            Self::PaidUnanswered { handed, .. }
            | Self::OutcomeUnknown { handed, .. }
            | Self::Redirected { handed, .. }
            | Self::Pending { handed, .. }
            | Self::Used { handed, .. }
            | Self::Refused { handed, .. }
            | Self::AllowanceRequired { handed }
            | Self::PriceChanged { handed, .. }
            | Self::Contradiction { handed, .. }
            | Self::Unresolved { handed, .. }
            | Self::MayBeRepeated {
                earlier: handed, ..
            } => Some(handed),
            Self::Setup(_)
            | Self::Url(_)
            | Self::AlreadyPaid
            | Self::Unanswered(_)
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::TooDear { .. }
            | Self::OverBudget { .. }
            | Self::Declined(_)
            | Self::Session(_)
            | Self::Signing(_)
            | Self::Journal(_) => None,
        }
    }

    /// The hash that was named for the payment. Look it up on the chain before you believe it.
    pub fn transaction(&self) -> Option<&str> {
        let named = match self {
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
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::TooDear { .. }
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
        named.map(String::as_str).filter(|hash| !hash.is_empty())
    }

    /// What to do now, for people.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Setup(_) | Self::Url(_) | Self::AlreadyPaid | Self::Challenge => {
                "nothing was signed; correct the call or ask the seller"
            }
            Self::Unanswered(_) => "nothing was signed; call again",
            Self::NothingPayable(_) | Self::TooDear { .. } | Self::OverBudget { .. } => {
                "nothing was signed; allow more, or buy elsewhere"
            }
            Self::Declined(_) | Self::Session(_) | Self::Signing(_) | Self::Journal(_) => {
                "nothing left this process; remove the cause and call again"
            }
            Self::PaidUnanswered { .. }
            | Self::OutcomeUnknown { .. }
            | Self::Pending { .. }
            | Self::Refused { .. }
            | Self::Redirected { .. } => {
                "call again with the same journal: the same payment is presented, nothing more is signed while it can land"
            }
            Self::AllowanceRequired { .. } => {
                "approve Permit2 for the token, once, by a transaction of the payer's own, then call again with the same journal: the same \
                 payment is presented"
            }
            Self::PriceChanged { .. } => {
                "the seller holds a payment until it expires; a call after that may sign the new price"
            }
            Self::Used { .. } => "show the hash to the seller; it owes you the resource",
            Self::Contradiction { .. } => {
                "look the payment up on the chain; the answer is in the error"
            }
            Self::Unresolved { .. } => {
                "look up on the chain whether the payment's nonce was used; only if not, allow this purchase to be signed again"
            }
            Self::MayBeRepeated { .. } => {
                "if this is the same purchase, make the earlier call again as it was (method, URL and body): its payment is presented once \
                 more; if it is another one, say so: --another, or a --purchase-id of its own (PayOptions::another, PayOptions::purchase_id)"
            }
        }
    }
}
