//! What a buyer submits to pay its session: an authorization, signed bytes, or the hash of a transaction that was sent already.

use alloy::primitives::B256;
use tokio::time::Instant;

use crate::chain::transfer::decode;
use crate::facilitator::gate::Call;
use crate::facilitator::line::Asker;
use crate::facilitator::{Caller, Error, Facilitator, Sessions, Unavailable};
use crate::ledger::{NewTransfer, Submitted};
use crate::payment::session::{SessionStatus, Transfer};
use crate::payment::{Payment, PaymentId, PaymentState, Session};
use crate::protocol::assets::is_test_network;
use crate::protocol::challenge::network_name;
use crate::protocol::session::{Rail, TransferForm};
use crate::protocol::{
    Amount, AuthorizationPayload, ExactPayload, GasSponsoring, PaymentRequest, PaymentRequirements,
    Reason, Rejection, Scheme, X402Version, field, v1,
};
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::{Named, ServedNetwork};
use crate::telemetry::metrics;

impl Sessions {
    /// Accepts a submission for `session`; afterwards the session has a payment.
    pub(super) async fn accept_submission(
        &self,
        session: &Session,
        form: TransferForm,
        caller: &Caller,
    ) -> Result<(), Error> {
        let payments = &self.payments;
        let served = payments.network_of(session.network)?;
        if session.status == SessionStatus::Cancelled {
            let why =
                "the session was cancelled; a header that was signed for it is good all the same";
            return Err(Rejection::new(Reason::SessionCancelled, why).into());
        }
        let (transfer, raw, claim) = match form {
            TransferForm::Authorization(payload) => {
                session.check_authorization(&payload.authorization)?;
                let sending = self.send_early(served, session, payload, caller);
                return Box::pin(sending).await;
            }
            TransferForm::Raw { bytes, claim } => {
                let signed = decode(&bytes).ok_or_else(|| {
                    let why = "expected the bytes of one signed transaction";
                    Rejection::new(Reason::SessionTransferMismatch, why)
                })?;
                (signed.transfer.clone(), Some((bytes, signed)), claim)
            }
            TransferForm::Sent { transaction, claim } => {
                if let Some(claim) = &claim {
                    session.check_claim(transaction, claim)?;
                }
                if let Some(id) = session.payment {
                    payments.same_transfer(session, id, transaction).await?;
                    return Ok(());
                }
                let call = (caller, Call::Submit);
                payments
                    .admit_transfer(served, session, transaction, call)
                    .await?;
                let transfer = payments.find_transfer(served, session, transaction).await?;
                (transfer, None, claim)
            }
        };
        let tagged = session.check_transfer(&transfer)?;
        // The payer assigns a transaction to this session by a signed claim, or by the session's tag in the calldata.
        let needs_claim = !tagged || claim.is_some();
        let claim = claim.unwrap_or_default();
        if needs_claim {
            session.check_claim(transfer.hash, &claim)?;
        }
        if raw.is_some() && session.payment.is_none() && self.is_expired(served, session) {
            let why = "the session has expired; nothing was sent";
            return Err(Rejection::new(Reason::SessionExpired, why).into());
        }
        if let (Some((_, signed)), None) = (&raw, session.payment) {
            let call = (caller, Call::Submit);
            payments
                .admit_transfer(served, session, transfer.hash, call)
                .await?;
            payments.check_mineable(served, session, signed).await?;
        }
        let new = NewTransfer {
            transfer: &transfer,
            raw: raw.as_ref().map(|(bytes, _)| bytes),
            claim: &claim,
        };
        payments.join_or_record(served, session, new).await?;
        Ok(())
    }

    /// Broadcasts an authorization before the seller asks for it, where the operator pays the gas for that.
    async fn send_early(
        &self,
        served: &ServedNetwork,
        session: &Session,
        payload: ExactPayload,
        caller: &Caller,
    ) -> Result<(), Error> {
        let request = request_of(session, payload)?;
        let call = (caller, Call::Submit);
        let (candidate, known) = self.payments.recognise(served, request, call).await?;
        if let Some(found) = &known.payment
            && !matches!(found.payment.state, PaymentState::Refused(_))
        {
            // It is being settled, or is settled: nothing to send.
            self.payments.ledger.need_session_id(&session.id).await?;
            return Ok(());
        }
        self.may_send_early(served, session)?;
        // The key of the payee may have been revoked since the session was opened.
        let access = &self.payments.access;
        access.check_session(caller, session.network, session.payee)?;
        let asker = Asker::Submit(caller, &session.id);
        let accepted = self.payments.accept(served, candidate, &known, asker);
        accepted.await?;
        self.payments.waiters.wake([session.id.clone()]);
        Ok(())
    }

    fn may_send_early(&self, served: &ServedNetwork, session: &Session) -> Result<(), Rejection> {
        if is_test_network(session.network) {
            return Ok(());
        }
        let refused = |why: String| Err(Rejection::new(Reason::SponsorshipRefused, why));
        let Some(sponsorship) = &self.rules.sponsorship else {
            return refused("this facilitator sends nothing on this network before the seller asks; put the same authorization into the request's header".to_owned());
        };
        let least = served.policy.asset(session.asset).and_then(|asset| {
            Amount::from_dollars(&sponsorship.least_dollars, asset.decimals).ok()
        });
        match least {
            Some(least) if session.amount >= least => Ok(()),
            Some(least) => refused(format!(
                "payments of less than {least} are not sent before the seller asks; put the same authorization into the request's header"
            )),
            None => refused("this token's payments are not sent before the seller asks".to_owned()),
        }
    }
}

