//! From waiting payments to transactions under the lane's next nonces. Simulation runs beside the lane's other work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::batch::{BatchContext, PrepareError, SignedBatch};
use super::batch_plan::BatchPlan;
use super::simulation::{Simulated, SimulatedBatch, simulate, simulate_batch};
use super::{Lane, LaneLost, OpenTransaction, OwnedLane, PAUSE};
use crate::ledger::PendingTransaction;
use crate::payment::PaymentId;
use crate::settlement::failpoint::panic_if_asked;
use crate::settlement::gas::GasRule;
use crate::settlement::supervisor::report_panic;
use crate::settlement::{ChainTick, Named, Queued, ServedNetwork};
use crate::telemetry::causes;
use crate::telemetry::metrics::Step;

/// Rounds of simulation that run at once: the next one is prepared while the chain simulates the first.
const SIMULATIONS_MAX: usize = 2;

/// A chain whose next block is late by this much makes blocks on demand.
const QUIET: Duration = Duration::from_secs(3);

/// One round of simulated batches.
#[derive(Debug)]
pub(super) struct SimulatedBatches {
    batches: Vec<SimulatedBatch>,
    /// Payments to be simulated later.
    later: Vec<Queued>,
    errors: Vec<PrepareError>,
    rule: GasRule,
    claims: Claims,
}

/// Claims on payments; dropping it releases them.
#[derive(Debug)]
struct Claims {
    served: Arc<ServedNetwork>,
    payments: Vec<PaymentId>,
}

impl Drop for Claims {
    fn drop(&mut self) {
        for payment in &self.payments {
            self.served.queue.release(*payment);
        }
    }
}

impl OwnedLane {
    /// When to simulate the waiting payments. At once while nothing is in flight, so that a single payment loses no time. Otherwise when
    /// there are enough for a full transaction, or the oldest has waited `batch_wait`.
    pub(super) fn next_batch_at(&self, served: &ServedNetwork) -> Option<Instant> {
        let now = Instant::now();
        let ready_at = |queued: &Queued| ready_at(served, queued, &self.tick);
        let ready = || self.waiting.iter().filter(|one| ready_at(one) <= now);
        let oldest = ready().map(|queued| queued.since).min();
        let oldest = oldest.or_else(|| self.waiting.iter().map(ready_at).min())?;
        let in_progress = self.open.len() + self.simulations.len();
        let room = in_progress < served.inflight_max && self.simulations.len() < SIMULATIONS_MAX;
        let full = ready().count() >= served.gas.rule().rows_max;
        let due = if ready().next().is_none() {
            oldest
        } else if in_progress == 0 || full {
            now
        } else {
            oldest + served.batch_wait
        };
        let may = room && self.tick.head.is_some() && self.can_write();
        may.then(|| due.max(self.paused_until))
    }
}

impl Lane {
    /// Starts to simulate the waiting payments; the results arrive at [`finish_batches`](Self::finish_batches).
    pub(super) fn start_batches(&self, owned: &mut OwnedLane) {
        let now = Instant::now();
        let (waiting, early): (Vec<_>, Vec<_>) = std::mem::take(&mut owned.waiting)
            .into_iter()
            .partition(|queued| ready_at(&self.served, queued, &owned.tick) <= now);
        owned.waiting = early;
        if waiting.is_empty() {
            return;
        }
        // Made before the task runs: a task that is cancelled before its first step releases the claims too.
        let claims = Claims {
            served: Arc::clone(&self.served),
            payments: waiting.iter().map(|queued| queued.payment.id).collect(),
        };
        panic_if_asked("lane");
        let rule = owned.rule_within_budget(&self.served);
        owned
            .simulations
            .spawn(simulate_waiting(claims, self.id.signer, rule, waiting).in_current_span());
    }

    /// Signs, records and broadcasts the batches whose simulation succeeded.
    pub(super) async fn finish_batches(
        &self,
        owned: &mut OwnedLane,
        simulated: SimulatedBatches,
    ) -> Result<(), LaneLost> {
        let mut claims = simulated.claims;
        for batch in simulated.batches {
            if !self.commit_and_send(owned, batch, simulated.rule).await? {
                // The other batches would wait for it too. Their payments are claimed from the ledger again.
                break;
            }
        }
        // What finds no room is claimed from the ledger again.
        let room = owned.room_to_hold_back();
        owned.waiting.extend(simulated.later.into_iter().take(room));
        let waiting: HashSet<PaymentId> = owned.waiting.iter().map(|one| one.payment.id).collect();
        claims.payments.retain(|id| !waiting.contains(id));
        simulated
            .errors
            .iter()
            .try_for_each(|error| owned.back_off(error))
    }

