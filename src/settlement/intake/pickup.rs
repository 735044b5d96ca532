//! Claims queued payments from the ledger: accepted by a process without a lane, queued again after a failure, or unclaimed by another
//! process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::ledger::LedgerError;
use crate::payment::PaymentId;
use crate::settlement::{Queued, ServedNetwork};
use crate::telemetry::causes;

/// Payments claimed per query.
const CLAIMED_MAX: i64 = 200;
/// No more are claimed while this many wait here: other processes may be idle.
const WAITING_MAX: usize = 200;
/// How often to query after a query that found payments, and after one that found none. An empty result costs one read of an empty index.
const BUSY_INTERVAL: Duration = Duration::from_millis(50);
const IDLE_INTERVAL: Duration = Duration::from_millis(200);

/// The task that claims the queued payments of one network.
#[derive(Debug)]
pub struct Pickup {
    served: Arc<ServedNetwork>,
}

impl Pickup {
    pub const fn new(served: Arc<ServedNetwork>) -> Self {
        Self { served }
    }

    /// Claims payments until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut failing = false;
        loop {
            let interval = match self.claim_queued().await {
                Ok(count) => {
                    failing = false;
                    if count > 0 {
                        BUSY_INTERVAL
                    } else {
                        IDLE_INTERVAL
                    }
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            error = causes(&error),
                            "queued payments not read from the ledger: retrying"
                        );
                    }
                    IDLE_INTERVAL
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.served.pickup_woken() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    /// Claims as many payments as there is room for; returns how many.
    async fn claim_queued(&self) -> Result<usize, LedgerError> {
        let queue = &self.served.queue;
        let owned = queue.owned();
        if owned.is_empty() || queue.waiting() >= WAITING_MAX {
            return Ok(0);
        }
        let claimed = queue.all_claimed();
        let network = self.served.policy.network;
        let ledger = &self.served.ledger;
        let payments = ledger
            .claim_queued(network, &owned, &claimed, CLAIMED_MAX)
            .await?;
        let count = payments.len();
        let ids: Vec<PaymentId> = payments.iter().map(|payment| payment.id).collect();
        let failed = if ids.is_empty() {
            HashMap::new()
        } else {
            ledger.failed_batches(&ids).await?
        };
        let mut unclaimed = Vec::new();
        for payment in payments {
            match queue.reserve() {
                Some(place) if place.is_claimed_here(queue, payment.terms.settling_signer()) => {
                    tracing::debug!(payment = %payment.id, "queued payment claimed");
                    let batches = failed.get(&payment.id).copied().unwrap_or_default();
                    let queued = Queued {
                        setbacks: u8::try_from(batches).unwrap_or(u8::MAX),
                        ..Queued::new(payment, None)
                    };
                    queue.enqueue(place, queued);
                }
                Some(_) | None => unclaimed.push(payment.id),
            }
        }
        if !unclaimed.is_empty() {
            ledger.release_claims(&unclaimed).await?;
        }
        Ok(count - unclaimed.len())
    }
}
