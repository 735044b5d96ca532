//! Payments without a transfer by a transaction of ours: those whose transaction was mined without it, which are decided here, and those
//! that were given up. The latter can still be transferred, because their authorizations are signed and any program may submit them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::chain::Head;
use crate::chain::authorization::AuthorizationUse;
use crate::ledger::Verdict;
use crate::payment::{Location, Payment, PaymentId};
use crate::settlement::expired::refuse_expired;
use crate::settlement::undecided::{is_confirmed, verdict};
use crate::settlement::{NotNow, Site};
use crate::telemetry::causes;

/// How often the ledger is read for payments that another process, or this one before a restart, left undecided.
const IDLE_INTERVAL: Duration = Duration::from_secs(3);
/// Undecided payments per query.
const UNDECIDED_MAX: i64 = 1_000;
/// How often queued payments that have expired are searched for.
const EXPIRED_INTERVAL: Duration = Duration::from_secs(5);
/// How often payments that were given up are searched for.
const GIVEN_UP_INTERVAL: Duration = Duration::from_secs(30);
/// How many of them per query, the newest first.
const GIVEN_UP_MAX: i64 = 200;
/// Blocks after a reorg during which failed payments are checked again.
const RECHECK_BLOCKS: u64 = 64;

/// The task that reconciles the payments of one network.
#[derive(Debug)]
pub struct Unmoved {
    site: Arc<Site>,
    /// Since when each undecided payment has been seen with the confirmations that a verdict needs.
    undecided_since: HashMap<PaymentId, Instant>,
    /// Some undecided payments have too few confirmations.
    has_unconfirmed: bool,
    given_up_checked_at: Option<Instant>,
    expired_checked_at: Option<Instant>,
    /// Reorgs seen, and the height until which failures are checked again after one.
    reorganisations: u64,
    recheck_failed_until: Option<u64>,
}

impl Unmoved {
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            undecided_since: HashMap::new(),
            has_unconfirmed: false,
            given_up_checked_at: None,
            expired_checked_at: None,
            reorganisations: 0,
            recheck_failed_until: None,
        }
    }

    /// Reconciles until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.site.view.subscribe();
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
                            tracing::warn!(network = %self.site.policy.network, error = causes(&error), "payments without a transfer not reconciled: retrying");
                        }
                    }
                }
            }
            let has_unconfirmed = self.has_unconfirmed || !self.undecided_since.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.site.reconciler_woken() => {}
                changed = view.changed(), if has_unconfirmed && !failing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(IDLE_INTERVAL) => {}
            }
        }
    }

    async fn reconcile(&mut self, head: &Head) -> Result<(), NotNow> {
        if self.site.rpc.confirmed_height(head.number) < head.number {
            // Verdicts are final: they are not based on a head, or its time, that only one endpoint has shown.
            return Ok(());
        }
        self.decide(head).await?;
        let due = |checked_at: Instant| checked_at.elapsed() >= EXPIRED_INTERVAL;
        if self.expired_checked_at.is_none_or(due) {
            refuse_expired(&self.site, head).await?;
            self.expired_checked_at = Some(Instant::now());
        }
        self.check_given_up(head).await
    }

    /// Decides about payments whose transactions were mined without their transfers: two RPC requests for all of them.
    async fn decide(&mut self, head: &Head) -> Result<(), NotNow> {
        let (site, network) = (&self.site, self.site.policy.network);
        let mut rows = site.ledger.undecided(network, UNDECIDED_MAX).await?;
        let all = rows.len();
        rows.retain(|row| is_confirmed(row, head));
        self.has_unconfirmed = rows.len() < all;
        self.undecided_since
            .retain(|id, _| rows.iter().any(|row| row.payment.id == *id));
        let signed: Vec<_> = rows.iter().map(|row| row.payment.signed()).collect();
        let tokens = site.policy.tokens();
        let uses = site.rpc.authorization_uses(&signed, head.number, &tokens);
        let mut again = false;
        for (row, used) in rows.iter().zip(uses.await?) {
            let id = row.payment.id;
            let used = match used {
                Ok(used) => used,
                Err(error) => {
                    tracing::warn!(%network, payment.id = %id, %error, "undecided payment: chain state not read, retrying");
                    continue;
                }
            };
            let undecided_for = self
                .undecided_since
                .entry(id)
                .or_insert_with(Instant::now)
                .elapsed();
            let Some(verdict) = verdict(row, &used, head, undecided_for) else {
                continue;
            };
            if !site.ledger.decide(row, &verdict).await? {
                continue;
            }
            tracing::warn!(%network, payment.id = %id, transaction = %row.hash, ?verdict, "transaction mined without this payment's transfer: payment decided");
            again |= verdict == Verdict::Again;
            if matches!(verdict, Verdict::Moved { deep: false, .. }) {
                site.note_shallow();
            }
            site.waiters.wake([id]);
        }
        if again {
            site.wake_pickup();
        }
        Ok(())
    }

    /// Searches for foreign transfers of payments that were given up, when that is due. After a reorg also of failed payments: until the
    /// new blocks have enough confirmations and our own bytes, which were broadcast again, are decided.
    async fn check_given_up(&mut self, head: &Head) -> Result<(), NotNow> {
        let due = |checked_at: Instant| checked_at.elapsed() >= GIVEN_UP_INTERVAL;
        if self.recheck_failed_until.is_none() && !self.given_up_checked_at.is_none_or(due) {
            return Ok(());
        }
        let (site, network) = (&self.site, self.site.policy.network);
        let recheck_failed = self.recheck_failed_until.is_some();
        let payments = site
            .ledger
            .unmoved(network, recheck_failed, GIVEN_UP_MAX)
            .await?;
        let signed: Vec<_> = payments.iter().map(Payment::signed).collect();
        let tokens = site.policy.tokens();
        let uses = site.rpc.authorization_uses(&signed, head.number, &tokens);
        for (payment, used) in payments.iter().zip(uses.await?) {
            if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
                settle_foreign(site, payment, &location, head.number).await?;
            }
        }
        self.given_up_checked_at = Some(Instant::now());
        if let Some(until) = self.recheck_failed_until
            && head.number >= until
            && !site.ledger.failed_in_flight(network).await?
        {
            self.recheck_failed_until = None;
        }
        Ok(())
    }
}

/// Settles a payment that a foreign transaction has transferred; a failed payment only once that is confirmed.
pub(super) async fn settle_foreign(
    site: &Site,
    payment: &Payment,
    location: &Location,
    head: u64,
) -> Result<(), NotNow> {
    let deep = location.is_deep(head, payment.confirmations);
    let ledger = &site.ledger;
    if ledger.settled_by_others(payment.id, location, deep).await? {
        tracing::warn!(network = %site.policy.network, payment.id = %payment.id, transaction = %location.transaction, "payment settled after it was given up or expired: a foreign transaction submitted its authorization");
        site.note_shallow();
        site.waiters.wake([payment.id]);
    }
    Ok(())
}
