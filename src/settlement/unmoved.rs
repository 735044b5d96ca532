//! Payments whose money no transaction of ours has moved: those that rode in vain, about which is decided here, and those that were given up
//! and still could move, because their authorizations are signed and anybody may submit them.

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
use crate::settlement::undecided::{is_deep, verdict};
use crate::settlement::{NotNow, Site};
use crate::telemetry::causes;

/// How often the ledger is asked for what another process, or an earlier life of this one, left undecided.
const IDLE_INTERVAL: Duration = Duration::from_secs(3);
/// Undecided payments looked at in one go.
const UNDECIDED_MAX: i64 = 1_000;
/// How often queued payments that have expired are looked for.
const EXPIRED_INTERVAL: Duration = Duration::from_secs(5);
/// How often payments that were given up are looked for.
const GIVEN_UP_INTERVAL: Duration = Duration::from_secs(30);
/// How many of them at a time: the newest.
const GIVEN_UP_MAX: i64 = 200;
/// Blocks after a reorganisation in which failures are looked at again.
const UNDONE_BLOCKS: u64 = 64;

/// The task that looks after one network's.
#[derive(Debug)]
pub struct Unmoved {
    site: Arc<Site>,
    /// Since when each undecided payment has been seen, deep enough.
    seen: HashMap<PaymentId, Instant>,
    /// Some are not deep enough yet.
    waits: bool,
    looked: Option<Instant>,
    expired_looked: Option<Instant>,
    /// How many reorganisations were seen, and until which height failures are not proven any more.
    reorganisations: u64,
    undone_until: Option<u64>,
}

impl Unmoved {
    /// One for `site`.
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            seen: HashMap::new(),
            waits: false,
            looked: None,
            expired_looked: None,
            reorganisations: 0,
            undone_until: None,
        }
    }

    /// Looks until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut view = self.site.view.subscribe();
        let mut failing = false;
        loop {
            let moved = *view.borrow_and_update();
            if let Some(head) = moved.head {
                if moved.reorganisations != self.reorganisations {
                    self.reorganisations = moved.reorganisations;
                    self.undone_until = Some(head.number.saturating_add(UNDONE_BLOCKS));
                }
                match self.look(&head).await {
                    Ok(()) => failing = false,
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(network = %self.site.policy.network, error = causes(&error), "cannot look after payments that rode in vain; trying again");
                        }
                    }
                }
            }
            let waits = self.waits || !self.seen.is_empty();
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.site.undecided_wanted() => {}
                changed = view.changed(), if waits && !failing => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(IDLE_INTERVAL) => {}
            }
        }
    }

    async fn look(&mut self, head: &Head) -> Result<(), NotNow> {
        if self.site.rpc.confirmed_height(head.number) < head.number {
            // What is concluded here is for good: not by a head, or its time, that one endpoint alone has shown.
            return Ok(());
        }
        self.decide(head).await?;
        let due = |looked: Instant| looked.elapsed() >= EXPIRED_INTERVAL;
        if self.expired_looked.is_none_or(due) {
            refuse_expired(&self.site, head).await?;
            self.expired_looked = Some(Instant::now());
        }
        self.look_for_given_up(head).await
    }

    /// Decides about payments whose transactions moved nothing for them: two questions for all.
    async fn decide(&mut self, head: &Head) -> Result<(), NotNow> {
        let (site, network) = (&self.site, self.site.policy.network);
        let mut rows = site.ledger.undecided(network, UNDECIDED_MAX).await?;
        let all = rows.len();
        rows.retain(|row| is_deep(row, head));
        self.waits = rows.len() < all;
        self.seen
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
                    tracing::warn!(payment.id = %id, %error, "cannot tell what became of a payment; it is looked at again");
                    continue;
                }
            };
            let waited = self.seen.entry(id).or_insert_with(Instant::now).elapsed();
            let Some(verdict) = verdict(row, &used, head, waited) else {
                continue;
            };
            if !site.ledger.decide(row, &verdict).await? {
                continue;
            }
            tracing::warn!(payment.id = %id, transaction = %row.hash, ?verdict, "a transaction was mined without moving this payment's money");
            again |= verdict == Verdict::Again;
            if matches!(verdict, Verdict::Moved { deep: false, .. }) {
                site.note_shallow();
            }
            site.waiters.wake([id]);
        }
        if again {
            site.left_to_anybody();
        }
        Ok(())
    }

    /// Looks for what somebody else has submitted, when it is time. After a reorganisation also for what had failed: until the blocks are deep
    /// again, and our own bytes, which were sent again, are decided about.
    async fn look_for_given_up(&mut self, head: &Head) -> Result<(), NotNow> {
        let due = |looked: Instant| looked.elapsed() >= GIVEN_UP_INTERVAL;
        if self.undone_until.is_none() && !self.looked.is_none_or(due) {
            return Ok(());
        }
        let (site, network) = (&self.site, self.site.policy.network);
        let undone = self.undone_until.is_some();
        let payments = site.ledger.unmoved(network, undone, GIVEN_UP_MAX).await?;
        let signed: Vec<_> = payments.iter().map(Payment::signed).collect();
        let tokens = site.policy.tokens();
        let uses = site.rpc.authorization_uses(&signed, head.number, &tokens);
        for (payment, used) in payments.iter().zip(uses.await?) {
            if let Ok(AuthorizationUse::Transferred { location, .. }) = used {
                settle(site, payment, &location, head.number).await?;
            }
        }
        self.looked = Some(Instant::now());
        if let Some(until) = self.undone_until
            && head.number >= until
            && !site.ledger.failed_in_flight(network).await?
        {
            self.undone_until = None;
        }
        Ok(())
    }
}

/// Settles a payment whose money a transaction of somebody else's has moved; a failed one once that is deep enough.
pub(super) async fn settle(
    site: &Site,
    payment: &Payment,
    location: &Location,
    head: u64,
) -> Result<(), NotNow> {
    let deep = location.is_deep(head, payment.confirmations);
    let ledger = &site.ledger;
    if ledger.settled_by_others(payment.id, location, deep).await? {
        tracing::warn!(payment.id = %payment.id, transaction = %location.transaction, "somebody else submitted the authorization of a payment that had been given up or had expired; it is settled after all");
        site.note_shallow();
        site.waiters.wake([payment.id]);
    }
    Ok(())
}