impl Facilitator {
    /// Reads a transaction that pays a session from the chain.
    pub(super) async fn find_transfer(
        &self,
        served: &ServedNetwork,
        session: &Session,
        transaction: B256,
    ) -> Result<Transfer, Error> {
        if !served.is_open() {
            return Err(Unavailable::NetworkStarting(served.policy.network).into());
        }
        let Some((transfer, block)) = self.look_for(served, transaction).await? else {
            let why = format!(
                "{} does not know transaction {transaction} yet; hand it in again once a node has it, or hand in its signed bytes",
                session.network
            );
            return Err(Rejection::new(Reason::TransferNotFound, why).into());
        };
        session.check_transfer(&transfer)?;
        if let Some(block) = block.filter(|block| *block < session.accept_from_block) {
            let why = format!(
                "expected a transfer from block {} on, this one is in block {block}",
                session.accept_from_block
            );
            return Err(Rejection::new(Reason::TransferTooOld, why).into());
        }
        Ok(transfer)
    }

    /// A transaction of a payer. One that no node knows is asked for once a second, however often callers ask.
    async fn look_for(
        &self,
        served: &ServedNetwork,
        transaction: B256,
    ) -> Result<Option<(Transfer, Option<u64>)>, Error> {
        let (network, arrived) = (served.policy.network, Instant::now());
        let turn = self.looks.turn(network, transaction).await;
        let _turn = turn.ok_or(Unavailable::BeingChecked)?;
        if self.looks.is_unknown(network, transaction, arrived).await {
            return Ok(None);
        }
        let found = served.caller_rpc.transfer(transaction).await?;
        if found.is_none() {
            self.looks.note_unknown(network, transaction);
        }
        Ok(found)
    }

    /// Commits a transfer as its session's payment, and starts to follow it. If the session has a payment, it must be this transfer.
    pub(super) async fn join_or_record(
        &self,
        served: &ServedNetwork,
        session: &Session,
        new: NewTransfer<'_>,
    ) -> Result<PaymentId, Error> {
        if let Some(id) = session.payment {
            return self.same_transfer(session, id, new.transfer.hash).await;
        }
        let transaction = new.transfer.hash;
        match self.ledger.submit_transfer(session, new).await? {
            Submitted::Yes(id) => {
                reach(Step::Recorded);
                let named = Named::new(id, Scheme::Exact, session.payer);
                let named = named.in_transaction(Some(transaction));
                served.note_step(named, metrics::Step::Accepted);
                served.wake_transfers();
                self.waiters.wake([session.id.clone()]);
                Ok(id)
            }
            Submitted::TransactionTaken => {
                let why = "this transaction pays another session";
                Err(Rejection::new(Reason::TransferAlreadyUsed, why).into())
            }
            Submitted::SessionTaken => {
                let now = self.ledger.session(&session.id).await?;
                let Some(id) = now.and_then(|session| session.payment) else {
                    let why = "the session was cancelled meanwhile; nothing was sent";
                    return Err(Rejection::new(Reason::SessionCancelled, why).into());
                };
                self.same_transfer(session, id, new.transfer.hash).await
            }
        }
    }

    /// The payment of a session, which must have this transaction.
    pub(super) async fn same_transfer(
        &self,
        session: &Session,
        id: PaymentId,
        transaction: B256,
    ) -> Result<PaymentId, Error> {
        let payment = self.ledger.payment_with_grant(id).await?.payment;
        check_same_transfer(session, &payment, transaction)?;
        Ok(id)
    }
}

pub(super) fn check_same_transfer(
    session: &Session,
    payment: &Payment,
    transaction: B256,
) -> Result<(), Rejection> {
    if payment.rail == Rail::Transfer && payment.terms.digest == session.claim_digest(transaction) {
        return Ok(());
    }
    let why = "another transaction was submitted for this session before; open a new session for this one";
    Err(Rejection::new(Reason::SessionInUse, why))
}

/// The request that a seller would send for an authorization submitted for a session.
fn request_of(
    session: &Session,
    payload: ExactPayload,
) -> Result<PaymentRequest<AuthorizationPayload>, Rejection> {
    let payload = ExactPayload {
        session_id: Some(session.id.clone()),
        ..payload
    };
    let requirements = accepted_terms(session.version, &session.accepted)?;
    Ok(PaymentRequest {
        version: session.version,
        network_name: network_name(session.version, session.network).unwrap_or_default(),
        accepted_scheme: requirements.scheme,
        accepted_network: requirements.network,
        payload: AuthorizationPayload::Eip3009(payload),
        requirements,
        sponsoring: GasSponsoring::NONE,
        resource: session.resource.clone().map(String::from),
    })
}

/// Parses an entry of `accepts`.
pub(super) fn accepted_terms(
    version: X402Version,
    entry: &str,
) -> Result<PaymentRequirements, Rejection> {
    let terms = match version {
        X402Version::V2 => field::read_part("accepted", entry),
        X402Version::V1 => {
            field::read_part("accepted", entry).and_then(|terms: v1::PaymentRequirementsV1| {
                terms.translate().map_err(|error| error.to_string())
            })
        }
    };
    terms.map_err(|why| Rejection::new(Reason::InvalidPaymentRequirements, why))
}
