//! Payments on rail `transfer`: the header holds a transaction hash and a claim instead of an authorization.

use crate::facilitator::verify::Advice;
use crate::facilitator::{Error, Facilitator};
use crate::ledger::NewTransfer;
use crate::payment::session::Objection;
use crate::payment::{PaymentId, Session};
use crate::protocol::response::checksummed;
use crate::protocol::session::SessionProof;
use crate::protocol::{PaymentRequest, Reason, Refusal};
use crate::settlement::ServedNetwork;

impl Facilitator {
    /// Finds the payment of a proof, or records the transfer.
    pub(super) async fn payment_of_proof(
        &self,
        served: &ServedNetwork,
        request: &PaymentRequest<()>,
        proof: &SessionProof,
    ) -> Result<PaymentId, Error> {
        let session = self.proven_session(request, proof).await?;
        let refuse = |objection| refusal(request, Some(&session), objection);
        if let Some(id) = self.recorded_payment(&session, proof).await? {
            return id.map_err(|objection| refuse(objection).into());
        }
        let transfer = self
            .find_transfer(served, &session, proof.transaction)
            .await?
            .map_err(refuse)?;
        let new = NewTransfer {
            transfer: &transfer,
            raw: None,
            claim: &proof.signature,
        };
        let recorded = self.record_transfer(served, &session, new).await?;
        recorded.map_err(|objection| refuse(objection).into())
    }

    /// Checks a proof without writing anything.
    pub(super) async fn verify_proof(
        &self,
        served: &ServedNetwork,
        request: &PaymentRequest<()>,
        proof: &SessionProof,
    ) -> Result<String, Error> {
        let session = self.proven_session(request, proof).await?;
        let refuse = |objection| refusal(request, Some(&session), objection);
        match self.recorded_payment(&session, proof).await? {
            Some(id) => {
                let found = self.ledger.payment_with_grant(id.map_err(refuse)?).await?;
                if let Advice::Bad(reason, why) = self.advice(found).await? {
                    return Err(refuse((reason, why)).into());
                }
            }
            None => drop(
                self.find_transfer(served, &session, proof.transaction)
                    .await?
                    .map_err(refuse)?,
            ),
        }
        Ok(checksummed(session.payer))
    }

    /// The session of a proof, after every check that needs no chain.
    async fn proven_session(
        &self,
        request: &PaymentRequest<()>,
        proof: &SessionProof,
    ) -> Result<Session, Error> {
        let Some(session) = self.ledger.session(&proof.session_id).await? else {
            let why = format!("there is no session {} here", proof.session_id);
            return Err(refusal(request, None, (Reason::SessionNotFound, why)).into());
        };
        let required = &request.requirements;
        let same_network = request.accepted_network == required.network;
        let checked = if required.payment_flow() != Some("upfront") {
            let why = "a transfer by the payer is settled before the handler runs: expected extra.paymentFlow \"upfront\" in the seller's requirement";
            Err((Reason::SessionFlowRequired, why.to_owned()))
        } else if !same_network {
            let why = format!("the buyer accepted {}", request.accepted_network);
            Err((Reason::ExactNetworkMismatch, why))
        } else {
            session
                .check_requirements(required)
                .and_then(|()| session.check_claim(proof.transaction, &proof.signature))
        };
        match checked {
            Ok(()) => Ok(session),
            Err(objection) => Err(refusal(request, Some(&session), objection).into()),
        }
    }

    /// The payment of a session, if it has one; its transaction must be the claimed one.
    async fn recorded_payment(
        &self,
        session: &Session,
        proof: &SessionProof,
    ) -> Result<Option<Result<PaymentId, Objection>>, Error> {
        let Some(id) = session.payment else {
            return Ok(None);
        };
        Ok(Some(
            self.same_transfer(session, id, proof.transaction).await?,
        ))
    }
}

fn refusal(
    request: &PaymentRequest<()>,
    session: Option<&Session>,
    (reason, message): Objection,
) -> Refusal {
    Refusal {
        reason,
        message,
        payer: session.map(|session| session.payer),
        network_name: request.network_name.clone(),
    }
}
