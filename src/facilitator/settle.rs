//! `settle`: accepts a payment into the ledger, waits for the chain, and tells success once.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::facilitator::decision::{Decision, decide};
use crate::facilitator::recognise::{Bond, Examined, Recognised};
use crate::facilitator::{Caller, Checked, Facilitator, Grant, Halt, Outage, for_the_operator};
use crate::ledger::{Accepted, LedgerError, NewPayment, Standing};
use crate::payment::method::Fault;
use crate::payment::state::Exit;
use crate::payment::{Candidate, Payment, PaymentId, PaymentState, Purpose};
use crate::protocol::response::spelled;
use crate::protocol::session::SessionId;
use crate::protocol::{
    Amount, AuthorizationPayload, Payload, PaymentRequest, Reason, Refusal, SettleResponse,
};
use crate::settlement::failpoint::{Step, grant_answers_are_lost, reach};
use crate::settlement::waiters::Waiting;
use crate::settlement::{Queued, Site};

/// How often the chain is read for one acceptance: a payer may be paying in the block that is just being recorded.
const READS_MAX: u32 = 3;
/// How long an endpoint may be behind a block that was seen: the slowest chains make one in that time.
const CAUGHT_UP_AFTER: Duration = Duration::from_secs(15);
/// How long such a record may take.
const RECORDED_AFTER: Duration = Duration::from_millis(300);

/// An answer to `/settle`, and the grant that it carries when it says success.
#[derive(Debug)]
pub struct Settled {
    /// The body.
    pub response: SettleResponse,
    /// To be closed once the answer has been written, or has broken off.
    pub grant: Option<Grant>,
}

/// What a commit has answered, unless a test loses it.
fn answer_of_the_commit<T>(answer: T) -> Result<T, LedgerError> {
    if grant_answers_are_lost() {
        let why = "a test has lost the answer of a commit".to_owned();
        return Err(LedgerError::Unusable(why));
    }
    Ok(answer)
}

impl Facilitator {
    /// Settles a payment, or joins its settlement. Run it to its end even if the caller goes away: what it has accepted is in the
    /// ledger, and a grant that nobody hears is void.
    ///
    /// # Errors
    /// An [`Outage`] when it cannot be judged now; a payment that was accepted before goes on all the same.
    pub async fn settle(
        &self,
        request: PaymentRequest,
        caller: &Caller,
    ) -> Result<Settled, Outage> {
        match Box::pin(self.try_settle(request, caller)).await {
            Ok(settled) => Ok(settled),
            Err(Halt::Refused(refusal)) => Ok(Settled {
                response: refusal.into(),
                grant: None,
            }),
            Err(Halt::Outage(outage)) => Err(outage),
        }
    }

    async fn try_settle(&self, request: PaymentRequest, caller: &Caller) -> Result<Settled, Halt> {
        let deadline = self.deadline();
        let site = self.site_of(&request)?;
        let network_name = request.network_name.clone();
        let asked = request.requirements.amount;
        let (request, payload) = request.replace(());
        let (taken, session) = match payload {
            Payload::Authorization(payload) => self.take(site, request.replace(payload).0).await?,
            Payload::Proof(proof) => {
                let session = proof.session_id.clone();
                let id = self.redeem(site, &request, &proof).await?;
                (Taken::Before(id), Some(session))
            }
        };
        let answer = Answer {
            network_name,
            asked,
            session,
        };
        self.conclude(site, taken, &answer, (caller, deadline))
            .await
    }

    /// Finds an authorization's payment, or accepts it.
    async fn take(
        &self,
        site: &Site,
        request: PaymentRequest<AuthorizationPayload>,
    ) -> Result<(Taken, Option<SessionId>), Halt> {
        let candidate = Candidate::from_request(request, &site.policy, Purpose::Settle)?;
        let known = self.known(site, &candidate).await?;
        let session = known.session.map(|session| session.id);
        let Some(standing) = known.standing else {
            let bond = session.as_ref().map_or(Bond::None, |_| Bond::Session);
            return Ok((self.admit(site, candidate, bond).await?, session));
        };
        let id = standing.payment.id;
        self.ledger.end_verify_lease(id).await?;
        let taken = match decide(&standing) {
            Decision::CheckAgain(_) => self.admit(site, candidate, Bond::Payment(id)).await?,
            Decision::Join
            | Decision::Grant
            | Decision::AwaitGrant
            | Decision::Duplicate
            | Decision::Failed(_)
            | Decision::Unmatched(_)
            | Decision::SetAside(_) => Taken::Before(id),
        };
        Ok((taken, session))
    }

