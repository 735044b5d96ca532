//! The path of a presented payment, from top to bottom: validate → look up → check policy and chain → accept or join. `/verify` is the same
//! without the last step.

use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::Instant;
use uuid::Uuid;

use crate::facilitator::gate::{Admission, Call, proof_digest};
use crate::facilitator::grant::FirstRight;
use crate::facilitator::line::{Asker, InLine, Presenter};
use crate::facilitator::refusals::refused;
use crate::facilitator::settle::{Decision, decide, decide_for_owner};
use crate::facilitator::transferred::Nonce;
use crate::facilitator::{Caller, Endpoint, Error, Facilitator, Unavailable};
use crate::ledger::{Accepted, LedgerError, Lookup, NewPayment, PaymentWithGrant};
use crate::payment::facts::NONCE_USED;
use crate::payment::method::Fault;
use crate::payment::{Candidate, Payment, PaymentId, PaymentState, Purpose, Verified, Who};
use crate::protocol::response::checksummed;
use crate::protocol::{
    AuthorizationPayload, Payload, PaymentRequest, Reason, Rejection, VerifyResponse,
};
use crate::settlement::{Named, Queued, ServedNetwork, approval_rejection};
use crate::telemetry::causes;
use crate::telemetry::metrics::Step;

/// How many times the balance is read for one acceptance: a transfer of the same payer may be in a block whose result is being recorded.
const READS_MAX: u32 = 3;
/// How long to wait for an endpoint that is behind a block that was seen before: the slowest chains make one block in that time.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(15);
/// Pause before the next read, in which the ledger records results or the endpoint catches up.
const RECORD_PAUSE: Duration = Duration::from_millis(300);

/// What a check of a payment that the ledger has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownPayment {
    /// Settling it would succeed, or join its settlement.
    Valid,
    /// It was refused once, and may be valid by now: it is checked like a new one.
    CheckAgain,
}

/// A payment that is not being settled, after its checks.
#[derive(Debug)]
enum Preflight {
    /// It could be settled now.
    Valid(Box<Verified>),
    /// Its money was transferred already, and this row records it.
    Transferred(PaymentId),
}

impl Facilitator {
    /// Checks a payment without sending anything. Its only write is a short lease over a payment that is being settled, and the record of
    /// money that was transferred already.
    ///
    /// # Errors
    /// An [`Unavailable`] when the payment cannot be checked now.
    pub async fn verify(
        &self,
        request: PaymentRequest,
        caller: &Caller,
    ) -> Result<VerifyResponse, Unavailable> {
        let (mut asked, began) = (refused(&request), Instant::now());
        let verified = Box::pin(self.try_verify(request, caller, &mut asked.payer)).await;
        self.metrics.verified(began.elapsed());
        match verified {
            Ok(()) => Ok(VerifyResponse {
                is_valid: true,
                invalid_reason: None,
                invalid_message: None,
                payer: asked.payer.map(checksummed),
            }),
            Err(Error::Rejected(rejection)) => {
                self.refusals
                    .note((Endpoint::Verify, caller), asked, &rejection);
                Ok(VerifyResponse::rejected(rejection, asked.payer))
            }
            Err(Error::Unavailable(unavailable)) => Err(unavailable),
        }
    }

    async fn try_verify(
        &self,
        request: PaymentRequest,
        caller: &Caller,
        payer: &mut Option<Address>,
    ) -> Result<(), Error> {
        self.gate.count_request(caller)?;
        let served = self.network_of(request.requirements.network)?;
        caller.check_payee(&request.requirements)?;
        let (request, payload) = request.with_payload(());
        let payload = match payload {
            Payload::Authorization(payload) => payload,
            Payload::Proof(proof) => {
                let session = self.session_with_id(&proof.session_id).await?;
                *payer = Some(session.payer);
                let presented = (&request, &proof);
                self.verify_proof(served, &session, presented, caller)
                    .await?;
                let digest = proof_digest(&session.id, proof.transaction);
                self.gate.tell_valid(caller, digest);
                return Ok(());
            }
        };
        let (request, ()) = request.with_payload(payload);
        let call = (caller, Call::Verify);
        let (candidate, known) = self.recognise(served, request, call).await?;
        self.verify_candidate(served, &candidate, known, call)
            .await?;
        self.gate.tell_valid(caller, candidate.terms.digest);
        Ok(())
    }

