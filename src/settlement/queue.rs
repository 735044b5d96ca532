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
    /// It was left out of a batch: it goes by itself, or not at all.
    pub alone: bool,
}

impl Queued {
    /// A payment that is queued now.
    pub fn new(payment: Payment, facts: Option<ChainFacts>) -> Self {
        Self {
            payment,
            facts,
            since: Instant::now(),
            alone: false,
        }
    }

    /// One that was left out of a batch: it is looked at anew, and by itself.
    pub fn alone(payment: Payment) -> Self {
        Self {
            alone: true,
            ..Self::new(payment, None)
        }
    }

    /// Whether every caller has given up on it: it lay here while another process owned the lanes, and the ledger knows better.
    pub fn is_stale(&self) -> bool {
        self.since.elapsed() > STALE_AFTER
    }
}

/// A reserved place in the queue; empty in a process that owns no lane.
#[derive(Debug)]
pub struct Place<'a>(Option<mpsc::Permit<'a, Queued>>);

impl Place<'_> {
    /// Whether a lane of this process takes from it what `signer` may settle, or anybody where there is none.
    pub fn is_in_hand(&self, queue: &Queue, signer: Option<Address>) -> bool {
        self.0.is_some() && signer.is_none_or(|signer| queue.lanes().contains(&signer))
    }
}

/// The queue of one network.
#[derive(Debug)]
pub struct Queue {
    anybodys: Channel,
    /// Of payments that one signer alone may settle.
    of: HashMap<Address, Channel>,
    /// With the signer whose lane has taken it, once one has.
    in_hand: StdMutex<HashMap<PaymentId, Option<Address>>>,
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

    /// Says that a lane was lost. Returns what it had taken and what waited for it alone, or, if it was the last, for any: its next owner finds it
    /// in the ledger.
    pub async fn lane_ends(&self, signer: Address) -> Vec<PaymentId> {
        let last = {
            let mut lanes = self.lanes();
            lanes.remove(&signer);
            lanes.is_empty()
        };
        let mut left = Vec::new();
        for channel in self
            .of
            .get(&signer)
            .into_iter()
            .chain(last.then_some(&self.anybodys))
        {
            let mut waiting = channel.receiver.lock().await;
            while let Ok(queued) = waiting.try_recv() {
                self.put_down(queued.payment.id);
                left.push(queued.payment.id);
            }
        }
        let mut in_hand = self.in_hand();
        let taken = in_hand.extract_if(|_, by| *by == Some(signer));
        left.extend(taken.map(|(payment, _)| payment));
        left
    }

    /// The lanes of the network that this process owns.
    pub fn owned(&self) -> Vec<Address> {
        self.lanes().iter().copied().collect()
    }

    /// A place for a payment, or `None` when there is no room: taken before the ledger accepts, so that nothing accepted is without one.
    pub fn reserve(&self) -> Option<Place<'_>> {
        if self.lanes().is_empty() {
            // Nobody here empties the queue: whoever owns the lanes finds the payment in the ledger.
            return Some(Place(None));
        }
        let permit = self.anybodys.sender.try_reserve().ok()?;
        Some(Place(Some(permit)))
    }

    /// How many payments wait here that any lane may take.
    pub fn waiting(&self) -> usize {
        self.anybodys.sender.max_capacity() - self.anybodys.sender.capacity()
    }

    /// The payments that wait for, or are being prepared by, a lane of this process, or are kept from its lanes.
    pub fn all_in_hand(&self) -> Vec<PaymentId> {
        let mut all: Vec<PaymentId> = self.in_hand().keys().copied().collect();
        all.extend(self.held().iter());
        all
    }

    /// Hands a payment to the lanes of this process, as far as there is room.
    pub fn enqueue(&self, place: Place<'_>, queued: Queued) {
        let id = queued.payment.id;
        match (queued.payment.signer(), place.0) {
            (None, Some(place)) => {
                self.in_hand().insert(id, None);
                place.send(queued);
            }
            (Some(signer), Some(_)) if self.lanes().contains(&signer) => {
                self.in_hand().insert(id, None);
                let channel = self.of.get(&signer);
                if channel.is_none_or(|channel| channel.sender.try_send(queued).is_err()) {
                    self.put_down(id);
                }
            }
            (None | Some(_), None) | (Some(_), Some(_)) => {}
        }
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
        let taken = tokio::select! {
            biased;
            queued = own.next(room) => queued,
            queued = self.anybodys.next(room) => queued,
        };
        let mut in_hand = self.in_hand();
        in_hand.extend(taken.iter().map(|one| (one.payment.id, Some(signer))));
        drop(in_hand);
        taken
    }

    fn in_hand(&self) -> MutexGuard<'_, HashMap<PaymentId, Option<Address>>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashSet<PaymentId>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
