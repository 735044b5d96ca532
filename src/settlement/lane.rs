//! A lane: one signer on one network, owned by one process at a time.

mod dispatch;
mod follow;
mod fund;
mod keep;
mod outbid;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::broadcast::{Rejection, broadcast};
use crate::chain::{Broadcast, SignerKey};
use crate::ledger::{Claim, Heard, LaneKey, LaneLease, LedgerError, Unmined};
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::lane::dispatch::Dispatch;
use crate::settlement::lane::keep::Purse;
use crate::settlement::load::{ROWS_MAX, Simulated};
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
}

/// A transaction that this lane watches.
#[derive(Debug)]
struct Open {
    transaction: Unmined,
    sent_at: Instant,
    asked_at: Instant,
    /// The last reply left it open whether any node has the bytes.
    doubtful: bool,
    /// Since when nodes say that the nonce is used, although none of our attempts is known to be mined.
    used_since: Option<Instant>,
    /// The block above which the newest bytes wait.
    since_block: Option<u64>,
    /// A node said that blocks ask for more.
    too_cheap: bool,
}

impl Open {
    fn new(transaction: Unmined, asked_at: Instant) -> Self {
        Self {
            transaction,
            sent_at: Instant::now(),
            asked_at,
            doubtful: false,
            used_since: None,
            since_block: None,
            too_cheap: false,
        }
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

    /// Takes payments back that did not get into a transaction now.
    fn keep(&mut self, rows: Vec<Simulated>) {
        let kept = rows
            .into_iter()
            .map(|row| Queued::new(row.payment, Some(row.facts)));
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
        Self { site, key, id }
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
        let chain = &self.site.rpc;
        let mut claim = self.site.ledger.claim_lane(self.id).await?;
        if claim == Claim::Unknown {
            let first = chain.transaction_count(self.id.signer, "pending").await?;
            self.site.ledger.open_lane(self.id, first).await?;
            claim = self.site.ledger.claim_lane(self.id).await?;
        }
        let Claim::Owned(lease) = claim else {
            return Ok(None);
        };
        let mined = chain.transaction_count(self.id.signer, "latest").await?;
        let mut lease = lease;
        if mined > lease.next_nonce && !lease.stopped {
            let why = format!(
                "the chain has used nonce {} of this signer, the ledger knows none from {} on: the key was used elsewhere, or the database lost its last commits",
                mined - 1,
                lease.next_nonce
            );
            // Nonces that are gone are not used again once the operator has explained it.
            self.site.ledger.skip_nonces(self.id, mined).await?;
            self.stop(&why).await?;
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

    async fn stop(&self, why: &str) -> Result<(), LedgerError> {
        tracing::error!(network = %self.id.network, signer = %self.id.signer, why, "lane stopped; clear lanes.stopped_reason once this is explained");
        self.site.ledger.stop_lane(self.id, why).await
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
        let (lease, lost) = self.keep(owned.lease);
        let mut tending = every(TEND_INTERVAL);
        loop {
            let takes = owned.may_write() && owned.waiting.len() < ROWS_MAX;
            let due = owned.dispatch_at(&self.site);
            let went = tokio::select! {
                biased;
                () = stop.cancelled() => Err(Lost),
                () = lost.cancelled() => Err(Lost),
                Some(reply) = owned.replies.join_next() => {
                    hear(&mut owned, reply.ok());
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
                queued = self.site.queue.next(self.id.signer, ROWS_MAX), if takes => {
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
        drop(lease);
        // What waits is queued in the ledger, and is found there.
        for queued in owned.waiting {
            self.site.queue.put_down(queued.payment.id);
        }
        self.site.count_open(owned.open.len(), 0);
        if !stopped {
            self.site.queue.lane_ends(self.id.signer).await;
        }
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
fn hear(owned: &mut Owned, reply: Option<(Uuid, Broadcast)>) {
    let Some((id, reply)) = reply else {
        return;
    };
    let Some(open) = owned.open.iter_mut().find(|open| open.transaction.id == id) else {
        return;
    };
    open.doubtful = reply != Broadcast::Accepted;
    open.used_since = match reply {
        Broadcast::Rejected(Rejection::NonceTooLow) => {
            open.used_since.or_else(|| Some(Instant::now()))
        }
        Broadcast::Accepted => None,
        Broadcast::Rejected(_) | Broadcast::Unknown => open.used_since,
    };
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
