//! One network as the engine serves it: the parts that its lanes, its watch and the facilitator share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::chain::fees::TooDear;
use crate::chain::{FactsReader, FeePolicy, Rpc};
use crate::ledger::Ledger;
use crate::payment::{NetworkPolicy, PaymentId, Proxies};
use crate::settlement::gas::{BatchLimits, GasBook};
use crate::settlement::{Approvals, CannotSend, ChainView, Queue, Senders, Waiters};
use crate::telemetry::causes;

/// A process that has heard nothing of the chain for so long leaves its lanes to others.
const BLIND_AFTER: Duration = Duration::from_secs(8);
/// When to ask again while blocks cost too much.
const RETRY_DEAR: Duration = Duration::from_secs(5);

/// What a [`Site`] is made of.
#[derive(Debug)]
pub struct SiteParts {
    /// The ledger.
    pub ledger: Ledger,
    /// The network's endpoints.
    pub rpc: Rpc,
    /// The same, for what callers ask.
    pub questions: Rpc,
    /// Chain facts, for what callers ask.
    pub facts: FactsReader,
    /// Chain facts for the lanes, who do not wait behind callers.
    pub lane_facts: FactsReader,
    /// What the operator allows.
    pub policy: NetworkPolicy,
    /// What gas may cost.
    pub fees: FeePolicy,
    /// Who waits for what.
    pub waiters: Waiters,
    /// Whose transactions settle its payments.
    pub signers: Vec<Address>,
    /// Payments that may wait in memory for a lane.
    pub queue_max: usize,
    /// Unmined transactions that one signer may have.
    pub inflight_max: usize,
    /// How often to look for a new block while something is in flight.
    pub poll: Duration,
    /// How long a payment waits for others to ride with while transactions are under way.
    pub batch_wait: Duration,
    /// What one transaction may hold.
    pub batches: BatchLimits,
}

/// One network.
#[derive(Debug)]
pub struct Site {
    /// The ledger.
    pub ledger: Ledger,
    /// The network's endpoints.
    pub rpc: Rpc,
    /// The same, for what callers ask.
    pub questions: Rpc,
    /// Chain facts, for what callers ask.
    pub facts: FactsReader,
    /// Chain facts for the lanes, who do not wait behind callers.
    pub lane_facts: FactsReader,
    /// What the operator allows.
    pub policy: NetworkPolicy,
    /// Who waits for what.
    pub waiters: Waiters,
    /// What the watch has seen.
    pub view: ChainView,
    signers: usize,
    /// Signers that are not configured any more and whose transactions are followed.
    unconfigured: AtomicUsize,
    /// Unmined transactions that one signer may have.
    pub inflight_max: usize,
    /// How often to look for a new block while something is in flight.
    pub poll: Duration,
    /// How long a payment waits for others to ride with while transactions are under way.
    pub batch_wait: Duration,
    /// Payments that wait for a lane of this process.
    pub queue: Queue,
    /// Payments whose payers' approvals have to be mined first.
    pub approvals: Approvals,
    /// What is known of the signers.
    pub senders: Senders,
    /// What is known of gas by now.
    pub(super) gas: GasBook,
    fees: FeePolicy,
    /// Wei per gas that a node lately suggested for the producers of blocks.
    tip_wei: Mutex<u128>,
    /// What a node lately asked per gas, where there is no base fee.
    gas_price_wei: Mutex<Option<u128>>,
    /// Whether several calls can be put into one transaction.
    multicall: AtomicBool,
    /// Whether the chain is a rollup that tells what it takes for data.
    has_data_fee: AtomicBool,
    open: AtomicUsize,
    shallow: AtomicBool,
    look: Notify,
    transfers: Notify,
    undecided: Notify,
    nobodys: Notify,
    seen: Mutex<Option<Instant>>,
    opened: AtomicBool,
    exact_proxy: AtomicBool,
    upto_proxy: AtomicBool,
    settled_in: AtomicBool,
}

/// Open transactions that one task counts, so that the watch knows whether to hurry. None, once this is gone.
#[derive(Debug)]
pub(super) struct OpenCount {
    site: Arc<Site>,
    counted: usize,
}

impl OpenCount {
    /// None yet.
    pub(super) fn of(site: &Arc<Site>) -> Self {
        Self {
            site: Arc::clone(site),
            counted: 0,
        }
    }

