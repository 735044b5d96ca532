//! Confirms what the chain says about a signer's nonces before the lane acts on it.

use std::time::Duration;

use alloy::primitives::B256;
use uuid::Uuid;

use super::foreign::{POOL_WARNING_AFTER, report_pooled_nonce};
use super::{Lane, OwnedLane};
use crate::chain::RpcError;

/// Number of readings, and time between them, before nonces unknown to the ledger are taken as used.
const CONTRADICTIONS: usize = 3;
const CONTRADICTION_INTERVAL: Duration = Duration::from_secs(1);
/// How long a lane that is opened for the first time waits for a second endpoint to confirm its nonce.
const SINGLE_ENDPOINT_AFTER: Duration = Duration::from_secs(10);

impl Lane {
    /// The first free nonce of the signer, counting blocks and pool. A value above `expected` is read several times, and the lowest counts:
    /// the lane acts on it and only a restart undoes that.
    pub(super) async fn nonces_used(&self, expected: u64) -> Result<u64, RpcError> {
        let (chain, signer) = (&self.served.rpc, self.id.signer);
        let mut least = u64::MAX;
        for look in 0..CONTRADICTIONS {
            if look > 0 {
                tokio::time::sleep(CONTRADICTION_INTERVAL).await;
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
        let (mined, pending) = match both {
            Err(RpcError::NoAgreement(_)) if self.started.elapsed() >= SINGLE_ENDPOINT_AFTER => {
                tracing::warn!(
                    "lane opened with the nonce of a single endpoint: no other endpoint answers"
                );
                let mined = chain.transaction_count(signer, "latest").await?;
                (mined, chain.transaction_count(signer, "pending").await?)
            }
            both => both?,
        };
        if pending > mined && self.started.elapsed() >= POOL_WARNING_AFTER {
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