    async fn verify_candidate(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        mut known: Lookup,
        call: (&Caller, Call),
    ) -> Result<(), Error> {
        loop {
            if let Some(found) = &known.payment
                && self.verify_known(found, call.0.who).await? == KnownPayment::Valid
            {
                return Ok(());
            }
            let admission = self.admit(served, candidate, &known, call).await?;
            let checked = self.preflight(served, candidate, &known, &admission);
            match checked.await? {
                Preflight::Valid(_) => {
                    return Self::can_be_sent(served, candidate, Purpose::Verify);
                }
                Preflight::Transferred(id) => {
                    known.payment = Some(self.ledger.payment_with_grant(id).await?);
                }
            }
        }
    }

    /// Validates a request without the chain, and looks its authorization up. A settle is counted in between: only its content says whether
    /// its caller was told that it is valid. Other requests have been counted.
    pub(super) async fn recognise(
        &self,
        served: &ServedNetwork,
        request: PaymentRequest<AuthorizationPayload>,
        (caller, call): (&Caller, Call),
    ) -> Result<(Candidate, Lookup), Error> {
        let candidate = Candidate::from_request(request, &served.policy, call.purpose())?;
        if call == Call::Settle {
            self.gate.count_settle(caller, candidate.terms.digest)?;
        }
        let known = self.look_up(served, &candidate, (caller, call)).await?;
        Ok((candidate, known))
    }

    /// Looks up an authorization. A signature that is neither the stored one nor valid is rejected: what is signed can be read on the chain.
    async fn look_up(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        (caller, call): (&Caller, Call),
    ) -> Result<Lookup, Error> {
        let known = self.find(candidate).await?;
        if let Some(found) = &known.payment
            && !candidate.is_proven_by(&found.payment)
        {
            self.count(call, caller)?;
            candidate.check_signature(&self.facts_of(served, candidate).await?)?;
        }
        Ok(known)
    }

    /// What the ledger has of an authorization: the session that its nonce belongs to, and its payment, where they exist. Rejects terms of
    /// the seller that differ from the session's, without one from the authorization's, and other content under the same nonce.
    pub(super) async fn find(&self, candidate: &Candidate) -> Result<Lookup, Error> {
        let known = readable(self.ledger.lookup((&candidate.terms).into()).await)?;
        check_session(candidate, &known)?;
        match &known.payment {
            None => candidate.check_payee()?,
            Some(found) => {
                candidate.check_payee_and_amount()?;
                check_digest(candidate, &found.payment)?;
            }
        }
        Ok(known)
    }

    /// Checks a payment that is not being settled and has been at the gate; where a check fails and the money may have been transferred
    /// already, looks for that on the chain and records it.
    async fn preflight(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        known: &Lookup,
        admission: &Admission,
    ) -> Result<Preflight, Error> {
        let is_new = known.is_new();
        if is_new && self.is_known_to_be_used(served, candidate) {
            candidate.check_policy(&served.policy, served.chain_time(self.clock.now()))?;
            return Err(candidate
                .terms
                .rejection(Fault::NonceUsed, NONCE_USED)
                .into());
        }
        let checked = match &admission.denied {
            None => self.check(served, candidate.clone()).await,
            Some(denied) => Err(denied.clone().into()),
        };
        let rejection = match checked {
            Ok(verified) => return Ok(Preflight::Valid(Box::new(verified))),
            Err(Error::Rejected(rejection)) => rejection,
            Err(error) => return Err(error),
        };
        let is_used = matches!(
            rejection.reason,
            Reason::ExactNonceUsed | Reason::Permit2InvalidNonce
        );
        let nonce = if is_used { Nonce::Used } else { Nonce::NotSeen };
        // An authorization that was accepted once or has a session may have been used by a foreign transaction, whatever the reason of the
        // rejection is now: the transfer may be older than the end of the time window, or than the removal of the payee from the operator's
        // list.
        if is_new && !is_used {
            return Err(rejection.into());
        }
        let turn = self.used_nonces.turn(candidate).await;
        let _turn = turn.ok_or(Unavailable::BeingChecked)?;
        if is_new && self.is_known_to_be_used(served, candidate) {
            return Err(rejection.into());
        }
        let transferred =
            self.record_transferred(served, candidate, (known, admission.settler), nonce);
        match transferred.await? {
            Some(id) => Ok(Preflight::Transferred(id)),
            None => Err(rejection.into()),
        }
    }

