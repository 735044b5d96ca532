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
/// Nonces that are explained one by one.
const EXPLAINED_MAX: u64 = 8;

/// What is known about nonces that the chain has used and the ledger does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unexplained {
    /// Transactions that x402d cannot have made, settled at the promised confirmations.
    Foreign(Vec<ForeignNonce>),
    /// At least one is above the promised confirmations.
    TooYoung,
    /// They may be our own, which a database has forgotten, or cannot be found.
    Unknown,
}

/// Foreign use that was found while nothing was open.
#[derive(Debug)]
pub(super) struct IdleUse {
    /// The lane's next nonce then.
    first: u64,
    /// How many nonces the chain had used.
    used: u64,
    nonces: Vec<ForeignNonce>,
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
            let used = used.await.ok()?;
            if used <= first {
                return None;
            }
            match explain(&site, signer, (first, used)).await.ok()? {
                Unexplained::Foreign(nonces) => Some(IdleUse {
                    first,
                    used,
                    nonces,
                }),
                Unexplained::TooYoung | Unexplained::Unknown => None,
            }
        });
    }

    /// Leaves nonces out that were used while nothing was open, unless the lane has moved on meanwhile.
    pub(super) async fn left_out(
        &self,
        owned: &mut Owned,
        found: Option<IdleUse>,
    ) -> Result<(), Lost> {
        match found {
            Some(found) if owned.lease.next_nonce == found.first => {
                self.give_up(owned, &found.nonces, found.used).await
            }
            Some(_) | None => Ok(()),
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

/// Explains the nonces from `first` on that the chain has used, `used` in all, and the ledger does not know.
pub(super) async fn explain(
    site: &Site,
    signer: Address,
    (first, used): (u64, u64),
) -> Result<Unexplained, RpcError> {
    let chain = &site.rpc;
    let head = chain.newest().await?;
    let mined = chain.reached_nonce(signer, "latest".to_owned()).await?;
    if mined < used || used - first > EXPLAINED_MAX {
        return Ok(Unexplained::Unknown);
    }
    let tokens = site.policy.tokens();
    let mut foreign = Vec::new();
    for nonce in first..used {
        let found = chain.nonce_used_by(signer, nonce, head.number);
        match found.await? {
            Some(found) if !found.is_settlement_like(&tokens) => foreign.push(ForeignNonce {
                nonce,
                transaction: Some(found.hash),
            }),
            Some(_) | None => return Ok(Unexplained::Unknown),
        }
    }
    let settled = settled_height(site, &head);
    let then = chain
        .reached_nonce(signer, format!("0x{settled:x}"))
        .await?;
    Ok(if then >= used {
        Unexplained::Foreign(foreign)
    } else {
        Unexplained::TooYoung
    })
}

/// The height at which something is settled at the promised confirmations.
fn settled_height(site: &Site, head: &Head) -> u64 {
    let confirmations = u64::from(site.policy.confirmations);
    let height = site.rpc.confirmed_height(head.number);
    (height + 1).saturating_sub(confirmations)
}
