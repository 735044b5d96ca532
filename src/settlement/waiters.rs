//! Callers that wait for a payment or session: in-process notifications, and slow polling of the ledger for changes by other processes.
//! Requests that present the same payment stand in a line, because its success is told to one of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::session::SessionId;
use crate::telemetry::causes;

/// How often the ledger is asked about each topic; less often when there are many.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Most topics polled per interval. Polling only finds the changes of other processes, and must not load the database.
const POLLED_MAX: usize = 256;

/// What callers can wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A payment reaches a state that callers wait for.
    Payment(PaymentId),
    /// A session is cancelled, or a payment is submitted for it.
    Session(SessionId),
}

/// Topics with waiting callers. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waiters {
    entries: Arc<Mutex<HashMap<Topic, TopicEntry>>>,
    arrivals: Arc<AtomicU64>,
}

/// When a request came: of two, the smaller one came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival(u64);

/// A place in the line of a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// The request that had the payment accepted goes first, whenever it came.
    behind_acceptor: bool,
    arrival: Arrival,
}

#[derive(Debug)]
struct TopicEntry {
    signal: watch::Sender<()>,
    callers: usize,
    /// Those who present the payment.
    line: BTreeSet<Place>,
    /// When the ledger is asked next.
    poll_at: Instant,
}

/// One caller's subscription. It reports every change since it was made, so subscribe before reading the row.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    topic: Topic,
    changes: watch::Receiver<()>,
    place: Option<Place>,
}

impl From<PaymentId> for Topic {
    fn from(id: PaymentId) -> Self {
        Self::Payment(id)
    }
}

impl From<SessionId> for Topic {
    fn from(id: SessionId) -> Self {
        Self::Session(id)
    }
}

impl Waiters {
    /// Subscribes to changes.
    pub fn wait_for(&self, topic: impl Into<Topic>) -> Waiting {
        self.subscribe(topic.into(), None)
    }

    /// The time of arrival of a request that comes now.
    pub fn arrival(&self) -> Arrival {
        Arrival(self.arrivals.fetch_add(1, Ordering::Relaxed))
    }

    /// Subscribes to changes of a payment, with a place in the line of those who present it, in the order in which they came.
    pub fn line_up(&self, payment: PaymentId, arrival: Arrival) -> Waiting {
        let place = Place {
            behind_acceptor: true,
            arrival,
        };
        self.subscribe(payment.into(), Some(place))
    }

