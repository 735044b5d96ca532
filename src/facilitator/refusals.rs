//! Refusals on their way to the ledger. Anybody can cause any number of them: they are collected in memory and written in groups, a bounded
//! number in each second, and what is more than that is dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::facilitator::Caller;
use crate::facilitator::gate::Counted;
use crate::ledger::{Ledger, NewRefusal, RefusedPayment};
use crate::payment::Session;
use crate::protocol::{PaymentRequest, PaymentRequirements, Reason, Rejection};
use crate::telemetry::causes;
use crate::telemetry::metrics::{Limit, Metrics, reached};

/// Refusals that wait to be written, at most.
const WAITING_MAX: usize = 2_000;
/// Refusals of one caller that are recorded in a minute, at most: so that one alone does not push out those of all others for days.
const PER_MINUTE_MAX: u32 = 60;
const MINUTE: Duration = Duration::from_mins(1);
/// Refusals written in a second, at most.
const WRITTEN_PER_SECOND: usize = 50;
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Seconds between two deletions of old refusals, and groups that each deletes at most.
const FORGET_INTERVAL_S: u32 = 60;
const FORGOTTEN_GROUPS: u32 = 10;
/// Bytes of a message that are kept.
const MESSAGE_BYTES_MAX: usize = 1_000;

/// A call that can be refused, as refusals name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Verify,
    Settle,
    /// `POST /sessions`.
    Sessions,
    /// `POST /sessions/{id}/transfer`.
    Transfer,
}

impl Endpoint {
    const fn name(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Settle => "settle",
            Self::Sessions => "sessions",
            Self::Transfer => "transfer",
        }
    }
}

/// The refusals that are not written yet. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: Mutex<Waiting>,
    dropped: AtomicU64,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Oldest first.
    refusals: VecDeque<NewRefusal>,
    /// Those of the present minute.
    of_caller: HashMap<Option<Counted>, u32>,
    minute_began: Option<Instant>,
}

impl Waiting {
    /// `false`: there is no room for it.
    fn push(&mut self, counted: Option<Counted>, refusal: NewRefusal, now: Instant) -> bool {
        let is_over = |began| now.duration_since(began) >= MINUTE;
        if self.minute_began.is_none_or(is_over) {
            self.minute_began = Some(now);
            self.of_caller = HashMap::new();
        }
        let of_caller = self.of_caller.get(&counted).copied().unwrap_or_default();
        if self.refusals.len() >= WAITING_MAX || of_caller >= PER_MINUTE_MAX {
            return false;
        }
        self.of_caller.insert(counted, of_caller + 1);
        self.refusals.push_back(refusal);
        true
    }

    fn first(&self, count: usize) -> Vec<NewRefusal> {
        self.refusals.iter().take(count).cloned().collect()
    }

    fn remove_first(&mut self, count: usize) {
        self.refusals.drain(..count.min(self.refusals.len()));
    }
}

impl Refusals {
    pub fn new(clock: Arc<dyn Clock>, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            waiting: Mutex::default(),
            dropped: AtomicU64::new(0),
            clock,
            metrics,
        }))
    }

    /// Remembers that a request was refused. `settlement_pending` is no refusal.
    pub fn note(
        &self,
        (endpoint, caller): (Endpoint, &Caller),
        payment: RefusedPayment,
        rejection: &Rejection,
    ) {
        self.note_at(Instant::now(), (endpoint, caller), payment, rejection);
    }

    fn note_at(
        &self,
        now: Instant,
        (endpoint, caller): (Endpoint, &Caller),
        payment: RefusedPayment,
        rejection: &Rejection,
    ) {
        if rejection.reason == Reason::SettlementPending {
            return;
        }
        let code = rejection.reason.code();
        self.0.metrics.refused(code);
        let refusal = NewRefusal {
            id: Uuid::now_v7(),
            at: self.0.clock.now(),
            request_id: caller.request_id.clone(),
            endpoint: endpoint.name(),
            code,
            message: kept(&rejection.message),
            payment,
            caller: caller.who,
        };
        // A flood fills neither the ledger nor the log.
        if self.waiting().push(Counted::of(caller), refusal, now) {
            let network = payment.network.map(tracing::field::display);
            let payer = payment.payer.map(tracing::field::display);
            tracing::info!(
                network,
                payer,
                endpoint = endpoint.name(),
                code,
                "payment refused"
            );
        } else {
            reached(Limit::Refusals);
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Refusals that were dropped since the start, because too many came at once.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was refused, and deletes what is old, until `stop`.
    pub async fn write(self, ledger: Ledger, stop: CancellationToken) {
        let mut interval = tokio::time::interval(WRITE_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seconds = 0;
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            self.write_group(&ledger, WRITTEN_PER_SECOND).await;
            seconds = (seconds + 1) % FORGET_INTERVAL_S;
            if seconds == 0 {
                forget(&ledger).await;
            }
        }
        self.write_group(&ledger, WAITING_MAX).await;
    }

    /// What cannot be written now waits for the next group.
    async fn write_group(&self, ledger: &Ledger, count: usize) {
        let group = self.waiting().first(count);
        if group.is_empty() {
            return;
        }
        match ledger.record_refusals(&group).await {
            Ok(unwritable) => {
                self.waiting().remove_first(group.len());
                self.0.dropped.fetch_add(unwritable, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(
                    error = causes(&error),
                    "refusals not written: retrying in a second"
                );
            }
        }
    }
}

async fn forget(ledger: &Ledger) {
    for _ in 0..FORGOTTEN_GROUPS {
        match ledger.forget_refusals().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(error = causes(&error), "old refusals not deleted");
                return;
            }
        }
    }
}

/// A message as the ledger can store it.
fn kept(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    let start = message.get(..end).unwrap_or_default();
    start.replace('\0', " ")
}

/// What a request asks for.
pub(super) fn refused(request: &PaymentRequest) -> RefusedPayment {
    refused_terms(&request.requirements, request.payload.payer())
}

/// What an entry of a seller's `accepts` asks for.
pub(super) const fn refused_terms(
    terms: &PaymentRequirements,
    payer: Option<Address>,
) -> RefusedPayment {
    RefusedPayment {
        network: Some(terms.network),
        payer,
        payee: Some(terms.pay_to),
        asset: Some(terms.asset),
        amount: Some(terms.amount),
    }
}

/// What a session is to be paid with.
pub(super) const fn refused_session(session: &Session) -> RefusedPayment {
    RefusedPayment {
        network: Some(session.network),
        payer: Some(session.payer),
        payee: Some(session.payee),
        asset: Some(session.asset),
        amount: Some(session.amount),
    }
}

#[cfg(test)]
mod tests;
