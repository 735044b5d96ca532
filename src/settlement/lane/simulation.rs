//! Simulation of queued payments, each by itself and in batches, before anything is signed.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::Instant;

use super::batch::PrepareError;
use super::batch_plan::{BatchPlan, SETBACKS_WHOLE, SimulatedPayment, min_gas};
use crate::chain::{AuthorizationUse, CallOutcome, RpcError};
use crate::payment::method::Fault;
use crate::payment::{ChainFacts, Payment, SignedBy};
use crate::protocol::Rejection;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::gas::GasRule;
use crate::settlement::{GasParties, Named, Queued, ServedNetwork};

/// Pause before a payment that cannot be sent yet is simulated again.
const LATER: Duration = Duration::from_millis(500);

/// Result of simulating a payment.
#[derive(Debug)]
pub(super) enum Simulated {
    Ready(Box<SimulatedPayment>),
    /// Others of its payer are under way or wait for its approval, open transactions reserve the rest of its gas budget, or its key has not
    /// been read yet: it is simulated again later.
    Later(Box<Queued>),
    /// It was refused, settled or put on hold, and the ledger says so where its state changed.
    Done,
}

/// Simulates a queued payment on the newest state.
pub(super) async fn simulate(
    served: &ServedNetwork,
    mut queued: Queued,
) -> Result<Simulated, PrepareError> {
    reach(Step::Picked);
    if expires_too_soon(served, &queued.payment) {
        let rejection = Rejection {
            reason: queued.payment.terms.reason(Fault::ValidBefore),
            message: "the authorization expires before a transaction could be mined".to_owned(),
        };
        return refuse(served, &queued.payment, &rejection).await;
    }
    if !served.budgets.knows_key_of(&queued.payment) {
        return Ok(later(queued));
    }
    if queued.not_before.is_none() && !queued.payment.told {
        // A budget was closed while it waited behind others.
        let (parties, now) = (GasParties::of(&queued.payment), served.ledger.clock().now());
        match served.budgets.check_queued(parties, now) {
            Ok(true) => {}
            Ok(false) => return Ok(later(queued)),
            Err(rejection) => return refuse(served, &queued.payment, &rejection).await,
        }
    }
    drop_deployed_wallet(served, &mut queued.payment).await?;
    // A batch is simulated as a whole before it is sent, so older facts suffice where the payer is a plain account.
    let usable = |facts: &ChainFacts| {
        (!facts.payer_has_code && facts.transfer_succeeds) || is_fresh(served, facts)
    };
    let facts = match queued.facts.take().filter(usable) {
        Some(known) => known,
        None => served.lane_facts.of(&queued.payment.terms).await?,
    };
    if facts.transfer_succeeds {
        return ready(served, queued, facts).await;
    }
    let payment = &queued.payment;
    if payment.terms.fails_only_because_early(&facts) {
        // No endpoint simulates a later time, and the newest block is older than `validAfter`. The pickup task finds the payment again a
        // little later.
        return Ok(Simulated::Done);
    }
    if payment.terms.needs_approval_first(&facts) {
        let Some(turn) = served.approvals.turn_of(payment.terms.from) else {
            return Ok(later(Queued {
                facts: Some(facts),
                ..queued
            }));
        };
        let (approvals, queue) = (&served.approvals, &served.queue);
        approvals.enqueue(queued.payment, turn, queue);
        return Ok(Simulated::Done);
    }
    settle_or_refuse(served, payment, &facts).await?;
    Ok(Simulated::Done)
}

/// A payment whose transfer succeeds now, unless its payer's code or its gas forbids it.
async fn ready(
    served: &ServedNetwork,
    queued: Queued,
    facts: ChainFacts,
) -> Result<Simulated, PrepareError> {
    let payment = &queued.payment;
    if let Some(rejection) = gas_rejection(served, payment, &facts) {
        return refuse(served, payment, &rejection).await;
    }
    let payer = payment.terms.from;
    if let Err(rejection) = served.check_payer(payer) {
        if payment.told {
            // The seller was told success and does not ask again: the payment waits for the end of the suspension.
            return Ok(later(Queued {
                facts: Some(facts),
                ..queued
            }));
        }
        return refuse(served, payment, &rejection).await;
    }
    let runs_code = facts.payer_has_code || payment.terms.wallet.is_some();
    let turn = runs_code.then(|| served.suspensions.turn_of(payer));
    if matches!(turn, Some(None)) {
        return Ok(later(Queued {
            facts: Some(facts),
            ..queued
        }));
    }
    reach(Step::Simulated);
    let mut payment = queued.payment;
    // A plain account has signed with its key; otherwise the payment would have been refused before. An account may have got code since
    // an earlier simulation.
    payment.terms.signed_by = (!facts.payer_has_code).then_some(SignedBy::Payer);
    Ok(Simulated::Ready(Box::new(SimulatedPayment {
        payment,
        facts,
        alone: queued.alone || served.suspensions.is_alone(payer),
        setbacks: queued.setbacks,
        turn: turn.flatten().map(Arc::new),
    })))
}

