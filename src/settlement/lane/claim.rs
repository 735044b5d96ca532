//! Claiming a lane. The signer's nonces on the chain are compared with the ledger before anything is written.

use std::collections::VecDeque;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::foreign::{UnknownNonces, identify_nonces};
use super::gas_balance::GasBalance;
use super::{Lane, OwnedLane};
use crate::ledger::{Claim, LaneLease, LedgerError};
use crate::settlement::batch::PrepareError;
use crate::settlement::chain_view::ChainTick;
use crate::settlement::served_network::OpenCount;

/// Result of an attempt to claim a lane.
#[derive(Debug)]
pub(super) enum ClaimOutcome {
    /// This process owns the lane now.
    Owned(Box<OwnedLane>),
    OtherProcess,
    /// To be tried again: the RPC does not answer, or the lane's row changed and has to be read again.
    Later,
}

/// How the chain's nonces compare with the ledger's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NonceCheck {
    /// The chain knows no nonce that the ledger does not, or the lane is stopped already.
    Matches,
    /// Some unknown nonces are in the pool or have too few confirmations: no new nonce is used until they are identified.
    Wait,
    /// Unknown nonces were recorded as foreign, or the lane was stopped.
    Changed,
}

impl Lane {
    /// Claims the lane, reads its open transactions and broadcasts them again in nonce order.
    pub(super) async fn claim(&self) -> Result<ClaimOutcome, PrepareError> {
        if self.served.is_disconnected() {
            return Ok(ClaimOutcome::Later);
        }
        let ledger = &self.served.ledger;
        let lanes = self.shared_lanes();
        let mut claim = ledger.claim_lane(self.id, lanes).await?;
        if claim == Claim::Unknown {
            let Some(first) = self.first_nonce().await? else {
                return Ok(ClaimOutcome::Later);
            };
            ledger.open_lane(self.id, first).await?;
            claim = ledger.claim_lane(self.id, lanes).await?;
        }
        let Claim::Owned(lease) = claim else {
            return Ok(ClaimOutcome::OtherProcess);
        };
        match self.compare_nonces(lease).await {
            Ok(NonceCheck::Matches) => self.begin(lease, None).await,
            Ok(NonceCheck::Wait) => self.begin(lease, Some(Instant::now())).await,
            Ok(NonceCheck::Changed) => Ok(ClaimOutcome::Later),
            Err(error) => {
                // Another process may have a working RPC.
                ledger.release_lane(self.id, lease).await?;
                Err(error)
            }
        }
    }

    /// Compares the ledger's next nonce with the chain.
    async fn compare_nonces(&self, lease: LaneLease) -> Result<NonceCheck, PrepareError> {
        if lease.stopped || self.key.is_none() {
            return Ok(NonceCheck::Matches);
        }
        let first = lease.next_nonce;
        if self.nonces_used(first).await? <= first {
            return Ok(NonceCheck::Matches);
        }
        match identify_nonces(&self.served, self.id.signer, first).await? {
            UnknownNonces::Absent | UnknownNonces::InPool | UnknownNonces::Unconfirmed => {
                Ok(NonceCheck::Wait)
            }
            UnknownNonces::Foreign { nonces, reached } => {
                self.record_foreign_use(lease, &nonces, reached).await;
                Ok(NonceCheck::Changed)
            }
            UnknownNonces::Unidentified { reached } => {
                let why = format!(
                    "the chain has used nonce {} of this signer, the ledger has none from {first} on: the key was used elsewhere, or the database lost its last commits",
                    reached.saturating_sub(1),
                );
                // The lane resumes behind nonces that blocks have used once the operator has cleared the stop. A nonce that is only in a
                // pool may become free again.
                self.stop(lease, reached, &why).await?;
                Ok(NonceCheck::Changed)
            }
        }
    }

    /// Starts to work a claimed lane: reads its open transactions.
    async fn begin(
        &self,
        lease: LaneLease,
        blocked_since: Option<Instant>,
    ) -> Result<ClaimOutcome, PrepareError> {
        let now = Instant::now();
        let mut owned = OwnedLane {
            lease,
            open: VecDeque::new(),
            open_count: OpenCount::of(&self.served),
            tick: ChainTick::default(),
            replies: JoinSet::new(),
            paused_until: now,
            waiting: Vec::new(),
            simulations: JoinSet::new(),
            gas_balance: GasBalance::default(),
            owned_until: None,
            nonces_checked_at: now,
            nonce_checks: JoinSet::new(),
            blocked_since,
        };
        if blocked_since.is_none() {
            self.served.senders.note_waiting(self.id.signer, None);
        }
        self.reload(&mut owned).await?;
        Ok(ClaimOutcome::Owned(Box::new(owned)))
    }

    /// Stops the lane, if this process still owns it.
    async fn stop(&self, lease: LaneLease, next_nonce: u64, why: &str) -> Result<(), LedgerError> {
        let ledger = &self.served.ledger;
        if ledger.stop_lane(self.id, lease, next_nonce, why).await? {
            self.report_stopped(why);
        }
        Ok(())
    }
}
