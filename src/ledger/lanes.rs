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

impl Ledger {
    /// Tries to become the owner of a lane: free, ours already, or its owner's lease has run out. `first_nonce` counts only when the lane is new
    /// to the ledger.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_lane(
        &self,
        lane: LaneKey,
        first_nonce: u64,
    ) -> Result<Option<LaneLease>, LedgerError> {
        let row = sqlx::query!(
            "insert into lanes (network, signer, next_nonce, epoch, owner, lease_until)
            values ($1, $2, $3, 1, $4, now() + interval '10 seconds')
            on conflict on constraint lanes_pkey do update
            set owner = excluded.owner, epoch = lanes.epoch + 1, lease_until = excluded.lease_until
            where (lanes.owner is null or lanes.owner = excluded.owner or lanes.lease_until < now()) and lanes.stopped_reason is null
            returning epoch, next_nonce",
            lane.network.to_string(),
            lane.signer.as_slice(),
            bigint(first_nonce),
            self.process().0,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| LaneLease {
            epoch: row.epoch,
            next_nonce: u64::try_from(row.next_nonce).unwrap_or_default(),
        }))
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
