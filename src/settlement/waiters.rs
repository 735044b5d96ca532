//! Callers that wait for a payment or session: in-process notifications, and slow polling of the ledger for changes by other processes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
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
pub struct Waiters(Arc<Mutex<HashMap<Topic, TopicEntry>>>);

#[derive(Debug)]
struct TopicEntry {
    signal: watch::Sender<()>,
    callers: usize,
    /// When the ledger is asked next.
    poll_at: Instant,
}

/// One caller's subscription. It reports every change since it was made, so subscribe before reading the row.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    topic: Topic,
    changes: watch::Receiver<()>,
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
        let topic = topic.into();
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.entry(topic.clone()).or_insert_with(|| TopicEntry {
            signal: watch::Sender::new(()),
            callers: 0,
            poll_at: Instant::now() + POLL_INTERVAL,
        });
        entry.callers += 1;
        Waiting {
            waiters: self.clone(),
            topic,
            changes: entry.signal.subscribe(),
        }
    }

    /// Wakes the callers that wait for one of `topics`.
    pub fn wake(&self, topics: impl IntoIterator<Item = impl Into<Topic>>) {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            if let Some(entry) = entries.get(&topic.into()) {
                entry.signal.send_replace(());
            }
        }
    }

    /// The topics to ask the ledger about now.
    fn due(&self) -> (Vec<PaymentId>, Vec<SessionId>) {
        let (mut payments, mut sessions) = (Vec::new(), Vec::new());
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut entries = self
            .waiters
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&self.topic) {
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
        assert!(waiters.0.lock().unwrap().is_empty());
    }
}
