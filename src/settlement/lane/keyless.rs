//! Transactions of signers that are no longer configured: they are followed to their end, for which no key is needed. The bytes that were
//! written are sent again; nothing new is written and no fee is bumped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Lane;
use super::claim::Claimed;
use crate::settlement::Site;
use crate::telemetry::causes;

/// How often the ledger is asked for such transactions: a process that has the key may end at any time.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// So long such a lane is owned at a time; a process that has its key may then claim it.
const TURN: Duration = Duration::from_secs(30);

/// The task that does so for one network.
#[derive(Debug)]
pub struct Unconfigured {
    site: Arc<Site>,
    said: HashSet<Address>,
}

impl Unconfigured {
    /// One for `site`.
    pub fn new(site: Arc<Site>) -> Self {
        Self {
            site,
            said: HashSet::new(),
        }
    }

    /// Follows until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut following = JoinSet::new();
        // By task: one that panics has to be followed again.
        let mut followed = HashMap::new();
        loop {
            let now = self.look().await;
            self.site.note_unconfigured(now.len());
            for (signer, transactions) in now {
                if !followed.values().any(|known| *known == signer) {
                    let lane = Lane::keyless(Arc::clone(&self.site), signer);
                    let stop = stop.clone();
                    let news = (!self.said.contains(&signer)).then_some(transactions);
                    let turn = async move { lane.take_a_turn(&stop, news).await };
                    followed.insert(following.spawn(turn).id(), signer);
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            while let Some(ended) = following.try_join_next_with_id() {
                let (task, claimed) = match ended {
                    Ok((task, claimed)) => (task, claimed),
                    Err(error) => (error.id(), false),
                };
                let signer = followed.remove(&task);
                self.said.extend(signer.filter(|_| claimed));
            }
        }
        while following.join_next().await.is_some() {}
    }

    /// The signers that have open transactions and no key here, with the number of these; says so when they have ended. Another process may
    /// have the key: what this one did not follow is not its news.
    async fn look(&mut self) -> Vec<(Address, i64)> {
        let network = self.site.policy.network;
        let ledger = &self.site.ledger;
        let found = ledger.unconfigured(network, &self.site.policy.signers);
        let found = match found.await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%network, error = causes(&error), "cannot look for transactions of signers that are not configured");
                return Vec::new();
            }
        };
        self.said.retain(|signer| {
            let ended = !found.iter().any(|(open, _)| open == signer);
            if ended {
                tracing::info!(%network, %signer, "signer not configured: all its transactions have ended");
            }
            !ended
        });
        found
    }
}

impl Lane {
    /// The lane of a signer whose key is not here.
    fn keyless(site: Arc<Site>, signer: Address) -> Self {
        let network = site.policy.network;
        Self::of(site, None, (network, signer))
    }

    /// Follows what is open for a while, if no other process does; whether this one did.
    async fn take_a_turn(&self, stop: &CancellationToken, news: Option<i64>) -> bool {
        let (network, signer) = (self.id.network, self.id.signer);
        match self.claim().await {
            Ok(Claimed::Ours(mut owned)) => {
                if let Some(transactions) = news {
                    tracing::warn!(%network, %signer, transactions, "signer not configured: its transactions are followed to their end without its key; their fees cannot be bumped");
                }
                owned.until = Some(Instant::now() + TURN);
                let lease = owned.lease;
                self.work(*owned, stop).await;
                if let Err(error) = self.site.ledger.release_lane(self.id, lease).await {
                    tracing::debug!(
                        error = causes(&error),
                        "cannot release a lane without key; its lease runs out"
                    );
                }
                true
            }
            Ok(Claimed::Others | Claimed::NotNow) => false,
            Err(error) => {
                tracing::debug!(%network, %signer, error = causes(&error), "cannot claim a lane without key");
                false
            }
        }
    }

    /// So many lanes are shared among the processes that serve the network; a lane without key is no part of anybody's share.
    pub(super) fn shared_lanes(&self) -> usize {
        if self.key.is_some() {
            self.site.lanes()
        } else {
            usize::MAX
        }
    }
}
