//! Foreign nonce use: another program sends with this lane's key and takes its nonces. The payments in those nonces are queued again, and
//! the lane continues from the chain's nonce. The third time within an hour it stops.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;
use uuid::Uuid;

use super::{Lane, LaneLost, OwnedLane};
use crate::chain::{Head, RpcError};
use crate::ledger::{ForeignNonce, LaneLease};
use crate::settlement::ServedNetwork;
use crate::telemetry::causes;

/// Time limit of the search for the transactions that used them. Their hashes are for the operator; nothing else waits for them.
const SEARCH_LIMIT: Duration = Duration::from_secs(5);
/// How often a blocked lane checks whether it may go on.
const BLOCKED_INTERVAL: Duration = Duration::from_secs(1);
/// Most nonces that are identified one by one.
const IDENTIFIED_MAX: u64 = 8;

/// Nonces that the chain has used and the ledger does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum UnknownNonces {
    /// There are none, in blocks or in the pool.
    Absent,
    /// Their transactions are in the pool; they may be mined, replaced or dropped.
    InPool,
    /// Used by transactions that x402d cannot have made, with the promised confirmations.
    Foreign {
        nonces: Vec<ForeignNonce>,
        /// The account's nonce in the newest block.
        reached: u64,
    },
    /// At least one has fewer than the promised confirmations.
    Unconfirmed,
    /// They may be our own transactions that the database has lost, or their transactions cannot be found.
    Unidentified { reached: u64 },
}

/// Result of a check that ran beside the lane's other work.
#[derive(Debug)]
pub(super) enum NonceFinding {
    /// Foreign use, while nothing was open.
    Foreign {
        /// The lane's next nonce at the time of the check.
        first: u64,
        nonces: Vec<ForeignNonce>,
        /// The account's nonce in the newest block.
        reached: u64,
    },
    /// The lane need not wait any longer: it is claimed again.
    Resolved,
}