    /// `false`: the key does not sign now.
    async fn commit_and_send(
        &self,
        owned: &mut OwnedLane,
        batch: SimulatedBatch,
        rule: GasRule,
    ) -> Result<bool, LaneLost> {
        if !owned.can_write() {
            // The gas balance ran out meanwhile. Other lanes find the payments in the ledger.
            return Ok(true);
        }
        owned.waiting.extend(batch.left_out);
        if let Some(error) = batch.error {
            return owned.back_off(&error.into()).map(|()| true);
        }
        let (Some(plan), Some(key)) = (batch.plan, &self.key) else {
            return Ok(true);
        };
        if owned.open.len() >= self.served.inflight_max {
            owned.put_back(plan.rows);
            return Ok(true);
        }
        if plan.gas_limit(&plan.call().1, &rule) > owned.rule(&self.served).gas_max {
            // Other batches of this round have used the gas balance. It grows when they are mined or the signer is refilled.
            owned.gas_balance.read_soon();
            owned.paused_until = Instant::now() + PAUSE;
            owned.put_back(plan.rows);
            return Ok(true);
        }
        let context = BatchContext {
            served: &self.served,
            lane: self.id,
            lease: owned.lease,
            key,
            rule,
        };
        let written = context.sign_and_record(plan).await;
        match written {
            Ok(SignedBatch::Recorded(transaction, ran)) => {
                owned.lease.next_nonce += 1;
                owned.open.push_back(OpenTransaction {
                    ran,
                    ..OpenTransaction::new(transaction, Instant::now())
                });
                owned.open_count.set(owned.open.len());
                self.send(owned, owned.open.len() - 1, None);
                if let Some(open) = owned.open.back() {
                    self.note_sent(&open.transaction);
                }
                Ok(true)
            }
            Ok(SignedBatch::PaymentsChanged(rows)) => {
                owned.put_back(rows);
                Ok(true)
            }
            Ok(SignedBatch::OverBudget(over, rows)) => {
                let result = self.refuse_over_budget(owned, &over, rows).await;
                result
                    .or_else(|error| owned.back_off(&error.into()))
                    .map(|()| true)
            }
            Ok(SignedBatch::LaneLost) => Err(LaneLost),
            Err(error) => {
                owned.back_off(&error)?;
                Ok(!matches!(error, PrepareError::Signing(_)))
            }
        }
    }
}

impl Lane {
    fn note_sent(&self, transaction: &PendingTransaction) {
        let hash = transaction.attempts.first().map(|(hash, _)| *hash);
        for payment in &transaction.payments {
            let named = Named::of(payment).by(Some(self.id.signer));
            self.served
                .note_step(named.in_transaction(hash), Step::Sent);
        }
        let payments = transaction.payments.len();
        self.served.senders.note_sent(self.id.signer, payments);
    }
}

impl OwnedLane {
    /// Pauses the lane after a payment could not be prepared. The payment stays queued and is claimed again later.
    pub(super) fn back_off(&mut self, error: &PrepareError) -> Result<(), LaneLost> {
        tracing::warn!(
            error = causes(error),
            "payment not prepared: it stays queued and the lane pauses"
        );
        self.paused_until = Instant::now() + PAUSE;
        match error {
            // The commit may have happened: read the lane again before another nonce is used.
            PrepareError::Ledger(_) => Err(LaneLost),
            PrepareError::Chain(_)
            | PrepareError::FeeError(_)
            | PrepareError::Signing(_)
            | PrepareError::NoHead => Ok(()),
        }
    }
}

/// When a payment may be sent: at once, unless the next block may be older than `validAfter`, which was compared with the wall clock at
/// acceptance. A chain that has made no block for a while after that gives its next block the clock's time.
fn ready_at(served: &ServedNetwork, queued: &Queued, tick: &ChainTick) -> Instant {
    if let Some(at) = queued.not_before.filter(|at| *at > Instant::now()) {
        return at;
    }
    let begins = queued.payment.terms.valid_from().timestamp();
    let block_s = served.policy.network.min_block_time_s();
    let next = tick
        .head
        .map(|head| head.time.unix_timestamp().saturating_add_unsigned(block_s));
    if next.is_some_and(|next| next >= begins) {
        return queued.since;
    }
    let quiet_since = tick
        .since
        .map_or(queued.since, |seen| seen.max(queued.since));
    quiet_since + Duration::from_secs(block_s) + QUIET
}

/// Simulates each payment, groups those that succeed into batches and simulates the batches, all concurrently.
async fn simulate_waiting(
    claims: Claims,
    signer: Address,
    rule: GasRule,
    waiting: Vec<Queued>,
) -> SimulatedBatches {
    let served = Arc::clone(&claims.served);
    let mut errors = Vec::new();
    let mut simulations = JoinSet::new();
    for queued in waiting.into_iter().filter(|queued| !queued.is_stale()) {
        let served = Arc::clone(&served);
        let simulation = async move { simulate(&served, queued).await };
        simulations.spawn(simulation.in_current_span());
    }
    let (mut simulated, mut later) = (Vec::new(), Vec::new());
    while let Some(simulation) = simulations.join_next().await {
        // After a panic the payment is still queued in the ledger.
        match simulation {
            Ok(Ok(Simulated::Ready(row))) => simulated.push(*row),
            Ok(Ok(Simulated::Later(queued))) => later.push(*queued),
            Ok(Ok(Simulated::Done)) => {}
            Ok(Err(error)) => errors.push(error),
            Err(error) => report_panic("simulation", error),
        }
    }
    let mut batch_simulations = JoinSet::new();
    for plan in BatchPlan::group(simulated, &rule) {
        let served = Arc::clone(&served);
        let simulation = async move { simulate_batch(&served, signer, plan, rule).await };
        batch_simulations.spawn(simulation.in_current_span());
    }
    let mut batches = Vec::new();
    while let Some(simulation) = batch_simulations.join_next().await {
        match simulation {
            Ok(Ok(batch)) => batches.push(batch),
            Ok(Err(error)) => errors.push(error),
            Err(error) => report_panic("batch simulation", error),
        }
    }
    SimulatedBatches {
        batches,
        later,
        errors,
        rule,
        claims,
    }
}
