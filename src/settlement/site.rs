//! One network as the engine serves it: the parts that its lanes, its watch and the facilitator share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::time::Instant;

use crate::chain::{FactsReader, FeePolicy, Rpc};
use crate::ledger::Ledger;
use crate::payment::{ChainFacts, NetworkPolicy, Payment, PaymentId};
use crate::settlement::{ChainView, Waiters};

/// A payment in the queue of its network.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The row.
    pub payment: Payment,
    /// What the chain said when it was accepted: at an unchanged head there is no need to ask again.
    pub facts: Option<ChainFacts>,
}

/// What a [`Site`] is made of.
#[derive(Debug)]
pub struct SiteParts {
    /// The ledger.
    pub ledger: Ledger,
    /// The network's endpoints.
    pub rpc: Rpc,
    /// Chain facts.
    pub facts: FactsReader,
    /// What the operator allows.
    pub policy: NetworkPolicy,
    /// What gas may cost.
    pub fees: FeePolicy,
    /// Who waits for what.
    pub waiters: Waiters,
    /// Payments that may wait in memory for a lane.
    pub queue_max: usize,
    /// Unmined transactions that one signer may have.
    pub inflight_max: usize,
    /// How often to look for a new block while something is in flight.
    pub poll: Duration,
}

/// One network.
#[derive(Debug)]
pub struct Site {
    /// The ledger.
    pub ledger: Ledger,
    /// The network's endpoints.
    pub rpc: Rpc,
    /// Chain facts.
    pub facts: FactsReader,
    /// What the operator allows.
    pub policy: NetworkPolicy,
    /// What gas may cost.
    pub fees: FeePolicy,
    /// Who waits for what.
    pub waiters: Waiters,
    /// What the watch has seen.
    pub view: ChainView,
    /// Unmined transactions that one signer may have.
    pub inflight_max: usize,
    /// How often to look for a new block while something is in flight.
    pub poll: Duration,
    queue: mpsc::Sender<Queued>,
    waiting: Mutex<mpsc::Receiver<Queued>>,
    in_hand: StdMutex<HashSet<PaymentId>>,
    open: AtomicUsize,
    shallow: AtomicBool,
    look: Notify,
    seen: StdMutex<Option<Instant>>,
    opened: AtomicBool,
}

/// How a network is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Seconds since an endpoint last answered the watch; `None` when none ever did.
    pub silent_for: Option<Duration>,
    /// Transactions of this process whose outcome is open.
    pub open: usize,
}

impl Site {
    /// Puts the parts together.
    pub fn new(parts: SiteParts) -> Self {
        let (queue, waiting) = mpsc::channel(parts.queue_max);
        Self {
            ledger: parts.ledger,
            rpc: parts.rpc,
            facts: parts.facts,
            policy: parts.policy,
            fees: parts.fees,
            waiters: parts.waiters,
            view: ChainView::default(),
            inflight_max: parts.inflight_max,
            poll: parts.poll,
            queue,
            waiting: Mutex::new(waiting),
            in_hand: StdMutex::default(),
            open: AtomicUsize::new(0),
            shallow: AtomicBool::new(true),
            look: Notify::new(),
            seen: StdMutex::new(None),
            opened: AtomicBool::new(false),
        }
    }

    /// Says that the chain has confirmed the configuration.
    pub fn open(&self) {
        self.opened.store(true, Ordering::Relaxed);
    }

    /// Whether the chain has confirmed the configuration; before that nothing that an RPC says is believed.
    pub fn is_open(&self) -> bool {
        self.opened.load(Ordering::Relaxed)
    }

    /// A place in the queue, or `None` when it is full: taken before the ledger accepts, so that nothing accepted has no place.
    pub fn reserve(&self) -> Option<mpsc::Permit<'_, Queued>> {
        self.queue.try_reserve().ok()
    }

    /// Hands a payment to the lanes of this process.
    pub fn enqueue(&self, place: mpsc::Permit<'_, Queued>, queued: Queued) {
        self.in_hand
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(queued.payment.id);
        place.send(queued);
    }

    /// Whether a payment waits for, or is being prepared by, a lane of this process.
    pub fn is_in_hand(&self, payment: PaymentId) -> bool {
        self.in_hand
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&payment)
    }

    /// A lane is done with a payment: it rides in a transaction, or went no further.
    pub fn put_down(&self, payment: PaymentId) {
        self.in_hand
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&payment);
    }

    /// The next payments for a lane with room for `room`; waits for at least one.
    pub async fn next(&self, room: usize) -> Vec<Queued> {
        let mut taken = Vec::new();
        self.waiting.lock().await.recv_many(&mut taken, room).await;
        taken
    }

    /// The later of the wall clock and the newest block's time: windows of authorizations are the chain's business, but a quiet chain's
    /// newest block may be old.
    pub fn chain_time(&self, wall: OffsetDateTime) -> OffsetDateTime {
        self.view.head().map_or(wall, |head| head.time.max(wall))
    }

    /// Counts open transactions, so that the watch knows whether to hurry.
    pub fn count_open(&self, before: usize, after: usize) {
        self.open.fetch_add(after, Ordering::Relaxed);
        self.open.fetch_sub(before, Ordering::Relaxed);
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

    /// Says that an endpoint answered.
    pub fn note_seen(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How the network is doing.
    pub fn health(&self) -> Health {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Health {
            silent_for: seen.map(|seen| seen.elapsed()),
            open: self.open.load(Ordering::Relaxed),
        }
    }
}
