//! `settle`: accepts a payment into the ledger, waits for the chain, and answers success once.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::facilitator::gate::{Call, proof_digest};
use crate::facilitator::intake::readable;
use crate::facilitator::line::{InLine, Presenter};
use crate::facilitator::refusals::refused;
use crate::facilitator::transferred::Nonce;
use crate::facilitator::{Caller, Endpoint, Error, Facilitator, Grant, Unavailable};
use crate::ledger::{GrantStatus, LedgerError, PaymentWithGrant};
use crate::payment::{Payment, PaymentId, PaymentState, Who};
use crate::protocol::response::checksummed;
use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Payload, PaymentRequest, Reason, Rejection, SettleResponse};
use crate::settlement::failpoint::{Step, grant_answers_are_lost, reach};
use crate::settlement::{Named, ServedNetwork, log_step};
use crate::telemetry::metrics;

/// How often a request that waits checks whether anything can be sent at all, and whether the ledger answers.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A ledger that has not answered for so long will not record an outcome in time: longer than one heartbeat without an answer takes.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the caller that presents a known payment gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Its outcome is open: wait for it.
    Join,
    /// The money was transferred and no caller was told success: this one may be.
    Grant,
    /// Another request is answering success right now, or is the first to be told; wait until its answer was written or has broken off.
    AwaitGrant,
    /// A caller was told success before, or another caller has had the payment accepted.
    Duplicate,
    /// Refused, and no transaction of it is under way; check it anew.
    CheckAgain(Rejection),
    /// Proven unable to move money, or money was transferred in a way that does not count for this payment.
    Failed(Rejection),
    /// Quarantined: only the operator can decide.
    Quarantined(String),
}

/// What `who` gets for a payment that the ledger has: a pure function from its owner, its state and its grant.
pub(super) fn decide(found: &PaymentWithGrant, who: Who) -> Decision {
    let decision = decide_for_owner(found);
    let is_owners = matches!(
        decision,
        Decision::Join | Decision::Grant | Decision::AwaitGrant
    );
    if is_owners && found.payment.belongs_to_another(who) {
        return Decision::Duplicate;
    }
    decision
}

/// The same for the caller to whom the payment belongs.
pub(super) fn decide_for_owner(found: &PaymentWithGrant) -> Decision {
    let payment = &found.payment;
    if let Some(why) = &payment.quarantine {
        return Decision::Quarantined(why.clone());
    }
    match &payment.state {
        PaymentState::Queued | PaymentState::Inflight(_) | PaymentState::Mined(_) => Decision::Join,
        PaymentState::Settled(_)
        | PaymentState::Uncharged
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_) => {
            if let Some(why) = &payment.unmatched {
                return Decision::Failed(Rejection::new(Reason::SessionExpired, why));
            }
            match found.grant {
                GrantStatus::Free => Decision::Grant,
                GrantStatus::Open | GrantStatus::Reserved => Decision::AwaitGrant,
                GrantStatus::Answered => Decision::Duplicate,
            }
        }
        PaymentState::Refused(rejection) => Decision::CheckAgain(rejection.clone()),
        PaymentState::Failed { rejection, .. } => Decision::Failed(rejection.clone()),
    }
}

/// An answer to `/settle`, and the grant that it carries when it says success.
#[derive(Debug)]
pub struct SettleAnswer {
    /// The response body.
    pub response: SettleResponse,
    /// To be closed once the answer was written or has broken off.
    pub grant: Option<Grant>,
    /// The amount of the requirement; in scheme `upto` the charge.
    required: Amount,
    session: Option<SessionId>,
}

impl SettleAnswer {
    fn new(request: &PaymentRequest) -> Self {
        Self {
            response: SettleResponse {
                success: false,
                error_reason: None,
                error_message: None,
                payer: request.payload.payer().map(checksummed),
                transaction: String::new(),
                network: request.network_name.clone(),
                amount: None,
                extra: None,
            },
            grant: None,
            required: request.requirements.amount,
            session: None,
        }
    }

