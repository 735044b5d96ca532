//! Payments on their way to the lanes of this process. What does not fit waits in the ledger.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use crate::payment::{ChainFacts, Payment, PaymentId};

/// Longer than any caller waits.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// A payment in the queue of its network.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The row.
    pub payment: Payment,
    /// What the chain said when it was accepted: at an unchanged head there is no need to ask again.
    pub facts: Option<ChainFacts>,
    /// When it was queued here.
    pub since: Instant,
}

impl Queued {
    /// A payment that is queued now.
    pub fn new(payment: Payment, facts: Option<ChainFacts>) -> Self {
        Self {
            payment,
            facts,
            since: Instant::now(),
        }
    }

    /// Whether every caller has given up on it: it lay here while another process owned the lanes, and the ledger knows better.
    pub fn is_stale(&self) -> bool {
        self.since.elapsed() > STALE_AFTER
    }
}

/// A reserved place in the queue; empty in a process that owns no lane and whose queue is full.
#[derive(Debug)]
pub struct Place<'a>(Option<mpsc::Permit<'a, Queued>>);

/// The queue of one network.
#[derive(Debug)]
pub struct Queue {
    anybodys: Channel,
    /// Of payments that one signer alone may settle.
    of: HashMap<Address, Channel>,
    in_hand: StdMutex<HashSet<PaymentId>>,
    /// Not ready for a lane yet, and looked after by somebody else in this process.
    held: StdMutex<HashSet<PaymentId>>,
    lanes: StdMutex<HashSet<Address>>,
}

#[derive(Debug)]
struct Channel {
    sender: mpsc::Sender<Queued>,
    receiver: Mutex<mpsc::Receiver<Queued>>,
}

impl Channel {
    fn new(most: usize) -> Self {
        let (sender, receiver) = mpsc::channel(most);
        Self {
            sender,
            receiver: Mutex::new(receiver),
        }
    }

    /// Loses nothing when it is given up.
    async fn next(&self, room: usize) -> Vec<Queued> {
        let mut taken = Vec::new();
        self.receiver.lock().await.recv_many(&mut taken, room).await;
        taken
    }
}

impl Queue {
    /// A queue for the lanes of `signers`, of at most `most` payments each way.
    pub fn new(signers: &[Address], most: usize) -> Self {
        let of = signers.iter().map(|signer| (*signer, Channel::new(most)));
        Self {
            anybodys: Channel::new(most),
            of: of.collect(),
            in_hand: StdMutex::default(),
            held: StdMutex::default(),
            lanes: StdMutex::default(),
        }
    }

    /// Says that this process owns a further lane.
    pub fn lane_begins(&self, signer: Address) {
        self.lanes().insert(signer);
    }

    /// Says that a lane was lost: what waited for it alone is found in the ledger by its next owner.
    pub async fn lane_ends(&self, signer: Address) {
        self.lanes().remove(&signer);
        if let Some(channel) = self.of.get(&signer) {
            let mut waiting = channel.receiver.lock().await;
            while let Ok(queued) = waiting.try_recv() {
                self.put_down(queued.payment.id);
            }
        }
    }

    /// The lanes of the network that this process owns.
    pub fn owned(&self) -> Vec<Address> {
        self.lanes().iter().copied().collect()
    }

    /// A place for a payment, or `None` when there is no room: taken before the ledger accepts, so that nothing accepted is without one.
    pub fn reserve(&self) -> Option<Place<'_>> {
        match self.anybodys.sender.try_reserve() {
            Ok(permit) => Some(Place(Some(permit))),
            // Nobody here empties the queue: whoever owns the lanes finds the payment in the ledger.
            Err(_) => self.lanes().is_empty().then_some(Place(None)),
        }
    }

    /// Hands a payment to the lanes of this process, as far as there is room.
    pub fn enqueue(&self, place: Place<'_>, queued: Queued) {
        let id = queued.payment.id;
        match (queued.payment.signer(), place.0) {
            (None, Some(place)) => {
                self.in_hand().insert(id);
                place.send(queued);
            }
            (Some(signer), _) if self.lanes().contains(&signer) => {
                self.in_hand().insert(id);
                let channel = self.of.get(&signer);
                if channel.is_none_or(|channel| channel.sender.try_send(queued).is_err()) {
                    self.put_down(id);
                }
            }
            (None, None) | (Some(_), _) => {}
        }
    }

    /// Whether a payment waits for, or is being prepared by, a lane of this process.
    pub fn is_in_hand(&self, payment: PaymentId) -> bool {
        self.in_hand().contains(&payment) || self.held().contains(&payment)
    }

    /// Keeps a payment from the lanes until [`Self::release`]. `false`: it is held already.
    pub fn hold(&self, payment: PaymentId) -> bool {
        self.held().insert(payment)
    }

    /// Ends [`Self::hold`].
    pub fn release(&self, payment: PaymentId) {
        self.held().remove(&payment);
    }

    /// A lane is done with a payment: it rides in a transaction, or went no further.
    pub fn put_down(&self, payment: PaymentId) {
        self.in_hand().remove(&payment);
    }

    /// The next payments for the lane of `signer` with room for `room`; waits for at least one.
    pub async fn next(&self, signer: Address, room: usize) -> Vec<Queued> {
        let Some(own) = self.of.get(&signer) else {
            return self.anybodys.next(room).await;
        };
        tokio::select! {
            biased;
            queued = own.next(room) => queued,
            queued = self.anybodys.next(room) => queued,
        }
    }

    fn in_hand(&self) -> MutexGuard<'_, HashSet<PaymentId>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<PaymentId>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
