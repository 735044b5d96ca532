//! Payments without a transfer by a transaction of ours: those whose transaction was mined without it, which are decided here, and those
//! that were given up. The latter can still be transferred, because their authorizations are signed and any program may submit them.

mod expired;
mod transfers;
mod undecided;
mod wasted;

pub use transfers::Transfers;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::AuthorizationUse;
use crate::chain::Head;
use crate::ledger::{Decided, GivenUpPlace, Undecided, Verdict};
use crate::payment::{Location, Payment, PaymentId};
use crate::protocol::Rejection;
use crate::settlement::{DependencyError, Named, ServedNetwork};
use crate::telemetry::causes;
use crate::telemetry::metrics::Step;
use expired::refuse_expired;
use undecided::{is_confirmed, verdict};
use wasted::{Found, wasteful};

/// Undecided payments per query.
const UNDECIDED_MAX: i64 = 1_000;
/// How many of them per query. If there are more, the next query follows soon.
const GIVEN_UP_MAX: i64 = 200;
/// Blocks after a reorg during which failed payments are checked again.
const RECHECK_BLOCKS: u64 = 64;

/// The task that reconciles the payments of one network.
#[derive(Debug)]
pub struct Reconciler {
    served: Arc<ServedNetwork>,
    /// Since when each undecided payment has been seen with the confirmations that a verdict needs.
    undecided_since: HashMap<PaymentId, Instant>,
    /// Some undecided payments have too few confirmations.
    has_unconfirmed: bool,
    given_up_checked_at: Option<Instant>,
    /// The last one checked, if there are more behind it, and the head when the first of them was checked.
    given_up_checked: Option<GivenUpPlace>,
    given_up_since: u64,
    expired_checked_at: Option<Instant>,
    /// Reorgs seen, and the height until which failures are checked again after one.
    reorganisations: u64,
    recheck_failed_until: Option<u64>,
}

impl Reconciler {
    pub fn new(served: Arc<ServedNetwork>) -> Self {
        Self {
            served,
            undecided_since: HashMap::new(),
            has_unconfirmed: false,
            given_up_checked_at: None,
            given_up_checked: None,
            given_up_since: 0,
            expired_checked_at: None,
            reorganisations: 0,
            recheck_failed_until: None,
        }
    }

    /// Reconciles until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.served.view.subscribe();
        let mut failing = false;
        loop {
            let tick = *view.borrow_and_update();
            if let Some(head) = tick.head {
                if tick.reorganisations != self.reorganisations {
                    self.reorganisations = tick.reorganisations;
                    self.recheck_failed_until = Some(head.number.saturating_add(RECHECK_BLOCKS));
                }
                match self.reconcile(&head).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(
                                error = causes(&error),
                                "payments without a transfer not reconciled: retrying"
                            );
                        }
                    }
                }
            }
            let has_unconfirmed = self.has_unconfirmed || !self.undecided_since.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.served.reconciler_woken() => {}
                changed = view.changed(), if has_unconfirmed && !failing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(self.served.timing.reconcile) => {}
            }
        }
    }

    async fn reconcile(&mut self, head: &Head) -> Result<(), DependencyError> {
        if self.served.rpc.agreed_height(head.number) < head.number {
            // Verdicts are final: they are not based on a head, or its time, that only one endpoint has shown.
            return Ok(());
        }
        self.decide(head).await?;
        let due = |checked_at: Instant| checked_at.elapsed() >= self.served.timing.expired;
        if self.expired_checked_at.is_none_or(due) {
            refuse_expired(&self.served, head).await?;
            self.expired_checked_at = Some(Instant::now());
        }
        self.check_given_up(head).await
    }

    /// Decides about payments whose transactions were mined without their transfers: two RPC requests for all of them.
    async fn decide(&mut self, head: &Head) -> Result<(), DependencyError> {
        let (served, network) = (&self.served, self.served.policy.network);
        let mut rows = served.ledger.undecided(network, UNDECIDED_MAX).await?;
        let all = rows.len();
        rows.retain(|row| is_confirmed(row, head));
        self.has_unconfirmed = rows.len() < all;
        self.undecided_since
            .retain(|id, _| rows.iter().any(|row| row.payment.id == *id));
        let terms: Vec<_> = rows.iter().map(|row| &row.payment.terms).collect();
        let tokens = served.policy.tokens();
        let uses = served.rpc.authorization_uses(&terms, head.number, &tokens);
        let mut found: Vec<(&Undecided, AuthorizationUse)> = Vec::new();
        for (row, used) in rows.iter().zip(uses.await?) {
            match used {
                Ok(used) => found.push((row, used)),
                Err(error) => {
                    tracing::warn!(payment = %row.payment.id, transaction = %row.hash, %error, "undecided payment: chain state not read, retrying");
                }
            }
        }
        let suspended = suspend_wasteful(served, &found).await?;
        let mut again: HashMap<Uuid, Vec<&Undecided>> = HashMap::new();
        for (row, used) in found {
            let since = self.undecided_since.entry(row.payment.id);
            let since = since.or_insert_with(Instant::now);
            let lasting = since.elapsed() >= served.timing.contradiction_after;
            let Some(verdict) = verdict(row, &used, head, lasting) else {
                continue;
            };
            // What a wallet's code does in a block is not seen before.
            let verdict = match (verdict, suspended.get(&row.payment.id)) {
                (Verdict::Again, Some(rejection)) => Verdict::Refuse(rejection.clone()),
                (verdict, _) => verdict,
            };
            if verdict == Verdict::Again {
                again.entry(row.transaction).or_default().push(row);
            } else if let Some(decided) = served.ledger.decide(row, &verdict).await? {
                if decided == Decided::Changed {
                    note_decided(served, row, &verdict);
                }
                announce(served, row, &verdict);
            }
        }
        for rows in again.into_values() {
            served.ledger.queue_undecided(&rows).await?;
            for row in rows {
                announce(served, row, &Verdict::Again);
            }
            served.wake_pickup();
        }
        Ok(())
    }

    /// Searches for foreign transfers of payments that were given up, when that is due. After a reorg also of failed payments: until the
    /// new blocks have enough confirmations and our own bytes, which were broadcast again, are decided.
    async fn check_given_up(&mut self, head: &Head) -> Result<(), DependencyError> {
        let timing = &self.served.timing;
        let interval = self
            .given_up_checked
            .map_or(timing.given_up, |_| timing.reconcile);
        let due = |checked_at: Instant| checked_at.elapsed() >= interval;
        if self.recheck_failed_until.is_none() && !self.given_up_checked_at.is_none_or(due) {
            return Ok(());
        }
        let (served, network) = (&self.served, self.served.policy.network);
        let recheck_failed = self.recheck_failed_until.is_some();
        let after = self.given_up_checked;
        if after.is_none() {
            self.given_up_since = head.number;
        }
        let (payments, last) = served
            .ledger
            .payments_without_transfer(network, recheck_failed, after, GIVEN_UP_MAX)
            .await?;
        let terms: Vec<_> = payments.iter().map(|payment| &payment.terms).collect();
        let tokens = served.policy.tokens();
        let uses = served.rpc.authorization_uses(&terms, head.number, &tokens);
        for (payment, used) in payments.iter().zip(uses.await?) {
            if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
                settle_foreign(served, payment, &location, head.number).await?;
            }
        }
        self.given_up_checked_at = Some(Instant::now());
        self.given_up_checked = last;
        if let Some(until) = self.recheck_failed_until
            && last.is_none()
            && self.given_up_since >= until
            && !served.ledger.failed_in_flight(network).await?
        {
            self.recheck_failed_until = None;
        }
        Ok(())
    }
}

