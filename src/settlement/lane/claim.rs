//! Claiming a lane. The signer's nonces on the chain are compared with the ledger before anything is written.

use std::collections::VecDeque;

use alloy::primitives::B256;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::batch::PrepareError;
use super::foreign::{UnknownNonces, identify_nonces, report_pooled_nonce};
use super::gas_balance::GasBalance;
use super::{Lane, OwnedLane};
use crate::chain::RpcError;
use crate::ledger::{Claim, LaneLease, LedgerError};
use crate::settlement::ChainTick;
use crate::settlement::served_network::OpenCount;

/// Number of readings before nonces unknown to the ledger are taken as used.
const CONTRADICTIONS: usize = 3;

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

impl Lane {
    /// The first free nonce of the signer, counting blocks and pool. A value above `expected` is read several times, and the lowest counts:
    /// the lane acts on it and only a restart undoes that.
    pub(super) async fn nonces_used(&self, expected: u64) -> Result<u64, RpcError> {
        let (chain, signer) = (&self.served.rpc, self.id.signer);
        let mut least = u64::MAX;
        for look in 0..CONTRADICTIONS {
            if look > 0 {
                tokio::time::sleep(self.served.timing.unknown_nonce_interval).await;
            }
            let mined = chain.agreed_nonce(signer, "latest".to_owned()).await;
            let pending = chain.agreed_nonce(signer, "pending".to_owned()).await;
            match mined.and_then(|mined| Ok(mined.max(pending?))) {
                Ok(used) => least = least.min(used),
                // A single endpoint is not enough evidence. If the nonce is used after all, the transaction sent under it shows that.
                Err(RpcError::NoAgreement(_)) => return Ok(expected),
                Err(error) => return Err(error),
            }
            if least <= expected {
                break;
            }
        }
        Ok(least)
    }

    /// The nonce that a new lane starts with. One of several endpoints is used alone only when no other answers for a while. `None`: the
    /// pool has transactions of this signer that have to be mined or dropped first. Above a nonce that was dropped no transaction would be
    /// mined.
    pub(super) async fn first_nonce(&self) -> Result<Option<u64>, RpcError> {
        let (chain, signer) = (&self.served.rpc, self.id.signer);
        let mined = chain.agreed_nonce(signer, "latest".to_owned()).await;
        let pending = chain.agreed_nonce(signer, "pending".to_owned()).await;
        let both = mined.and_then(|mined| Ok((mined, pending?)));
        let timing = &self.served.timing;
        let (mined, pending) = match both {
            Err(RpcError::NoAgreement(_))
                if self.started.elapsed() >= timing.single_endpoint_after =>
            {
                tracing::warn!(
                    "lane opened with the nonce of a single endpoint: no other endpoint answers"
                );
                let mined = chain.transaction_count(signer, "latest").await?;
                (mined, chain.transaction_count(signer, "pending").await?)
            }
            both => both?,
        };
        if pending > mined && self.started.elapsed() >= timing.pool_warning_after {
            report_pooled_nonce(&self.served, signer, mined);
        }
        Ok((pending <= mined).then_some(mined))
    }

    /// Whether no attempt under a nonce can be mined any more, as more than one endpoint says. `false` when this cannot be determined.
    pub(super) async fn is_lost(
        &self,
        owned: &OwnedLane,
        nonce: u64,
        id: Uuid,
        height: u64,
    ) -> bool {
        let open = owned.open.iter().find(|open| open.transaction.id == id);
        let attempts = open.map_or(&[][..], |open| &open.transaction.attempts);
        let hashes: Vec<B256> = attempts.iter().map(|(hash, _)| *hash).collect();
        let chain = &self.served.rpc;
        let lost = chain.is_nonce_lost(self.id.signer, nonce, &hashes, height);
        matches!(lost.await, Ok(true))
    }
}
