//! From the payments that wait to transactions under the lane's next nonces. The chain is asked beside the lane's other work.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Lane, Lost, Open, Owned, PAUSE};
use crate::payment::PaymentId;
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::panic_if_asked;
use crate::settlement::gas::GasRule;
use crate::settlement::load::Load;
use crate::settlement::prepare::{Desk, NotPrepared, Prepared, Rehearsed, rehearse, simulate};
use crate::settlement::supervisor::say_panicked;
use crate::settlement::{Queued, Site};
use crate::telemetry::causes;

/// Dispatches of one lane whose rehearsals are under way: the next is made ready while the chain looks at one.
const REHEARSALS_MAX: usize = 2;

/// A chain whose next block is late by so much makes its blocks on demand.
const QUIET: Duration = Duration::from_secs(3);

/// Payments that left together, after the chain was asked about them.
#[derive(Debug)]
pub(super) struct Dispatch {
    rehearsed: Vec<Rehearsed>,
    failed: Vec<NotPrepared>,
    rule: GasRule,
    in_hand: InHand,
}

/// Payments that nobody else takes up until this is gone.
#[derive(Debug)]
struct InHand {
    site: Arc<Site>,
    payments: Vec<PaymentId>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        for payment in &self.payments {
            self.site.queue.put_down(*payment);
        }
    }
}

impl Owned {
    /// When to send what waits: at once while nothing is under way, so that a single payment loses no time; else when there is
    /// enough for a full transaction, or the oldest has waited long enough for others.
    pub(super) fn dispatch_at(&self, site: &Site) -> Option<Instant> {
        let now = Instant::now();
        let ready_at = |queued: &Queued| ready_at(site, queued, &self.seen);
        let ready = || self.waiting.iter().filter(|one| ready_at(one) <= now);
        let oldest = ready().map(|queued| queued.since).min();
        let oldest = oldest.or_else(|| self.waiting.iter().map(ready_at).min())?;
        let under_way = self.open.len() + self.dispatches.len();
        let room = under_way < site.inflight_max && self.dispatches.len() < REHEARSALS_MAX;
        let full = ready().count() >= site.gas.rule().rows_max;
        let due = if ready().next().is_none() {
            oldest
        } else if under_way == 0 || full {
            now
        } else {
            oldest + site.batch_wait
        };
        let may = room && self.seen.head.is_some() && self.may_write();
        may.then(|| due.max(self.paused_until))
    }
}

impl Lane {
    /// Sends the payments that wait on their way; they come back to [`dispatched`](Self::dispatched).
    pub(super) fn dispatch(&self, owned: &mut Owned) {
        let now = Instant::now();
        let (waiting, young): (Vec<_>, Vec<_>) = std::mem::take(&mut owned.waiting)
            .into_iter()
            .partition(|queued| ready_at(&self.site, queued, &owned.seen) <= now);
        owned.waiting = young;
        if waiting.is_empty() {
            return;
        }
        // Made before the task runs: one that is given up before its first step lets go of them too.
        let in_hand = InHand {
            site: Arc::clone(&self.site),
            payments: waiting.iter().map(|queued| queued.payment.id).collect(),
        };
        panic_if_asked("lane");
        let rule = owned.rule(&self.site);
        owned
            .dispatches
            .spawn(ask(in_hand, self.id.signer, rule, waiting));
    }

    /// Writes and sends what the chain would take.
    pub(super) async fn dispatched(
        &self,
        owned: &mut Owned,
        dispatch: Dispatch,
    ) -> Result<(), Lost> {
        let mut in_hand = dispatch.in_hand;
        for rehearsed in dispatch.rehearsed {
            self.commit_and_send(owned, rehearsed, dispatch.rule)
                .await?;
        }
        let waiting: HashSet<PaymentId> = owned.waiting.iter().map(|one| one.payment.id).collect();
        in_hand.payments.retain(|id| !waiting.contains(id));
        dispatch
            .failed
            .iter()
            .try_for_each(|error| self.stumble(owned, error))
    }

