//! `verify`: checks a payment and sends nothing. Its only write is the short lease over a payment that is being settled.

use crate::facilitator::decision::{Decision, decide};
use crate::facilitator::recognise::{Origin, Preflight};
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::ledger::{Lookup, PaymentWithGrant};
use crate::payment::{Candidate, PaymentId, Purpose};
use crate::protocol::response::checksummed;
use crate::protocol::{
    AuthorizationPayload, Payload, PaymentRequest, Reason, Refusal, VerifyResponse,
};
use crate::settlement::ServedNetwork;

impl Facilitator {
    /// Checks a payment without sending anything.
    ///
    /// # Errors
    /// An [`Unavailable`] when the payment cannot be checked now.
    pub async fn verify(&self, request: PaymentRequest) -> Result<VerifyResponse, Unavailable> {
        match self.try_verify(request).await {
            Ok(payer) => Ok(VerifyResponse {
                is_valid: true,
                invalid_reason: None,
                invalid_message: None,
                payer: Some(payer),
            }),
            Err(Error::Refused(refusal)) => Ok(invalid(&refusal)),
            Err(Error::Unavailable(unavailable)) => Err(unavailable),
        }
    }

    async fn try_verify(&self, request: PaymentRequest) -> Result<String, Error> {
        let served = self.network_of(&request)?;
        let (request, payload) = request.with_payload(());
        match payload {
            Payload::Authorization(payload) => {
                self.verify_authorization(served, request.with_payload(payload).0)
                    .await
            }
            Payload::Proof(proof) => self.verify_proof(served, &request, &proof).await,
        }
    }

    async fn verify_authorization(
        &self,
        served: &ServedNetwork,
        request: PaymentRequest<AuthorizationPayload>,
    ) -> Result<String, Error> {
        let candidate = Candidate::from_request(request, &served.policy, Purpose::Verify)?;
        let payer = checksummed(candidate.authorization.from);
        let Lookup {
            session,
            payment: found,
        } = self.look_up(served, &candidate).await?;
        let mut found = found;
        loop {
            let origin = match found {
                None if session.is_some() => Origin::Session,
                None => Origin::New,
                Some(known) => {
                    let id = known.payment.id;
                    match self.advice(known).await? {
                        Advice::Good => return Ok(payer),
                        Advice::CheckAgain => Origin::Refused(id),
                        Advice::Bad(reason, why) => {
                            return Err(candidate.refuse(reason, why).into());
                        }
                    }
                }
            };
            match self.preflight(served, &candidate, origin).await? {
                Preflight::Good(_) => {
                    Self::can_be_sent(served, &candidate, Purpose::Verify)?;
                    return Ok(payer);
                }
                Preflight::Transferred(id) => {
                    found = Some(self.ledger.payment_with_grant(id).await?);
                }
            }
        }
    }

    /// The advice for a payment that the ledger has.
    pub(super) async fn advice(&self, found: PaymentWithGrant) -> Result<Advice, Unavailable> {
        let id = found.payment.id;
        let duplicate = |why: &str| Advice::Bad(Reason::DuplicateSettlement, why.to_owned());
        Ok(match self.decide_after_grant(found).await? {
            Decision::Join if self.ledger.lease_verify(id, self.verify_lease_s).await? => {
                Advice::Good
            }
            Decision::Grant => Advice::Good,
            Decision::Join => duplicate("another request is verifying this payment right now"),
            Decision::AwaitGrant | Decision::Duplicate => {
                duplicate("this payment has bought its resource already")
            }
            Decision::CheckAgain(_) => Advice::CheckAgain,
            Decision::Failed(rejection) => Advice::Bad(rejection.reason, rejection.message),
            Decision::Unmatched(why) => Advice::Bad(Reason::SessionExpired, why),
            Decision::Quarantined(why) => {
                let why = format!("the operator has to look at this payment: {why}");
                Advice::Bad(Reason::SettlementPending, why)
            }
        })
    }

    /// The decision, once an answer that is being written has arrived or broken off.
    async fn decide_after_grant(&self, found: PaymentWithGrant) -> Result<Decision, Unavailable> {
        let id: PaymentId = found.payment.id;
        let mut decision = decide(&found);
        let mut waiting = self.waiters.wait_for(id);
        let deadline = self.deadline();
        while decision == Decision::AwaitGrant {
            decision = decide(&self.ledger.payment_with_grant(id).await?);
            if decision == Decision::AwaitGrant && !self.wait(&mut waiting, deadline).await {
                break;
            }
        }
        Ok(decision)
    }
}

/// The answer of `/verify` for a known payment.
#[derive(Debug)]
pub(super) enum Advice {
    /// A settle would succeed, or join.
    Good,
    /// It was refused once: check it against the chain anew.
    CheckAgain,
    /// A settle would be refused.
    Bad(Reason, String),
}

/// A refusal in the format of `/verify`.
pub(super) fn invalid(refusal: &Refusal) -> VerifyResponse {
    VerifyResponse {
        is_valid: false,
        invalid_reason: Some(refusal.reason.code().to_owned()),
        invalid_message: Some(refusal.message.clone()),
        payer: refusal.payer.map(checksummed),
    }
}

impl From<Refusal> for VerifyResponse {
    fn from(refusal: Refusal) -> Self {
        invalid(&refusal)
    }
}
