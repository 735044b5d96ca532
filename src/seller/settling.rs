//! Settlement through the facilitator: recorded before `/settle` is called, and continued when the buyer disconnects. Also the errors that
//! end a sale without its resource.

use std::sync::Arc;

use serde_json::Value;

use crate::protocol::challenge::network_name;
use crate::protocol::{Amount, Network, PresentedPayment, Reason, SettleResponse};
use crate::seller::client::Call;
use crate::seller::held::ReadError;
use crate::seller::owed::ClaimedPurchase;
use crate::seller::{ChargeError, FacilitatorClient, FacilitatorError, OwedFileError};

/// Why a sale ends without serving its resource.
pub(super) enum SaleError {
    /// Answer with the challenge; holds the error of the presented payment, if there was one.
    PaymentRequired(Option<String>),
    /// The facilitator refused to settle.
    Refused(Box<SettleResponse>),
    /// The facilitator returned no usable response.
    Unavailable(FacilitatorError),
    /// The purchase could not be written to the file of owed purchases.
    NotRecorded(OwedFileError),
    /// The request's body exceeds the limit.
    BodyTooLong,
    /// The request's body did not come in time.
    BodyTooSlow,
    /// Other requests hold all the memory for bodies.
    Busy,
    /// An internal error, such as a handler response that could not be read.
    Internal,
    /// The handler's charge is invalid.
    InvalidCharge(ChargeError),
}

/// Answers that leave the payment's outcome open: it may be settled, or was, and the refusal is about the caller or the moment.
const OPEN_REASONS: [Reason; 8] = [
    Reason::SettlementPending,
    Reason::UnexpectedSettleError,
    Reason::RateLimited,
    Reason::KeyRequired,
    Reason::KeyInvalid,
    Reason::KeysUnavailable,
    Reason::ScopeMissing,
    Reason::PayeeNotAllowed,
];

fn is_open(outcome: &SettleResponse) -> bool {
    let reason = outcome.error_reason.as_deref();
    OPEN_REASONS.iter().any(|open| reason == Some(open.code()))
}

impl SaleError {
    /// Whether the facilitator may still settle this payment.
    fn may_still_settle(&self) -> bool {
        match self {
            Self::Refused(outcome) => is_open(outcome),
            Self::Unavailable(_) => true,
            Self::PaymentRequired(_)
            | Self::NotRecorded(_)
            | Self::BodyTooLong
            | Self::BodyTooSlow
            | Self::Busy
            | Self::Internal
            | Self::InvalidCharge(_) => false,
        }
    }

    /// Whether the facilitator refuses for good to settle this payment for this seller.
    pub(super) fn is_final_refusal(&self) -> bool {
        let Self::Refused(outcome) = self else {
            return false;
        };
        // A copy of a header is refused as a duplicate, which is not the doing of the payer whose header it is.
        let is_of_others = [Reason::SponsorshipExhausted, Reason::DuplicateSettlement]
            .iter()
            .any(|reason| outcome.error_reason.as_deref() == Some(reason.code()));
        !is_of_others && !is_open(outcome)
    }

    /// Whether the facilitator has accepted the payment. Then anybody may read it from the chain, and the record keeps the request id by
    /// which the next call of this purchase comes first. Payments that were only turned away are not kept: strangers make any number.
    fn is_pending(&self) -> bool {
        matches!(self, Self::Refused(outcome) if refused_as(outcome, Reason::SettlementPending))
    }

    /// Whether the facilitator may have answered with a success that was lost.
    fn may_hide_a_success(&self) -> bool {
        match self {
            Self::Unavailable(error) => error.may_have_been_success(),
            Self::Refused(_)
            | Self::PaymentRequired(_)
            | Self::NotRecorded(_)
            | Self::BodyTooLong
            | Self::BodyTooSlow
            | Self::Busy
            | Self::Internal
            | Self::InvalidCharge(_) => false,
        }
    }
}

impl From<FacilitatorError> for SaleError {
    fn from(error: FacilitatorError) -> Self {
        Self::Unavailable(error)
    }
}

impl From<ReadError> for SaleError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooSlow => Self::BodyTooSlow,
            // The buyer is gone, so nobody reads this answer.
            ReadError::Broken => Self::Internal,
        }
    }
}

impl From<OwedFileError> for SaleError {
    fn from(error: OwedFileError) -> Self {
        Self::NotRecorded(error)
    }
}

