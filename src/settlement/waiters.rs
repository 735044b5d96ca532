//! Who waits for which payment or session: in-process wake-ups, and a slow look into the ledger for what other replicas did.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::session::SessionId;
use crate::telemetry::causes;

/// How often the ledger is asked about payments that somebody waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Something decisive happens to a payment.
    Payment(PaymentId),
    /// A session is cancelled, or something is submitted for it.
    Session(SessionId),
}

/// What callers wait for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<HashMap<Topic, Waited>>>);

#[derive(Debug)]
struct Waited {
    bell: Arc<Notify>,
    callers: usize,
}

/// One caller's place. Take it before reading the row, so that no change between is missed.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    topic: Topic,
    bell: Arc<Notify>,
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
    /// Begins to wait for changes.
    pub fn wait_for(&self, topic: impl Into<Topic>) -> Waiting {
        let topic = topic.into();
        let mut waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = waited.entry(topic.clone()).or_insert_with(|| Waited {
            bell: Arc::default(),
            callers: 0,
        });
        entry.callers += 1;
        Waiting {
            waiters: self.clone(),
            topic,
            bell: Arc::clone(&entry.bell),
        }
    }

    /// Wakes everybody who waits for one of `topics`.
    pub fn wake(&self, topics: impl IntoIterator<Item = impl Into<Topic>>) {
        let waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            if let Some(entry) = waited.get(&topic.into()) {
                entry.bell.notify_waiters();
            }
        }
    }

    fn topics(&self) -> (Vec<PaymentId>, Vec<SessionId>) {
        let (mut payments, mut sessions) = (Vec::new(), Vec::new());
        for topic in self.0.lock().unwrap_or_else(PoisonError::into_inner).keys() {
            match topic {
                Topic::Payment(id) => payments.push(*id),
                Topic::Session(id) => sessions.push(id.clone()),
            }
        }
        (payments, sessions)
    }

    /// Wakes callers for what happened elsewhere; run it for as long as anybody may wait.
    pub async fn look_elsewhere(self, ledger: Ledger) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = self.look(&ledger).await {
                tracing::debug!(error = causes(&error), "cannot look for what others did");
            }
        }
    }

    async fn look(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let (payments, sessions) = self.topics();
        if !payments.is_empty() {
            self.wake(ledger.decided(&payments).await?);
        }
        if !sessions.is_empty() {
            self.wake(ledger.sessions_moved(&sessions).await?);
        }
        Ok(())
    }
}

impl Waiting {
    /// A change that happens after this call ends the future that it returns, even before it is first polled.
    pub fn change(&self) -> tokio::sync::futures::Notified<'_> {
        self.bell.notified()
    }

    /// Waits for `change` until `deadline`. `false`: the deadline came first.
    pub async fn until(change: tokio::sync::futures::Notified<'_>, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, change).await.is_ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waited = self
            .waiters
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = waited.get_mut(&self.topic) {
            entry.callers -= 1;
            if entry.callers == 0 {
                waited.remove(&self.topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_wake_between_looking_and_waiting_is_not_lost() {
        let waiters = Waiters::default();
        let payment = PaymentId(Uuid::nil());
        let waiting = waiters.wait_for(payment);
        let change = waiting.change();
        waiters.wake([payment]);
        assert!(Waiting::until(change, Instant::now()).await);
        drop(waiting);
        assert!(waiters.topics().0.is_empty());
    }
}
