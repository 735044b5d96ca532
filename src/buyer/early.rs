//! Money that moves before the paid request: a session's authorization that its facilitator settles, or the payer's own transaction.

use tokio::time::Instant;

use crate::buyer::journal::{OpenPayment, PurchaseKey};
use crate::buyer::purchase::{Chosen, warn_unless_recorded};
use crate::buyer::scheme::payment_terms;
use crate::buyer::session::{self, NegotiatedSession};
use crate::buyer::verdict::is_hash;
use crate::buyer::{BuyerError, Client, Request, SessionFailure};
use crate::protocol::session::{
    PROOF_TYPE, SessionProof, TransferForm, claim_digest, transfer_calldata,
};
use crate::protocol::{PaymentHeader, X402Version};

impl Client {
    /// Rail `transfer`: signs the payer's own transaction, and the claim that assigns it to this session.
    pub(super) async fn sign_transfer(
        &self,
        request: &Request,
        key: &PurchaseKey,
        chosen: &Chosen,
        session: &NegotiatedSession,
    ) -> Result<OpenPayment, BuyerError> {
        let unusable = |why: &str| BuyerError::Session(SessionFailure::Transfer(why.to_owned()));
        let requirements = &chosen.offer.requirements;
        let chain = self.chain_of(requirements.network);
        let chain = chain.ok_or_else(|| unusable("no RPC endpoint for this network"))?;
        if chosen.offer.version != X402Version::V2 || requirements.payment_flow() != Some("upfront")
        {
            return Err(unusable("the offer is not x402 v2 with flow upfront"));
        }
        if !self.signer.is_plain_account() {
            return Err(unusable("a contract wallet cannot send transactions"));
        }
        let wei_max = self.fees.limit(requirements);
        let wei_max = wei_max.map_err(|error| unusable(&error.to_string()))?;
        let _guard = self.transfers.lock().await;
        let tag = session.binding.nonce;
        let data = transfer_calldata(requirements.pay_to, requirements.amount, tag);
        let call = chain
            .signed_call(
                &self.http,
                &self.signer,
                (requirements.asset, data),
                wei_max,
            )
            .await;
        let (raw, transaction) = call.map_err(BuyerError::Signing)?;
        let digest = claim_digest(
            &session.id,
            session.requirements_hash,
            transaction,
            requirements.network,
        );
        let signature = self.signer.sign(digest).map_err(BuyerError::Signing)?;
        let form = TransferForm::Raw {
            bytes: raw,
            claim: Some(signature.clone()),
        };
        let proof = SessionProof {
            kind: PROOF_TYPE.to_owned(),
            session_id: session.id.clone(),
            transaction,
            signature,
        };
        let header = PaymentHeader::present(&chosen.challenge, &chosen.offer, &proof)
            .map_err(|error| BuyerError::Signing(error.to_string()))?;
        let signed = payment_terms(&self.signer, &chosen.offer, tag, None);
        let recorded = session.record(Some(form.into()));
        let open = self.sign_and_record(key, requirements.amount, || {
            let mut open = chosen.open(request, &header, signed, Some(recorded));
            open.transaction = Some(transaction.to_string());
            Ok(open)
        })?;
        // The facilitator must have this transaction before the next transfer reads the pending account nonce.
        self.pay_first(key, &open, Instant::now()).await;
        Ok(open)
    }

    /// Submits a session's transfer to the facilitator, when it is to be sent before the payment header. Safe to repeat.
    pub(super) async fn pay_first(&self, key: &PurchaseKey, open: &OpenPayment, deadline: Instant) {
        let Some(session) = &open.session else { return };
        let Some(submission) = &session.submission else {
            return;
        };
        let hash = session::pay_first(&self.http, session, submission, deadline).await;
        if let Some(hash) = hash.filter(|hash| is_hash(hash)) {
            warn_unless_recorded(self.journal.record_transaction(key, &hash));
        }
    }
}
