//! Why nothing was bought, and whether money may move nevertheless.

use alloy::primitives::{Address, B256};

use crate::protocol::{Amount, Network, Reason, SettleResponse};

/// What was signed and handed to a seller. Until `valid_before` has passed on the chain, whoever got it can have it settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handed {
    /// Where.
    pub network: Network,
    /// In which token.
    pub asset: Address,
    /// To whom.
    pub pay_to: Address,
    /// How much, in atomic units of the token.
    pub amount: Amount,
    /// The authorization's nonce, by which the token knows it.
    pub nonce: B256,
    /// Unix seconds after which it can no longer move money.
    pub valid_before: i64,
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

/// Why a call ended without its resource.
#[derive(Debug, thiserror::Error)]
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
        "none of the seller's {0} offers can be paid: expected scheme exact by EIP-3009 in a known token"
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
    /// The authorization could not be made; nothing left this process.
    #[error("the payment could not be signed: {0}")]
    Signing(String),
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
    /// The transaction is under way; the same payment was presented several times without a final answer.
    #[error("the payment is still being settled in transaction {transaction}")]
    Pending {
        /// What is being settled.
        handed: Box<Handed>,
        /// The hash.
        transaction: String,
    },
    /// The seller refused the payment.
    #[error("the seller refused the payment: {reason}")]
    Refused {
        /// What was offered.
        handed: Box<Handed>,
        /// The code or the text that the seller gave.
        reason: String,
        /// The facilitator's answer, when the seller passed it on.
        outcome: Option<Box<SettleResponse>>,
    },
}

impl BuyerError {
    /// Whether the payer's money may have moved or may still move for this call. When it may, do not simply call again:
    /// a new call signs a new authorization. `false` after a refusal is as trustworthy as the seller who passes it on.
    pub fn money_may_move(&self) -> bool {
        match self {
            Self::Setup(_)
            | Self::Url(_)
            | Self::AlreadyPaid
            | Self::Unanswered(_)
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::TooDear { .. }
            | Self::Signing(_) => false,
            Self::PaidUnanswered { .. } | Self::OutcomeUnknown { .. } | Self::Pending { .. } => {
                true
            }
            Self::Refused { outcome, .. } => outcome.as_deref().is_none_or(undecided),
        }
    }

    /// What was signed, when anything was.
    pub fn handed(&self) -> Option<&Handed> {
        match self {
            Self::PaidUnanswered { handed, .. }
            | Self::OutcomeUnknown { handed, .. }
            | Self::Pending { handed, .. }
            | Self::Refused { handed, .. } => Some(handed),
            Self::Setup(_)
            | Self::Url(_)
            | Self::AlreadyPaid
            | Self::Unanswered(_)
            | Self::Challenge
            | Self::NothingPayable(_)
            | Self::TooDear { .. }
            | Self::Signing(_) => None,
        }
    }
}

/// A refusal is final when it names no transaction and no outage.
fn undecided(outcome: &SettleResponse) -> bool {
    let open = [
        Reason::SettlementPending,
        Reason::DuplicateSettlement,
        Reason::UnexpectedSettleError,
        Reason::ExactNonceUsed,
    ];
    let code = outcome.error_reason.as_deref();
    outcome.success
        || !outcome.transaction.is_empty()
        || code.is_none_or(|code| open.iter().any(|reason| reason.code() == code))
}