/// Counts and logs the step that a verdict was for its payment.
fn note_decided(served: &ServedNetwork, row: &Undecided, verdict: &Verdict) {
    let named = Named::of(&row.payment).in_transaction(Some(row.hash));
    match verdict {
        Verdict::Transferred {
            location,
            confirmed,
        } => served.note_found(named, location, *confirmed),
        Verdict::Refuse(rejection) => served.note_refused(named, rejection),
        Verdict::Fail(rejection) => {
            served.note_step(named, Step::Failed(rejection.reason.code()));
        }
        Verdict::Again | Verdict::Quarantine(_) => {}
    }
}

/// Logs a verdict that was recorded, and wakes who waits for it.
fn announce(served: &ServedNetwork, row: &Undecided, verdict: &Verdict) {
    let id = row.payment.id;
    served.suspensions.end_turn(id);
    tracing::warn!(payment = %id, network = %served.policy.network, payer = %row.payment.terms.from, transaction = %row.hash, ?verdict, "transaction mined without this payment's transfer: payment decided");
    if matches!(
        verdict,
        Verdict::Transferred {
            confirmed: false,
            ..
        }
    ) {
        served.note_unconfirmed();
    }
    served.waiters.wake([id]);
}

/// Suspends the payers that have wasted gas. Returns those payments of them that must not be sent again now.
async fn suspend_wasteful(
    served: &ServedNetwork,
    found: &[(&Undecided, AuthorizationUse)],
) -> Result<HashMap<PaymentId, Rejection>, DependencyError> {
    let found: Vec<Found<'_>> = found.iter().map(|(row, used)| (*row, used)).collect();
    let wasteful = wasteful(served, &found).await?;
    let mut refused = HashMap::new();
    for (row, _) in found {
        let Some(of) = wasteful.get(&row.payment.id) else {
            continue;
        };
        let network = served.policy.network;
        let holding = served.ledger.suspend(network, row.transaction, of).await?;
        served.suspensions.note(&holding);
        let payer = row.payment.terms.from;
        if let Err(rejection) = served.check_payer(payer) {
            tracing::warn!(payment = %row.payment.id, %network, %payer, transaction = %row.hash, why = rejection.message, "payer suspended");
            // A payer that has spent its money gets the answer of the next simulation.
            if of.len() > 1 || row.ran_out_of_gas {
                refused.insert(row.payment.id, rejection);
            }
        }
    }
    Ok(refused)
}

/// Settles a payment that a foreign transaction has transferred; a failed payment only once that is confirmed.
async fn settle_foreign(
    served: &ServedNetwork,
    payment: &Payment,
    location: &Location,
    head: u64,
) -> Result<(), DependencyError> {
    let confirmed = location.is_confirmed(head, payment.confirmations);
    let ledger = &served.ledger;
    if ledger
        .settle_by_foreign_transaction(payment.id, location, confirmed)
        .await?
    {
        served.note_found(Named::of(payment), location, confirmed);
        tracing::warn!(payment = %payment.id, network = %served.policy.network, payer = %payment.terms.from, transaction = %location.transaction, "payment transferred after it was given up or expired: a foreign transaction submitted its authorization");
        served.note_unconfirmed();
        served.waiters.wake([payment.id]);
    }
    Ok(())
}
