//! Settlement through the facilitator: recorded before `/settle` is called, and continued when the buyer disconnects. Also the errors that
//! end a sale without its resource.

use std::sync::Arc;

use serde_json::Value;

use crate::protocol::challenge::network_name;
use crate::protocol::{Amount, Network, PresentedPayment, Reason, SettleResponse};
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
    /// An internal error, such as a handler response that could not be read.
    Internal,
    /// The handler's charge is invalid.
    InvalidCharge(ChargeError),
}

impl SaleError {
    /// Whether the facilitator may still settle this payment.
    fn may_still_settle(&self) -> bool {
        match self {
            Self::Refused(outcome) => {
                outcome.error_reason.as_deref() == Some(Reason::SettlementPending.code())
            }
            Self::Unavailable(_) => true,
            Self::PaymentRequired(_)
            | Self::NotRecorded(_)
            | Self::BodyTooLong
            | Self::Internal
            | Self::InvalidCharge(_) => false,
        }
    }

    /// Whether the facilitator may have answered with a success that was lost.
    fn may_hide_a_success(&self) -> bool {
        match self {
            Self::Unavailable(error) => error.may_have_been_success(),
            Self::Refused(_)
            | Self::PaymentRequired(_)
            | Self::NotRecorded(_)
            | Self::BodyTooLong
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

impl Settlement {
    /// Records the purchase before `/settle` is called, and the result before anything is served.
    pub(super) async fn run(self) -> Result<SettleResponse, SaleError> {
        self.claim.record_settling().await?;
        match self.settle().await {
            Ok(outcome) => {
                self.claim.record_settled(&outcome).await?;
                Ok(outcome)
            }
            Err(error) => {
                if error.may_hide_a_success() {
                    self.claim.keep_settling();
                } else if !(self.claim.was_settling && error.may_still_settle()) {
                    self.claim.record_not_settled().await?;
                }
                Err(error)
            }
        }
    }

    /// Calls `/settle`, once more when the first response is `settlement_pending`.
    async fn settle(&self) -> Result<SettleResponse, SaleError> {
        let payment = &self.payment;
        let call = || {
            self.facilitator
                .settle(payment.version, payment.raw(), &self.requirements)
        };
        let refused_as = |outcome: &SettleResponse, reason: Reason| {
            !outcome.success && outcome.error_reason.as_deref() == Some(reason.code())
        };
        let mut outcome = call().await?;
        if refused_as(&outcome, Reason::SettlementPending) {
            // The first response names a transaction, which must not be lost when the second call fails.
            if let Ok(second) = call().await {
                outcome = second;
            }
        }
        if outcome.network.is_empty() {
            outcome.network = network_name(payment.version, self.network).unwrap_or_default();
        }
        // A charge of zero has no transaction.
        let has_hash = !outcome.transaction.is_empty();
        let granted_here = self.claim.was_settling
            && refused_as(&outcome, Reason::DuplicateSettlement)
            && (has_hash || self.charge == Some(Amount::ZERO));
        if granted_here {
            // An earlier call of this server was granted the success, and its response was lost: serve the purchase.
            outcome.success = true;
            (outcome.error_reason, outcome.error_message) = (None, None);
        }
        let charged_less = |outcome: &SettleResponse| outcome.amount < self.charge;
        if outcome.success && outcome.amount.is_some() && !granted_here && charged_less(&outcome) {
            // Another caller, possibly the buyer, has settled this payment with a smaller charge.
            outcome.success = false;
            outcome.error_reason = Some(Reason::DuplicateSettlement.code().to_owned());
        }
        if !outcome.success {
            return Err(SaleError::Refused(Box::new(outcome)));
        }
        // The receipt must state the charge even when the facilitator's response does not. Not for a lost response with a transaction: the
        // handler's charge of that run may have been another one.
        if !(granted_here && has_hash) {
            outcome.amount = outcome.amount.or(self.charge);
        }
        Ok(outcome)
    }
}