    /// Checks everything and puts the payment into the queue. A place is taken first, so that nothing accepted is without one.
    pub(super) async fn admit(
        &self,
        site: &Site,
        candidate: Candidate,
        bond: Bond,
    ) -> Result<Taken, Halt> {
        let refused = match bond {
            Bond::Payment(id) => Some(id),
            Bond::None | Bond::Session => None,
        };
        let place = site.queue.reserve().ok_or(Outage::Busy)?;
        let mut reads_left = READS_MAX;
        let give_up = Instant::now() + CAUGHT_UP_AFTER;
        loop {
            let Checked { verified, facts } = match self.examine(site, &candidate, bond).await? {
                Examined::Good(checked) => *checked,
                Examined::Moved(id) => return Ok(Taken::Before(id)),
            };
            if !candidate.authorization.value.is_zero() {
                Self::can_be_sent(site, &candidate, Purpose::Settle)?;
            }
            let new = NewPayment {
                id: refused.unwrap_or_else(|| PaymentId(Uuid::now_v7())),
                verified,
                confirmations: site.policy.confirmations,
                in_hand: place.is_in_hand(&site.queue, candidate.method.facilitator()),
            };
            let accepted = match refused {
                Some(_) => self.ledger.queue_again(new).await?,
                None => self.ledger.accept(new).await?,
            };
            match accepted {
                Accepted::New(payment) if payment.state == PaymentState::Uncharged => {
                    return Ok(Taken::Before(payment.id));
                }
                Accepted::New(payment) => {
                    let waiting = self.waiters.wait_for(payment.id);
                    let id = payment.id;
                    site.queue
                        .enqueue(place, Queued::new(*payment, Some(facts)));
                    return Ok(Taken::Now(id, waiting));
                }
                // Somebody was faster; that row answers, after the same look at it that every known payment gets.
                Accepted::Known => {
                    let id = self.overtaken(&candidate, refused).await?;
                    return Ok(Taken::Before(id));
                }
                // The balance may be without money that is still counted as promised.
                Accepted::Short { .. } | Accepted::Unallowed { .. } if reads_left > 1 => {
                    reads_left -= 1;
                    tokio::time::sleep(RECORDED_AFTER).await;
                }
                Accepted::Short { held } => {
                    let why = format!(
                        "the payer has {} and promised {held} of it to payments under way, which leaves too little for {}",
                        facts.balance.unwrap_or_default(),
                        candidate.authorization.value
                    );
                    return Err(candidate.object(Fault::Balance, why).into());
                }
                Accepted::Unallowed { promised } => {
                    let why = format!(
                        "the payer lets Permit2 take {} and promised {promised} of it to payments under way, which leaves too little for {}",
                        facts.allowance.unwrap_or_default(),
                        candidate.authorization.value
                    );
                    return Err(candidate
                        .refuse(Reason::Permit2AllowanceRequired, why)
                        .into());
                }
                // The endpoint lags behind a block in which this payer has paid: it catches up, or another one is asked.
                Accepted::Stale if Instant::now() < give_up => {
                    tokio::time::sleep(RECORDED_AFTER).await;
                }
                Accepted::Stale => return Err(Outage::NodeBehind(site.policy.network).into()),
            }
        }
    }

    pub(super) async fn overtaken(
        &self,
        candidate: &Candidate,
        refused: Option<PaymentId>,
    ) -> Result<PaymentId, Halt> {
        if let Some(id) = refused {
            return Ok(id);
        }
        let known = self.ledger.known(candidate.into()).await?;
        let standing = known.standing.ok_or(Outage::Busy)?;
        if standing.payment.digest != candidate.digest {
            let why =
                "this payer's nonce belongs to another authorization that was presented before"
                    .to_owned();
            return Err(candidate.object(Fault::NonceUsed, why).into());
        }
        Ok(standing.payment.id)
    }

