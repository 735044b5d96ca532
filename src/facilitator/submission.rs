//! What a buyer submits for a session: an authorization, signed bytes, or the hash of a transaction that was sent already.

use alloy::primitives::{B256, Bytes};

use crate::chain::transfer::decode;
use crate::facilitator::recognise::Origin;
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::ledger::{NewTransfer, Submitted};
use crate::payment::session::{Objection, SessionStatus, Transfer};
use crate::payment::{Candidate, PaymentId, PaymentState, Purpose, Session};
use crate::protocol::assets::is_test_network;
use crate::protocol::challenge::network_name;
use crate::protocol::session::{Rail, TransferForm};
use crate::protocol::{
    Amount, AuthorizationPayload, ExactPayload, GasSponsoring, PaymentRequest, PaymentRequirements,
    Reason, Refusal, X402Version, field, v1,
};
use crate::settlement::ServedNetwork;
use crate::settlement::failpoint::{Step, reach};

impl Facilitator {
    /// Accepts a submission for `session`; afterwards the session has a payment.
    pub(super) async fn accept_submission(
        &self,
        served: &ServedNetwork,
        session: &Session,
        form: TransferForm,
    ) -> Result<(), Error> {
        let refuse = |objection| Error::from(refusal(session, objection));
        if session.status == SessionStatus::Cancelled {
            let why =
                "the session was cancelled; a header that was signed for it is good all the same";
            return Err(refuse((Reason::SessionCancelled, why.to_owned())));
        }
        match form {
            TransferForm::Authorization(payload) => {
                session
                    .check_authorization(&payload.authorization)
                    .map_err(refuse)?;
                self.send_early(served, session, payload).await
            }
            TransferForm::Raw { bytes, claim } => {
                let transfer = decode(&bytes).ok_or_else(|| {
                    let why = "expected the bytes of one signed transaction";
                    refuse((Reason::SessionTransferMismatch, why.to_owned()))
                })?;
                attributed(session, &transfer, claim.as_ref()).map_err(refuse)?;
                if session.payment.is_none() && self.is_expired(served, session) {
                    let why = "the session has expired; nothing was sent";
                    return Err(refuse((Reason::SessionExpired, why.to_owned())));
                }
                let new = NewTransfer {
                    transfer: &transfer,
                    raw: Some(&bytes),
                    claim: claim.as_ref().map_or(&[], |claim| &claim[..]),
                };
                self.join_or_record(served, session, new).await
            }
            TransferForm::Sent { transaction, claim } => {
                if let Some(claim) = &claim {
                    session.check_claim(transaction, claim).map_err(refuse)?;
                }
                let transfer = self
                    .find_transfer(served, session, transaction)
                    .await?
                    .map_err(refuse)?;
                attributed(session, &transfer, claim.as_ref()).map_err(refuse)?;
                let new = NewTransfer {
                    transfer: &transfer,
                    raw: None,
                    claim: claim.as_ref().map_or(&[], |claim| &claim[..]),
                };
                self.join_or_record(served, session, new).await
            }
        }
    }

    async fn join_or_record(
        &self,
        served: &ServedNetwork,
        session: &Session,
        new: NewTransfer<'_>,
    ) -> Result<(), Error> {
        let recorded = match session.payment {
            Some(id) => self.same_transfer(session, id, new.transfer.hash).await?,
            None => self.record_transfer(served, session, new).await?,
        };
        recorded
            .map(drop)
            .map_err(|objection| refusal(session, objection).into())
    }

    /// Broadcasts an authorization before the seller asks for it, where the operator pays the gas for that.
    async fn send_early(
        &self,
        served: &ServedNetwork,
        session: &Session,
        payload: ExactPayload,
    ) -> Result<(), Error> {
        let candidate = Candidate::from_request(
            request_of(session, payload)?,
            &served.policy,
            Purpose::Settle,
        )?;
        let found = self.look_up(served, &candidate).await?.payment;
        let origin = match &found {
            Some(found) if matches!(found.payment.state, PaymentState::Refused(_)) => {
                Origin::Refused(found.payment.id)
            }
            // It is being settled, or is settled: nothing to send.
            Some(_) => return Ok(()),
            None => Origin::Session,
        };
        self.may_send_early(served, session)
            .map_err(|objection| refusal(session, objection))?;
        self.admit(served, candidate, origin).await?;
        self.waiters.wake([session.id.clone()]);
        Ok(())
    }

