//! Somebody else who sends with this lane's key takes its nonces: what rode in them goes on elsewhere, and the lane goes on from the
//! chain's nonce. The third time within an hour it stops.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{Lane, Lost, Owned};
use crate::chain::{Head, RpcError};
use crate::ledger::{ForeignNonce, LaneLease};
use crate::settlement::Site;
use crate::telemetry::causes;

/// How long every look must have shown that a nonce is used by nothing of ours: nodes show receipts later than account nonces.
const FOREIGN_AFTER: Duration = Duration::from_secs(10);
/// How long to search for the transactions that used them: their hashes are for people, nothing waits for them for long.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// How often a lane that has nothing to do looks for foreign use.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a lane that waits for such use looks whether it still has to.
const HELD_INTERVAL: Duration = Duration::from_secs(1);
/// Blocks take most of what is in a pool within so long; then it is told that the lane waits.
pub(super) const POOL_SAID_AFTER: Duration = Duration::from_secs(10);
/// Nonces that are explained one by one.
const EXPLAINED_MAX: u64 = 8;

/// What is known about nonces that the chain has used and the ledger does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unexplained {
    /// There are none, in a block or in a pool.
    Nothing,
    /// Their transactions wait in a pool: they may be mined, replaced or dropped.
    InPool,
    /// Transactions that x402d cannot have made, settled at the promised confirmations.
    Foreign {
        nonces: Vec<ForeignNonce>,
        /// How many nonces blocks have used.
        reached: u64,
    },
    /// At least one is above the promised confirmations.
    TooYoung,
    /// They may be our own, which a database has forgotten, or cannot be found.
    Unknown { reached: u64 },
}

/// What was found beside a lane's other work.
#[derive(Debug)]
pub(super) enum Found {
    /// Foreign use, while nothing was open.
    Foreign {
        /// The lane's next nonce then.
        first: u64,
        nonces: Vec<ForeignNonce>,
        /// How many nonces blocks have used.
        reached: u64,
    },
    /// There is nothing left to wait for: the lane is claimed anew.
    Decided,
}