    async fn commit_and_send(
        &self,
        owned: &mut Owned,
        rehearsed: Rehearsed,
        rule: GasRule,
    ) -> Result<(), Lost> {
        if !owned.may_write() {
            // The gas money is gone meanwhile: other lanes find the payments in the ledger.
            return Ok(());
        }
        owned.waiting.extend(rehearsed.left_out);
        if let Some(error) = rehearsed.later {
            return self.stumble(owned, &error.into());
        }
        let (Some(load), Some(key)) = (rehearsed.load, &self.key) else {
            return Ok(());
        };
        if owned.open.len() >= self.site.inflight_max {
            owned.keep(load.rows);
            return Ok(());
        }
        if load.gas_limit(&load.call().1, &rule) > owned.rule(&self.site).gas_max {
            // Others of this dispatch have taken the money; there is more once they are mined, or the signer is refilled.
            owned.purse.count_soon();
            owned.paused_until = Instant::now() + PAUSE;
            owned.keep(load.rows);
            return Ok(());
        }
        let desk = Desk {
            site: &self.site,
            lane: self.id,
            lease: owned.lease,
            key,
            rule,
        };
        let written = desk.write(load).await;
        match written {
            Ok(Prepared::Ready(transaction)) => {
                owned.lease.next_nonce += 1;
                owned.open.push_back(Open::new(transaction, Instant::now()));
                owned.counted.set(owned.open.len());
                self.send(owned, owned.open.len() - 1, None);
                Ok(())
            }
            Ok(Prepared::Moved(rows)) => {
                owned.keep(rows);
                Ok(())
            }
            Ok(Prepared::LaneLost) => Err(Lost),
            Err(error) => self.stumble(owned, &error),
        }
    }

    /// A payment stays queued when it cannot be prepared now; the reconciliation brings it back.
    pub(super) fn stumble(&self, owned: &mut Owned, error: &NotPrepared) -> Result<(), Lost> {
        tracing::warn!(network = %self.id.network, signer = %self.id.signer, error = causes(error), "a payment cannot be prepared now; it stays queued");
        owned.paused_until = Instant::now() + PAUSE;
        match error {
            // The commit may have happened: read the lane anew before another nonce is used.
            NotPrepared::Ledger(_) => Err(Lost),
            NotPrepared::Chain(_)
            | NotPrepared::TooDear(_)
            | NotPrepared::Signing(_)
            | NotPrepared::NoHead => Ok(()),
        }
    }
}

/// When a payment may be sent: at once, unless the next block may be older than its beginning. It was accepted when the clock had come to
/// `validAfter`; a chain that makes no block for a while after that gives its next one the clock's time.
fn ready_at(site: &Site, queued: &Queued, seen: &Moved) -> Instant {
    let begins = queued.payment.signed().begins();
    let block_s = site.policy.network.steady_block_s();
    let next = seen.head.map(|head| {
        let time = u64::try_from(head.time.unix_timestamp()).unwrap_or_default();
        U256::from(time.saturating_add(block_s))
    });
    if next.is_some_and(|next| next >= begins) {
        return queued.since;
    }
    let quiet_since = seen
        .since
        .map_or(queued.since, |seen| seen.max(queued.since));
    quiet_since + Duration::from_secs(block_s) + QUIET
}

/// Looks at each payment, plans which ride together, and rehearses those transactions, all at once.
async fn ask(in_hand: InHand, signer: Address, rule: GasRule, waiting: Vec<Queued>) -> Dispatch {
    let site = Arc::clone(&in_hand.site);
    let mut failed = Vec::new();
    let mut simulations = JoinSet::new();
    for queued in waiting.into_iter().filter(|queued| !queued.is_stale()) {
        let site = Arc::clone(&site);
        simulations.spawn(async move { simulate(&site, queued).await });
    }
    let mut simulated = Vec::new();
    while let Some(simulation) = simulations.join_next().await {
        // One that panicked leaves its payment queued in the ledger.
        match simulation {
            Ok(Ok(row)) => simulated.extend(row),
            Ok(Err(error)) => failed.push(error),
            Err(error) => say_panicked("simulation", error),
        }
    }
    let mut rehearsals = JoinSet::new();
    for load in Load::plan(simulated, &rule) {
        let site = Arc::clone(&site);
        rehearsals.spawn(async move { rehearse(&site, signer, load, rule).await });
    }
    let mut rehearsed = Vec::new();
    while let Some(rehearsal) = rehearsals.join_next().await {
        match rehearsal {
            Ok(Ok(load)) => rehearsed.push(load),
            Ok(Err(error)) => failed.push(error),
            Err(error) => say_panicked("rehearsal", error),
        }
    }
    Dispatch {
        rehearsed,
        failed,
        rule,
        in_hand,
    }
}
