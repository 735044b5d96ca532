//! The proof of a transfer, which a seller's request presents in place of an authorization (rail `transfer`).

use crate::facilitator::gate::Call;
use crate::facilitator::intake::KnownPayment;
use crate::facilitator::{Caller, Error, Facilitator};
use crate::ledger::NewTransfer;
use crate::payment::{PaymentId, Session};
use crate::protocol::session::SessionProof;
use crate::protocol::{PaymentRequest, Reason, Rejection};
use crate::settlement::ServedNetwork;

impl Facilitator {
    /// Finds the payment of a proof, or records the transfer.
    pub(super) async fn payment_of_proof(
        &self,
        served: &ServedNetwork,
        session: &Session,
        (request, proof): (&PaymentRequest<()>, &SessionProof),
        caller: &Caller,
    ) -> Result<PaymentId, Error> {
        check_proof(session, request, proof)?;
        if let Some(id) = session.payment {
            return self.same_transfer(session, id, proof.transaction).await;
        }
        let call = (caller, Call::Settle);
        self.admit_transfer(served, session, proof.transaction, call)
            .await?;
        let transfer = self
            .find_transfer(served, session, proof.transaction)
            .await?;
        let new = NewTransfer {
            transfer: &transfer,
            raw: None,
            claim: &proof.signature,
        };
        self.join_or_record(served, session, new).await
    }

    /// Checks a proof without writing anything.
    pub(super) async fn verify_proof(
        &self,
        served: &ServedNetwork,
        session: &Session,
        (request, proof): (&PaymentRequest<()>, &SessionProof),
        caller: &Caller,
    ) -> Result<(), Error> {
        check_proof(session, request, proof)?;
        let Some(id) = session.payment else {
            let call = (caller, Call::Verify);
            self.admit_transfer(served, session, proof.transaction, call)
                .await?;
            self.find_transfer(served, session, proof.transaction)
                .await?;
            return Ok(());
        };
        self.same_transfer(session, id, proof.transaction).await?;
        let found = self.ledger.payment_with_grant(id).await?;
        match self.verify_known(&found, caller.who).await? {
            // There is nothing else to check in a transfer that was refused once.
            KnownPayment::Valid | KnownPayment::CheckAgain => Ok(()),
        }
    }
}

/// Checks a proof as far as no chain is needed.
pub(super) fn check_proof(
    session: &Session,
    request: &PaymentRequest<()>,
    proof: &SessionProof,
) -> Result<(), Rejection> {
    let required = &request.requirements;
    if required.payment_flow() != Some("upfront") {
        let why = "a transfer by the payer is settled before the handler runs: expected extra.paymentFlow \"upfront\" in the seller's requirement";
        return Err(Rejection::new(Reason::SessionFlowRequired, why));
    }
    if request.accepted_network != required.network {
        let why = format!("the buyer accepted {}", request.accepted_network);
        return Err(Rejection::new(Reason::ExactNetworkMismatch, why));
    }
    session.check_requirements(required)?;
    session.check_claim(proof.transaction, &proof.signature)
}
