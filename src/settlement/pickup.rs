//! Takes up payments that wait in the ledger: what a process without a lane has accepted, what was planned again, and what somebody left lying.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::LedgerError;
use crate::settlement::{Queued, Site};
use crate::telemetry::causes;

/// Payments taken up at a time.
const TAKEN_MAX: i64 = 200;
/// No more are taken up while so many wait here: other processes may be idle.
const WAITING_MAX: usize = 200;
/// How often to look while there is something, and while there is nothing. The question costs an empty index.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
const IDLE_INTERVAL: Duration = Duration::from_millis(200);

/// The task that does so for one network.
#[derive(Debug)]
pub struct Pickup {
    site: Arc<Site>,
}

impl Pickup {
    /// One for `site`.
    pub const fn new(site: Arc<Site>) -> Self {
        Self { site }
    }

    /// Takes up until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let interval = match self.look().await {
                Ok(taken) => {
                    failing = false;
                    if taken > 0 {
                        BUSY_INTERVAL
                    } else {
                        IDLE_INTERVAL
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(network = %self.site.policy.network, error = causes(&error), "cannot look for payments that wait in the ledger; trying again");
                    }
                    IDLE_INTERVAL
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.site.nobodys_wanted() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Takes up what there is room for; returns how many.
    async fn look(&self) -> Result<usize, LedgerError> {
        let queue = &self.site.queue;
        let owned = queue.owned();
        if owned.is_empty() || queue.waiting() >= WAITING_MAX {
            return Ok(0);
        }
        let in_hand = queue.all_in_hand();
        let network = self.site.policy.network;
        let ledger = &self.site.ledger;
        let payments = ledger.take_up(network, &owned, &in_hand, TAKEN_MAX).await?;
        let taken = payments.len();
        let mut left = Vec::new();
        for payment in payments {
            match queue.reserve() {
                Some(place) if place.is_in_hand(queue, payment.signer()) => {
                    tracing::debug!(payment.id = %payment.id, "taking up a payment that waits for a transaction");
                    queue.enqueue(place, Queued::new(payment, None));
                }
                Some(_) | None => left.push(payment.id),
            }
        }
        if !left.is_empty() {
            ledger.put_down(&left).await?;
        }
        Ok(taken - left.len())
    }
}