    fn may_send_early(&self, served: &ServedNetwork, session: &Session) -> Result<(), Objection> {
        let refused = |why: String| Err((Reason::SponsorshipRefused, why));
        if is_test_network(session.network) {
            return Ok(());
        }
        let Some(sponsorship) = &self.sessions.sponsorship else {
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

    /// Reads a transaction that pays a session from the chain.
    pub(super) async fn find_transfer(
        &self,
        served: &ServedNetwork,
        session: &Session,
        transaction: B256,
    ) -> Result<Result<Transfer, Objection>, Error> {
        if !served.is_open() {
            return Err(Unavailable::NetworkStarting(served.policy.network).into());
        }
        let Some((transfer, block)) = served.caller_rpc.transfer(transaction).await? else {
            let why = format!(
                "{} does not know transaction {transaction} yet; hand it in again once a node has it, or hand in its signed bytes",
                session.network
            );
            return Ok(Err((Reason::TransferNotFound, why)));
        };
        if let Err(objection) = session.check_transfer(&transfer) {
            return Ok(Err(objection));
        }
        if let Some(block) = block.filter(|block| *block < session.accept_from_block) {
            let why = format!(
                "expected a transfer from block {} on, this one is in block {block}",
                session.accept_from_block
            );
            return Ok(Err((Reason::TransferTooOld, why)));
        }
        Ok(Ok(transfer))
    }

    /// Commits a transfer as its session's payment, and starts to follow it.
    pub(super) async fn record_transfer(
        &self,
        served: &ServedNetwork,
        session: &Session,
        new: NewTransfer<'_>,
    ) -> Result<Result<PaymentId, Objection>, Error> {
        let submitted = self.ledger.submit_transfer(session, new).await?;
        Ok(match submitted {
            Submitted::Yes(id) => {
                reach(Step::Recorded);
                served.wake_transfers();
                self.waiters.wake([session.id.clone()]);
                Ok(id)
            }
            Submitted::TransactionTaken => {
                let why = "this transaction pays another session".to_owned();
                Err((Reason::TransferAlreadyUsed, why))
            }
            Submitted::SessionTaken => {
                let now = self.ledger.session(&session.id).await?;
                match now.and_then(|session| session.payment) {
                    Some(id) => self.same_transfer(session, id, new.transfer.hash).await?,
                    None => Err((
                        Reason::SessionCancelled,
                        "the session was cancelled meanwhile; nothing was sent".to_owned(),
                    )),
                }
            }
        })
    }

    /// Whether a session's payment has this transaction.
    pub(super) async fn same_transfer(
        &self,
        session: &Session,
        id: PaymentId,
        transaction: B256,
    ) -> Result<Result<PaymentId, Objection>, Error> {
        let payment = self.ledger.payment_with_grant(id).await?.payment;
        let same =
            payment.rail == Rail::Transfer && payment.digest == session.claim_digest(transaction);
        Ok(if same {
            Ok(id)
        } else {
            let why = "another transaction was submitted for this session before; open a new session for this one";
            Err((Reason::SessionInUse, why.to_owned()))
        })
    }
}

/// Checks that the payer has assigned a transaction to this session: by a signed claim, or by the session's tag in the calldata.
fn attributed(
    session: &Session,
    transfer: &Transfer,
    claim: Option<&Bytes>,
) -> Result<(), Objection> {
    let tagged = session.check_transfer(transfer)?;
    match claim {
        Some(claim) => session.check_claim(transfer.hash, claim),
        None if tagged => Ok(()),
        None => session.check_claim(transfer.hash, &[]),
    }
}

/// The request that a seller would send for an authorization submitted for a session.
fn request_of(
    session: &Session,
    payload: ExactPayload,
) -> Result<PaymentRequest<AuthorizationPayload>, Refusal> {
    let requirements = accepted_terms(session.version, &session.accepted)
        .map_err(|why| refusal(session, (Reason::InvalidPaymentRequirements, why)))?;
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
) -> Result<PaymentRequirements, String> {
    match version {
        X402Version::V2 => field::read_part("accepted", entry),
        X402Version::V1 => field::read_part::<v1::PaymentRequirementsV1>("accepted", entry)?
            .translate()
            .map_err(|error| error.to_string()),
    }
}

pub(super) fn refusal(session: &Session, (reason, message): Objection) -> Refusal {
    Refusal {
        reason,
        message,
        payer: Some(session.payer),
        network_name: network_name(session.version, session.network).unwrap_or_default(),
    }
}
