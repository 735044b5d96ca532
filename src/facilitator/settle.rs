//! `settle`: accepts a payment into the ledger, waits for the chain, and answers success once.

use std::time::Duration;

use alloy::primitives::U256;
use tokio::time::Instant;
use uuid::Uuid;

use crate::facilitator::decision::{Decision, decide};
use crate::facilitator::recognise::{Origin, Preflight, Recognised};
use crate::facilitator::{Caller, Checked, Error, Facilitator, Grant, Unavailable, unreadable_row};
use crate::ledger::{Accepted, LedgerError, NewPayment, PaymentWithGrant};
use crate::payment::method::Fault;
use crate::payment::state::Rejection;
use crate::payment::{Candidate, Payment, PaymentId, PaymentState, Purpose};
use crate::protocol::response::checksummed;
use crate::protocol::session::SessionId;
use crate::protocol::{
    Amount, AuthorizationPayload, Payload, PaymentRequest, Reason, Refusal, SettleResponse,
};
use crate::settlement::failpoint::{Step, grant_answers_are_lost, reach};
use crate::settlement::waiters::Waiting;
use crate::settlement::{Queued, ServedNetwork};

/// How many times the balance is read for one acceptance: a transfer of the same payer may be in a block whose result is being recorded.
const READS_MAX: u32 = 3;
/// How long to wait for an endpoint that is behind a block that was seen before: the slowest chains make one block in that time.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(15);
/// Pause before the next read, in which the ledger records results or the endpoint catches up.
const RECORD_PAUSE: Duration = Duration::from_millis(300);

/// An answer to `/settle`, and the grant that it carries when it says success.
#[derive(Debug)]
pub struct Settled {
    /// The response body.
    pub response: SettleResponse,
    /// To be closed once the answer was written or has broken off.
    pub grant: Option<Grant>,
}

/// The result of a commit, unless a test drops it.
fn commit_result<T>(result: T) -> Result<T, LedgerError> {
    if grant_answers_are_lost() {
        let why = "a test dropped the result of a commit".to_owned();
        return Err(LedgerError::Unusable(why));
    }
    Ok(result)
}

impl Facilitator {
    /// Settles a payment, or joins its settlement. Run it to its end even if the caller disconnects: an accepted payment is in the ledger,
    /// and the grant of an answer that was not delivered is void.
    ///
    /// # Errors
    /// An [`Unavailable`] when the payment cannot be checked now; a payment that was accepted before is settled all the same.
    pub async fn settle(
        &self,
        request: PaymentRequest,
        caller: &Caller,
    ) -> Result<Settled, Unavailable> {
        match Box::pin(self.try_settle(request, caller)).await {
            Ok(settled) => Ok(settled),
            Err(Error::Refused(refusal)) => Ok(Settled {
                response: refusal.into(),
                grant: None,
            }),
            Err(Error::Unavailable(unavailable)) => Err(unavailable),
        }
    }

    async fn try_settle(&self, request: PaymentRequest, caller: &Caller) -> Result<Settled, Error> {
        let deadline = self.deadline();
        let served = self.network_of(&request)?;
        let network_name = request.network_name.clone();
        let required = request.requirements.amount;
        let (request, payload) = request.with_payload(());
        let (admitted, session) = match payload {
            Payload::Authorization(payload) => {
                self.find_or_admit(served, request.with_payload(payload).0)
                    .await?
            }
            Payload::Proof(proof) => {
                let session = proof.session_id.clone();
                let id = self.payment_of_proof(served, &request, &proof).await?;
                (Admitted::Earlier(id), Some(session))
            }
        };
        let answer = Answer {
            network_name,
            required,
            session,
        };
        self.conclude(served, admitted, &answer, (caller, deadline))
            .await
    }

    /// Finds the payment of an authorization in the ledger, or accepts a new one.
    async fn find_or_admit(
        &self,
        served: &ServedNetwork,
        request: PaymentRequest<AuthorizationPayload>,
    ) -> Result<(Admitted, Option<SessionId>), Error> {
        let candidate = Candidate::from_request(request, &served.policy, Purpose::Settle)?;
        let known = self.look_up(served, &candidate).await?;
        let session = known.session.map(|session| session.id);
        let Some(found) = known.payment else {
            let origin = session.as_ref().map_or(Origin::New, |_| Origin::Session);
            return Ok((self.admit(served, candidate, origin).await?, session));
        };
        let id = found.payment.id;
        self.ledger.end_verify_lease(id).await?;
        let admitted = match decide(&found) {
            Decision::CheckAgain(_) => self.admit(served, candidate, Origin::Refused(id)).await?,
            Decision::Join
            | Decision::Grant
            | Decision::AwaitGrant
            | Decision::Duplicate
            | Decision::Failed(_)
            | Decision::Unmatched(_)
            | Decision::Quarantined(_) => Admitted::Earlier(id),
        };
        Ok((admitted, session))
    }