impl Lane {
    /// Detects open transactions whose nonces were used by foreign transactions. Evidence: no node has a receipt for the transactions in
    /// `missing`, and the account's nonce with the promised confirmations is beyond theirs. Every check must show this for as long as
    /// [`foreign_after`](crate::timing::Timing).
    pub(super) async fn detect_foreign_use(
        &self,
        owned: &mut OwnedLane,
        missing: &[Uuid],
        head: &Head,
    ) -> Result<(), LaneLost> {
        let agreed_height = confirmation_height(&self.served, head);
        let chain = &self.served.rpc;
        let Ok(used) = chain
            .transaction_count_at(self.id.signer, agreed_height)
            .await
        else {
            return Ok(());
        };
        let mut suspected = Vec::new();
        for open in &mut owned.open {
            let nonce = open.transaction.nonce;
            if !missing.contains(&open.transaction.id) {
                continue;
            }
            if used <= nonce {
                open.foreign_since = None;
                continue;
            }
            let since = *open.foreign_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= self.served.timing.foreign_after {
                suspected.push((nonce, open.transaction.id));
            }
        }
        let mut lost = Vec::new();
        for (nonce, id) in suspected {
            if self.is_lost(owned, nonce, id, agreed_height).await {
                lost.push(nonce);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let foreign = self.find_users(&lost, agreed_height).await;
        // Nonces beyond these that the account may have used are handled when they are found.
        let beyond = lost.iter().max().map_or(0, |nonce| nonce + 1);
        self.requeue_foreign(owned, &foreign, beyond).await
    }

    /// Checks for foreign use while nothing is open, beside the lane's other work, so that no payment is delayed by it. Nonces that cannot
    /// be identified are handled when a payment is sent, or by stopping the lane when it is claimed next.
    pub(super) fn check_while_idle(&self, owned: &mut OwnedLane) {
        if owned.blocked_since.is_some() {
            return self.check_while_blocked(owned);
        }
        let idle = owned.open.is_empty() && owned.simulations.is_empty();
        let due = owned.nonces_checked_at.elapsed() >= self.served.timing.idle_nonce_check
            && owned.nonce_checks.is_empty();
        if !idle || !due || !owned.can_write() {
            return;
        }
        owned.nonces_checked_at = Instant::now();
        let (served, signer) = (Arc::clone(&self.served), self.id.signer);
        let first = owned.lease.next_nonce;
        let check = async move {
            let used = served.rpc.agreed_nonce(signer, "latest".to_owned());
            if used.await.ok()? <= first {
                return None;
            }
            match identify_nonces(&served, signer, first).await.ok()? {
                UnknownNonces::Foreign { nonces, reached } => Some(NonceFinding::Foreign {
                    first,
                    nonces,
                    reached,
                }),
                UnknownNonces::Absent
                | UnknownNonces::InPool
                | UnknownNonces::Unconfirmed
                | UnknownNonces::Unidentified { .. } => None,
            }
        };
        owned.nonce_checks.spawn(check.in_current_span());
    }

    /// Checks whether a blocked lane still has to wait for unknown nonces.
    fn check_while_blocked(&self, owned: &mut OwnedLane) {
        let due =
            owned.nonces_checked_at.elapsed() >= BLOCKED_INTERVAL && owned.nonce_checks.is_empty();
        let Some(since) = owned.blocked_since.filter(|_| due) else {
            return;
        };
        owned.nonces_checked_at = Instant::now();
        let (served, signer) = (Arc::clone(&self.served), self.id.signer);
        let first = owned.lease.next_nonce;
        let check = async move {
            match identify_nonces(&served, signer, first).await.ok()? {
                UnknownNonces::Unconfirmed => None,
                UnknownNonces::InPool => {
                    if since.elapsed() >= served.timing.pool_warning_after {
                        report_pooled_nonce(&served, signer, first);
                    }
                    None
                }
                UnknownNonces::Absent
                | UnknownNonces::Foreign { .. }
                | UnknownNonces::Unidentified { .. } => Some(NonceFinding::Resolved),
            }
        };
        owned.nonce_checks.spawn(check.in_current_span());
    }

    /// Skips nonces used while nothing was open, unless the lane has used a new nonce meanwhile.
    pub(super) async fn apply_finding(
        &self,
        owned: &mut OwnedLane,
        found: Option<NonceFinding>,
    ) -> Result<(), LaneLost> {
        match found {
            Some(NonceFinding::Foreign {
                first,
                nonces,
                reached,
            }) if owned.lease.next_nonce == first => {
                self.requeue_foreign(owned, &nonces, reached).await
            }
            Some(NonceFinding::Resolved) => Err(LaneLost),
            Some(NonceFinding::Foreign { .. }) | None => Ok(()),
        }
    }

    /// The nonces with the hashes of the transactions that used them, as far as endpoints can show them.
    async fn find_users(&self, nonces: &[u64], agreed_height: u64) -> Vec<ForeignNonce> {
        let mut foreign: Vec<ForeignNonce> = nonces
            .iter()
            .map(|nonce| ForeignNonce {
                nonce: *nonce,
                transaction: None,
            })
            .collect();
        let chain = &self.served.rpc;
        let search = async {
            for one in &mut foreign {
                let found = chain
                    .find_transaction_by_nonce(self.id.signer, one.nonce, agreed_height)
                    .await;
                one.transaction = found.ok().flatten().map(|used| used.hash);
            }
        };
        // A transaction not found in time stays `None`.
        let _ = timeout(SEARCH_LIMIT, search).await;
        foreign
    }

    /// Queues the payments of lost nonces again. The lane goes on, or stops if this happened too often.
    async fn requeue_foreign(
        &self,
        owned: &mut OwnedLane,
        foreign: &[ForeignNonce],
        used: u64,
    ) -> Result<(), LaneLost> {
        match self.record_foreign_use(owned.lease, foreign, used).await {
            // Our own transactions behind the lost nonces stay open; all open ones are broadcast again.
            Some(next_nonce) => {
                owned.lease.next_nonce = next_nonce;
                self.reload(owned).await.map_err(|_| LaneLost)
            }
            None => Err(LaneLost),
        }
    }

    /// Records foreign nonces and returns the nonce from which the lane continues. `None`: the lane is lost or stopped, or has to be read
    /// again.
    pub(super) async fn record_foreign_use(
        &self,
        lease: LaneLease,
        foreign: &[ForeignNonce],
        used: u64,
    ) -> Option<u64> {
        let ledger = &self.served.ledger;
        let lost = match ledger.lose_nonces(self.id, lease, foreign, used).await {
            Ok(lost) => lost?,
            Err(error) => {
                tracing::warn!(error = causes(&error), "foreign nonce use not recorded");
                return None;
            }
        };
        for one in foreign {
            let transaction = one.transaction.map(|hash| hash.to_string());
            let transaction = transaction.unwrap_or_else(|| "unknown".to_owned());
            tracing::error!(
                nonce = one.nonce,
                transaction,
                times = lost.times,
                "signer key used elsewhere: a foreign transaction used a nonce, its payments are queued again"
            );
        }
        tracing::warn!(
            payments = lost.payments.len(),
            next_nonce = lost.next_nonce,
            "lane continues from the chain's nonce"
        );
        self.served.waiters.wake(lost.payments);
        self.served.wake_pickup();
        if let Some(why) = lost.stopped.filter(|_| !lease.stopped) {
            self.report_stopped(&why);
            return None;
        }
        Some(lost.next_nonce)
    }

    pub(super) fn report_stopped(&self, why: &str) {
        self.served.senders.note_stopped(self.id.signer, why);
        tracing::error!(
            why,
            "lane stopped: find the cause, then run `x402d signers resume` with the signer's address"
        );
    }
}

/// Identifies the nonces from `first` on that the chain has used and the ledger does not know. Fails when an endpoint fails for now. An
/// endpoint that keeps no old state gives [`UnknownNonces::Unidentified`], since it will not have that state later.
pub(super) async fn identify_nonces(
    served: &ServedNetwork,
    signer: Address,
    first: u64,
) -> Result<UnknownNonces, RpcError> {
    let chain = &served.rpc;
    let head = chain.newest().await?;
    let reached = chain.agreed_nonce(signer, "latest".to_owned()).await?;
    if reached <= first {
        let pending = chain.agreed_nonce(signer, "pending".to_owned()).await?;
        return Ok(if pending > first {
            UnknownNonces::InPool
        } else {
            UnknownNonces::Absent
        });
    }
    match identify_mined(served, signer, (first, reached), &head).await {
        Err(error) if error.lacks_state() => Ok(UnknownNonces::Unidentified { reached }),
        explained => explained,
    }
}

/// Identifies nonces that blocks have used.
async fn identify_mined(
    served: &ServedNetwork,
    signer: Address,
    (first, reached): (u64, u64),
    head: &Head,
) -> Result<UnknownNonces, RpcError> {
    let (chain, tokens) = (&served.rpc, served.policy.tokens());
    let mut nonces = Vec::new();
    if reached - first > IDENTIFIED_MAX {
        return Ok(UnknownNonces::Unidentified { reached });
    }
    for nonce in first..reached {
        let found = chain.find_transaction_by_nonce(signer, nonce, head.number);
        match found.await? {
            Some(found) if !found.is_settlement_like(&tokens) => nonces.push(ForeignNonce {
                nonce,
                transaction: Some(found.hash),
            }),
            Some(_) | None => return Ok(UnknownNonces::Unidentified { reached }),
        }
    }
    let agreed_height = confirmation_height(served, head);
    let then = chain
        .agreed_nonce(signer, format!("0x{agreed_height:x}"))
        .await?;
    Ok(if then >= reached {
        UnknownNonces::Foreign { nonces, reached }
    } else {
        UnknownNonces::Unconfirmed
    })
}

/// Logs that a lane waits for a pooled transaction that the ledger does not know.
pub(super) fn report_pooled_nonce(served: &ServedNetwork, signer: Address, nonce: u64) {
    let why = format!(
        "a transaction in the pool uses nonce {nonce} of this signer and is not in the ledger: the key was used elsewhere, or the database lost its last commits; nothing is sent until it is mined or dropped"
    );
    if served.senders.note_waiting(signer, Some(&why)) {
        tracing::warn!(nonce, "lane blocked: {why}");
    }
}

/// The newest height with the promised confirmations.
fn confirmation_height(served: &ServedNetwork, head: &Head) -> u64 {
    let confirmations = u64::from(served.policy.confirmations);
    let height = served.rpc.agreed_height(head.number);
    (height + 1).saturating_sub(confirmations)
}