    /// Waits until something can be said about an accepted payment, and says it.
    async fn conclude(
        &self,
        site: &Site,
        taken: Taken,
        answer: &Answer,
        (caller, deadline): (&Caller, Instant),
    ) -> Result<Settled, Halt> {
        let (id, mut waiting) = match taken {
            Taken::Before(id) => (id, self.waiters.wait_for(id)),
            // There is nothing to read before the engine has done something.
            Taken::Now(id, mut waiting) => {
                self.wait_to_be_sent(site, None, &mut waiting, deadline)
                    .await?;
                (id, waiting)
            }
        };
        loop {
            let standing = match self.ledger.standing(id).await {
                Err(error) if error.unreadable_payment().is_some() => {
                    return Ok(answer.unreadable(&error));
                }
                standing => standing?,
            };
            let decision = decide(&standing);
            let payment = &standing.payment;
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
                        .wait_to_be_sent(site, Some(payment), &mut waiting, deadline)
                        .await?
                        && let Some(settled) = self.out_of_time(&standing, answer).await?
                    {
                        return Ok(settled);
                    }
                }
                Decision::Duplicate => return Ok(answer.duplicate(payment)),
                // Somebody else may have submitted it while it waited.
                Decision::CheckAgain(exit)
                    if exit.reason != Reason::UnexpectedSettleError
                        && self.recognise_refused(site, payment).await?
                            == Recognised::Transferred(id) => {}
                Decision::CheckAgain(exit) | Decision::Failed(exit) => {
                    if exit.reason == Reason::UnexpectedSettleError {
                        site.can_send(payment.signer())?;
                    }
                    return Ok(answer.refused(payment, exit.reason, exit.message));
                }
                Decision::Unmatched(why) => {
                    return Ok(answer.refused(payment, Reason::SessionExpired, why));
                }
                Decision::SetAside(why) => {
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
    ) -> Result<Option<Settled>, Outage> {
        // Before the statement: should its answer be lost, or not be readable, the grant may have been committed, and is void.
        let grant = Grant::new(self.clone(), payment.id, caller.clone());
        let granted = self.ledger.grant(payment.id, caller.clone()).await;
        let granted = match granted.and_then(answer_of_the_commit) {
            Ok(granted) => granted,
            Err(error) => {
                grant.lost();
                return Err(error.into());
            }
        };
        let Some(payment) = granted else {
            grant.was_not_taken();
            return Ok(None);
        };
        reach(Step::Granted);
        Ok(Some(Settled {
            response: answer.success(&payment),
            grant: Some(grant),
        }))
    }

    /// The wait is over. What has bytes is pending; what has none is taken back, so that the answer "nothing moved" stays true.
    async fn out_of_time(
        &self,
        standing: &Standing,
        answer: &Answer,
    ) -> Result<Option<Settled>, Outage> {
        let payment = &standing.payment;
        match &payment.state {
            PaymentState::Queued => {
                let message = "the payment could not be sent to the chain in time; nothing was broadcast, present it again".to_owned();
                let exit = Exit {
                    reason: Reason::UnexpectedSettleError,
                    message,
                };
                self.ledger.refuse(payment.id, &exit).await?;
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
                // Somebody is being told, or the database cannot record that: the resource may not have been bought yet.
                let why = "the money has moved; whether somebody was told so is not known yet; present the same payment again";
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

/// A payment that an answer is owed about.
#[derive(Debug)]
pub(super) enum Taken {
    /// It was known.
    Before(PaymentId),
    /// It was accepted just now; the place hears everything that has happened since.
    Now(PaymentId, Waiting),
}

/// How answers to one request are worded.
#[derive(Debug)]
struct Answer {
    network_name: String,
    /// What the requirement asks for; in `upto` the charge.
    asked: Amount,
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
        let why = "this payment has bought its resource already; the transaction is the one that was told then".to_owned();
        self.refused(payment, Reason::DuplicateSettlement, why)
    }

    /// What to say to who asks for more than a known payment has moved: only then has it bought anything. Anybody who holds a header can have a small charge settled with it, its
    /// buyer too; who charges more must not hear that as a success.
    fn undercharged(&self, payment: &Payment) -> Option<Settled> {
        let moves = payment.authorization.value;
        let has_bought = matches!(
            payment.state,
            PaymentState::Settled(_)
                | PaymentState::Uncharged
                | PaymentState::Final(_)
                | PaymentState::LateSettled(_)
        );
        (self.asked > moves && has_bought).then(|| {
            let why = format!("this authorization was settled for a charge of {moves} before, and can be settled once; asked for are {}", self.asked);
            self.refused(payment, Reason::DuplicateSettlement, why)
        })
    }

    /// What to say about a payment whose row cannot be read: it waits for the operator, and its caller for them.
    fn unreadable(&self, error: &LedgerError) -> Settled {
        let refusal = Refusal {
            reason: Reason::SettlementPending,
            message: for_the_operator(error),
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
            payer: Some(spelled(payment.authorization.from)),
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
            payer: refusal.payer.map(spelled),
            transaction: String::new(),
            network: refusal.network_name,
            amount: None,
            extra: None,
        }
    }
}