    /// Says how many there are.
    pub(super) fn set(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.counted, now);
        self.site.open.fetch_add(now, Ordering::Relaxed);
        self.site.open.fetch_sub(before, Ordering::Relaxed);
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// How a network is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Seconds since an endpoint last answered the watch; `None` when none ever did.
    pub silent_for: Option<Duration>,
    /// Whether a lane was claimed, or found to be another process's.
    pub settled_in: bool,
    /// Transactions of this process whose outcome is open.
    pub open: usize,
}

impl Site {
    /// Puts the parts together.
    pub fn new(parts: SiteParts) -> Self {
        Self {
            ledger: parts.ledger,
            rpc: parts.rpc,
            questions: parts.questions,
            facts: parts.facts,
            lane_facts: parts.lane_facts,
            policy: parts.policy,
            gas: GasBook::new(parts.batches, parts.fees.gas_cap),
            fees: parts.fees,
            tip_wei: Mutex::new(0),
            gas_price_wei: Mutex::new(None),
            multicall: AtomicBool::new(true),
            has_data_fee: AtomicBool::new(false),
            waiters: parts.waiters,
            view: ChainView::default(),
            signers: parts.signers.len(),
            unconfigured: AtomicUsize::new(0),
            inflight_max: parts.inflight_max,
            poll: parts.poll,
            batch_wait: parts.batch_wait,
            queue: Queue::new(&parts.signers, parts.queue_max),
            approvals: Approvals::default(),
            senders: Senders::new(&parts.signers),
            open: AtomicUsize::new(0),
            shallow: AtomicBool::new(true),
            look: Notify::new(),
            transfers: Notify::new(),
            undecided: Notify::new(),
            nobodys: Notify::new(),
            seen: Mutex::new(None),
            opened: AtomicBool::new(false),
            exact_proxy: AtomicBool::new(false),
            upto_proxy: AtomicBool::new(false),
            settled_in: AtomicBool::new(false),
        }
    }

    /// How many lanes the processes that serve the network share.
    pub fn lanes(&self) -> usize {
        self.signers + self.unconfigured.load(Ordering::Relaxed)
    }

    /// Says how many signers without key here have open transactions.
    pub fn note_unconfigured(&self, signers: usize) {
        self.unconfigured.store(signers, Ordering::Relaxed);
    }

    /// Says that the chain has confirmed the configuration.
    pub fn open(&self) {
        self.note_seen();
        self.opened.store(true, Ordering::Relaxed);
    }

