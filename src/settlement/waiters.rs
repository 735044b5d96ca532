//! Who waits for which payment: in-process wake-ups, and a slow look into the ledger for what other replicas did.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::ledger::Ledger;
use crate::payment::PaymentId;
use crate::telemetry::causes;

/// How often the ledger is asked about payments that somebody waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The payments that callers wait for. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Waiters(Arc<Mutex<HashMap<PaymentId, Waited>>>);

#[derive(Debug)]
struct Waited {
    bell: Arc<Notify>,
    callers: usize,
}

/// One caller's place. Take it before reading the row, so that no change between is missed.
#[derive(Debug)]
pub struct Waiting {
    waiters: Waiters,
    payment: PaymentId,
    bell: Arc<Notify>,
}

impl Waiters {
    /// Begins to wait for changes of a payment.
    pub fn wait_for(&self, payment: PaymentId) -> Waiting {
        let mut waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = waited.entry(payment).or_insert_with(|| Waited {
            bell: Arc::default(),
            callers: 0,
        });
        entry.callers += 1;
        Waiting {
            waiters: self.clone(),
            payment,
            bell: Arc::clone(&entry.bell),
        }
    }

    /// Wakes everybody who waits for one of `payments`.
    pub fn wake(&self, payments: impl IntoIterator<Item = PaymentId>) {
        let waited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for payment in payments {
            if let Some(entry) = waited.get(&payment) {
                entry.bell.notify_waiters();
            }
        }
    }

    fn payments(&self) -> Vec<PaymentId> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .copied()
            .collect()
    }

    /// Wakes callers for what happened elsewhere; run it for as long as anybody may wait.
    pub async fn look_elsewhere(self, ledger: Ledger) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let payments = self.payments();
            if payments.is_empty() {
                continue;
            }
            match ledger.decided(&payments).await {
                Ok(decided) => self.wake(decided),
                Err(error) => {
                    tracing::debug!(error = causes(&error), "cannot look for settled payments");
                }
            }
        }
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
        if let Some(entry) = waited.get_mut(&self.payment) {
            entry.callers -= 1;
            if entry.callers == 0 {
                waited.remove(&self.payment);
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
        assert!(waiters.payments().is_empty());
    }
}
