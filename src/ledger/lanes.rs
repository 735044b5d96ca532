//! Lanes: who may use the next nonce of a signer.

use alloy::primitives::Address;

use super::row::bigint;
use super::{Ledger, LedgerError};
use crate::protocol::Network;

/// One signer on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Where.
    pub network: Network,
    /// Whose nonces.
    pub signer: Address,
}

/// A lane that this process owns until it fails to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneLease {
    /// Which ownership this is; part of every write of a nonce.
    pub epoch: i64,
    /// The first nonce without bytes.
    pub next_nonce: u64,
}

/// What came of trying to own a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Owned(LaneLease),
    /// Another process owns it, or it is stopped.
    Taken,
    /// The ledger has never seen it.
    Unknown,
}

impl Ledger {
    /// Tries to become the owner of a lane: free, ours already, or its owner's lease has run out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_lane(&self, lane: LaneKey) -> Result<Claim, LedgerError> {
        let row = sqlx::query!(
            r#"with claimed as (
                update lanes
                set owner = $3, epoch = epoch + 1, lease_until = now() + interval '10 seconds'
                where network = $1 and signer = $2 and (owner is null or owner = $3 or lease_until < now()) and stopped_reason is null
                returning epoch, next_nonce
            )
            select exists (select from lanes where network = $1 and signer = $2) as "known!",
                (select epoch from claimed), (select next_nonce from claimed)"#,
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(match (row.known, row.epoch, row.next_nonce) {
            (_, Some(epoch), Some(nonce)) => Claim::Owned(LaneLease {
                epoch,
                next_nonce: u64::try_from(nonce).unwrap_or_default(),
            }),
            (true, ..) => Claim::Taken,
            (false, ..) => Claim::Unknown,
        })
    }

    /// Enters a lane that the ledger does not know yet, free to be claimed; `first_nonce` is the chain's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_lane(&self, lane: LaneKey, first_nonce: u64) -> Result<(), LedgerError> {
        sqlx::query!(
            "insert into lanes (network, signer, next_nonce, epoch, lease_until) values ($1, $2, $3, 1, now())
            on conflict on constraint lanes_pkey do nothing",
            lane.network.to_string(),
            lane.signer.as_slice(),
            bigint(first_nonce),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Stays the owner for another ten seconds. `false`: somebody else is, or the lane was stopped.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_lane(&self, lane: LaneKey, epoch: i64) -> Result<bool, LedgerError> {
        let renewed = sqlx::query!(
            "update lanes set lease_until = now() + interval '10 seconds'
            where network = $1 and signer = $2 and owner = $3 and epoch = $4 and stopped_reason is null",
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            epoch,
        )
        .execute(&self.pool)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Stops a lane until the operator clears `stopped_reason`: something that only a person can explain has happened.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stop_lane(&self, lane: LaneKey, why: &str) -> Result<(), LedgerError> {
        sqlx::query!(
            "update lanes set stopped_reason = $3, owner = null, lease_until = now() where network = $1 and signer = $2",
            lane.network.to_string(),
            lane.signer.as_slice(),
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Lanes of a network that wait for the operator, with the reason.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stopped_lanes(&self, network: Network) -> Result<Vec<String>, LedgerError> {
        let reasons = sqlx::query_scalar!(
            r#"select stopped_reason as "reason!" from lanes where network = $1 and stopped_reason is not null"#,
            network.to_string(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(reasons)
    }
}