    /// Whether the chain has confirmed the configuration; before that nothing that an RPC says is believed.
    pub fn is_open(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// Says which proxies the network has, as far as anybody knows.
    pub fn note_proxies(&self, found: Proxies) {
        self.exact_proxy.store(found.exact, Ordering::Relaxed);
        self.upto_proxy.store(found.upto, Ordering::Relaxed);
    }

    /// Which proxies the network has, as far as anybody knows.
    pub fn proxies(&self) -> Proxies {
        Proxies {
            exact: self.exact_proxy.load(Ordering::Relaxed),
            upto: self.upto_proxy.load(Ordering::Relaxed),
        }
    }

    /// Says that this process owns a further lane.
    pub fn lane_begins(&self, signer: Address) {
        self.queue.lane_begins(signer);
        self.lane_tried();
        self.nobodys.notify_one();
        self.look_now();
    }

    /// Says that a lane is either ours or somebody else's.
    pub fn lane_tried(&self) {
        self.settled_in.store(true, Ordering::Relaxed);
    }

    /// What gas may cost, with the tip that a node lately suggested and the price that it asked.
    pub fn fees(&self) -> FeePolicy {
        let tip = *self.tip_wei.lock().unwrap_or_else(PoisonError::into_inner);
        let price = self.gas_price_wei.lock();
        let price = *price.unwrap_or_else(PoisonError::into_inner);
        let fees = self.fees.with_tip(tip);
        price.map_or(fees, |price| fees.with_gas_price(price))
    }

    /// Takes note of what a node asks per gas, where there is no base fee.
    pub fn note_gas_price(&self, wei: u128) {
        let price = self.gas_price_wei.lock();
        *price.unwrap_or_else(PoisonError::into_inner) = Some(wei);
    }

    /// Whether blocks take what the operator allows to be paid for gas.
    ///
    /// # Errors
    /// [`CannotSend`] says what they ask.
    pub fn blocks_are_affordable(&self) -> Result<(), CannotSend> {
        let Some(head) = self.view.head() else {
            return Ok(());
        };
        match self.fees().quote(&head) {
            Ok(_) => Ok(()),
            Err(dear) => Err(CannotSend {
                why: format!(
                    "{dear} on {}, so nothing can be sent{}",
                    self.policy.network,
                    match dear {
                        TooDear::AboveCap { .. } => "; if that lasts, raise max_fee_wei",
                        TooDear::NoPrice => "",
                    }
                ),
                retry_after: RETRY_DEAR,
            }),
        }
    }

    /// Takes note of what a rollup takes for the data of a payment.
    pub fn note_data_fee(&self, wei: u128) {
        self.has_data_fee.store(true, Ordering::Relaxed);
        self.gas.expect_data_fee(wei);
    }

    /// Whether the chain is a rollup that tells what it takes for data.
    pub fn has_data_fee(&self) -> bool {
        self.has_data_fee.load(Ordering::Relaxed)
    }

    /// Says whether Multicall3 is there. Without it each payment has a transaction of its own.
    pub fn note_multicall(&self, is_there: bool) {
        self.multicall.store(is_there, Ordering::Relaxed);
        self.gas.note_multicall(is_there);
    }

    /// Whether Multicall3 is there, as far as anybody knows.
    pub fn has_multicall(&self) -> bool {
        self.multicall.load(Ordering::Relaxed)
    }

    /// Takes note of a suggested tip.
    pub fn suggest_tip(&self, wei: u128) {
        *self.tip_wei.lock().unwrap_or_else(PoisonError::into_inner) = wei;
    }

    /// Whether no endpoint has answered for so long that other processes should do this one's work.
    pub fn is_blind(&self) -> bool {
        let silent_for = self.health().silent_for;
        silent_for.is_none_or(|silence| silence > BLIND_AFTER)
    }

    /// Says that payments are to be decided about.
    pub fn undecided(&self) {
        self.undecided.notify_one();
    }

    /// Ends when payments are to be decided about.
    pub async fn undecided_wanted(&self) {
        self.undecided.notified().await;
    }

    /// Says that payments wait in the ledger that nobody has in hand.
    pub fn left_to_anybody(&self) {
        self.nobodys.notify_one();
    }

    /// Ends when payments wait in the ledger that nobody has in hand.
    pub async fn nobodys_wanted(&self) {
        self.nobodys.notified().await;
    }

    /// The later of the wall clock and the newest block's time: windows of authorizations are the chain's business, but a quiet chain's
    /// newest block may be old.
    pub fn chain_time(&self, wall: OffsetDateTime) -> OffsetDateTime {
        self.view.head().map_or(wall, |head| head.time.max(wall))
    }

    /// Leaves payments that are queued in the ledger to all processes at once; they would find them by themselves two seconds later.
    pub(super) async fn leave_to_anybody(&self, payments: &[PaymentId]) {
        if payments.is_empty() {
            return;
        }
        if let Err(error) = self.ledger.put_down(payments).await {
            tracing::debug!(error = causes(&error), "payments are left lying");
        }
        self.left_to_anybody();
    }

    /// Whether anything is open.
    pub fn is_busy(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Says that a payment was mined above its promised depth.
    pub fn note_shallow(&self) {
        self.shallow.store(true, Ordering::Relaxed);
    }

    /// Whether payments may wait for depth; asking clears it.
    pub fn take_shallow(&self) -> bool {
        self.shallow.swap(false, Ordering::Relaxed)
    }

    /// Makes the watch look at once.
    pub fn look_now(&self) {
        self.look.notify_one();
    }

    /// Ends when somebody wants the watch to look.
    pub async fn look_wanted(&self) {
        self.look.notified().await;
    }

    /// Says that a payer's own transfer was written down.
    pub fn transfer_submitted(&self) {
        self.transfers.notify_one();
    }

    /// Ends when a payer's own transfer was written down.
    pub async fn transfer_wanted(&self) {
        self.transfers.notified().await;
    }

    /// Says that an endpoint answered.
    pub fn note_seen(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How the network is doing.
    pub fn health(&self) -> Health {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Health {
            silent_for: seen.map(|seen| seen.elapsed()),
            settled_in: self.settled_in.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
        }
    }
}
