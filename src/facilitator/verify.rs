//! `verify`: advice. Writes nothing but the short lease over a payment that is under way.

use crate::facilitator::decision::{Decision, decide};
use crate::facilitator::{Facilitator, Halt, Outage};
use crate::ledger::Standing;
use crate::payment::{Candidate, PaymentId};
use crate::protocol::response::spelled;
use crate::protocol::{PaymentRequest, Reason, Refusal, VerifyResponse};

impl Facilitator {
    /// Judges a payment without moving anything.
    ///
    /// # Errors
    /// An [`Outage`] when it cannot be judged now.
    pub async fn verify(&self, request: PaymentRequest) -> Result<VerifyResponse, Outage> {
        match self.try_verify(request).await {
            Ok(payer) => Ok(VerifyResponse {
                is_valid: true,
                invalid_reason: None,
                invalid_message: None,
                payer: Some(payer),
            }),
            Err(Halt::Refused(refusal)) => Ok(invalid(&refusal)),
            Err(Halt::Outage(outage)) => Err(outage),
        }
    }

    async fn try_verify(&self, request: PaymentRequest) -> Result<String, Halt> {
        let site = self.site(&request)?;
        let candidate = Candidate::from_request(request, &site.policy)?;
        let payer = spelled(candidate.authorization.from);
        candidate.pays_what_is_required()?;
        let Some(standing) = self.known(site, &candidate).await? else {
            self.check(site, candidate).await?;
            return Ok(payer);
        };
        let id = standing.payment.id;
        match self.decided(standing).await? {
            Decision::Join if self.ledger.lease_verify(id, self.verify_lease_s).await? => {}
            Decision::Grant => {}
            Decision::Join => {
                return Err(duplicate(
                    &candidate,
                    "another request is verifying this payment right now",
                ));
            }
            Decision::AwaitGrant | Decision::Duplicate => {
                return Err(duplicate(
                    &candidate,
                    "this payment has bought its resource already",
                ));
            }
            Decision::CheckAgain(_) => {
                self.check(site, candidate).await?;
            }
            Decision::Failed(exit) => {
                return Err(candidate.refuse(exit.reason, exit.message).into());
            }
            Decision::SetAside(why) => {
                let why = format!("the operator has to look at this payment: {why}");
                return Err(candidate.refuse(Reason::SettlementPending, why).into());
            }
        }
        Ok(payer)
    }

    /// The decision, once an answer that is being given right now has arrived or broken off.
    async fn decided(&self, standing: Standing) -> Result<Decision, Outage> {
        let id: PaymentId = standing.payment.id;
        let mut decision = decide(&standing);
        let waiting = self.waiters.wait_for(id);
        let deadline = self.deadline();
        while decision == Decision::AwaitGrant {
            let change = waiting.change();
            decision = decide(&self.ledger.standing_of(id).await?);
            if decision == Decision::AwaitGrant && !self.wait(change, deadline).await {
                break;
            }
        }
        Ok(decision)
    }
}

fn duplicate(candidate: &Candidate, why: &str) -> Halt {
    candidate
        .refuse(Reason::DuplicateSettlement, why.to_owned())
        .into()
}

/// A refusal as `/verify` words it.
pub(super) fn invalid(refusal: &Refusal) -> VerifyResponse {
    VerifyResponse {
        is_valid: false,
        invalid_reason: Some(refusal.reason.code().to_owned()),
        invalid_message: Some(refusal.message.clone()),
        payer: refusal.payer.map(spelled),
    }
}

impl From<Refusal> for VerifyResponse {
    fn from(refusal: Refusal) -> Self {
        invalid(&refusal)
    }
}
