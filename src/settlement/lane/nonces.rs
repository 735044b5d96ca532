//! Whether what the chain says about a signer's nonces is true, before anything is concluded from it.

use std::time::Duration;

use alloy::primitives::B256;
use uuid::Uuid;

use super::foreign::{POOL_SAID_AFTER, say_in_pool};
use super::{Lane, Owned};
use crate::chain::RpcError;

/// How often nonces must be used that the ledger does not know of, and how long apart, before that is believed.
const CONTRADICTIONS: usize = 3;
const BETWEEN_CONTRADICTIONS: Duration = Duration::from_secs(1);
/// How long a lane that is opened for the first time waits for a second endpoint to tell its nonce.
const ALONE_AFTER: Duration = Duration::from_secs(10);

impl Lane {
    /// The first nonce of the signer that no transaction has for sure, in a block or in a pool. What is beyond the `expected` one is looked at
    /// again before it is believed: nothing but a restart undoes what follows from it.
    pub(super) async fn nonces_used(&self, expected: u64) -> Result<u64, RpcError> {
        let (chain, signer) = (&self.site.rpc, self.id.signer);
        let mut least = u64::MAX;
        for look in 0..CONTRADICTIONS {
            if look > 0 {
                tokio::time::sleep(BETWEEN_CONTRADICTIONS).await;
            }
            let mined = chain.reached_nonce(signer, "latest".to_owned()).await;
            let pending = chain.reached_nonce(signer, "pending".to_owned()).await;
            match mined.and_then(|mined| Ok(mined.max(pending?))) {
                Ok(used) => least = least.min(used),
                // One endpoint alone contradicts nobody; a nonce that is used all the same is found by what is sent under it.
                Err(RpcError::Unconfirmed(_)) => return Ok(expected),
                Err(error) => return Err(error),
            }
            if least <= expected {
                break;
            }
        }
        Ok(least)
    }

    /// The nonce that a lane begins with. One of several endpoints is believed alone only when no other answers for a while. `None`: what is in
    /// the pool has to be mined or dropped first; above a nonce that is dropped nothing would ever be mined.
    pub(super) async fn first_nonce(&self) -> Result<Option<u64>, RpcError> {
        let (chain, signer) = (&self.site.rpc, self.id.signer);
        let mined = chain.reached_nonce(signer, "latest".to_owned()).await;
        let pending = chain.reached_nonce(signer, "pending".to_owned()).await;
        let both = mined.and_then(|mined| Ok((mined, pending?)));
        let (mined, pending) = match both {
            Err(RpcError::Unconfirmed(_)) if self.began.elapsed() >= ALONE_AFTER => {
                tracing::warn!(network = %self.id.network, %signer, "lane opened by the word of one endpoint: no other tells its nonce");
                let mined = chain.transaction_count(signer, "latest").await?;
                (mined, chain.transaction_count(signer, "pending").await?)
            }
            both => both?,
        };
        if pending > mined && self.began.elapsed() >= POOL_SAID_AFTER {
            say_in_pool(&self.site, signer, mined);
        }
        Ok((pending <= mined).then_some(mined))
    }

    /// Whether no attempt under a nonce can be mined any more, by the word of more than one endpoint. What cannot be asked is not so.
    pub(super) async fn is_lost(&self, owned: &Owned, nonce: u64, id: Uuid, height: u64) -> bool {
        let open = owned.open.iter().find(|open| open.transaction.id == id);
        let attempts = open.map_or(&[][..], |open| &open.transaction.attempts);
        let hashes: Vec<B256> = attempts.iter().map(|(hash, _)| *hash).collect();
        let chain = &self.site.rpc;
        let lost = chain.is_nonce_lost(self.id.signer, nonce, &hashes, height);
        matches!(lost.await, Ok(true))
    }
}
