//! Becoming the owner of a lane. What the chain knows of the signer's nonces is compared with the ledger before anything is written.

use std::collections::VecDeque;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::foreign::{Unexplained, explain};
use super::keep::Purse;
use super::{Lane, Owned};
use crate::ledger::{Claim, LaneLease, LedgerError};
use crate::settlement::chain_view::Moved;
use crate::settlement::prepare::NotPrepared;
use crate::settlement::site::OpenCount;

/// What came of trying to own a lane.
#[derive(Debug)]
pub(super) enum Claimed {
    /// It is ours.
    Ours(Box<Owned>),
    /// Another process owns it.
    Others,
    /// It is to be tried again: nothing is heard of the chain, or what was found has to be read anew.
    NotNow,
}

/// What the chain says of the nonces that the ledger does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nonces {
    /// There are none, or the operator was asked.
    Known,
    /// Some are in the pool, or not deep enough yet: nothing is written until that is decided.
    Held,
    /// They were given up, or the lane was stopped.
    Changed,
}

impl Lane {
    /// Becomes the owner, reads what is open and sends all of it again, in nonce order.
    pub(super) async fn claim(&self) -> Result<Claimed, NotPrepared> {
        if self.site.is_blind() {
            return Ok(Claimed::NotNow);
        }
        let ledger = &self.site.ledger;
        let lanes = self.shared_lanes();
        let mut claim = ledger.claim_lane(self.id, lanes).await?;
        if claim == Claim::Unknown {
            let Some(first) = self.first_nonce().await? else {
                return Ok(Claimed::NotNow);
            };
            ledger.open_lane(self.id, first).await?;
            claim = ledger.claim_lane(self.id, lanes).await?;
        }
        let Claim::Owned(lease) = claim else {
            return Ok(Claimed::Others);
        };
        match self.compare(lease).await {
            Ok(Nonces::Known) => self.begin(lease, None).await,
            Ok(Nonces::Held) => self.begin(lease, Some(Instant::now())).await,
            Ok(Nonces::Changed) => Ok(Claimed::NotNow),
            Err(error) => {
                // Somebody else may hear more of the chain.
                ledger.release_lane(self.id, lease).await?;
                Err(error)
            }
        }
    }

    /// Compares the ledger's next nonce with the chain.
    async fn compare(&self, lease: LaneLease) -> Result<Nonces, NotPrepared> {
        if lease.stopped || self.key.is_none() {
            return Ok(Nonces::Known);
        }
        let first = lease.next_nonce;
        if self.nonces_used(first).await? <= first {
            return Ok(Nonces::Known);
        }
        match explain(&self.site, self.id.signer, first).await? {
            Unexplained::Nothing | Unexplained::InPool | Unexplained::TooYoung => Ok(Nonces::Held),
            Unexplained::Foreign { nonces, reached } => {
                self.lose(lease, &nonces, reached).await;
                Ok(Nonces::Changed)
            }
            Unexplained::Unknown { reached } => {
                let why = format!(
                    "the chain has used nonce {} of this signer, the ledger knows none from {first} on: the key was used elsewhere, or the database lost its last commits",
                    reached.saturating_sub(1),
                );
                // Nonces that are gone are not used again once the operator has explained it; one that only waits in a pool may come back.
                self.stop(lease, reached, &why).await?;
                Ok(Nonces::Changed)
            }
        }
    }

    /// Begins with a lane that was claimed: reads what is open.
    async fn begin(
        &self,
        lease: LaneLease,
        held_since: Option<Instant>,
    ) -> Result<Claimed, NotPrepared> {
        let now = Instant::now();
        let mut owned = Owned {
            lease,
            open: VecDeque::new(),
            counted: OpenCount::of(&self.site),
            seen: Moved::default(),
            replies: JoinSet::new(),
            paused_until: now,
            waiting: Vec::new(),
            dispatches: JoinSet::new(),
            purse: Purse::default(),
            until: None,
            idle_looked: now,
            idle_looks: JoinSet::new(),
            held_since,
        };
        if held_since.is_none() {
            self.site.senders.note_waiting(self.id.signer, None);
        }
        self.reload(&mut owned).await?;
        Ok(Claimed::Ours(Box::new(owned)))
    }

    /// Stops the lane, if it is still ours.
    async fn stop(&self, lease: LaneLease, next_nonce: u64, why: &str) -> Result<(), LedgerError> {
        let ledger = &self.site.ledger;
        if ledger.stop_lane(self.id, lease, next_nonce, why).await? {
            self.say_stopped(why);
        }
        Ok(())
    }
}
