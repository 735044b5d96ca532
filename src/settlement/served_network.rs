//! One served network: the parts and signals that its lanes, its watch and the facilitator share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::chain::fees::FeeError;
use crate::chain::{FactsReader, FeePolicy, Fees, Rpc, SimulatedSender};
use crate::ledger::Ledger;
use crate::payment::{NetworkPolicy, PaymentId, Proxies};
use crate::settlement::gas::{BatchLimits, GasEstimates};
use crate::settlement::{
    Approvals, Budgets, CannotSend, ChainView, Queue, Senders, Suspensions, Waiters,
};
use crate::telemetry::causes;
use crate::telemetry::metrics::NetworkMetrics;
use crate::timing::Timing;

/// Maximum fee of simulations, in wei per gas: above that of any block.
const SIMULATED_FEE_WEI: u128 = 1_000_000_000_000_000;
/// `Retry-After` while gas costs more than `max_fee_wei`.
const RETRY_FEES_TOO_HIGH: Duration = Duration::from_secs(5);

/// The parts that a [`ServedNetwork`] is made of.
#[derive(Debug)]
pub struct ServedNetworkParts {
    pub ledger: Ledger,
    /// How long the engine waits.
    pub timing: Timing,
    /// RPC pool of the engine.
    pub rpc: Rpc,
    /// RPC pool for the requests of callers: the same endpoints, a separate budget.
    pub caller_rpc: Rpc,
    /// Chain facts for the requests of callers.
    pub facts: FactsReader,
    /// Chain facts for the lanes, so that they do not queue behind callers.
    pub lane_facts: FactsReader,
    /// The operator's settings for this network.
    pub policy: NetworkPolicy,
    /// Limits on gas prices and gas.
    pub fees: FeePolicy,
    pub waiters: Waiters,
    pub metrics: NetworkMetrics,
    /// Accounts whose transactions settle the payments of this network.
    pub signers: Vec<Address>,
    /// Most payments that wait in memory for a lane.
    pub queue_max: usize,
    /// The same of one payer.
    pub queue_max_per_payer: usize,
    /// Most unmined transactions per signer.
    pub inflight_max: usize,
    /// How often to look for a new block while a transaction is in flight.
    pub poll: Duration,
    /// How long a payment waits for others to share its transaction while transactions are in flight.
    pub batch_wait: Duration,
    /// Limits of one batch transaction.
    pub batches: BatchLimits,
}

/// A network that this process serves.
#[derive(Debug)]
pub struct ServedNetwork {
    pub ledger: Ledger,
    /// How long the engine waits.
    pub timing: Timing,
    /// RPC pool of the engine.
    pub rpc: Rpc,
    /// RPC pool for the requests of callers: the same endpoints, a separate budget.
    pub caller_rpc: Rpc,
    /// Chain facts for the requests of callers.
    pub facts: FactsReader,
    /// Chain facts for the lanes, so that they do not queue behind callers.
    pub lane_facts: FactsReader,
    /// The operator's settings for this network.
    pub policy: NetworkPolicy,
    pub waiters: Waiters,
    pub metrics: NetworkMetrics,
    /// Head and receipts as the watch has read them.
    pub view: ChainView,
    signers: usize,
    /// Number of signers that are no longer configured and still have open transactions.
    unconfigured: AtomicUsize,
    /// Most unmined transactions per signer.
    pub inflight_max: usize,
    /// How often to look for a new block while a transaction is in flight.
    pub poll: Duration,
    /// How long a payment waits for others to share its transaction while transactions are in flight.
    pub batch_wait: Duration,
    /// Payments that wait for a lane of this process.
    pub queue: Queue,
    /// Payments whose ERC-20 approvals have to be mined first.
    pub approvals: Approvals,
    /// Balance and state of each signer.
    pub senders: Senders,
    /// What transactions may cost.
    pub budgets: Budgets,
    pub(super) suspensions: Suspensions,
    /// Gas use learned from mined transactions.
    pub(super) gas: GasEstimates,
    fees: FeePolicy,
    /// Priority fee that a node last suggested, in wei per gas.
    tip_wei: Mutex<u128>,
    /// Gas price that a node last quoted, in wei per gas; used where blocks have no base fee.
    gas_price_wei: Mutex<Option<u128>>,
    /// Whether Multicall3 is deployed, so that one transaction can settle several payments.
    multicall: AtomicBool,
    /// Whether the chain is a rollup that charges for calldata and quotes that fee.
    has_data_fee: AtomicBool,
    open_transactions: AtomicUsize,
    has_unconfirmed: AtomicBool,
    watch_signal: Notify,
    transfers_signal: Notify,
    reconciler_signal: Notify,
    pickup_signal: Notify,
    answered_at: Mutex<Option<Instant>>,
    chain_checked: AtomicBool,
    exact_proxy: AtomicBool,
    upto_proxy: AtomicBool,
    lane_owner_known: AtomicBool,
}