    /// Adds what is known of the payment.
    fn describe(&mut self, payment: &Payment) {
        let hash = payment.state.transaction();
        let session = self.session.as_ref().map(ToString::to_string);
        let extra = [
            Some(("paymentId".to_owned(), payment.id.to_string().into())),
            session.map(|session| ("sessionId".to_owned(), session.into())),
        ];
        self.response.payer = Some(checksummed(payment.terms.from));
        self.response.transaction = hash.map(|hash| hash.to_string()).unwrap_or_default();
        self.response.amount = Some(payment.terms.value);
        self.response.extra = Some(extra.into_iter().flatten().collect());
    }

    /// Adds the id of the request that was told success: a caller that lost its answer knows by it whether that was its own.
    fn name_granted(&mut self, granted_to: Option<String>) {
        if let (Some(extra), Some(id)) = (&mut self.response.extra, granted_to) {
            extra.insert("grantedTo".to_owned(), id.into());
        }
    }
}

impl Facilitator {
    /// Settles a payment, or joins its settlement. Runs to its end even if the caller disconnects: an accepted payment is in the ledger,
    /// and the grant of an answer that was not delivered is void.
    ///
    /// # Errors
    /// An [`Unavailable`] when the payment cannot be checked now; a payment that was accepted before is settled all the same.
    pub async fn settle(
        &self,
        request: PaymentRequest,
        caller: Caller,
    ) -> Result<SettleAnswer, Unavailable> {
        let (facilitator, of) = (self.clone(), caller.clone());
        let gone = CancellationToken::new();
        // This future is dropped when the connection ends; its work goes on.
        let _present = gone.clone().drop_guard();
        let presenter = Presenter {
            caller,
            arrival: self.waiters.arrival(),
            deadline: self.deadline(),
            gone,
        };
        let work = async move {
            let mut answer = SettleAnswer::new(&request);
            let asked = refused(&request);
            let began = Instant::now();
            let settled = facilitator.try_settle(request, &presenter, &mut answer);
            let settled = Box::pin(settled).await;
            facilitator.metrics.settled(began.elapsed());
            match settled {
                Ok(grant) => {
                    answer.grant = Some(grant);
                    answer.response.success = true;
                }
                Err(Error::Rejected(rejection)) => {
                    let of = (Endpoint::Settle, &presenter.caller);
                    facilitator.refusals.note(of, asked, &rejection);
                    answer.response.error_reason = Some(rejection.reason.code().to_owned());
                    answer.response.error_message = Some(rejection.message);
                }
                Err(Error::Unavailable(unavailable)) => return Err(unavailable),
            }
            Ok(answer)
        };
        self.run_detached(work, &of).await
    }

    /// Returns the grant; only an answer that holds it says success.
    async fn try_settle(
        &self,
        request: PaymentRequest,
        presenter: &Presenter,
        answer: &mut SettleAnswer,
    ) -> Result<Grant, Error> {
        let served = self.network_of(request.requirements.network)?;
        let caller = &presenter.caller;
        caller.check_payee(&request.requirements)?;
        let (request, payload) = request.with_payload(());
        let line = match payload {
            Payload::Authorization(payload) => {
                let (request, ()) = request.with_payload(payload);
                let call = (caller, Call::Settle);
                let (candidate, known) = self.recognise(served, request, call).await?;
                answer.session = known.session.as_ref().map(|session| session.id.clone());
                self.accept_or_join(served, candidate, &known, presenter)
                    .await?
            }
            Payload::Proof(proof) => {
                let digest = proof_digest(&proof.session_id, proof.transaction);
                self.gate.count_settle(caller, digest)?;
                let session = self.session_with_id(&proof.session_id).await?;
                answer.response.payer = Some(checksummed(session.payer));
                let id = self.payment_of_proof(served, &session, (&request, &proof), caller);
                let id = id.await?;
                answer.session = Some(session.id);
                self.line_up(id, Some(presenter))
            }
        };
        self.conclude(served, line, answer, presenter).await
    }