    /// Checks a candidate against the policy and the clock, then against the chain.
    async fn check(&self, served: &ServedNetwork, candidate: Candidate) -> Result<Verified, Error> {
        candidate.check_policy(&served.policy, served.chain_time(self.clock.now()))?;
        if !served.is_open() {
            return Err(Unavailable::NetworkStarting(served.policy.network).into());
        }
        let mut candidate = candidate;
        // An ERC-6492 wrapper does not say whether its wallet is deployed.
        if candidate.terms.wallet.is_some() {
            let code = served.rpc.code(candidate.terms.from).await?;
            candidate = candidate.with_wallet_deployed(&served.policy, !code.is_empty())?;
        }
        let facts = self.facts_of(served, &candidate).await?;
        let verified = candidate.verified(facts)?;
        let candidate = verified.candidate();
        if candidate.terms.wallet.is_some() && !served.has_multicall() {
            let why = "this network has no Multicall3, by which the payer's wallet would be deployed; deploy the wallet first, and sign without its factory";
            return Err(candidate.terms.rejection(Fault::Simulation, why).into());
        }
        if let Some(rejection) = served
            .code_rejection(&candidate.terms, verified.facts())
            .await?
        {
            return Err(rejection.into());
        }
        if candidate.terms.needs_approval_first(verified.facts())
            && let Some(rejection) = approval_rejection(served, &candidate.terms).await?
        {
            return Err(rejection.into());
        }
        Ok(verified)
    }

    /// Whether a valid payment could be sent now. At `/verify`, one that names a signer which cannot send is rejected if another signer
    /// can: the payer has not paid yet, and may name that one.
    fn can_be_sent(
        served: &ServedNetwork,
        candidate: &Candidate,
        purpose: Purpose,
    ) -> Result<(), Error> {
        let named = candidate.terms.settling_signer();
        let Err(cannot) = served.can_send(named) else {
            return Ok(());
        };
        match (purpose, named.and_then(|_| served.first_usable_signer())) {
            (Purpose::Verify, Some(able)) => {
                let why = format!("{cannot}; expected a payment that names {able}");
                Err(Rejection::new(Reason::UptoFacilitatorMismatch, why).into())
            }
            (Purpose::Verify | Purpose::Settle, _) => Err(cannot.into()),
        }
    }

    /// The payment that answers a request to settle: the one that the ledger has for the authorization, or a new one.
    pub(super) async fn accept_or_join(
        &self,
        served: &ServedNetwork,
        candidate: Candidate,
        known: &Lookup,
        presenter: &Presenter,
    ) -> Result<InLine, Error> {
        let caller = &presenter.caller;
        if let Some(found) = &known.payment {
            let decision = decide(found, caller.who);
            // The lease of the owner is not another caller's to end.
            if decision != Decision::Duplicate {
                self.ledger.end_verify_lease(found.payment.id).await?;
            }
            if !matches!(decision, Decision::CheckAgain(_)) {
                return Ok(self.line_up(found.payment.id, Some(presenter)));
            }
        }
        let asker = Asker::Settle(presenter);
        self.accept(served, candidate, known, asker).await
    }