/// A payment that is simulated again a little later.
fn later(queued: Queued) -> Simulated {
    Simulated::Later(Box::new(Queued {
        not_before: Some(Instant::now() + LATER),
        ..queued
    }))
}

/// Refuses a payment before anything was written for it.
async fn refuse(
    served: &ServedNetwork,
    payment: &Payment,
    rejection: &Rejection,
) -> Result<Simulated, PrepareError> {
    if served.ledger.refuse(payment.id, rejection).await? {
        served.note_refused(Named::of(payment), rejection);
    }
    served.waiters.wake([payment.id]);
    Ok(Simulated::Done)
}

/// Why a payment is not sent whose transfer needs more gas than this facilitator pays for.
fn gas_rejection(
    served: &ServedNetwork,
    payment: &Payment,
    facts: &ChainFacts,
) -> Option<Rejection> {
    let (fees, least) = (served.fees(), min_gas(facts));
    let gas_cap = if facts.payer_has_code && payment.terms.wallet.is_none() {
        fees.wallet_gas_cap
    } else {
        fees.gas_cap
    };
    (least > gas_cap).then(|| Rejection {
        reason: payment.terms.reason(Fault::Simulation),
        message: format!(
            "the transfer needs at least {least} gas, and this facilitator pays for {gas_cap} at most"
        ),
    })
}

/// Drops the factory call of a wallet that has been deployed since.
async fn drop_deployed_wallet(
    served: &ServedNetwork,
    payment: &mut Payment,
) -> Result<(), RpcError> {
    if payment.terms.wallet.is_some() && !served.rpc.code(payment.terms.from).await?.is_empty() {
        payment.terms.wallet = None;
    }
    Ok(())
}

/// Whether less than half of `validity_min` is left: too little for another block or two.
fn expires_too_soon(served: &ServedNetwork, payment: &Payment) -> bool {
    let end = payment.terms.valid_before.timestamp();
    let least = served.policy.validity_min.whole_seconds() / 2;
    let head = served.view.head();
    head.is_some_and(|head| end <= head.time.unix_timestamp().saturating_add(least))
}

/// Whether the head is still the block of these facts.
fn is_fresh(served: &ServedNetwork, facts: &ChainFacts) -> bool {
    let head = served.view.head();
    head.is_none_or(|head| head.number <= facts.block_number)
}

/// Handles a payment whose simulation failed: it is not sent. If its nonce is used, a foreign transaction may have submitted the
/// authorization; then the payment is settled by that.
async fn settle_or_refuse(
    served: &ServedNetwork,
    payment: &Payment,
    facts: &ChainFacts,
) -> Result<(), PrepareError> {
    let tokens = served.policy.tokens();
    let used = if facts.nonce_used == Some(true) {
        served
            .rpc
            .authorization_use(&payment.terms, facts.block_number, &tokens)
            .await
    } else {
        Ok(AuthorizationUse::Unused)
    };
    if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
        let height = served.rpc.agreed_height(facts.block_number);
        let confirmed = location.is_confirmed(height, payment.confirmations);
        let ledger = &served.ledger;
        if ledger
            .settle_by_foreign_transaction(payment.id, &location, confirmed)
            .await?
        {
            tracing::info!(payment = %payment.id, network = %served.policy.network, payer = %payment.terms.from, transaction = %location.transaction, "payment transferred by a foreign transaction");
            served.note_found(Named::of(payment), &location, confirmed);
        }
        served.note_unconfirmed();
    } else {
        let rejection = match used {
            Ok(_) => payment.terms.diagnose(facts),
            // Affects this payment alone. The chain is asked again before a caller gets this answer.
            Err(error) => Rejection {
                reason: payment.terms.reason(Fault::NonceUsed),
                message: format!(
                    "the authorization's nonce is used, and the transaction that used it could not be found ({error})"
                ),
            },
        };
        if served.ledger.refuse(payment.id, &rejection).await? {
            served.note_refused(Named::of(payment), &rejection);
        }
    }
    served.waiters.wake([payment.id]);
    Ok(())
}

/// Result of simulating a batch.
#[derive(Debug)]
pub(super) struct SimulatedBatch {
    /// The payments that can be sent, if any.
    pub(super) plan: Option<BatchPlan>,
    /// Payments to be simulated again.
    pub(super) left_out: Vec<Queued>,
    /// The simulation gave no answer; tried again after a pause.
    pub(super) error: Option<RpcError>,
}

