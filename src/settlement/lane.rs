//! A lane: one signer on one network, owned by one process at a time.

mod dispatch;
mod follow;
mod fund;
mod keep;
mod nonces;
mod outbid;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Bytes, U256};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::broadcast::{Rejection, broadcast};
use crate::chain::signer::Order;
use crate::chain::{Broadcast, SignerKey};
use crate::ledger::{Claim, Heard, LaneKey, LaneLease, LedgerError, Unmined};
use crate::payment::PaymentId;
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::gas::GasRule;
use crate::settlement::lane::dispatch::Dispatch;
use crate::settlement::lane::keep::Purse;
use crate::settlement::load::Simulated;
use crate::settlement::prepare::NotPrepared;
use crate::settlement::{Queued, Site};
use crate::telemetry::causes;

/// How long to wait before trying again to become the owner.
const CLAIM_INTERVAL: Duration = Duration::from_millis(500);
/// How often open transactions are looked at, besides every new block.
const TEND_INTERVAL: Duration = Duration::from_secs(1);
/// A transaction that the node says it cannot have is asked for by hash after this long.
const ASK_AFTER: Duration = Duration::from_secs(3);
/// A send waits this long at most to hear of the one before it.
const BETWEEN_SENDS: Duration = Duration::from_millis(250);
/// How long a lane that cannot send takes no further payments.
const PAUSE: Duration = Duration::from_secs(2);

/// One signer on one network.
#[derive(Debug)]
pub struct Lane {
    site: Arc<Site>,
    key: SignerKey,
    id: LaneKey,
    began: Instant,
}

/// A transaction that this lane watches.
#[derive(Debug)]
struct Open {
    transaction: Unmined,
    sent_at: Instant,
    asked_at: Instant,
    /// The last reply left it open whether any node has the bytes.
    doubtful: bool,
    /// Since when every look has shown that the nonce is used at depth and that no node has a receipt of ours.
    strange_since: Option<Instant>,
    /// When the newest bytes were written, or found in the ledger.
    written_at: Instant,
    /// The block above which they wait.
    since_block: Option<u64>,
    /// The block above which no better paid bytes could be written.
    failed_at: Option<u64>,
    /// A node said that blocks ask for more.
    too_cheap: bool,
    /// No node takes the newest bytes as they are, ever.
    unfit: bool,
    /// What the newest bytes may cost, in wei.
    cost: U256,
}

impl Open {
    fn new(transaction: Unmined, asked_at: Instant) -> Self {
        let mut open = Self {
            transaction,
            sent_at: Instant::now(),
            asked_at,
            doubtful: false,
            strange_since: None,
            written_at: Instant::now(),
            since_block: None,
            failed_at: None,
            too_cheap: false,
            unfit: false,
            cost: U256::ZERO,
        };
        open.cost = open.order().map_or(U256::ZERO, |order| order.cost());
        open
    }

    /// What the newest bytes say.
    fn order(&self) -> Option<Order> {
        let payments = &self.transaction;
        let (_, raw) = payments.attempts.last()?;
        Order::of_raw(payments.network, raw)
    }
}

/// What a lane knows while it is owned.
#[derive(Debug)]
struct Owned {
    lease: LaneLease,
    open: VecDeque<Open>,
    seen: Moved,
    replies: JoinSet<(Uuid, Broadcast)>,
    paused_until: Instant,
    /// Payments that wait to ride in one transaction with others.
    waiting: Vec<Queued>,
    /// Payments that the chain is being asked about.
    dispatches: JoinSet<Dispatch>,
    purse: Purse,
}

impl Owned {
    /// Whether new nonces may be written.
    const fn may_write(&self) -> bool {
        !self.lease.stopped && !self.purse.is_empty()
    }

    /// Whether work is taken now: only what can go on its way soon. Other lanes may be idle.
    fn takes(&self, site: &Site) -> bool {
        let room = self.open.len() + self.dispatches.len() < site.inflight_max;
        let rows_max = site.gas.rule().rows_max;
        self.may_write()
            && room
            && self.waiting.len() < rows_max
            && self.paused_until <= Instant::now()
    }

