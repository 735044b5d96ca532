//! Lanes of signers that are no longer configured. Their open transactions are followed to the end, which needs no key: the recorded bytes
//! are broadcast again, but no new nonce is used and no fee is bumped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use alloy::primitives::Address;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Lane;
use super::claim::ClaimOutcome;
use crate::settlement::ServedNetwork;
use crate::settlement::supervisor::Task;
use crate::telemetry::causes;

/// The task that follows these lanes on one network.
#[derive(Debug)]
pub struct UnconfiguredSigners {
    served: Arc<ServedNetwork>,
    announced: HashSet<Address>,
}

impl UnconfiguredSigners {
    pub fn new(served: Arc<ServedNetwork>) -> Self {
        Self {
            served,
            announced: HashSet::new(),
        }
    }

    /// Follows such lanes until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut following = JoinSet::new();
        // By task id: after a panic the signer is followed again.
        let mut followed = HashMap::new();
        loop {
            let now = self.find_unconfigured().await;
            self.served.note_unconfigured(now.len());
            for (signer, transactions) in now {
                if !followed.values().any(|known| *known == signer) {
                    let lane = Lane::keyless(Arc::clone(&self.served), signer);
                    let stop = stop.clone();
                    let unannounced = (!self.announced.contains(&signer)).then_some(transactions);
                    let task = async move { lane.own_briefly(&stop, unannounced).await };
                    let span = Task::lane(self.served.policy.network, signer).span();
                    followed.insert(following.spawn(task.instrument(span)).id(), signer);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(self.served.timing.keyless) => {}
            }
            while let Some(ended) = following.try_join_next_with_id() {
                let (id, claimed) = match ended {
                    Ok((id, claimed)) => (id, claimed),
                    Err(error) => (error.id(), false),
                };
                let signer = followed.remove(&id);
                self.announced.extend(signer.filter(|_| claimed));
            }
        }
        while following.join_next().await.is_some() {}
    }

    /// Signers with open transactions and no key here, and the number of these transactions. Logs when they have ended, but only for
    /// signers that this process has followed: another process may have the key.
    async fn find_unconfigured(&mut self) -> Vec<(Address, i64)> {
        let network = self.served.policy.network;
        let ledger = &self.served.ledger;
        let found = ledger.unconfigured(network, &self.served.policy.signers);
        let found = match found.await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(
                    error = causes(&error),
                    "open transactions of unconfigured signers not read"
                );
                return Vec::new();
            }
        };
        self.announced.retain(|signer| {
            let ended = !found.iter().any(|(open, _)| open == signer);
            if ended {
                tracing::info!(%signer, "signer not configured: all its transactions have ended");
            }
            !ended
        });
        found
    }
}

impl Lane {
    fn keyless(served: Arc<ServedNetwork>, signer: Address) -> Self {
        let network = served.policy.network;
        Self::of(served, None, (network, signer))
    }

    /// Owns the lane for a while and follows its open transactions. `false`: another process owns it, or the claim failed.
    async fn own_briefly(&self, stop: &CancellationToken, unannounced: Option<i64>) -> bool {
        match self.claim().await {
            Ok(ClaimOutcome::Owned(mut owned)) => {
                if let Some(transactions) = unannounced {
                    tracing::warn!(
                        transactions,
                        "signer not configured: its open transactions are followed without its key; their fees cannot be bumped"
                    );
                }
                owned.owned_until = Some(Instant::now() + self.served.timing.keyless_turn);
                let lease = owned.lease;
                self.work(*owned, stop).await;
                if let Err(error) = self.served.ledger.release_lane(self.id, lease).await {
                    tracing::debug!(
                        error = causes(&error),
                        "lane without key not released: its lease runs out by itself"
                    );
                }
                true
            }
            Ok(ClaimOutcome::OtherProcess | ClaimOutcome::Later) => false,
            Err(error) => {
                tracing::debug!(error = causes(&error), "claim of a lane without key failed");
                false
            }
        }
    }

    /// Number of lanes that the processes of this network share. A lane without a key counts for no process.
    pub(super) fn shared_lanes(&self) -> usize {
        if self.key.is_some() {
            self.served.lanes()
        } else {
            usize::MAX
        }
    }
}