    /// Waits until the outcome of an accepted payment is known or the time is over.
    async fn conclude(
        &self,
        served: &ServedNetwork,
        mut line: InLine,
        answer: &mut SettleAnswer,
        presenter: &Presenter,
    ) -> Result<Grant, Error> {
        let caller = &presenter.caller;
        let asked_as = &caller.asked_as;
        if line.just_queued {
            self.wait_to_be_sent(served, None, &mut line, presenter)
                .await?;
        }
        loop {
            if presenter.gone.is_cancelled() {
                line.leave();
            }
            let found = self.ledger.payment_with_grant(line.id).await;
            let found = readable(found)?.seen_by(asked_as);
            // Also when the request that had it accepted is asked again, perhaps elsewhere: only its caller knows its id.
            if found.is_first_asker(asked_as) {
                line.waiting.go_first();
            }
            let payment = &found.payment;
            answer.describe(payment);
            check_charge(payment, answer.required)?;
            match decide(&found, caller.who) {
                Decision::Join | Decision::Grant if payment.caller.is_none() => {
                    self.ledger.own_payment(line.id, caller.who).await?;
                }
                Decision::Grant if line.waiting.is_next() => {
                    if let Some(grant) = self.grant(line.id, caller, answer).await? {
                        return Ok(grant.with_first_right(line.first_right.take()));
                    }
                }
                Decision::Join | Decision::AwaitGrant | Decision::Grant => {
                    if !self
                        .wait_to_be_sent(served, Some(payment), &mut line, presenter)
                        .await?
                    {
                        self.out_of_time(&found).await?;
                    }
                }
                Decision::Duplicate => {
                    let why = if payment.belongs_to_another(caller.who) {
                        "another caller has presented this payment, and it is settled for that one"
                    } else {
                        answer.name_granted(found.granted_to);
                        "this payment has bought its resource already, with this transaction"
                    };
                    return Err(Rejection::new(Reason::DuplicateSettlement, why).into());
                }
                // A foreign transaction may have used the authorization while the payment waited.
                Decision::CheckAgain(rejection)
                    if rejection.reason != Reason::UnexpectedSettleError
                        && self.settle_refused(served, payment, Nonce::NotSeen).await? => {}
                Decision::CheckAgain(rejection) | Decision::Failed(rejection) => {
                    if rejection.reason == Reason::UnexpectedSettleError {
                        served.can_send(payment.terms.settling_signer())?;
                    }
                    return Err(rejection.into());
                }
                Decision::Quarantined(why) => {
                    let why = format!(
                        "the operator has to look at this payment: {why}. Money may have moved"
                    );
                    return Err(Rejection::new(Reason::SettlementPending, why).into());
                }
            }
        }
    }

    /// Takes the grant of a settled payment for this answer. `None`: another request has it.
    async fn grant(
        &self,
        id: PaymentId,
        caller: &Caller,
        answer: &mut SettleAnswer,
    ) -> Result<Option<Grant>, Unavailable> {
        // Created before the statement: if its result is lost or unreadable, the grant may be committed, and has to be voided.
        let request = caller.grant_request();
        let grant = Grant::new(self.clone(), id, request.clone());
        let granted = self.ledger.grant(id, request).await;
        match granted.and_then(commit_result) {
            Ok(Some(payment)) => {
                reach(Step::Granted);
                answer.describe(&payment);
                self.note_granted(&payment);
                Ok(Some(grant))
            }
            Ok(None) => {
                grant.not_taken();
                Ok(None)
            }
            Err(error) => {
                grant.lost();
                Err(error.into())
            }
        }
    }

    fn note_granted(&self, payment: &Payment) {
        let network = payment.terms.network;
        let named = Named::of(payment).in_transaction(payment.state.transaction());
        match self.served_network(network) {
            Some(served) => served.note_step(named, metrics::Step::Granted),
            None => log_step(network, named, metrics::Step::Granted),
        }
    }