    /// Checks everything and puts the payment into the queue: a new one, or one that was refused before (the only ones that may be in
    /// `known`), which keeps its id. The place in the queue is reserved after the chain was asked, so that what cannot be settled holds
    /// none, and before the ledger accepts the payment, so that no accepted payment is without one.
    pub(super) async fn accept(
        &self,
        served: &ServedNetwork,
        candidate: Candidate,
        known: &Lookup,
        asker: Asker<'_>,
    ) -> Result<InLine, Error> {
        let presenter = asker.presenter();
        let refused = known.payment.as_ref().map(|found| found.payment.id);
        let admission = self.admit(served, &candidate, known, asker.call()).await?;
        let (queue, payer) = (&served.queue, candidate.terms.from);
        queue.check_room(payer)?;
        let (mut reserved, mut reads_left) = (None, READS_MAX);
        let catch_up_deadline = Instant::now() + CATCH_UP_LIMIT;
        loop {
            let checked = self.preflight(served, &candidate, known, &admission);
            let checked = checked.await?;
            // Not for a submission that was turned away.
            asker.require_session_id(&self.ledger).await?;
            let verified = match checked {
                Preflight::Valid(verified) => *verified,
                Preflight::Transferred(id) => return Ok(self.line_up(id, presenter)),
            };
            if !candidate.terms.value.is_zero() {
                Self::can_be_sent(served, &candidate, Purpose::Settle)?;
            }
            let place = reserved
                .take()
                .map_or_else(|| queue.reserve_for(payer), Ok)?;
            let facts = verified.facts().clone();
            let new = NewPayment {
                id: refused.unwrap_or_else(|| PaymentId(Uuid::now_v7())),
                verified,
                confirmations: served.policy.confirmations,
                claimed: place.is_claimed_here(queue, candidate.terms.settling_signer()),
                caller: admission.settler,
                first_asker: presenter.map(|presenter| presenter.caller.grant_request()),
            };
            let mut own = self.go_first(new.id, presenter);
            let accepted = match refused {
                Some(_) => self.ledger.queue_again(new).await?,
                None => self.ledger.accept(new).await?,
            };
            if let Accepted::New(payment) = accepted {
                own.first_right = own.first_right.map(FirstRight::accepted);
                own.just_queued = note_accepted(served, &payment);
                if own.just_queued {
                    queue.enqueue(place, Queued::new(*payment, Some(facts)));
                }
                return Ok(own);
            }
            own.give_up_first_right();
            match accepted {
                // Another request was faster: its row answers, after the same checks that every known payment gets.
                Accepted::New(_) | Accepted::AlreadyAccepted => {
                    let id = self.existing_payment(&candidate).await?;
                    return Ok(self.line_up(id, presenter));
                }
                // The balance may already lack the money of a payment whose result is not recorded yet, which the ledger then counts a
                // second time.
                Accepted::InsufficientBalance { .. } | Accepted::InsufficientAllowance { .. }
                    if reads_left > 1 =>
                {
                    reads_left -= 1;
                }
                Accepted::InsufficientBalance { held } => {
                    return Err(candidate.lacks_balance(&facts, held).into());
                }
                Accepted::InsufficientAllowance { promised } => {
                    return Err(candidate.lacks_allowance(&facts, promised).into());
                }
                // The endpoint is behind a block in which this payer has paid: wait for it, or for another endpoint.
                Accepted::Stale if Instant::now() < catch_up_deadline => {}
                Accepted::Stale => {
                    return Err(Unavailable::NodeBehind(served.policy.network).into());
                }
            }
            // The balance has to be read again.
            reserved = Some(place);
            tokio::time::sleep(RECORD_PAUSE).await;
        }
    }

