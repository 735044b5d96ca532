//! Who waits for which payment or session: in-process wake-ups, and a slow look into the ledger for what other replicas did.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};
use crate::payment::PaymentId;
use crate::protocol::session::SessionId;
use crate::telemetry::causes;

/// How often the ledger is asked about something that somebody waits for; less often about each when many are waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Questions to the ledger per interval: this is for what other processes did, and must not become a load.
const LOOKS_MAX: usize = 256;

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
    bell: watch::Sender<()>,
    callers: usize,
    /// When the ledger is asked next.
    look_at: Instant,
}

/// One caller's place: it hears every change since it was taken, so take it before reading the row.
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
    /// Begins to wait for changes.
    pub fn wait_for(&self, topic: impl Into<Topic>) -> Waiting {
        let topic = topic.into();
        let mut waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = waited.entry(topic.clone()).or_insert_with(|| Waited {
            bell: watch::Sender::new(()),
            callers: 0,
            look_at: Instant::now() + LOOK_INTERVAL,
        });
        entry.callers += 1;
        Waiting {
            waiters: self.clone(),
            topic,
            changes: entry.bell.subscribe(),
        }
    }

    /// Wakes everybody who waits for one of `topics`.
    pub fn wake(&self, topics: impl IntoIterator<Item = impl Into<Topic>>) {
        let waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in topics {
            if let Some(entry) = waited.get(&topic.into()) {
                entry.bell.send_replace(());
            }
        }
    }

    /// What the ledger should be asked about now.
    fn due(&self) -> (Vec<PaymentId>, Vec<SessionId>) {
        let (mut payments, mut sessions) = (Vec::new(), Vec::new());
        let mut waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rounds = u32::try_from(waited.len() / LOOKS_MAX + 1).unwrap_or(u32::MAX);
        let due = waited.iter_mut().filter(|(_, entry)| entry.look_at <= now);
        for (topic, entry) in due.take(LOOKS_MAX) {
            entry.look_at = now + LOOK_INTERVAL * rounds;
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
        let (payments, sessions) = self.due();
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
    /// Waits for a change that was not heard yet, until `deadline`. `false`: the deadline came first.
    pub async fn change_until(&mut self, deadline: Instant) -> bool {
        tokio::time::timeout_at(deadline, self.changes.changed())
            .await
            .is_ok_and(|changed| changed.is_ok())
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
        let mut waiting = waiters.wait_for(payment);
        waiters.wake([payment]);
        assert!(waiting.change_until(Instant::now()).await);
        assert!(!waiting.change_until(Instant::now()).await, "heard once");
        drop(waiting);
        assert!(waiters.0.lock().unwrap().is_empty());
    }
}
