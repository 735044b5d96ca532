//! `status`: what the ledger knows of a presented payment. Changes nothing, and asks no chain.

use crate::facilitator::gate::Call;
use crate::facilitator::intake::readable;
use crate::facilitator::proof::check_proof;
use crate::facilitator::submission::check_same_transfer;
use crate::facilitator::{Caller, Error, Facilitator};
use crate::ledger::{GrantStatus, PaymentWithGrant};
use crate::payment::method::Fault;
use crate::payment::{Candidate, Payment, PaymentState, Purpose, UnixSeconds};
use crate::protocol::session::Rail;
use crate::protocol::status::StatusResponse;
use crate::protocol::{AuthorizationPayload, Payload, PaymentRequest};
use crate::settlement::ServedNetwork;

/// Seconds after the end of an authorization: a request that was in time for its checks has it accepted by then at the latest.
const ACCEPTED_LATE_S: i64 = 60;

impl Facilitator {
    /// What became of a payment, for whoever holds it.
    ///
    /// # Errors
    /// A rejection when the request is not about a payment that could be settled here, or does not prove that the caller holds it. An
    /// `Unavailable` when the ledger does not answer or the caller asks too often.
    pub async fn status(
        &self,
        request: PaymentRequest,
        caller: &Caller,
    ) -> Result<StatusResponse, Error> {
        self.gate.count_request(caller)?;
        // Costs as much as a verify of a known payment.
        self.count(Call::Verify, caller)?;
        let served = self.network_of(request.requirements.network)?;
        let (request, payload) = request.with_payload(());
        match payload {
            Payload::Authorization(payload) => {
                let (request, ()) = request.with_payload(payload);
                self.status_of_authorization(served, request).await
            }
            Payload::Proof(proof) => {
                let session = self.session_with_id(&proof.session_id).await?;
                check_proof(&session, &request, &proof)?;
                let Some(id) = session.payment else {
                    return Ok(unknown_transfer());
                };
                let found = readable(self.ledger.payment_with_grant(id).await)?;
                check_same_transfer(&session, &found.payment, proof.transaction)?;
                Ok(self.status_of(served, found))
            }
        }
    }

    async fn status_of_authorization(
        &self,
        served: &ServedNetwork,
        request: PaymentRequest<AuthorizationPayload>,
    ) -> Result<StatusResponse, Error> {
        let candidate = Candidate::from_request(request, &served.policy, Purpose::Settle)?;
        let known = self.find(&candidate).await?;
        let Some(found) = known.payment else {
            let end = candidate.terms.valid_before;
            return Ok(unknown_authorization(end, self.is_over(served, end)));
        };
        if !candidate.is_proven_by(&found.payment) {
            let why = "the ledger has this authorization with another signature, and whether this one is good too only the chain can say; present the payment to /settle";
            return Err(candidate.terms.rejection(Fault::Signature, why).into());
        }
        Ok(self.status_of(served, found))
    }

    /// Whether an authorization can be accepted no more, neither here nor by the chain. A chain that was down goes on with blocks whose time is
    /// behind the clock, so the newest block has to be later too.
    fn is_over(&self, served: &ServedNetwork, end: UnixSeconds) -> bool {
        let end = end.timestamp().saturating_add(ACCEPTED_LATE_S);
        let head = served.view.head().map(|head| head.time.unix_timestamp());
        end < self.clock.now().unix_timestamp() && head.is_some_and(|time| end < time)
    }

    fn status_of(&self, served: &ServedNetwork, found: PaymentWithGrant) -> StatusResponse {
        let payment = &found.payment;
        let location = payment.state.location();
        let head = served.view.head().map(|head| head.number);
        let confirmations = location
            .zip(head)
            .map(|(location, head)| (head + 1).saturating_sub(location.block_number));
        let (reason, message) = match &payment.state {
            PaymentState::Refused(why) | PaymentState::Failed { rejection: why, .. } => {
                (Some(why.reason.code().to_owned()), Some(&why.message))
            }
            PaymentState::Queued
            | PaymentState::Inflight(_)
            | PaymentState::Mined(_)
            | PaymentState::Settled(_)
            | PaymentState::Uncharged
            | PaymentState::Final(_)
            | PaymentState::LateSettled(_) => (None, payment.unmatched.as_ref()),
        };
        let message = payment.quarantine.as_ref().or(message).cloned();
        let is_over = self.is_over(served, payment.terms.valid_before);
        StatusResponse {
            known: true,
            payment_id: Some(payment.id.to_string()),
            state: Some(payment.state.name().to_owned()),
            reason,
            message,
            transaction: payment.state.transaction().map(|hash| hash.to_string()),
            block_number: location.map(|location| location.block_number),
            confirmations,
            confirmations_required: Some(payment.confirmations),
            amount: Some(payment.terms.value),
            money_moved: location.is_some(),
            money_may_move: may_move(payment, is_over),
            success_told: found.grant == GrantStatus::Answered,
            next: next(&found, is_over).to_owned(),
            granted_to: found.granted_to,
        }
    }
}