    /// The payment that another request has just recorded for the candidate's nonce.
    pub(super) async fn existing_payment(&self, candidate: &Candidate) -> Result<PaymentId, Error> {
        let known = self.ledger.lookup((&candidate.terms).into()).await?;
        check_session(candidate, &known)?;
        let payment = known.payment.ok_or(Unavailable::BeingChecked)?.payment;
        check_digest(candidate, &payment)?;
        Ok(payment.id)
    }

    /// Checks a payment in the ledger for `/verify`: rejects one whose settlement would not be answered with success to `who` now.
    pub(super) async fn verify_known(
        &self,
        found: &PaymentWithGrant,
        who: Who,
    ) -> Result<KnownPayment, Error> {
        let id = found.payment.id;
        let mut decision = decide(found, who);
        if decision == Decision::AwaitGrant {
            decision = decide(&self.after_answer(id, self.settle_wait).await?, who);
        }
        let duplicate = |why: &str| Rejection::new(Reason::DuplicateSettlement, why);
        let rejection = match decision {
            Decision::Grant => return Ok(KnownPayment::Valid),
            Decision::CheckAgain(_) => return Ok(KnownPayment::CheckAgain),
            Decision::Join if self.ledger.lease_verify(id, self.verify_lease_s).await? => {
                return Ok(KnownPayment::Valid);
            }
            Decision::Join => duplicate("another request is verifying this payment right now"),
            Decision::AwaitGrant | Decision::Duplicate => duplicate(
                "this payment has bought its resource already, or another caller has it settled",
            ),
            Decision::Failed(rejection) => rejection,
            Decision::Quarantined(why) => {
                let why = format!("the operator has to look at this payment: {why}");
                Rejection::new(Reason::SettlementPending, why)
            }
        };
        Err(rejection.into())
    }

    /// A payment in the ledger, once an answer about it that is being written has arrived or broken off, or the time is over.
    pub(super) async fn after_answer(
        &self,
        id: PaymentId,
        limit: Duration,
    ) -> Result<PaymentWithGrant, Unavailable> {
        let mut waiting = self.waiters.wait_for(id);
        let deadline = Instant::now() + limit;
        loop {
            let found = self.ledger.payment_with_grant(id).await?;
            let is_being_answered = decide_for_owner(&found) == Decision::AwaitGrant;
            if !is_being_answered || !self.wait(&mut waiting, deadline).await {
                return Ok(found);
            }
        }
    }
}

/// Counts and logs an accepted payment. Returns whether it is to be sent.
fn note_accepted(served: &ServedNetwork, payment: &Payment) -> bool {
    served.note_step(Named::of(payment), Step::Accepted);
    let is_uncharged = payment.state == PaymentState::Uncharged;
    if is_uncharged {
        served.note_step(Named::of(payment), Step::Settled);
    }
    !is_uncharged
}

/// Turns a payment whose row cannot be read into a rejection: the operator has to repair it.
pub(super) fn readable<T>(read: Result<T, LedgerError>) -> Result<T, Error> {
    read.map_err(|error| {
        if error.unreadable_payment().is_none() {
            return error.into();
        }
        let why = causes(&error);
        let why = format!("the operator has to look at this payment: {why}. Money may have moved");
        Rejection::new(Reason::SettlementPending, why).into()
    })
}

/// Checks the seller's terms and the presented id against the session whose nonce the authorization uses.
fn check_session(candidate: &Candidate, known: &Lookup) -> Result<(), Rejection> {
    let Some(session) = &known.session else {
        return Ok(());
    };
    session.check_requirements(&candidate.requirements)?;
    let payment = known.payment.as_ref().map(|found| &found.payment.state);
    session.check_presented_id(candidate.session.as_ref(), payment)
}

fn check_digest(candidate: &Candidate, payment: &Payment) -> Result<(), Rejection> {
    if payment.terms.digest == candidate.terms.digest {
        return Ok(());
    }
    let why = "this payer's nonce belongs to another authorization that was presented before";
    Err(candidate.terms.rejection(Fault::NonceUsed, why))
}
