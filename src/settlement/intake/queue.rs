//! Payments that wait for the lanes of this process. Payments without room here wait in the ledger.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use crate::payment::{ChainFacts, Payment, PaymentId};
use crate::telemetry::metrics::{Limit, reached};

/// No caller waits longer than this.
const STALE_AFTER: Duration = Duration::from_secs(30);

/// A payment in the queue of its network.
#[derive(Debug, Clone)]
pub struct Queued {
    pub payment: Payment,
    /// Chain facts read at acceptance. They are used again while the head is unchanged.
    pub facts: Option<ChainFacts>,
    /// When it was queued in this process.
    pub since: Instant,
    /// It was left out of a batch, so it gets its own transaction or none.
    pub alone: bool,
    /// How often its batch was planned or mined in vain, by the fault of others.
    pub setbacks: u8,
    /// It is not simulated before then.
    pub not_before: Option<Instant>,
}

impl Queued {
    pub fn new(payment: Payment, facts: Option<ChainFacts>) -> Self {
        Self {
            payment,
            facts,
            since: Instant::now(),
            alone: false,
            setbacks: 0,
            not_before: None,
        }
    }

    /// A payment that was left out of a batch: it is simulated again, for its own transaction.
    pub fn alone(payment: Payment) -> Self {
        Self {
            alone: true,
            ..Self::new(payment, None)
        }
    }

    /// Whether every caller has stopped waiting for it. It lay here while another process owned the lanes; the ledger has its newer state.
    pub fn is_stale(&self) -> bool {
        self.since.elapsed() > STALE_AFTER
    }
}

/// A reserved place in the queue; no permit where this process owns no lane.
#[derive(Debug)]
pub struct Place<'a> {
    permit: Option<mpsc::Permit<'a, Queued>>,
    of_payer: Option<PayerPlace<'a>>,
}

impl Place<'_> {
    /// Whether a lane of this process will take the payment: the lane of `signer`, or any lane where `signer` is `None`.
    pub fn is_claimed_here(&self, queue: &Queue, signer: Option<Address>) -> bool {
        self.permit.is_some() && signer.is_none_or(|signer| queue.lanes().contains(&signer))
    }
}

/// One of the places of a payer; given back when it is dropped.
#[derive(Debug)]
struct PayerPlace<'a> {
    queue: &'a Queue,
    payer: Address,
}

impl Drop for PayerPlace<'_> {
    fn drop(&mut self) {
        self.queue.claims().leave(self.payer);
    }
}

/// Why no place was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// The queue is full.
    Full,
    /// The payer has all the places that one payer may have.
    PayerFull,
}

/// The claims of this process on queued payments.
#[derive(Debug, Default)]
struct Claims {
    payments: HashMap<PaymentId, Claim>,
    /// Places reserved or taken, of payers that have any.
    of_payer: HashMap<Address, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    /// The signer whose lane has taken the payment, if one has.
    lane: Option<Address>,
    /// The payer of whose places it has one.
    payer: Option<Address>,
}

impl Claims {
    fn leave(&mut self, payer: Address) {
        if let Some(places) = self.of_payer.get_mut(&payer) {
            *places = places.saturating_sub(1);
            if *places == 0 {
                self.of_payer.remove(&payer);
            }
        }
    }

    fn remove(&mut self, payment: PaymentId) {
        let claim = self.payments.remove(&payment);
        if let Some(payer) = claim.and_then(|claim| claim.payer) {
            self.leave(payer);
        }
    }
}

/// The queue of one network.
#[derive(Debug)]
pub struct Queue {
    shared: Channel,
    /// Payments that only one signer may settle.
    by_signer: HashMap<Address, Channel>,
    claims: StdMutex<Claims>,
    /// Places that one payer may have.
    payer_max: usize,
    /// Payments kept from the lanes while another task of this process prepares them.
    on_hold: StdMutex<HashSet<PaymentId>>,
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

    /// Cancel-safe: a payment that was received is returned.
    async fn next(&self, room: usize) -> Vec<Queued> {
        let mut taken = Vec::new();
        self.receiver.lock().await.recv_many(&mut taken, room).await;
        taken
    }
}

impl Queue {
    /// A queue for the lanes of `signers`, for at most `most` payments in each channel, and `payer_max` of one payer.
    pub fn new(signers: &[Address], most: usize, payer_max: usize) -> Self {
        let by_signer = signers.iter().map(|signer| (*signer, Channel::new(most)));
        Self {
            shared: Channel::new(most),
            by_signer: by_signer.collect(),
            claims: StdMutex::default(),
            payer_max,
            on_hold: StdMutex::default(),
            lanes: StdMutex::default(),
        }
    }

    /// Records that this process has claimed a lane.
    pub fn add_lane(&self, signer: Address) {
        self.lanes().insert(signer);
    }

    /// Records that a lane was lost. Returns the payments that it had taken and those that waited for it alone; for the last lane, also
    /// those that waited for any lane. The next owner finds them in the ledger.
    pub async fn remove_lane(&self, signer: Address) -> Vec<PaymentId> {
        let last = {
            let mut lanes = self.lanes();
            lanes.remove(&signer);
            lanes.is_empty()
        };
        let mut left = Vec::new();
        for channel in self
            .by_signer
            .get(&signer)
            .into_iter()
            .chain(last.then_some(&self.shared))
        {
            let mut waiting = channel.receiver.lock().await;
            while let Ok(queued) = waiting.try_recv() {
                self.release(queued.payment.id);
                left.push(queued.payment.id);
            }
        }
        let mut claims = self.claims();
        let taken = claims.payments.iter();
        let taken = taken.filter(|(_, claim)| claim.lane == Some(signer));
        let taken: Vec<PaymentId> = taken.map(|(payment, _)| *payment).collect();
        for payment in &taken {
            claims.remove(*payment);
        }
        drop(claims);
        left.extend(taken);
        left
    }