/// One task's share of the number of open transactions, from which the watch chooses its polling interval. Dropping it subtracts the share.
#[derive(Debug)]
pub(super) struct OpenCount {
    served: Arc<ServedNetwork>,
    count: usize,
}

impl OpenCount {
    pub(super) fn of(served: &Arc<ServedNetwork>) -> Self {
        Self {
            served: Arc::clone(served),
            count: 0,
        }
    }

    pub(super) fn set(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.count, now);
        self.served
            .open_transactions
            .fetch_add(now, Ordering::Relaxed);
        self.served
            .open_transactions
            .fetch_sub(before, Ordering::Relaxed);
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Liveness of a network, for `/readyz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Time since an endpoint last answered the watch; `None` before the first answer.
    pub silent_for: Option<Duration>,
    /// Whether at least one lane has been claimed, or found to belong to another process.
    pub lane_owner_known: bool,
    /// Open transactions that this process follows.
    pub open: usize,
}

impl ServedNetwork {
    pub fn new(parts: ServedNetworkParts) -> Self {
        Self {
            timing: parts.timing,
            ledger: parts.ledger,
            rpc: parts.rpc,
            caller_rpc: parts.caller_rpc,
            facts: parts.facts,
            lane_facts: parts.lane_facts,
            budgets: Budgets::new(parts.policy.budget),
            suspensions: Suspensions::default(),
            policy: parts.policy,
            gas: GasEstimates::new(parts.batches, parts.fees, &parts.timing),
            fees: parts.fees,
            tip_wei: Mutex::new(0),
            gas_price_wei: Mutex::new(None),
            multicall: AtomicBool::new(true),
            has_data_fee: AtomicBool::new(false),
            waiters: parts.waiters,
            metrics: parts.metrics,
            view: ChainView::default(),
            signers: parts.signers.len(),
            unconfigured: AtomicUsize::new(0),
            inflight_max: parts.inflight_max,
            poll: parts.poll,
            batch_wait: parts.batch_wait,
            queue: Queue::new(&parts.signers, parts.queue_max, parts.queue_max_per_payer),
            approvals: Approvals::default(),
            senders: Senders::new(&parts.signers),
            open_transactions: AtomicUsize::new(0),
            has_unconfirmed: AtomicBool::new(true),
            watch_signal: Notify::new(),
            transfers_signal: Notify::new(),
            reconciler_signal: Notify::new(),
            pickup_signal: Notify::new(),
            answered_at: Mutex::new(None),
            chain_checked: AtomicBool::new(false),
            exact_proxy: AtomicBool::new(false),
            upto_proxy: AtomicBool::new(false),
            lane_owner_known: AtomicBool::new(false),
        }
    }

    /// Number of lanes that all processes serving this network share.
    pub fn lanes(&self) -> usize {
        self.signers + self.unconfigured.load(Ordering::Relaxed)
    }

    /// Records how many signers without a configured key have open transactions.
    pub fn note_unconfigured(&self, signers: usize) {
        self.unconfigured.store(signers, Ordering::Relaxed);
    }

    /// Records that the chain matches the configuration.
    pub fn open(&self) {
        self.note_answer();
        self.chain_checked.store(true, Ordering::Relaxed);
    }

    /// Whether the chain matches the configuration. Until then no RPC answer is used.
    pub fn is_open(&self) -> bool {
        self.chain_checked.load(Ordering::Relaxed)
    }

    /// Records which Permit2 proxies are deployed, as far as this process knows.
    pub fn note_proxies(&self, found: Proxies) {
        self.exact_proxy.store(found.exact, Ordering::Relaxed);
        self.upto_proxy.store(found.upto, Ordering::Relaxed);
    }

    /// Which Permit2 proxies are deployed, as far as this process knows.
    pub fn proxies(&self) -> Proxies {
        Proxies {
            exact: self.exact_proxy.load(Ordering::Relaxed),
            upto: self.upto_proxy.load(Ordering::Relaxed),
        }
    }

    /// Records that this process has claimed a lane.
    pub fn note_lane_claimed(&self, signer: Address) {
        self.queue.add_lane(signer);
        self.note_lane_owner_known();
        self.pickup_signal.notify_one();
        self.wake_watch();
    }

    /// Records that it is known which process owns a lane.
    pub fn note_lane_owner_known(&self) {
        self.lane_owner_known.store(true, Ordering::Relaxed);
    }

    /// The fee policy, with the priority fee and gas price that a node last gave.
    pub fn fees(&self) -> FeePolicy {
        let tip_wei = *self.tip_wei.lock().unwrap_or_else(PoisonError::into_inner);
        let price = self.gas_price_wei.lock();
        let price = *price.unwrap_or_else(PoisonError::into_inner);
        let fees = self.fees.with_priority_fee(tip_wei);
        price.map_or(fees, |price| fees.with_gas_price(price))
    }

    /// Most that a transaction may cost, in wei, with a rollup's fee for the data of its payments.
    pub(super) fn cost(&self, gas_limit: u64, fees: Fees, payments: usize) -> U256 {
        let gas = U256::from(gas_limit).saturating_mul(U256::from(fees.max_fee_wei));
        gas.saturating_add(self.gas.data_fee_of(payments))
    }

    /// The sender of simulations: `signer`, or the signer that is used first. A price that no block exceeds keeps the node from refusing the
    /// call; contracts see the price of the block with the tip. `None` before the first block.
    pub fn simulated_sender(&self, signer: Option<Address>) -> Option<SimulatedSender> {
        let address = signer.or_else(|| self.policy.facilitator())?;
        let (head, policy) = (self.view.head()?, self.fees());
        let fees = match head.base_fee_wei {
            Some(_) => Fees {
                max_fee_wei: SIMULATED_FEE_WEI,
                max_priority_fee_wei: policy.priority_fee_wei,
                legacy: false,
            },
            None => Fees::legacy(policy.gas_price_wei?),
        };
        Some(SimulatedSender { address, fees })
    }

    /// Records a node's gas price, where blocks have no base fee.
    pub fn note_gas_price(&self, wei: u128) {
        let price = self.gas_price_wei.lock();
        *price.unwrap_or_else(PoisonError::into_inner) = Some(wei);
    }

    /// Whether the current gas price is within the operator's cap; [`CannotSend`] names the price.
    pub fn gas_is_affordable(&self) -> Result<(), CannotSend> {
        let Some(head) = self.view.head() else {
            return Ok(());
        };
        match self.fees().quote(&head) {
            Ok(_) => Ok(()),
            Err(error) => Err(CannotSend {
                why: format!(
                    "{error} on {}, so nothing can be sent{}",
                    self.policy.network,
                    match error {
                        FeeError::AboveCap { .. } => "; if that lasts, raise max_fee_wei",
                        FeeError::NoPrice => "",
                    }
                ),
                retry_after: RETRY_FEES_TOO_HIGH,
            }),
        }
    }

    /// Records the fee that a rollup charges for the calldata of one payment.
    pub fn note_data_fee(&self, wei: u128) {
        self.has_data_fee.store(true, Ordering::Relaxed);
        self.gas.note_data_fee(wei);
    }

    pub fn has_data_fee(&self) -> bool {
        self.has_data_fee.load(Ordering::Relaxed)
    }

    /// Records whether Multicall3 is deployed. Without it each payment has its own transaction.
    pub fn note_multicall(&self, is_there: bool) {
        self.multicall.store(is_there, Ordering::Relaxed);
        self.gas.note_multicall(is_there);
    }

    pub fn has_multicall(&self) -> bool {
        self.multicall.load(Ordering::Relaxed)
    }

    /// Records a suggested priority fee, in wei per gas.
    pub fn suggest_tip(&self, wei: u128) {
        *self.tip_wei.lock().unwrap_or_else(PoisonError::into_inner) = wei;
    }

    /// Whether no endpoint has answered for so long that other processes should do this one's work.
    pub fn is_disconnected(&self) -> bool {
        let silent_for = self.health().silent_for;
        silent_for.is_none_or(|silence| silence > self.timing.disconnected_after)
    }

    /// Wakes the reconciliation task: there are undecided payments.
    pub fn wake_reconciler(&self) {
        self.reconciler_signal.notify_one();
    }

    /// Waits for [`Self::wake_reconciler`].
    pub async fn reconciler_woken(&self) {
        self.reconciler_signal.notified().await;
    }

    /// Wakes the pickup task: the ledger has queued payments that no process has claimed.
    pub fn wake_pickup(&self) {
        self.pickup_signal.notify_one();
    }

    /// Waits for [`Self::wake_pickup`].
    pub async fn pickup_woken(&self) {
        self.pickup_signal.notified().await;
    }

    /// The later of the wall clock and the newest block's time. Validity windows are checked against block time, but on a quiet chain the
    /// newest block may be old.
    pub fn chain_time(&self, wall: OffsetDateTime) -> OffsetDateTime {
        self.view.head().map_or(wall, |head| head.time.max(wall))
    }

    /// Gives up the claims on queued payments, so that any process can claim them now. Without this, other processes would claim them after
    /// ten seconds while this one lives, and this one after two.
    pub(super) async fn unclaim(&self, payments: &[PaymentId]) {
        if payments.is_empty() {
            return;
        }
        if let Err(error) = self.ledger.release_claims(payments).await {
            tracing::debug!(
                error = causes(&error),
                "claims on queued payments not released: other processes take them over after ten seconds"
            );
        }
        self.wake_pickup();
    }

    /// Whether any transaction is open.
    pub fn is_busy(&self) -> bool {
        self.open_transactions.load(Ordering::Relaxed) > 0
    }

    /// Records that a payment was mined with fewer confirmations than promised.
    pub fn note_unconfirmed(&self) {
        self.has_unconfirmed.store(true, Ordering::Relaxed);
    }

    /// Whether payments may wait for confirmations; reading it clears it.
    pub fn take_unconfirmed(&self) -> bool {
        self.has_unconfirmed.swap(false, Ordering::Relaxed)
    }

    /// Makes the watch look for a block at once.
    pub fn wake_watch(&self) {
        self.watch_signal.notify_one();
    }

    /// Waits for [`Self::wake_watch`].
    pub async fn watch_woken(&self) {
        self.watch_signal.notified().await;
    }

    /// Wakes the transfers task: a payer's own transfer was recorded.
    pub fn wake_transfers(&self) {
        self.transfers_signal.notify_one();
    }

    /// Waits until a payer's own transfer was recorded.
    pub async fn transfers_woken(&self) {
        self.transfers_signal.notified().await;
    }

    /// Records that an endpoint answered.
    pub fn note_answer(&self) {
        *self
            .answered_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub fn health(&self) -> Health {
        let answered_at = *self
            .answered_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Health {
            silent_for: answered_at.map(|at| at.elapsed()),
            lane_owner_known: self.lane_owner_known.load(Ordering::Relaxed),
            open: self.open_transactions.load(Ordering::Relaxed),
        }
    }
}