impl Lane {
    /// Looks for nonces that are gone. The evidence is of one look: no node has a receipt of ours for the transactions that are `missing`, and at
    /// the promised confirmations the account is beyond their nonces; and of every look for a while.
    pub(super) async fn watch_for_foreign_use(
        &self,
        owned: &mut Owned,
        missing: &[Uuid],
        head: &Head,
    ) -> Result<(), Lost> {
        let settled = settled_height(&self.site, head);
        let chain = &self.site.rpc;
        let Ok(used) = chain.transaction_count_at(self.id.signer, settled).await else {
            return Ok(());
        };
        let mut suspected = Vec::new();
        for open in &mut owned.open {
            let nonce = open.transaction.nonce;
            if !missing.contains(&open.transaction.id) {
                continue;
            }
            if used <= nonce {
                open.strange_since = None;
                continue;
            }
            let since = *open.strange_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= FOREIGN_AFTER {
                suspected.push((nonce, open.transaction.id));
            }
        }
        let mut lost = Vec::new();
        for (nonce, id) in suspected {
            if self.is_lost(owned, nonce, id, settled).await {
                lost.push(nonce);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let foreign = self.explained(&lost, settled).await;
        // What else the account may have used is believed when it is found.
        let beyond = lost.iter().max().map_or(0, |nonce| nonce + 1);
        self.give_up(owned, &foreign, beyond).await
    }

    /// Looks for foreign use while nothing is open, beside everything else, so that no payment has to find out. What cannot be explained waits for
    /// a payment, or for the operator when the lane is claimed next.
    pub(super) fn look_while_idle(&self, owned: &mut Owned) {
        if owned.held_since.is_some() {
            return self.look_while_held(owned);
        }
        let idle = owned.open.is_empty() && owned.dispatches.is_empty();
        let due = owned.idle_looked.elapsed() >= IDLE_INTERVAL && owned.idle_looks.is_empty();
        if !idle || !due || !owned.may_write() {
            return;
        }
        owned.idle_looked = Instant::now();
        let (site, signer) = (Arc::clone(&self.site), self.id.signer);
        let first = owned.lease.next_nonce;
        owned.idle_looks.spawn(async move {
            let used = site.rpc.reached_nonce(signer, "latest".to_owned());
            if used.await.ok()? <= first {
                return None;
            }
            match explain(&site, signer, first).await.ok()? {
                Unexplained::Foreign { nonces, reached } => Some(Found::Foreign {
                    first,
                    nonces,
                    reached,
                }),
                Unexplained::Nothing
                | Unexplained::InPool
                | Unexplained::TooYoung
                | Unexplained::Unknown { .. } => None,
            }
        });
    }

    /// Looks whether a lane still has to wait for nonces that somebody has used.
    fn look_while_held(&self, owned: &mut Owned) {
        let due = owned.idle_looked.elapsed() >= HELD_INTERVAL && owned.idle_looks.is_empty();
        let Some(since) = owned.held_since.filter(|_| due) else {
            return;
        };
        owned.idle_looked = Instant::now();
        let (site, signer) = (Arc::clone(&self.site), self.id.signer);
        let first = owned.lease.next_nonce;
        owned.idle_looks.spawn(async move {
            match explain(&site, signer, first).await.ok()? {
                Unexplained::TooYoung => None,
                Unexplained::InPool => {
                    if since.elapsed() >= POOL_SAID_AFTER {
                        say_in_pool(&site, signer, first);
                    }
                    None
                }
                Unexplained::Nothing
                | Unexplained::Foreign { .. }
                | Unexplained::Unknown { .. } => Some(Found::Decided),
            }
        });
    }

    /// Leaves nonces out that were used while nothing was open, unless the lane has moved on meanwhile.
    pub(super) async fn left_out(
        &self,
        owned: &mut Owned,
        found: Option<Found>,
    ) -> Result<(), Lost> {
        match found {
            Some(Found::Foreign {
                first,
                nonces,
                reached,
            }) if owned.lease.next_nonce == first => self.give_up(owned, &nonces, reached).await,
            Some(Found::Decided) => Err(Lost),
            Some(Found::Foreign { .. }) | None => Ok(()),
        }
    }

    /// The same nonces with the transactions that used them, as far as an endpoint can show them.
    async fn explained(&self, nonces: &[u64], settled: u64) -> Vec<ForeignNonce> {
        let mut foreign: Vec<ForeignNonce> = nonces
            .iter()
            .map(|nonce| ForeignNonce {
                nonce: *nonce,
                transaction: None,
            })
            .collect();
        let chain = &self.site.rpc;
        let search = async {
            for one in &mut foreign {
                let found = chain
                    .nonce_used_by(self.id.signer, one.nonce, settled)
                    .await;
                one.transaction = found.ok().flatten().map(|used| used.hash);
            }
        };
        // What was not found in time stays unnamed.
        let _ = timeout(SEARCH_LIMIT, search).await;
        foreign
    }

    /// Queues anew what rode in nonces that are lost, and goes on, or stops if that happens too often.
    async fn give_up(
        &self,
        owned: &mut Owned,
        foreign: &[ForeignNonce],
        used: u64,
    ) -> Result<(), Lost> {
        match self.lose(owned.lease, foreign, used).await {
            // What of ours is behind the lost ones goes on; what is not is sent again.
            Some(next_nonce) => {
                owned.lease.next_nonce = next_nonce;
                self.reload(owned).await.map_err(|_| Lost)
            }
            None => Err(Lost),
        }
    }

    /// The nonce from which the lane goes on; `None`: it is not ours any more, stops, or must be looked at anew.
    pub(super) async fn lose(
        &self,
        lease: LaneLease,
        foreign: &[ForeignNonce],
        used: u64,
    ) -> Option<u64> {
        let (network, signer) = (self.id.network, self.id.signer);
        let ledger = &self.site.ledger;
        let lost = match ledger.lose_nonces(self.id, lease, foreign, used).await {
            Ok(lost) => lost?,
            Err(error) => {
                tracing::warn!(%network, %signer, error = causes(&error), "cannot give up a lost nonce");
                return None;
            }
        };
        for one in foreign {
            let transaction = one.transaction.map(|hash| hash.to_string());
            let transaction = transaction.unwrap_or_else(|| "unknown".to_owned());
            tracing::error!(%network, %signer, nonce = one.nonce, transaction, times = lost.times, "signer key used elsewhere: a foreign transaction took a nonce; what rode in it is queued again");
        }
        tracing::warn!(%network, %signer, payments = lost.payments.len(), next_nonce = lost.next_nonce, "the lane goes on from the chain's nonce");
        self.site.waiters.wake(lost.payments);
        self.site.left_to_anybody();
        if let Some(why) = lost.stopped.filter(|_| !lease.stopped) {
            self.say_stopped(&why);
            return None;
        }
        Some(lost.next_nonce)
    }

    pub(super) fn say_stopped(&self, why: &str) {
        self.site.senders.note_stopped(self.id.signer, why);
        tracing::error!(network = %self.id.network, signer = %self.id.signer, why, "lane stopped; clear lanes.stopped_reason once this is explained");
    }
}

/// Explains the nonces from `first` on that the chain has used and the ledger does not know.
///
/// # Errors
/// When an endpoint fails in passing: nothing is known then. One that does not keep old state will not keep it later.
pub(super) async fn explain(
    site: &Site,
    signer: Address,
    first: u64,
) -> Result<Unexplained, RpcError> {
    let chain = &site.rpc;
    let head = chain.newest().await?;
    let reached = chain.reached_nonce(signer, "latest".to_owned()).await?;
    if reached <= first {
        let pending = chain.reached_nonce(signer, "pending".to_owned()).await?;
        return Ok(if pending > first {
            Unexplained::InPool
        } else {
            Unexplained::Nothing
        });
    }
    match mined(site, signer, (first, reached), &head).await {
        Err(error) if error.lacks_state() => Ok(Unexplained::Unknown { reached }),
        explained => explained,
    }
}

/// Explains nonces that blocks have used.
async fn mined(
    site: &Site,
    signer: Address,
    (first, reached): (u64, u64),
    head: &Head,
) -> Result<Unexplained, RpcError> {
    let (chain, tokens) = (&site.rpc, site.policy.tokens());
    let mut nonces = Vec::new();
    if reached - first > EXPLAINED_MAX {
        return Ok(Unexplained::Unknown { reached });
    }
    for nonce in first..reached {
        let found = chain.nonce_used_by(signer, nonce, head.number);
        match found.await? {
            Some(found) if !found.is_settlement_like(&tokens) => nonces.push(ForeignNonce {
                nonce,
                transaction: Some(found.hash),
            }),
            Some(_) | None => return Ok(Unexplained::Unknown { reached }),
        }
    }
    let settled = settled_height(site, head);
    let then = chain
        .reached_nonce(signer, format!("0x{settled:x}"))
        .await?;
    Ok(if then >= reached {
        Unexplained::Foreign { nonces, reached }
    } else {
        Unexplained::TooYoung
    })
}

/// Says that a lane waits for a transaction in a pool that the ledger does not know.
pub(super) fn say_in_pool(site: &Site, signer: Address, nonce: u64) {
    let why = format!(
        "a transaction in the pool has nonce {nonce} of this signer and the ledger does not know it: the key was used elsewhere, or the database lost its last commits; nothing is sent until it is mined or dropped"
    );
    if site.senders.note_waiting(signer, Some(&why)) {
        tracing::warn!(network = %site.policy.network, %signer, nonce, "lane waits: {why}");
    }
}

/// The height at which something is settled at the promised confirmations.
fn settled_height(site: &Site, head: &Head) -> u64 {
    let confirmations = u64::from(site.policy.confirmations);
    let height = site.rpc.confirmed_height(head.number);
    (height + 1).saturating_sub(confirmations)
}