    /// Checks everything and puts the payment into the queue. The place in the queue is reserved first, so that no accepted payment is
    /// without one.
    pub(super) async fn admit(
        &self,
        served: &ServedNetwork,
        candidate: Candidate,
        origin: Origin,
    ) -> Result<Admitted, Error> {
        let refused = match origin {
            Origin::Refused(id) => Some(id),
            Origin::New | Origin::Session => None,
        };
        let (queue, network) = (&served.queue, served.policy.network);
        let place = queue.reserve().ok_or(Unavailable::Busy)?;
        let mut reads_left = READS_MAX;
        let catch_up_deadline = Instant::now() + CATCH_UP_LIMIT;
        loop {
            let preflight = self.preflight(served, &candidate, origin).await?;
            let Checked { verified, facts } = match preflight {
                Preflight::Good(checked) => *checked,
                Preflight::Transferred(id) => return Ok(Admitted::Earlier(id)),
            };
            if !candidate.authorization.value.is_zero() {
                Self::can_be_sent(served, &candidate, Purpose::Settle)?;
            }
            let new = NewPayment {
                id: refused.unwrap_or_else(|| PaymentId(Uuid::now_v7())),
                verified,
                confirmations: served.policy.confirmations,
                claimed: place.is_claimed_here(queue, candidate.method.facilitator()),
            };
            let accepted = match refused {
                Some(_) => self.ledger.queue_again(new).await?,
                None => self.ledger.accept(new).await?,
            };
            match accepted {
                Accepted::New(payment) if payment.state == PaymentState::Uncharged => {
                    return Ok(Admitted::Earlier(payment.id));
                }
                Accepted::New(payment) => {
                    let (id, waiting) = (payment.id, self.waiters.wait_for(payment.id));
                    queue.enqueue(place, Queued::new(*payment, Some(facts)));
                    return Ok(Admitted::Now(id, waiting));
                }
                // Another request was faster: its row answers, after the same checks that every known payment gets.
                Accepted::AlreadyAccepted => {
                    let id = self.existing_payment(&candidate, refused).await?;
                    return Ok(Admitted::Earlier(id));
                }
                // The balance may already lack the money of a payment whose result is not recorded yet, which the ledger then counts a
                // second time.
                Accepted::InsufficientBalance { .. } | Accepted::InsufficientAllowance { .. }
                    if reads_left > 1 =>
                {
                    reads_left -= 1;
                    tokio::time::sleep(RECORD_PAUSE).await;
                }
                Accepted::InsufficientBalance { held } => {
                    let has = format!("the payer has {}", facts.balance.unwrap_or_default());
                    let why = too_little(&has, held, &candidate);
                    return Err(candidate.refuse_for(Fault::Balance, why).into());
                }
                Accepted::InsufficientAllowance { promised } => {
                    let allowance = facts.allowance.unwrap_or_default();
                    let has = format!("the payer lets Permit2 take {allowance}");
                    let why = too_little(&has, promised, &candidate);
                    return Err(candidate
                        .refuse(Reason::Permit2AllowanceRequired, why)
                        .into());
                }
                // The endpoint is behind a block in which this payer has paid: wait for it, or for another endpoint.
                Accepted::Stale if Instant::now() < catch_up_deadline => {
                    tokio::time::sleep(RECORD_PAUSE).await;
                }
                Accepted::Stale => return Err(Unavailable::NodeBehind(network).into()),
            }
        }
    }

    /// The payment that another request recorded for the candidate's nonce.
    pub(super) async fn existing_payment(
        &self,
        candidate: &Candidate,
        refused: Option<PaymentId>,
    ) -> Result<PaymentId, Error> {
        if let Some(id) = refused {
            return Ok(id);
        }
        let known = self.ledger.lookup(candidate.into()).await?;
        let found = known.payment.ok_or(Unavailable::Busy)?;
        if found.payment.digest != candidate.digest {
            let why =
                "this payer's nonce belongs to another authorization that was presented before"
                    .to_owned();
            return Err(candidate.refuse_for(Fault::NonceUsed, why).into());
        }
        Ok(found.payment.id)
    }