    fn subscribe(&self, topic: Topic, place: Option<Place>) -> Waiting {
        let mut entries = self.entries();
        let entry = entries.entry(topic.clone()).or_insert_with(|| TopicEntry {
            signal: watch::Sender::new(()),
            callers: 0,
            line: BTreeSet::new(),
            poll_at: Instant::now() + POLL_INTERVAL,
        });
        entry.callers += 1;
        entry.line.extend(place);
        Waiting {
            waiters: self.clone(),
            topic,
            changes: entry.signal.subscribe(),
            place,
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Topic, TopicEntry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the callers that wait for one of `topics`.
    pub fn wake(&self, topics: impl IntoIterator<Item = impl Into<Topic>>) {
        let entries = self.entries();
        for topic in topics {
            if let Some(entry) = entries.get(&topic.into()) {
                entry.signal.send_replace(());
            }
        }
    }

    /// The topics to ask the ledger about now.
    fn due(&self) -> (Vec<PaymentId>, Vec<SessionId>) {
        let (mut payments, mut sessions) = (Vec::new(), Vec::new());
        let mut entries = self.entries();
        let now = Instant::now();
        let rounds = u32::try_from(entries.len() / POLLED_MAX + 1).unwrap_or(u32::MAX);
        let due = entries.iter_mut().filter(|(_, entry)| entry.poll_at <= now);
        for (topic, entry) in due.take(POLLED_MAX) {
            entry.poll_at = now + POLL_INTERVAL * rounds;
            match topic {
                Topic::Payment(id) => payments.push(*id),
                Topic::Session(id) => sessions.push(id.clone()),
            }
        }
        (payments, sessions)
    }

    /// Wakes callers for changes made by other processes. Runs as long as callers may wait.
    pub async fn poll_ledger(self, ledger: Ledger) {
        let mut interval = tokio::time::interval(POLL_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.poll(&ledger).await {
                tracing::debug!(
                    error = causes(&error),
                    "changes of other processes not read from the ledger"
                );
            }
        }
    }

    async fn poll(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let (payments, sessions) = self.due();
        if !payments.is_empty() {
            self.wake(ledger.decided(&payments).await?);
        }
        if !sessions.is_empty() {
            self.wake(ledger.sessions_changed(&sessions).await?);
        }
        Ok(())
    }
}

impl Waiting {
    /// Waits for a change that was not reported yet, until `deadline`. `false`: the deadline came first.
    pub async fn change_until(&mut self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.changes.changed())
            .await
            .is_ok_and(|changed| changed.is_ok())
    }

    /// Whether nobody stands before this request in the line. `false` also without a place in it.
    pub fn is_next(&self) -> bool {
        let entries = self.waiters.entries();
        let first = entries
            .get(&self.topic)
            .and_then(|entry| entry.line.first());
        self.place.is_some() && first == self.place.as_ref()
    }

    /// Whether this request stands in the line.
    pub const fn is_in_line(&self) -> bool {
        self.place.is_some()
    }

    /// Puts this request before all who did not have the payment accepted.
    pub fn go_first(&mut self) {
        let mut entries = self.waiters.entries();
        if let (Some(entry), Some(place)) = (entries.get_mut(&self.topic), self.place.as_mut()) {
            entry.line.remove(place);
            place.behind_acceptor = false;
            entry.line.insert(*place);
        }
    }

    /// Gives the place up, and wakes the others if it was the first one.
    pub fn leave_line(&mut self) {
        let mut entries = self.waiters.entries();
        if let Some(entry) = entries.get_mut(&self.topic) {
            entry.leave(self.place.take());
        }
    }
}

impl TopicEntry {
    fn leave(&mut self, place: Option<Place>) {
        let was_first = place.is_some() && self.line.first() == place.as_ref();
        if let Some(place) = place {
            self.line.remove(&place);
        }
        if was_first && !self.line.is_empty() {
            self.signal.send_replace(());
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut entries = self.waiters.entries();
        if let Some(entry) = entries.get_mut(&self.topic) {
            entry.leave(self.place.take());
            entry.callers -= 1;
            if entry.callers == 0 {
                entries.remove(&self.topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn wake_between_reading_and_waiting_is_not_lost() {
        let waiters = Waiters::default();
        let payment = PaymentId(Uuid::nil());
        let mut waiting = waiters.wait_for(payment);
        waiters.wake([payment]);
        assert!(waiting.change_until(Instant::now()).await);
        assert!(!waiting.change_until(Instant::now()).await, "reported once");
        drop(waiting);
        assert!(waiters.entries().is_empty());
    }

    #[tokio::test]
    async fn line_is_in_order_of_arrival_behind_the_acceptor() {
        let waiters = Waiters::default();
        let payment = PaymentId(Uuid::nil());
        let [early, middle, late] = [(); 3].map(|()| waiters.arrival());
        let mut third = waiters.line_up(payment, late);
        assert!(third.is_next(), "alone in line");
        let mut second = waiters.line_up(payment, middle);
        let first = waiters.line_up(payment, early);
        let reader = waiters.wait_for(payment);
        assert!(!reader.is_next(), "has no place");
        let next = |of: [&Waiting; 3]| of.map(Waiting::is_next);
        assert_eq!(next([&first, &second, &third]), [true, false, false]);
        third.go_first();
        assert_eq!(next([&first, &second, &third]), [false, false, true]);
        third.leave_line();
        assert!(second.change_until(Instant::now()).await, "woken");
        assert_eq!(next([&first, &second, &third]), [true, false, false]);
        drop(first);
        assert!(second.change_until(Instant::now()).await, "woken again");
        assert!(second.is_next());
        drop((second, third, reader));
        assert!(waiters.entries().is_empty());
    }

    #[tokio::test]
    async fn leaving_from_the_middle_wakes_nobody() {
        let waiters = Waiters::default();
        let payment = PaymentId(Uuid::nil());
        let mut first = waiters.line_up(payment, waiters.arrival());
        let second = waiters.line_up(payment, waiters.arrival());
        drop(second);
        assert!(!first.change_until(Instant::now()).await);
        drop(first);
        assert!(waiters.entries().is_empty());
    }
}