/// Simulates a batch as a whole, as `signer` would send it, and leaves out the payments that would fail in it: for example a payer that
/// promised more than its balance, or that has got code since. A batch that no node can simulate is split.
pub(super) async fn simulate_batch(
    served: &ServedNetwork,
    signer: Address,
    plan: BatchPlan,
    rule: GasRule,
) -> Result<SimulatedBatch, PrepareError> {
    if !plan.is_batch() {
        return simulate_single(served, signer, plan, rule).await;
    }
    let gas_limit = plan.gas_limit(&plan.call().1, &rule);
    let batch: Vec<_> = plan.rows.iter().map(|row| &row.payment.terms).collect();
    let sender = served
        .simulated_sender(Some(signer))
        .ok_or(PrepareError::NoHead)?;
    let results = match served.rpc.simulate_batch(sender, &batch, gas_limit).await {
        Ok(results) => results,
        Err(error) => return Ok(batch_not_simulated(served, plan, error)),
    };
    served.gas.batch_simulated();
    Ok(without_bad(plan.rows, &results))
}

/// Leaves out the payments that fail in the batch. The first of them and those whose payers have code get their own transaction or none:
/// they may have taken the gas without which the others failed. The others are simulated in a batch again.
fn without_bad(rows: Vec<SimulatedPayment>, results: &[CallOutcome]) -> SimulatedBatch {
    let mut good = Vec::new();
    let mut left_out = Vec::new();
    let mut first = true;
    for (row, result) in rows.into_iter().zip(results) {
        if result.succeeds && !result.payer_has_code {
            good.push(row);
        } else if std::mem::take(&mut first) || result.payer_has_code {
            left_out.push(Queued::alone(row.payment));
        } else {
            left_out.push(Queued {
                setbacks: row.setbacks.saturating_add(1),
                ..Queued::new(row.payment, None)
            });
        }
    }
    SimulatedBatch {
        plan: (!good.is_empty()).then_some(BatchPlan { rows: good }),
        left_out,
        error: None,
    }
}

/// Simulates a payment with its own transaction. The simulation of its facts is valid while the head is unchanged. Where code of the payer
/// runs, the transaction itself is simulated: the code sees nothing by which it could tell them apart but the block.
async fn simulate_single(
    served: &ServedNetwork,
    signer: Address,
    plan: BatchPlan,
    rule: GasRule,
) -> Result<SimulatedBatch, PrepareError> {
    let mut batch = SimulatedBatch {
        plan: None,
        left_out: Vec::new(),
        error: None,
    };
    let mut ready = Vec::new();
    for row in plan.rows {
        if is_fresh(served, &row.facts) {
            ready.push(row);
            continue;
        }
        // Its turn ends first, and it takes another. It has been planned, so it waits for no budget any more.
        let again = Queued {
            not_before: Some(Instant::now()),
            ..Queued::alone(row.payment)
        };
        drop(row.turn);
        match simulate(served, again).await? {
            Simulated::Ready(row) => ready.push(*row),
            Simulated::Later(queued) => batch.left_out.push(*queued),
            Simulated::Done => {}
        }
    }
    let plan = BatchPlan { rows: ready };
    let [only] = plan.rows.as_slice() else {
        return Ok(batch);
    };
    if only.turn.is_some() {
        let (to, data) = plan.call();
        let gas_limit = plan.gas_limit(&data, &rule);
        let head = served.view.head().ok_or(PrepareError::NoHead)?;
        let fees = served.fees().quote(&head)?;
        let succeeds = served
            .rpc
            .would_succeed(signer, (to, &data), gas_limit, Some(fees));
        if !succeeds.await? {
            let rejection = Rejection {
                reason: only.payment.terms.reason(Fault::Simulation),
                message: format!(
                    "the transfer fails in a transaction with {gas_limit} gas, although it succeeds in a call"
                ),
            };
            refuse(served, &only.payment, &rejection).await?;
            return Ok(batch);
        }
    }
    batch.plan = Some(plan);
    Ok(batch)
}

/// A batch that could not be simulated as a whole. Too large: smaller batches follow. Reverted, which one of its payments caused: halves
/// follow. Any other error: the provider has trouble, and the batch waits as it is.
fn batch_not_simulated(served: &ServedNetwork, plan: BatchPlan, error: RpcError) -> SimulatedBatch {
    let payments = plan.rows.len();
    let rows = plan.rows.into_iter();
    let whole = |row: SimulatedPayment| Queued::new(row.payment, Some(row.facts));
    let (left_out, unavailable): (Vec<_>, _) = if error.is_too_large() {
        tracing::warn!(payments, %error, "batch too large to simulate: smaller batches follow");
        served.gas.batch_too_large(payments);
        (rows.map(whole).collect(), None)
    } else if error.is_revert() {
        tracing::warn!(payments, %error, "batch simulation reverted: smaller batches follow");
        let halved = |row: SimulatedPayment| Queued {
            setbacks: row.setbacks.saturating_add(1).max(SETBACKS_WHOLE),
            ..Queued::new(row.payment, None)
        };
        (rows.map(halved).collect(), None)
    } else {
        served.gas.batch_not_simulated();
        (rows.map(whole).collect(), Some(error))
    };
    SimulatedBatch {
        plan: None,
        left_out,
        error: unavailable,
    }
}