    /// Waits until the outcome of an accepted payment is known or the time is over, and builds the answer.
    async fn conclude(
        &self,
        served: &ServedNetwork,
        admitted: Admitted,
        answer: &Answer,
        (caller, deadline): (&Caller, Instant),
    ) -> Result<Settled, Error> {
        let (id, mut waiting) = match admitted {
            Admitted::Earlier(id) => (id, self.waiters.wait_for(id)),
            // The row was just written: it need not be read before it changes.
            Admitted::Now(id, mut waiting) => {
                self.wait_to_be_sent(served, None, &mut waiting, deadline)
                    .await?;
                (id, waiting)
            }
        };
        loop {
            let found = match self.ledger.payment_with_grant(id).await {
                Err(error) if error.unreadable_payment().is_some() => {
                    return Ok(answer.unreadable(&error));
                }
                found => found?,
            };
            let decision = decide(&found);
            let payment = &found.payment;
            if let Some(settled) = answer.undercharged(payment) {
                return Ok(settled);
            }
            match decision {
                Decision::Grant => {
                    if let Some(settled) = self.grant(payment, answer, caller).await? {
                        return Ok(settled);
                    }
                }
                Decision::Join | Decision::AwaitGrant => {
                    if !self
                        .wait_to_be_sent(served, Some(payment), &mut waiting, deadline)
                        .await?
                        && let Some(settled) = self.out_of_time(&found, answer).await?
                    {
                        return Ok(settled);
                    }
                }
                Decision::Duplicate => return Ok(answer.duplicate(payment)),
                // A foreign transaction may have used the authorization while the payment waited.
                Decision::CheckAgain(rejection)
                    if rejection.reason != Reason::UnexpectedSettleError
                        && self.recognise_refused(served, payment).await?
                            == Recognised::Transferred(id) => {}
                Decision::CheckAgain(rejection) | Decision::Failed(rejection) => {
                    if rejection.reason == Reason::UnexpectedSettleError {
                        served.can_send(payment.signer())?;
                    }
                    return Ok(answer.refused(payment, rejection.reason, rejection.message));
                }
                Decision::Unmatched(why) => {
                    return Ok(answer.refused(payment, Reason::SessionExpired, why));
                }
                Decision::Quarantined(why) => {
                    let why = format!(
                        "the operator has to look at this payment: {why}. Money may have moved"
                    );
                    return Ok(answer.refused(payment, Reason::SettlementPending, why));
                }
            }
        }
    }

    async fn grant(
        &self,
        payment: &Payment,
        answer: &Answer,
        caller: &Caller,
    ) -> Result<Option<Settled>, Unavailable> {
        // Created before the statement: if its result is lost or unreadable, the grant may be committed, and has to be voided.
        let grant = Grant::new(self.clone(), payment.id, caller.clone());
        let granted = self.ledger.grant(payment.id, caller.clone()).await;
        let granted = match granted.and_then(commit_result) {
            Ok(granted) => granted,
            Err(error) => {
                grant.lost();
                return Err(error.into());
            }
        };
        let Some(payment) = granted else {
            grant.not_taken();
            return Ok(None);
        };
        reach(Step::Granted);
        Ok(Some(Settled {
            response: answer.success(&payment),
            grant: Some(grant),
        }))
    }

    /// The wait is over. A payment whose bytes were committed is pending; a queued one is refused in the ledger, so that the answer
    /// "nothing was broadcast" stays true.
    async fn out_of_time(
        &self,
        found: &PaymentWithGrant,
        answer: &Answer,
    ) -> Result<Option<Settled>, Unavailable> {
        let payment = &found.payment;
        match &payment.state {
            PaymentState::Queued => {
                let message = "the payment could not be sent to the chain in time; nothing was broadcast, present it again".to_owned();
                let rejection = Rejection {
                    reason: Reason::UnexpectedSettleError,
                    message,
                };
                self.ledger.refuse(payment.id, &rejection).await?;
                Ok(None)
            }
            PaymentState::Inflight(hash) => {
                let why = format!(
                    "transaction {hash} was sent and is not in a block yet; present the same payment again to learn its outcome"
                );
                Ok(Some(answer.refused(
                    payment,
                    Reason::SettlementPending,
                    why,
                )))
            }
            PaymentState::Mined(location) => {
                let why = format!(
                    "transaction {} is in block {} and waits for {} confirmations; present the same payment again",
                    location.transaction, location.block_number, payment.confirmations
                );
                Ok(Some(answer.refused(
                    payment,
                    Reason::SettlementPending,
                    why,
                )))
            }
            PaymentState::Settled(_)
            | PaymentState::Uncharged
            | PaymentState::Final(_)
            | PaymentState::LateSettled(_) => {
                // Another request is answering, or the database cannot record how its answer ended: the resource may not have been served
                // yet.
                let why = "the money was transferred, but it is not known yet whether another request was told success; present the same payment again";
                Ok(Some(answer.refused(
                    payment,
                    Reason::SettlementPending,
                    why.to_owned(),
                )))
            }
            PaymentState::Refused(_) | PaymentState::Failed { .. } => Ok(None),
        }
    }
}

