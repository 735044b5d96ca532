//! A lane: one signer on one network, owned by one process at a time.

mod claim;
mod death;
mod dispatch;
mod follow;
mod foreign;
mod fund;
mod keep;
mod keyless;
mod nonces;
mod open;
mod outbid;
mod timing;

pub use keyless::Unconfigured;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, Bytes, U256};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::broadcast::{Rejection, broadcast};
use crate::chain::{Broadcast, SignerKey};
use crate::ledger::{Heard, LaneKey, LaneLease, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::Network;
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::gas::GasRule;
use crate::settlement::lane::claim::Claimed;
use crate::settlement::lane::dispatch::Dispatch;
use crate::settlement::lane::foreign::Found;
use crate::settlement::lane::keep::Purse;
use crate::settlement::lane::open::Open;
use crate::settlement::lane::timing::{at, every};
use crate::settlement::load::Simulated;
use crate::settlement::site::OpenCount;
use crate::settlement::supervisor::say_panicked;
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
    /// `None`: the signer is no longer configured, and what it has sent is followed.
    key: Option<SignerKey>,
    id: LaneKey,
    began: Instant,
}

/// What a lane knows while it is owned.
#[derive(Debug)]
struct Owned {
    lease: LaneLease,
    open: VecDeque<Open>,
    /// How many of them the watch knows of.
    counted: OpenCount,
    seen: Moved,
    replies: JoinSet<(Uuid, Broadcast)>,
    paused_until: Instant,
    /// Payments that wait to ride in one transaction with others.
    waiting: Vec<Queued>,
    /// Payments that the chain is being asked about.
    dispatches: JoinSet<Dispatch>,
    purse: Purse,
    /// When the lane is given up; it also is as soon as nothing is open.
    until: Option<Instant>,
    /// When it was last looked whether somebody else has used nonces while nothing was open.
    idle_looked: Instant,
    idle_looks: JoinSet<Option<Found>>,
    /// Since when nothing is written, because the chain knows nonces whose transactions have yet to be in a block, or in a deep one.
    held_since: Option<Instant>,
}

impl Owned {
    /// Whether new nonces may be written.
    const fn may_write(&self) -> bool {
        let held = self.lease.stopped || self.held_since.is_some();
        !held && !self.purse.is_empty() && self.until.is_none()
    }

    /// Whether a lane without key has had its turn.
    fn is_over(&self) -> bool {
        self.until
            .is_some_and(|until| self.open.is_empty() || until <= Instant::now())
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
        let id = (site.policy.network, key.address());
        Self::of(site, Some(key), id)
    }

    fn of(site: Arc<Site>, key: Option<SignerKey>, (network, signer): (Network, Address)) -> Self {
        Self {
            site,
            key,
            id: LaneKey { network, signer },
            began: Instant::now(),
        }
    }

    /// Claims the lane and works it until `stop`; claims again when it is lost.
    pub async fn run(self, stop: CancellationToken) {
        let mut waiting_said = false;
        let mut failing_said = false;
        loop {
            match self.claim().await {
                Ok(Claimed::Ours(owned)) => {
                    (waiting_said, failing_said) = (false, false);
                    tracing::info!(network = %self.id.network, signer = %self.id.signer, epoch = owned.lease.epoch, open = owned.open.len(), "lane claimed");
                    self.work(*owned, &stop).await;
                }
                Ok(Claimed::NotNow) => self.site.lane_tried(),
                Ok(Claimed::Others) => {
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

    /// Reads the open transactions from the ledger and sends their bytes again.
    async fn reload(&self, owned: &mut Owned) -> Result<(), LedgerError> {
        let open = self.site.ledger.unmined(self.id).await?;
        owned.counted.set(open.len());
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
        let held = owned.lease.stopped || owned.held_since.is_some();
        let settles = !held && self.key.is_some();
        if settles {
            self.site.lane_begins(self.id.signer);
        } else if self.key.is_some() {
            self.site.lane_tried();
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
                Some(found) = owned.idle_looks.join_next() => {
                    self.left_out(&mut owned, found.ok().flatten()).await
                }
                _ = view.changed() => {
                    let now = *view.borrow_and_update();
                    self.follow(&mut owned, now).await
                }
                _ = tending.tick() => self.tend(&mut owned).await,
                Some(dispatch) = owned.dispatches.join_next() => match dispatch {
                    Ok(dispatch) => self.dispatched(&mut owned, dispatch).await,
                    // One that panicked leaves its payments queued in the ledger.
                    Err(error) => {
                        say_panicked("dispatch", error);
                        Ok(())
                    }
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
            if went.is_err() || owned.is_over() {
                break;
            }
        }
        drop(keeping);
        owned.counted.set(0);
        let mut left = self.put_down(owned.waiting);
        if settles {
            left.extend(self.site.queue.lane_ends(self.id.signer).await);
        }
        self.site.leave_to_anybody(&left).await;
    }

    /// Lets go of payments that wait: they are queued in the ledger, and are found there.
    fn put_down(&self, waiting: impl IntoIterator<Item = Queued>) -> Vec<PaymentId> {
        let ids = waiting.into_iter().map(|queued| queued.payment.id);
        ids.inspect(|id| self.site.queue.put_down(*id)).collect()
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