    /// How the next transactions are filled: within what nodes take, and what the signer can pay for besides those that are open.
    fn rule(&self, site: &Site) -> GasRule {
        let rule = site.gas.rule();
        let fees = self.seen.head.map(|head| site.fees().quote(&head));
        let Some(Ok(fees)) = fees else {
            return rule;
        };
        let promised = self.open.iter().fold(U256::ZERO, |sum, open| {
            let data = site.gas.data_fee_of(open.transaction.payments.len());
            sum.saturating_add(open.cost).saturating_add(data)
        });
        let price = site.gas.wei_per_gas(fees.max_fee_wei);
        let gas = self.purse.gas_for(promised, price);
        GasRule {
            gas_max: rule.gas_max.min(gas),
            ..rule
        }
    }

    /// Takes payments back that did not get into a transaction now.
    fn keep(&mut self, rows: Vec<Simulated>) {
        let kept = rows.into_iter().map(|row| Queued {
            alone: row.alone,
            ..Queued::new(row.payment, Some(row.facts))
        });
        self.waiting.extend(kept);
    }
}

/// The lane is not ours any more, or must be looked at anew.
#[derive(Debug)]
struct Lost;

impl Lane {
    /// The lane of `key` on the site's network.
    pub fn new(site: Arc<Site>, key: SignerKey) -> Self {
        let id = LaneKey {
            network: site.policy.network,
            signer: key.address(),
        };
        Self {
            site,
            key,
            id,
            began: Instant::now(),
        }
    }