/// The message for a payer that has promised more than it has, or than Permit2 may take.
fn too_little(has: &str, promised: U256, candidate: &Candidate) -> String {
    let value = candidate.authorization.value;
    format!(
        "{has} and promised {promised} of it to payments under way, which leaves too little for {value}"
    )
}

/// The payment that the request is answered from.
#[derive(Debug)]
pub(super) enum Admitted {
    /// It was in the ledger before.
    Earlier(PaymentId),
    /// It was accepted by this request; `Waiting` has every change since.
    Now(PaymentId, Waiting),
}

/// The request's part of the answer.
#[derive(Debug)]
struct Answer {
    network_name: String,
    /// The amount of the requirement; in scheme `upto` the charge.
    required: Amount,
    session: Option<SessionId>,
}

impl Answer {
    fn success(&self, payment: &Payment) -> SettleResponse {
        SettleResponse {
            success: true,
            error_reason: None,
            error_message: None,
            ..self.about(payment)
        }
    }

    fn duplicate(&self, payment: &Payment) -> Settled {
        let why = "this payment has bought its resource already, with this transaction".to_owned();
        self.refused(payment, Reason::DuplicateSettlement, why)
    }

    /// The answer to a request for more than a settled payment has transferred: only a settled payment can be a duplicate. Every holder of
    /// a header, the buyer too, can have a small charge settled with it; a seller that charges more must not be told success.
    fn undercharged(&self, payment: &Payment) -> Option<Settled> {
        let transferred = payment.authorization.value;
        let has_settled = matches!(
            payment.state,
            PaymentState::Settled(_)
                | PaymentState::Uncharged
                | PaymentState::Final(_)
                | PaymentState::LateSettled(_)
        );
        (self.required > transferred && has_settled).then(|| {
            let why = format!("this authorization was settled for a charge of {transferred} before, and can be settled once; the required amount is {}", self.required);
            self.refused(payment, Reason::DuplicateSettlement, why)
        })
    }

    /// The answer for a payment whose row cannot be read: the operator has to repair the row first.
    fn unreadable(&self, error: &LedgerError) -> Settled {
        let refusal = Refusal {
            reason: Reason::SettlementPending,
            message: unreadable_row(error),
            payer: None,
            network_name: self.network_name.clone(),
        };
        Settled {
            response: refusal.into(),
            grant: None,
        }
    }

    fn refused(&self, payment: &Payment, reason: Reason, message: String) -> Settled {
        let response = SettleResponse {
            success: false,
            error_reason: Some(reason.code().to_owned()),
            error_message: Some(message),
            ..self.about(payment)
        };
        Settled {
            response,
            grant: None,
        }
    }

    fn about(&self, payment: &Payment) -> SettleResponse {
        let session = self.session.as_ref().map(ToString::to_string);
        let extra = [
            Some(("paymentId".to_owned(), payment.id.to_string().into())),
            session.map(|session| ("sessionId".to_owned(), session.into())),
        ];
        SettleResponse {
            success: false,
            error_reason: None,
            error_message: None,
            payer: Some(checksummed(payment.authorization.from)),
            transaction: payment
                .state
                .transaction()
                .map(|hash| hash.to_string())
                .unwrap_or_default(),
            network: self.network_name.clone(),
            amount: Some(payment.authorization.value),
            extra: Some(extra.into_iter().flatten().collect()),
        }
    }
}

impl From<Refusal> for SettleResponse {
    fn from(refusal: Refusal) -> Self {
        Self {
            success: false,
            error_reason: Some(refusal.reason.code().to_owned()),
            error_message: Some(refusal.message),
            payer: refusal.payer.map(checksummed),
            transaction: String::new(),
            network: refusal.network_name,
            amount: None,
            extra: None,
        }
    }
}
