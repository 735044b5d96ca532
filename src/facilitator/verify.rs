//! `verify`: advice. Writes nothing but the short lease over a payment that is under way.

use crate::facilitator::decision::{Decision, decide};
use crate::facilitator::recognise::{Bond, Examined};
use crate::facilitator::{Facilitator, Halt, Outage};
use crate::ledger::{Known, Standing};
use crate::payment::{Candidate, PaymentId, Purpose};
use crate::protocol::response::spelled;
use crate::protocol::{
    AuthorizationPayload, Payload, PaymentRequest, Reason, Refusal, VerifyResponse,
};
use crate::settlement::Site;

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
        let site = self.site_of(&request)?;
        let (request, payload) = request.replace(());
        match payload {
            Payload::Authorization(payload) => self.judge(site, request.replace(payload).0).await,
            Payload::Proof(proof) => self.judge_proof(site, &request, &proof).await,
        }
    }

    async fn judge(
        &self,
        site: &Site,
        request: PaymentRequest<AuthorizationPayload>,
    ) -> Result<String, Halt> {
        let candidate = Candidate::from_request(request, &site.policy, Purpose::Verify)?;
        let payer = spelled(candidate.authorization.from);
        let Known { session, standing } = self.known(site, &candidate).await?;
        let mut standing = standing;
        loop {
            let bond = match standing {
                None if session.is_some() => Bond::Session,
                None => Bond::None,
                Some(known) => {
                    let id = known.payment.id;
                    match self.advice(known).await? {
                        Advice::Good => return Ok(payer),
                        Advice::CheckAgain => Bond::Payment(id),
                        Advice::Bad(reason, why) => {
                            return Err(candidate.refuse(reason, why).into());
                        }
                    }
                }
            };
            match self.examine(site, &candidate, bond).await? {
                Examined::Good(_) => {
                    Self::can_be_sent(site, &candidate, Purpose::Verify)?;
                    return Ok(payer);
                }
                Examined::Moved(id) => standing = Some(self.ledger.standing(id).await?),
            }
        }
    }

    /// What to say about a payment that the ledger knows.
    pub(super) async fn advice(&self, standing: Standing) -> Result<Advice, Outage> {
        let id = standing.payment.id;
        let duplicate = |why: &str| Advice::Bad(Reason::DuplicateSettlement, why.to_owned());
        Ok(match self.decided(standing).await? {
            Decision::Join if self.ledger.lease_verify(id, self.verify_lease_s).await? => {
                Advice::Good
            }
            Decision::Grant => Advice::Good,
            Decision::Join => duplicate("another request is verifying this payment right now"),
            Decision::AwaitGrant | Decision::Duplicate => {
                duplicate("this payment has bought its resource already")
            }
            Decision::CheckAgain(_) => Advice::CheckAgain,
            Decision::Failed(exit) => Advice::Bad(exit.reason, exit.message),
            Decision::Unmatched(why) => Advice::Bad(Reason::SessionExpired, why),
            Decision::SetAside(why) => {
                let why = format!("the operator has to look at this payment: {why}");
                Advice::Bad(Reason::SettlementPending, why)
            }
        })
    }

    /// The decision, once an answer that is being given right now has arrived or broken off.
    async fn decided(&self, standing: Standing) -> Result<Decision, Outage> {
        let id: PaymentId = standing.payment.id;
        let mut decision = decide(&standing);
        let mut waiting = self.waiters.wait_for(id);
        let deadline = self.deadline();
        while decision == Decision::AwaitGrant {
            decision = decide(&self.ledger.standing(id).await?);
            if decision == Decision::AwaitGrant && !self.wait(&mut waiting, deadline).await {
                break;
            }
        }
        Ok(decision)
    }
}

/// What `/verify` makes of a known payment.
#[derive(Debug)]
pub(super) enum Advice {
    /// A settle would succeed, or join.
    Good,
    /// It was refused once: look at the chain anew.
    CheckAgain,
    /// A settle would be refused.
    Bad(Reason, String),
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