    /// Claims the lane and works it until `stop`; claims again when it is lost.
    pub async fn run(self, stop: CancellationToken) {
        let mut waiting_said = false;
        let mut failing_said = false;
        loop {
            match self.claim().await {
                Ok(Some(owned)) => {
                    (waiting_said, failing_said) = (false, false);
                    tracing::info!(network = %self.id.network, signer = %self.id.signer, epoch = owned.lease.epoch, open = owned.open.len(), "lane claimed");
                    self.work(owned, &stop).await;
                }
                Ok(None) => {
                    self.site.lane_tried();
                    if !std::mem::replace(&mut waiting_said, true) {
                        tracing::info!(network = %self.id.network, signer = %self.id.signer, "waiting for the lane: another process owns it");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing_said, true) {
                        tracing::warn!(network = %self.id.network, signer = %self.id.signer, error = causes(&error), "cannot claim the lane; trying again");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CLAIM_INTERVAL) => {}
            }
        }
    }

    /// Becomes the owner, reads what is open and sends all of it again, in nonce order.
    async fn claim(&self) -> Result<Option<Owned>, NotPrepared> {
        if self.site.is_blind() {
            return Ok(None);
        }
        let ledger = &self.site.ledger;
        let lanes = self.site.signers;
        let mut claim = ledger.claim_lane(self.id, lanes).await?;
        if claim == Claim::Unknown {
            let first = self.first_nonce().await?;
            ledger.open_lane(self.id, first).await?;
            claim = ledger.claim_lane(self.id, lanes).await?;
        }
        let Claim::Owned(mut lease) = claim else {
            return Ok(None);
        };
        let used = match self.nonces_used(lease.next_nonce).await {
            Ok(used) => used,
            Err(error) => {
                // Somebody else may hear more of the chain.
                ledger.release_lane(self.id, lease).await?;
                return Err(error.into());
            }
        };
        if used > lease.next_nonce && !lease.stopped {
            let why = format!(
                "the chain has used nonce {} of this signer, the ledger knows none from {} on: the key was used elsewhere, or the database lost its last commits",
                used - 1,
                lease.next_nonce
            );
            // Nonces that are gone are not used again once the operator has explained it.
            if !self.stop(lease, used, &why).await? {
                return Ok(None);
            }
            lease.stopped = true;
        }
        let now = Instant::now();
        let mut owned = Owned {
            lease,
            open: VecDeque::new(),
            seen: Moved::default(),
            replies: JoinSet::new(),
            paused_until: now,
            waiting: Vec::new(),
            dispatches: JoinSet::new(),
            purse: Purse::default(),
        };
        self.reload(&mut owned).await?;
        Ok(Some(owned))
    }

    /// Stops the lane. `false`: it is not ours any more.
    async fn stop(
        &self,
        lease: LaneLease,
        next_nonce: u64,
        why: &str,
    ) -> Result<bool, LedgerError> {
        let ledger = &self.site.ledger;
        let stopped = ledger.stop_lane(self.id, lease, next_nonce, why).await?;
        if stopped {
            tracing::error!(network = %self.id.network, signer = %self.id.signer, why, "lane stopped; clear lanes.stopped_reason once this is explained");
        }
        Ok(stopped)
    }

    /// Reads the open transactions from the ledger and sends their bytes again.
    async fn reload(&self, owned: &mut Owned) -> Result<(), LedgerError> {
        let open = self.site.ledger.unmined(self.id).await?;
        self.site.count_open(owned.open.len(), open.len());
        let now = Instant::now();
        let long_ago = now.checked_sub(ASK_AFTER).unwrap_or(now);
        owned.open = open
            .into_iter()
            .map(|transaction| Open::new(transaction, long_ago))
            .collect();
        self.send_again(owned, 0..owned.open.len());
        Ok(())
    }

    async fn work(&self, mut owned: Owned, stop: &CancellationToken) {
        let stopped = owned.lease.stopped;
        if stopped {
            self.site.lane_tried();
        } else {
            self.site.lane_begins(self.id.signer);
        }
        let mut view = self.site.view.subscribe();
        view.mark_changed();
        let keeping = self.keep(owned.lease);
        let mut tending = every(TEND_INTERVAL);
        loop {
            let takes = owned.takes(&self.site);
            let rows_max = self.site.gas.rule().rows_max;
            let due = owned.dispatch_at(&self.site);
            let went = tokio::select! {
                biased;
                () = stop.cancelled() => Err(Lost),
                () = keeping.lost.cancelled() => Err(Lost),
                () = keeping.reopened.notified() => self.reload(&mut owned).await.map_err(|_| Lost),
                Some(reply) = owned.replies.join_next() => {
                    hear(&self.site, &mut owned, reply.ok());
                    Ok(())
                }
                Some(balance) = owned.purse.counted() => {
                    self.count_money(&mut owned, balance);
                    Ok(())
                }
                _ = view.changed() => {
                    let now = *view.borrow_and_update();
                    self.follow(&mut owned, now).await
                }
                _ = tending.tick() => self.tend(&mut owned).await,
                Some(dispatch) = owned.dispatches.join_next() => match dispatch {
                    Ok(dispatch) => self.dispatched(&mut owned, dispatch).await,
                    // One that panicked leaves its payments queued in the ledger.
                    Err(_) => Ok(()),
                },
                queued = self.site.queue.next(self.id.signer, rows_max), if takes => {
                    owned.waiting.extend(queued);
                    Ok(())
                }
                funding = self.site.approvals.next_funding(), if owned.may_fund(&self.site) => {
                    self.fund(&mut owned, funding).await
                }
                () = at(due), if due.is_some() => {
                    self.dispatch(&mut owned);
                    Ok(())
                }
            };
            if went.is_err() {
                break;
            }
        }
        drop(keeping);
        self.site.count_open(owned.open.len(), 0);
        let mut left = self.put_down(owned.waiting);
        if !stopped {
            left.extend(self.site.queue.lane_ends(self.id.signer).await);
        }
        self.leave_to_anybody(&left).await;
    }

    /// Lets go of payments that wait: they are queued in the ledger, and are found there.
    fn put_down(&self, waiting: impl IntoIterator<Item = Queued>) -> Vec<PaymentId> {
        let ids = waiting.into_iter().map(|queued| queued.payment.id);
        ids.inspect(|id| self.site.queue.put_down(*id)).collect()
    }

    /// Says so to all processes at once; they would find them by themselves two seconds later.
    async fn leave_to_anybody(&self, payments: &[PaymentId]) {
        if payments.is_empty() {
            return;
        }
        if let Err(error) = self.site.ledger.put_down(payments).await {
            tracing::debug!(error = causes(&error), "payments are left lying");
        }
        self.site.left_to_anybody();
    }

    /// Sends open transactions again in nonce order: some nodes refuse one whose predecessor they do not have.
    fn send_again(&self, owned: &mut Owned, indices: impl IntoIterator<Item = usize>) {
        let mut before = None;
        for index in indices {
            before = self.send(owned, index, before);
        }
    }

    /// Hands the newest bytes of an open transaction to the chain, after those `before` them; the reply comes to [`hear`]. Ends what is
    /// returned once they are heard of.
    fn send(
        &self,
        owned: &mut Owned,
        index: usize,
        before: Option<oneshot::Receiver<()>>,
    ) -> Option<oneshot::Receiver<()>> {
        // The first after a pause makes the watch hurry; for the others it is awake.
        let first = owned.open.len() == 1;
        let open = owned.open.get_mut(index)?;
        let (hash, raw) = open.transaction.attempts.last().cloned()?;
        open.sent_at = Instant::now();
        let (site, id): (_, Uuid) = (Arc::clone(&self.site), open.transaction.id);
        let (heard_of, next) = oneshot::channel();
        owned.replies.spawn(async move {
            let raw: Bytes = raw;
            if let Some(before) = before {
                let _ = timeout(BETWEEN_SENDS, before).await;
            }
            let reply = broadcast(&site.rpc, &raw, hash).await;
            drop(heard_of);
            reach(Step::Broadcast);
            if first && reply == Broadcast::Accepted {
                site.look_now();
            }
            if let Err(error) = site.ledger.note_reply(hash, heard(&reply)).await {
                tracing::debug!(error = causes(&error), "a reply to a send is not noted");
            }
            (id, reply)
        });
        Some(next)
    }
}

/// What the chain's doorkeepers said about an open transaction.
fn hear(site: &Site, owned: &mut Owned, reply: Option<(Uuid, Broadcast)>) {
    let Some((id, reply)) = reply else {
        return;
    };
    let Some(open) = owned.open.iter_mut().find(|open| open.transaction.id == id) else {
        return;
    };
    open.doubtful = reply != Broadcast::Accepted;
    match reply {
        Broadcast::Accepted => {}
        Broadcast::Unknown => {
            tracing::warn!(
                nonce = open.transaction.nonce,
                "no telling reply to a send; the same bytes will be sent again"
            );
        }
        Broadcast::Rejected(why) => {
            tracing::warn!(
                nonce = open.transaction.nonce,
                why = why.text(),
                "a send was refused; the nonce stays in use"
            );
            match why {
                Rejection::FeeTooLow => open.too_cheap = true,
                Rejection::TooLarge => {
                    open.unfit = true;
                    site.gas.too_many(open.transaction.payments.len());
                }
                Rejection::Unfit => open.unfit = true,
                Rejection::OutOfGasMoney => {
                    owned.purse.count_soon();
                    owned.paused_until = Instant::now() + PAUSE;
                }
                Rejection::PoolFull => owned.paused_until = Instant::now() + PAUSE,
                Rejection::NonceTooLow | Rejection::NonceTooHigh | Rejection::Underpriced => {}
            }
        }
    }
}

/// A reply as the history keeps it.
const fn heard(reply: &Broadcast) -> Heard {
    let (reply, reason) = match reply {
        Broadcast::Accepted => ("accepted", None),
        Broadcast::Rejected(why) => ("rejected", Some(why.text())),
        Broadcast::Unknown => ("unknown", None),
    };
    Heard { reply, reason }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