/// One settlement of a payment.
pub(super) struct Settlement {
    pub(super) facilitator: FacilitatorClient,
    pub(super) payment: PresentedPayment,
    pub(super) requirements: Value,
    pub(super) network: Network,
    /// The charge of a metered payment; `None` at a fixed price.
    pub(super) charge: Option<Amount>,
    pub(super) claim: Arc<ClaimedPurchase>,
}

/// The member of a `duplicate_settlement` that names the request which was told success.
const GRANTED_TO: &str = "grantedTo";
/// What a buyer is told when the success of an earlier call was lost and belongs to somebody else.
const GRANTED_ELSEWHERE: &str = "the facilitator has granted this payment to another request, not to one of this seller for this resource: nothing \
    is served for it here";
/// The same, when the facilitator does not say to whom it belongs.
const GRANTED_UNKNOWN: &str = "the money has moved, and nothing is served: an earlier answer of the facilitator to this seller was lost, and the \
    facilitator does not say to which request it granted the payment. Do not pay again; show the seller this transaction hash";

impl Settlement {
    /// Records the purchase before `/settle` is called, and the result before anything is served.
    pub(super) async fn run(self) -> Result<SettleResponse, SaleError> {
        self.claim.record_settling(self.charge).await?;
        match self.settle().await {
            Ok(outcome) => {
                self.claim.record_settled(&outcome).await?;
                Ok(outcome)
            }
            Err(error) => {
                if error.may_hide_a_success() || error.is_pending() {
                    self.claim.keep_settling(self.charge);
                } else if !(self.claim.was_settling && error.may_still_settle()) {
                    self.claim.record_not_settled().await?;
                }
                Err(error)
            }
        }
    }

    async fn call(&self) -> Result<SettleResponse, SaleError> {
        let id = self.claim.request_id();
        let call = Call {
            x402_version: self.payment.version,
            payment_payload: self.payment.raw(),
            payment_requirements: &self.requirements,
        };
        Ok(self.facilitator.settle_as(call, Some(&id)).await?)
    }

    /// Calls `/settle`, once more when the first response is `settlement_pending`.
    async fn settle(&self) -> Result<SettleResponse, SaleError> {
        let mut outcome = self.call().await?;
        if refused_as(&outcome, Reason::SettlementPending) {
            // The first response names a transaction, which must not be lost when the second call fails.
            if let Ok(second) = self.call().await
                && (!is_open(&second) || !second.transaction.is_empty())
            {
                outcome = second;
            }
        }
        if outcome.network.is_empty() {
            outcome.network = network_name(self.payment.version, self.network).unwrap_or_default();
        }
        let granted_here = self.attribute(&mut outcome);
        let charged_less = |outcome: &SettleResponse| outcome.amount < self.charge;
        if outcome.success && outcome.amount.is_some() && !granted_here && charged_less(&outcome) {
            // Another caller, possibly the buyer, has settled this payment with a smaller charge.
            outcome.success = false;
            outcome.error_reason = Some(Reason::DuplicateSettlement.code().to_owned());
        }
        if !outcome.success {
            return Err(SaleError::Refused(Box::new(outcome)));
        }
        // The receipt must state the charge even when the facilitator's response does not.
        outcome.amount = outcome.amount.or(self.charge);
        Ok(outcome)
    }

    /// Makes a duplicate a success if the facilitator granted the payment to an earlier call of this purchase, whose response was lost.
    /// Returns whether it did. Otherwise a purchase with a lost response gets the explanation that its buyer needs.
    fn attribute(&self, outcome: &mut SettleResponse) -> bool {
        // The buyer has no use for the id of a request.
        let granted_to = outcome
            .extra
            .as_mut()
            .and_then(|extra| extra.remove(GRANTED_TO));
        if !refused_as(outcome, Reason::DuplicateSettlement) {
            return false;
        }
        let granted_to = granted_to.as_ref().and_then(Value::as_str);
        if granted_to.is_some_and(|id| id == self.claim.request_id()) {
            outcome.success = true;
            (outcome.error_reason, outcome.error_message) = (None, None);
            return true;
        }
        if self.claim.was_settling {
            let why = granted_to.map_or(GRANTED_UNKNOWN, |_| GRANTED_ELSEWHERE);
            outcome.error_message = Some(why.to_owned());
            tracing::error!(
                transaction = %outcome.transaction,
                facilitator_names_request = granted_to.is_some(),
                "payment refused after a lost answer: it was not granted to this seller, or the facilitator does not say so; its buyer may ask \
                 with the transaction hash"
            );
        }
        false
    }
}

fn refused_as(outcome: &SettleResponse, reason: Reason) -> bool {
    !outcome.success && outcome.error_reason.as_deref() == Some(reason.code())
}
