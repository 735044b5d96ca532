//! A lane: the nonces of one signer on one network, owned by one process at a time.

mod batch;
mod batch_plan;
mod batches;
mod budget;
mod claim;
mod fee_bump;
mod foreign;
mod fund;
mod gas_balance;
mod keyless;
mod lease;
mod open_transaction;
mod results;
mod simulation;

pub use keyless::UnconfiguredSigners;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, Bytes, U256};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use crate::chain::broadcast::{BroadcastRejection, broadcast};
use crate::chain::{Broadcast, SignerKey};
use crate::ledger::{BroadcastReply, LaneKey, LaneLease, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::Network;
use crate::settlement::ChainTick;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::gas::GasRule;
use crate::settlement::lane::batch_plan::SimulatedPayment;
use crate::settlement::lane::batches::SimulatedBatches;
use crate::settlement::lane::claim::ClaimOutcome;
use crate::settlement::lane::foreign::NonceFinding;
use crate::settlement::lane::gas_balance::GasBalance;
use crate::settlement::lane::lease::{at, every};
use crate::settlement::lane::open_transaction::OpenTransaction;
use crate::settlement::served_network::OpenCount;
use crate::settlement::supervisor::report_panic;
use crate::settlement::{Queued, ServedNetwork};
use crate::telemetry::causes;

/// Pause between two attempts to claim the lane.
const CLAIM_INTERVAL: Duration = Duration::from_millis(500);
/// How often open transactions are checked, besides at every new block.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the reply to the previous broadcast before the next one is sent.
const SEND_ORDER_WAIT: Duration = Duration::from_millis(250);
/// Pause before a lane that could not send takes more payments.
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Lane {
    served: Arc<ServedNetwork>,
    /// `None`: the signer is no longer configured, and only its open transactions are followed.
    key: Option<SignerKey>,
    id: LaneKey,
    started: Instant,
}

/// State of a lane while this process owns it.
#[derive(Debug)]
struct OwnedLane {
    lease: LaneLease,
    open: VecDeque<OpenTransaction>,
    /// The number of `open`, as the watch counts it.
    open_count: OpenCount,
    tick: ChainTick,
    replies: JoinSet<(Uuid, Broadcast)>,
    paused_until: Instant,
    /// Payments that wait for a batch.
    waiting: Vec<Queued>,
    /// Batches that are being simulated.
    simulations: JoinSet<SimulatedBatches>,
    gas_balance: GasBalance,
    /// End of the turn of a lane without a key; the turn also ends when nothing is open.
    owned_until: Option<Instant>,
    /// When the chain was last checked for foreign nonce use while nothing was open.
    nonces_checked_at: Instant,
    nonce_checks: JoinSet<Option<NonceFinding>>,
    /// Set while no new nonce is used: the chain knows nonces of this signer that the ledger does not, in the pool or with too few
    /// confirmations.
    blocked_since: Option<Instant>,
}

impl OwnedLane {
    /// Whether new nonces may be used.
    const fn can_write(&self) -> bool {
        let held = self.lease.stopped || self.blocked_since.is_some();
        !held && !self.gas_balance.is_empty() && self.owned_until.is_none()
    }

    /// Whether the turn of a lane without a key has ended.
    fn is_finished(&self) -> bool {
        self.owned_until
            .is_some_and(|until| self.open.is_empty() || until <= Instant::now())
    }

    /// Whether the lane takes payments now. It takes only as many as it can send soon, since other lanes may be idle.
    fn can_take(&self, served: &ServedNetwork) -> bool {
        let room = self.open.len() + self.simulations.len() < served.inflight_max;
        let rows_max = served.gas.rule().rows_max;
        // Those that are held back keep no other from being taken.
        let ready = self.waiting.iter().filter(|one| one.not_before.is_none());
        let ready = ready.count();
        self.can_write() && room && ready < rows_max && self.paused_until <= Instant::now()
    }

    /// Limits of the next batch: what nodes accept, and the gas that the signer can pay for besides its open transactions.
    fn rule(&self, served: &ServedNetwork) -> GasRule {
        let rule = served.gas.rule();
        let fees = self.tick.head.map(|head| served.fees().quote(&head));
        let Some(Ok(fees)) = fees else {
            return rule;
        };
        let promised = self.open.iter().fold(U256::ZERO, |sum, open| {
            let data = served.gas.data_fee_of(open.transaction.payments.len());
            sum.saturating_add(open.cost_wei).saturating_add(data)
        });
        let price = served.gas.wei_per_gas(fees.max_fee_wei);
        let gas = self.gas_balance.gas_for(promised, price);
        GasRule {
            gas_max: rule.gas_max.min(gas),
            ..rule
        }
    }

    /// The same, and no more gas in one transaction than the network's budget has left.
    fn rule_within_budget(&self, served: &ServedNetwork) -> GasRule {
        let rule = self.rule(served);
        let fees = self.tick.head.map(|head| served.fees().quote(&head));
        let (Some(Ok(fees)), Some(room)) = (fees, served.budgets.room()) else {
            return rule;
        };
        let price = U256::from(served.gas.wei_per_gas(fees.max_fee_wei).max(1));
        GasRule {
            gas_max: u64::try_from(room / price)
                .unwrap_or(u64::MAX)
                .min(rule.gas_max),
            ..rule
        }
    }

    /// Puts payments back that did not get into a transaction.
    fn put_back(&mut self, rows: Vec<SimulatedPayment>) {
        let queued = rows.into_iter().map(|row| Queued {
            alone: row.alone,
            setbacks: row.setbacks,
            ..Queued::new(row.payment, Some(row.facts))
        });
        self.waiting.extend(queued);
    }
}

/// The lane belongs to another process, or its state has to be read again from the ledger.
#[derive(Debug)]
struct LaneLost;

impl Lane {
    pub fn new(served: Arc<ServedNetwork>, key: SignerKey) -> Self {
        let id = (served.policy.network, key.address());
        Self::of(served, Some(key), id)
    }

    fn of(
        served: Arc<ServedNetwork>,
        key: Option<SignerKey>,
        (network, signer): (Network, Address),
    ) -> Self {
        Self {
            served,
            key,
            id: LaneKey { network, signer },
            started: Instant::now(),
        }
    }

    /// Claims and works the lane of `key` until `stop`. After a panic the lane no longer counts as owned by this process, its payments are
    /// unclaimed, and the panic is resumed.
    pub async fn run_with_cleanup(
        served: Arc<ServedNetwork>,
        key: SignerKey,
        stop: CancellationToken,
    ) {
        let mut task = JoinSet::new();
        let lane = Self::new(Arc::clone(&served), key);
        let signer = lane.id.signer;
        task.spawn(lane.run(stop).in_current_span());
        let Some(Err(error)) = task.join_next().await else {
            return;
        };
        let left = served.queue.remove_lane(signer).await;
        served.unclaim(&left).await;
        if let Ok(panic) = error.try_into_panic() {
            std::panic::resume_unwind(panic);
        }
    }

    /// Claims the lane and works it until `stop`; claims again when the lane is lost.
    async fn run(self, stop: CancellationToken) {
        let mut waiting_logged = false;
        let mut failure_logged = false;
        loop {
            match self.claim().await {
                Ok(ClaimOutcome::Owned(owned)) => {
                    (waiting_logged, failure_logged) = (false, false);
                    tracing::info!(
                        epoch = owned.lease.epoch,
                        open = owned.open.len(),
                        "lane claimed"
                    );
                    self.work(*owned, &stop).await;
                }
                Ok(ClaimOutcome::Later) => self.served.note_lane_owner_known(),
                Ok(ClaimOutcome::OtherProcess) => {
                    self.served.note_lane_owner_known();
                    if !std::mem::replace(&mut waiting_logged, true) {
                        tracing::info!("lane owned by another process: waiting for it");
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failure_logged, true) {
                        tracing::warn!(error = causes(&error), "lane claim failed: retrying");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CLAIM_INTERVAL) => {}
            }
        }
    }

    /// Reads the open transactions from the ledger and broadcasts their bytes again.
    async fn reload(&self, owned: &mut OwnedLane) -> Result<(), LedgerError> {
        let open = self.served.ledger.pending_transactions(self.id).await?;
        owned.open_count.set(open.len());
        let now = Instant::now();
        let long_ago = now.checked_sub(self.served.timing.poll_receipt_after);
        let long_ago = long_ago.unwrap_or(now);
        owned.open = open
            .into_iter()
            .map(|transaction| OpenTransaction::new(transaction, long_ago))
            .collect();
        self.rebroadcast(owned, 0..owned.open.len());
        Ok(())
    }

    async fn work(&self, mut owned: OwnedLane, stop: &CancellationToken) {
        let held = owned.lease.stopped || owned.blocked_since.is_some();
        let settles = !held && self.key.is_some();
        if settles {
            self.served.note_lane_claimed(self.id.signer);
        } else if self.key.is_some() {
            self.served.note_lane_owner_known();
        }
        let mut view = self.served.view.subscribe();
        view.mark_changed();
        let renewal = self.renew_lease(owned.lease);
        let mut ticks = every(TICK_INTERVAL);
        loop {
            let can_take = owned.can_take(&self.served);
            let rows_max = self.served.gas.rule().rows_max;
            let due = owned.next_batch_at(&self.served);
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => Err(LaneLost),
                () = renewal.lost.cancelled() => Err(LaneLost),
                () = renewal.reopened.notified() => self.reload(&mut owned).await.map_err(|_| LaneLost),
                Some(reply) = owned.replies.join_next() => {
                    apply_reply(&self.served, &mut owned, reply.ok());
                    Ok(())
                }
                Some(balance) = owned.gas_balance.next_reading() => {
                    self.note_balance(&mut owned, balance);
                    Ok(())
                }
                Some(found) = owned.nonce_checks.join_next() => {
                    self.apply_finding(&mut owned, found.ok().flatten()).await
                }
                _ = view.changed() => {
                    let now = *view.borrow_and_update();
                    self.on_chain_tick(&mut owned, now).await
                }
                _ = ticks.tick() => self.tick(&mut owned).await,
                Some(simulated) = owned.simulations.join_next() => match simulated {
                    Ok(batches) => self.finish_batches(&mut owned, batches).await,
                    // After a panic the payments are still queued in the ledger.
                    Err(error) => {
                        report_panic("batch", error);
                        Ok(())
                    }
                },
                queued = self.served.queue.next(self.id.signer, rows_max), if can_take => {
                    owned.waiting.extend(queued);
                    Ok(())
                }
                funding = self.served.approvals.next_funding(), if owned.can_fund(&self.served) => {
                    self.fund(&mut owned, funding).await
                }
                () = at(due), if due.is_some() => {
                    self.start_batches(&mut owned);
                    Ok(())
                }
            };
            if outcome.is_err() || owned.is_finished() {
                break;
            }
        }
        drop(renewal);
        owned.open_count.set(0);
        let mut left = self.release(owned.waiting);
        if settles {
            left.extend(self.served.queue.remove_lane(self.id.signer).await);
        }
        self.served.unclaim(&left).await;
    }

    /// Gives up the claims on waiting payments. They stay queued in the ledger.
    fn release(&self, waiting: impl IntoIterator<Item = Queued>) -> Vec<PaymentId> {
        let ids = waiting.into_iter().map(|queued| queued.payment.id);
        ids.inspect(|id| self.served.queue.release(*id)).collect()
    }

    /// Broadcasts open transactions again in nonce order: some nodes refuse a transaction whose predecessor they do not have.
    fn rebroadcast(&self, owned: &mut OwnedLane, indices: impl IntoIterator<Item = usize>) {
        let mut before = None;
        for index in indices {
            before = self.send(owned, index, before);
        }
    }

    /// Broadcasts the newest bytes of an open transaction, after the reply to the broadcast before it (`before`). The reply arrives at
    /// [`apply_reply`]; the returned receiver ends when it has arrived.
    fn send(
        &self,
        owned: &mut OwnedLane,
        index: usize,
        before: Option<oneshot::Receiver<()>>,
    ) -> Option<oneshot::Receiver<()>> {
        // The first transaction after a pause switches the watch to its short interval.
        let first = owned.open.len() == 1;
        let open = owned.open.get_mut(index)?;
        let (hash, raw) = open.transaction.attempts.last().cloned()?;
        open.sent_at = Instant::now();
        let (served, id): (_, Uuid) = (Arc::clone(&self.served), open.transaction.id);
        let (replied, next) = oneshot::channel();
        let sending = async move {
            let raw: Bytes = raw;
            if let Some(before) = before {
                let _ = timeout(SEND_ORDER_WAIT, before).await;
            }
            let reply = broadcast(&served.rpc, &raw, hash).await;
            drop(replied);
            reach(Step::Broadcast);
            if first && reply == Broadcast::Accepted {
                served.wake_watch();
            }
            if let Err(error) = served.ledger.note_reply(hash, reply_record(&reply)).await {
                tracing::debug!(error = causes(&error), "broadcast reply not recorded");
            }
            (id, reply)
        };
        owned.replies.spawn(sending.in_current_span());
        Some(next)
    }
}

/// Applies the endpoints' reply to a broadcast.
fn apply_reply(served: &ServedNetwork, owned: &mut OwnedLane, reply: Option<(Uuid, Broadcast)>) {
    let Some((id, reply)) = reply else {
        return;
    };
    let Some(open) = owned.open.iter_mut().find(|open| open.transaction.id == id) else {
        return;
    };
    open.not_accepted = reply != Broadcast::Accepted;
    match reply {
        Broadcast::Accepted => {}
        Broadcast::Unknown => {
            tracing::warn!(
                nonce = open.transaction.nonce,
                "broadcast outcome unknown: the same bytes are sent again"
            );
        }
        Broadcast::Rejected(why) => {
            tracing::warn!(
                nonce = open.transaction.nonce,
                why = why.text(),
                "broadcast rejected: the nonce stays in use"
            );
            match why {
                BroadcastRejection::FeeTooLow => open.fee_too_low = true,
                BroadcastRejection::TooLarge => {
                    open.rejected_for_good = true;
                    served.gas.batch_too_large(open.transaction.payments.len());
                }
                BroadcastRejection::Invalid => open.rejected_for_good = true,
                BroadcastRejection::InsufficientFunds => {
                    owned.gas_balance.read_soon();
                    owned.paused_until = Instant::now() + PAUSE;
                }
                BroadcastRejection::PoolFull => owned.paused_until = Instant::now() + PAUSE,
                BroadcastRejection::NonceTooLow
                | BroadcastRejection::NonceTooHigh
                | BroadcastRejection::Underpriced => {}
            }
        }
    }
}

/// The reply as the history stores it.
const fn reply_record(reply: &Broadcast) -> BroadcastReply {
    let (reply, reason) = match reply {
        Broadcast::Accepted => ("accepted", None),
        Broadcast::Rejected(why) => ("rejected", Some(why.text())),
        Broadcast::Unknown => ("unknown", None),
    };
    BroadcastReply { reply, reason }
}