fn unknown_authorization(end: UnixSeconds, is_over: bool) -> StatusResponse {
    let next = if is_over {
        "the payment is not in the ledger, so as far as the ledger knows this facilitator has not moved its money, and its time is over, so it never will; whether anybody else has used the authorization, only the chain says".to_owned()
    } else {
        format!(
            "the payment is not in the ledger, so no transaction of this facilitator carries it; until {end} (Unix time) it can be presented to /settle, and a request that is being checked may still have it accepted: do not pay again before that time"
        )
    };
    unknown(!is_over, next)
}

fn unknown_transfer() -> StatusResponse {
    let next = "the transfer is not in the ledger; it moves the money all the same once a block has it: present it to /settle".to_owned();
    unknown(true, next)
}

fn unknown(money_may_move: bool, next: String) -> StatusResponse {
    StatusResponse {
        known: false,
        payment_id: None,
        state: None,
        reason: None,
        message: None,
        transaction: None,
        block_number: None,
        confirmations: None,
        confirmations_required: None,
        amount: None,
        money_moved: false,
        money_may_move,
        success_told: false,
        granted_to: None,
        next,
    }
}

/// Whether money may still move. Success that was told before a reorg does not change that.
const fn may_move(payment: &Payment, is_over: bool) -> bool {
    if payment.quarantine.is_some() {
        return true;
    }
    match &payment.state {
        PaymentState::Queued | PaymentState::Inflight(_) | PaymentState::Mined(_) => true,
        // After a reorg the transaction of a failed payment is sent again, and anybody can submit an authorization that was not used.
        PaymentState::Failed { .. } if matches!(payment.rail, Rail::Authorization) => !is_over,
        PaymentState::Refused(_) => !is_over,
        PaymentState::Settled(_)
        | PaymentState::Uncharged
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_)
        | PaymentState::Failed { .. } => false,
    }
}

fn next(found: &PaymentWithGrant, is_over: bool) -> &'static str {
    let payment = &found.payment;
    if payment.quarantine.is_some() {
        return "the operator has to look at this payment; do not pay again before that";
    }
    match &payment.state {
        PaymentState::Queued => {
            "the payment waits for a transaction: present it to /settle to hear of its outcome, or ask again"
        }
        PaymentState::Inflight(_) if payment.rail == Rail::Transfer => {
            "the payer's transaction is not in a block yet: present the payment to /settle to hear of its outcome, or ask again"
        }
        PaymentState::Inflight(_) => {
            "the transaction may have been sent and is not in a block yet: present the payment to /settle to hear of its outcome, or ask again"
        }
        PaymentState::Mined(_) => {
            "the transfer is in a block and waits for its confirmations: present the payment to /settle to hear of its outcome, or ask again"
        }
        PaymentState::Refused(_) if is_over => {
            "the payment was refused, and its time is over: no transaction of this facilitator is under way for it, and none will be; whether anybody else has used the authorization, only the chain says"
        }
        PaymentState::Refused(_) => {
            "no transaction is under way for the payment: present it to /settle again to have it checked anew, and do not pay otherwise before its time is over"
        }
        PaymentState::Failed { .. } if payment.rail == Rail::Transfer => {
            "the transfer does not pay this session: look its transaction up before you pay again, and ask the payee if it was mined"
        }
        PaymentState::Failed { .. } if is_over => {
            "the payment can move no money any more: sign a new one"
        }
        PaymentState::Failed { .. } => {
            "the transaction of the payment moved nothing; until the payment's time is over it may still be used, so do not pay again before"
        }
        PaymentState::Settled(_)
        | PaymentState::Uncharged
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_) => next_of_settled(found),
    }
}

const fn next_of_settled(found: &PaymentWithGrant) -> &'static str {
    if found.payment.unmatched.is_some() {
        return "the money moved in a way that buys nothing: the payee has it, ask the seller";
    }
    match found.grant {
        GrantStatus::Free => {
            "the payment is settled and nobody was told success: present it to /settle to be told"
        }
        GrantStatus::Reserved | GrantStatus::Open => {
            "the payment is settled and another request is about to be told success: ask again in a few seconds"
        }
        GrantStatus::Answered => {
            "the payment is settled and success was told to the request in grantedTo: if that was yours, serve what was bought; do not pay again"
        }
    }
}
