//! The facilitator's part of a sale: a settlement that is written down before it is asked for and goes on when the buyer is gone; and the
//! ways in which a sale ends without its resource.

use std::sync::Arc;

use serde_json::Value;

use crate::protocol::challenge::network_name;
use crate::protocol::{Amount, Network, PresentedPayment, Reason, SettleResponse};
use crate::seller::owed::Serving;
use crate::seller::{ChargeError, FacilitatorClient, FacilitatorError, OwedFileError};

/// Why a sale ends before its resource is served.
pub(super) enum Ends {
    /// Ask for a payment, saying what was wrong with this one.
    Ask(Option<String>),
    /// The facilitator refused to settle.
    Refused(Box<SettleResponse>),
    /// The facilitator gave no answer.
    Outage(FacilitatorError),
    /// What is owed cannot be written down: nothing may be settled.
    Unwritten(OwedFileError),
    /// The request's body is longer than what can be held.
    TooLong,
    /// The handler's answer cannot be used.
    Broken,
    /// The handler charges what cannot be charged.
    Misjudged(ChargeError),
}

impl Ends {
    /// Whether the facilitator may still say success to this payment.
    fn are_open(&self) -> bool {
        match self {
            Self::Refused(outcome) => {
                outcome.error_reason.as_deref() == Some(Reason::SettlementPending.code())
            }
            Self::Outage(_) => true,
            Self::Ask(_)
            | Self::Unwritten(_)
            | Self::TooLong
            | Self::Broken
            | Self::Misjudged(_) => false,
        }
    }

    /// Whether a success may have been said to us that we did not hear.
    fn hide_a_success(&self) -> bool {
        match self {
            Self::Outage(error) => error.may_have_been_success(),
            Self::Refused(_)
            | Self::Ask(_)
            | Self::Unwritten(_)
            | Self::TooLong
            | Self::Broken
            | Self::Misjudged(_) => false,
        }
    }
}

impl From<FacilitatorError> for Ends {
    fn from(error: FacilitatorError) -> Self {
        Self::Outage(error)
    }
}

impl From<OwedFileError> for Ends {
    fn from(error: OwedFileError) -> Self {
        Self::Unwritten(error)
    }
}

/// A settlement on its way.
pub(super) struct Settling {
    pub(super) facilitator: FacilitatorClient,
    pub(super) payment: PresentedPayment,
    pub(super) requirements: Value,
    pub(super) network: Network,
    /// What a metered payment is charged.
    pub(super) charge: Option<Amount>,
    pub(super) serving: Arc<Serving>,
}

impl Settling {
    /// Writes the purchase down before the facilitator is asked, and what came of it before anything is handed over.
    pub(super) async fn run(self) -> Result<SettleResponse, Ends> {
        self.serving.settling().await?;
        match self.settle().await {
            Ok(outcome) => {
                self.serving.settled(&outcome).await?;
                Ok(outcome)
            }
            Err(ends) => {
                if ends.hide_a_success() {
                    self.serving.unheard();
                } else if !(self.serving.was_settling && ends.are_open()) {
                    self.serving.not_settled().await?;
                }
                Err(ends)
            }
        }
    }

    /// Has the payment settled; an outcome that is not known yet is asked for once more.
    async fn settle(&self) -> Result<SettleResponse, Ends> {
        let payment = &self.payment;
        let ask = || {
            self.facilitator
                .settle(payment.version, payment.raw(), &self.requirements)
        };
        let refused_as = |outcome: &SettleResponse, reason: Reason| {
            !outcome.success && outcome.error_reason.as_deref() == Some(reason.code())
        };
        let mut outcome = ask().await?;
        if refused_as(&outcome, Reason::SettlementPending) {
            // The first answer names a transaction: it must not be lost to a failing second call.
            if let Ok(second) = ask().await {
                outcome = second;
            }
        }
        if outcome.network.is_empty() {
            outcome.network = network_name(payment.version, self.network).unwrap_or_default();
        }
        // What was charged nothing has no transaction, and owes nothing either.
        let named = !outcome.transaction.is_empty();
        let ours = self.serving.was_settling
            && refused_as(&outcome, Reason::DuplicateSettlement)
            && (named || self.charge == Some(Amount::ZERO));
        if ours {
            // This server died between asking and hearing: the one who was told success was it.
            outcome.success = true;
            (outcome.error_reason, outcome.error_message) = (None, None);
        }
        let charged_less = |outcome: &SettleResponse| outcome.amount < self.charge;
        if outcome.success && outcome.amount.is_some() && !ours && charged_less(&outcome) {
            // Somebody else has had a smaller charge settled with this payment, the buyer perhaps.
            outcome.success = false;
            outcome.error_reason = Some(Reason::DuplicateSettlement.code().to_owned());
        }
        if !outcome.success {
            return Err(Ends::Refused(Box::new(outcome)));
        }
        // The buyer has to learn what it was charged, also from a facilitator that does not repeat it; but what the handler says now need
        // not be what it said when the payment was settled.
        if !(ours && named) {
            outcome.amount = outcome.amount.or(self.charge);
        }
        Ok(outcome)
    }
}