    /// Signers whose lanes this process owns.
    pub fn owned(&self) -> Vec<Address> {
        self.lanes().iter().copied().collect()
    }

    /// Reserves a place for a payment that the ledger has accepted. `None` when the queue is full.
    pub fn reserve(&self) -> Option<Place<'_>> {
        let permit = if self.lanes().is_empty() {
            // No lane here empties the queue. The process that owns the lanes finds the payment in the ledger.
            None
        } else {
            Some(self.shared.sender.try_reserve().ok()?)
        };
        Some(Place {
            permit,
            of_payer: None,
        })
    }

    /// Reserves a place for a new payment, before the ledger accepts it: every accepted payment has one.
    pub fn reserve_for(&self, payer: Address) -> Result<Place<'_>, NoPlace> {
        let place = self.place_for(payer);
        match &place {
            Ok(_) => {}
            Err(NoPlace::Full) => reached(Limit::Queue),
            Err(NoPlace::PayerFull) => reached(Limit::QueuePerPayer),
        }
        place
    }

    fn place_for(&self, payer: Address) -> Result<Place<'_>, NoPlace> {
        let place = self.reserve().ok_or(NoPlace::Full)?;
        if place.permit.is_none() {
            return Ok(place);
        }
        let mut claims = self.claims();
        let places = claims.of_payer.entry(payer).or_default();
        if *places >= self.payer_max {
            return Err(NoPlace::PayerFull);
        }
        *places += 1;
        drop(claims);
        Ok(Place {
            of_payer: Some(PayerPlace { queue: self, payer }),
            ..place
        })
    }

    /// Why a new payment of this payer would get no place now. It costs nothing to ask, other than the chain.
    pub fn check_room(&self, payer: Address) -> Result<(), NoPlace> {
        self.reserve_for(payer).map(drop)
    }

    /// Number of payments here that any lane may take.
    pub fn waiting(&self) -> usize {
        self.shared.sender.max_capacity() - self.shared.sender.capacity()
    }

    /// All payments that this process has claimed: waiting, being prepared by a lane, or on hold.
    pub fn all_claimed(&self) -> Vec<PaymentId> {
        let mut all: Vec<PaymentId> = self.claims().payments.keys().copied().collect();
        all.extend(self.on_hold().iter());
        all
    }

    /// Queues a payment for the lanes of this process, if there is room.
    pub fn enqueue(&self, place: Place<'_>, queued: Queued) {
        let id = queued.payment.id;
        match (queued.payment.terms.settling_signer(), place.permit) {
            (None, Some(permit)) => {
                self.claim(id, place.of_payer);
                permit.send(queued);
            }
            (Some(signer), Some(_)) if self.lanes().contains(&signer) => {
                self.claim(id, place.of_payer);
                let channel = self.by_signer.get(&signer);
                if channel.is_none_or(|channel| channel.sender.try_send(queued).is_err()) {
                    self.release(id);
                }
            }
            (None | Some(_), None) | (Some(_), Some(_)) => {}
        }
    }

    fn claim(&self, payment: PaymentId, of_payer: Option<PayerPlace<'_>>) {
        let payer = of_payer.map(|place| {
            let payer = place.payer;
            // The claim has the place from now on.
            std::mem::forget(place);
            payer
        });
        let claim = Claim { lane: None, payer };
        let mut claims = self.claims();
        // It may still be claimed from before, when its caller's time was over while it was queued here.
        claims.remove(payment);
        claims.payments.insert(payment, claim);
    }

    /// Keeps a payment from the lanes until [`Self::take_off_hold`]. `false` when it is on hold already.
    pub fn put_on_hold(&self, payment: PaymentId) -> bool {
        self.on_hold().insert(payment)
    }

    /// Ends [`Self::put_on_hold`].
    pub fn take_off_hold(&self, payment: PaymentId) {
        self.on_hold().remove(&payment);
    }

    /// Gives up the claim on a payment: it is in a transaction, or no lane here will take it.
    pub fn release(&self, payment: PaymentId) {
        self.claims().remove(payment);
    }

    /// The next payments for the lane of `signer`, at most `room`; waits for at least one.
    pub async fn next(&self, signer: Address, room: usize) -> Vec<Queued> {
        let Some(own) = self.by_signer.get(&signer) else {
            return self.shared.next(room).await;
        };
        let taken = tokio::select! {
            biased;
            queued = own.next(room) => queued,
            queued = self.shared.next(room) => queued,
        };
        let mut claims = self.claims();
        for one in &taken {
            let claim = claims.payments.entry(one.payment.id);
            let claim = claim.or_insert(Claim {
                lane: None,
                payer: None,
            });
            claim.lane = Some(signer);
        }
        drop(claims);
        taken
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_hold(&self) -> MutexGuard<'_, HashSet<PaymentId>> {
        self.on_hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lanes(&self) -> MutexGuard<'_, HashSet<Address>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