    /// Waits for a change of `payment`, or (`None`) of one that was queued just now, or for the end of the connection. `false`: the deadline
    /// passed first, the service stops, or the payment is still queued and nothing can be sent any more.
    ///
    /// # Errors
    /// When the ledger is silent: the outcome cannot be known, and callers have time limits of their own.
    async fn wait_to_be_sent(
        &self,
        served: &ServedNetwork,
        payment: Option<&Payment>,
        line: &mut InLine,
        presenter: &Presenter,
    ) -> Result<bool, Unavailable> {
        let deadline = presenter.deadline;
        let queued = payment.is_none_or(|payment| payment.state == PaymentState::Queued);
        let signer = payment.and_then(|payment| payment.terms.settling_signer());
        let mut silent = 0;
        loop {
            let soon = deadline.min(Instant::now() + CHECK_INTERVAL);
            let in_line = line.waiting.is_in_line();
            let changed = tokio::select! {
                changed = self.wait(&mut line.waiting, soon) => changed,
                () = presenter.gone.cancelled(), if in_line => true,
            };
            if changed {
                return Ok(true);
            }
            let over = Instant::now() >= deadline || self.stopping.is_cancelled();
            if over || (queued && !served.can_send_queued(signer)) {
                return Ok(false);
            }
            // Two checks in a row: after a machine has slept, the first one comes before the next heartbeat.
            let silence = self
                .ledger
                .silent_for()
                .filter(|silence| *silence > SILENCE_MAX);
            silent = silence.map_or(0, |_| silent + 1);
            if let (Some(silence), 2..) = (silence, silent) {
                let why = format!("the database has not answered for {} s", silence.as_secs());
                return Err(LedgerError::Unusable(why).into());
            }
        }
    }

    /// The wait is over. A payment whose bytes were committed is pending; a queued one is refused in the ledger, so that the answer
    /// "nothing is under way" stays true. `Ok`: the payment has to be read again.
    async fn out_of_time(&self, found: &PaymentWithGrant) -> Result<(), Error> {
        let payment = &found.payment;
        let why = match &payment.state {
            // A reorg has undone its transaction, and its nonce was used otherwise.
            PaymentState::Queued if found.grant == GrantStatus::Answered => {
                "success was told for this payment, a reorg has undone its transaction, and it is sent again; present the same payment again".to_owned()
            }
            PaymentState::Queued => {
                let why = "the payment could not be sent to the chain in time; nothing is under way for it, present it again";
                let rejection = Rejection::new(Reason::UnexpectedSettleError, why);
                let refused = self.ledger.refuse_for_caller(payment.id, &rejection);
                if refused.await?
                    && let Some(served) = self.served_network(payment.terms.network)
                {
                    served.note_refused(Named::of(payment), &rejection);
                }
                return Ok(());
            }
            PaymentState::Refused(_) | PaymentState::Failed { .. } => return Ok(()),
            PaymentState::Inflight(hash) => format!(
                "transaction {hash} was sent and is not in a block yet; present the same payment again to learn its outcome"
            ),
            PaymentState::Mined(location) => format!(
                "transaction {} is in block {} and waits for {} confirmations; present the same payment again",
                location.transaction, location.block_number, payment.confirmations
            ),
            // Another request is answering, or the database cannot record how its answer ended: the resource may not have been served yet.
            PaymentState::Settled(_)
            | PaymentState::Uncharged
            | PaymentState::Final(_)
            | PaymentState::LateSettled(_) => {
                "the money was transferred, but it is not known yet whether another request was told success; present the same payment again".to_owned()
            }
        };
        Err(Rejection::new(Reason::SettlementPending, why).into())
    }
}

/// The result of a commit, unless a test drops it.
fn commit_result<T>(result: T) -> Result<T, LedgerError> {
    if grant_answers_are_lost() {
        let why = "a test dropped the result of a commit".to_owned();
        return Err(LedgerError::Unusable(why));
    }
    Ok(result)
}

/// Rejects a request for more than a settled payment has transferred: only a settled payment can be a duplicate. Every holder of a header,
/// the buyer too, can have a small charge settled with it; a seller that charges more must not be told success.
fn check_charge(payment: &Payment, required: Amount) -> Result<(), Rejection> {
    let transferred = payment.terms.value;
    let has_settled = matches!(
        payment.state,
        PaymentState::Settled(_)
            | PaymentState::Uncharged
            | PaymentState::Final(_)
            | PaymentState::LateSettled(_)
    );
    if required <= transferred || !has_settled {
        return Ok(());
    }
    let why = format!(
        "this authorization was settled for a charge of {transferred} before, and can be settled once; the required amount is {required}"
    );
    Err(Rejection::new(Reason::DuplicateSettlement, why))
}

#[cfg(test)]
mod tests;
