//! Lanes: who may use the next nonce of a signer.

use alloy::primitives::Address;
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::{address, bigint};
use super::{Ledger, LedgerError, ProcessId};
use crate::payment::PaymentId;
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
    /// The operator has to look: nothing new may be written, what was sent is followed.
    pub stopped: bool,
}

/// What came of renewing a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lane is still ours, and as it was.
    Kept,
    /// It is another process's, or the operator has stopped it or let it go on.
    Changed,
}

/// A lane as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Which.
    pub lane: LaneKey,
    /// The first nonce without bytes.
    pub next_nonce: u64,
    /// Counts owners.
    pub epoch: i64,
    /// Who writes its nonces, while the lease runs.
    pub owner: Option<ProcessId>,
    /// Until when.
    pub lease_until: OffsetDateTime,
    /// Why it writes nothing new.
    pub stopped_reason: Option<String>,
    /// Transactions whose outcome is open.
    pub open: u64,
    /// Payments that ride in them.
    pub payments: u64,
}

/// What came of trying to own a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Owned(LaneLease),
    /// Another process owns it.
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
                where network = $1 and signer = $2 and (owner is null or owner = $3 or lease_until < now())
                returning epoch, next_nonce, stopped_reason
            )
            select exists (select from lanes where network = $1 and signer = $2) as "known!",
                (select epoch from claimed), (select next_nonce from claimed),
                (select stopped_reason is not null from claimed) as stopped"#,
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
                stopped: row.stopped.unwrap_or_default(),
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

    /// Stays the owner for another ten seconds.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_lane(
        &self,
        lane: LaneKey,
        lease: LaneLease,
    ) -> Result<Renewal, LedgerError> {
        let renewed = sqlx::query!(
            "update lanes set lease_until = now() + interval '10 seconds'
            where network = $1 and signer = $2 and owner = $3 and epoch = $4 and (stopped_reason is not null) = $5",
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            lease.epoch,
            lease.stopped,
        )
        .execute(&self.pool)
        .await?;
        Ok(if renewed.rows_affected() == 1 {
            Renewal::Kept
        } else {
            Renewal::Changed
        })
    }

    /// Stops a lane until the operator clears `stopped_reason`: something that only a person can explain has happened.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stop_lane(&self, lane: LaneKey, why: &str) -> Result<(), LedgerError> {
        sqlx::query!(
            "update lanes set stopped_reason = $3 where network = $1 and signer = $2",
            lane.network.to_string(),
            lane.signer.as_slice(),
            why,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Whether an account is, or ever was, one of our signers on a network.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn is_signer(&self, lane: LaneKey) -> Result<bool, LedgerError> {
        let known = sqlx::query_scalar!(
            r#"select exists (select from lanes where network = $1 and signer = $2) as "known!""#,
            lane.network.to_string(),
            lane.signer.as_slice(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(known)
    }

    /// Moves a lane past nonces that the chain has used without the ledger knowing: they are not ours to use again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn skip_nonces(&self, lane: LaneKey, next: u64) -> Result<(), LedgerError> {
        sqlx::query!(
            "update lanes set next_nonce = greatest(next_nonce, $3) where network = $1 and signer = $2",
            lane.network.to_string(),
            lane.signer.as_slice(),
            bigint(next),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives up a nonce that a transaction of somebody else has used for good: what rode in it is queued again.
    ///
    /// # Errors
    /// When the database fails; nothing is given up then.
    pub async fn lose_nonce(&self, transaction: Uuid) -> Result<Vec<PaymentId>, LedgerError> {
        let mut losing = self.pool.begin().await?;
        let lost = sqlx::query!(
            "update transactions set state = 'lost' where id = $1 and state = 'signed'",
            transaction,
        )
        .execute(&mut *losing)
        .await?;
        if lost.rows_affected() == 0 {
            return Ok(Vec::new());
        }
        let rode = sqlx::query_scalar!(
            "update transaction_payments set outcome = 'without_effect' where transaction_id = $1 and outcome is null returning payment_id",
            transaction,
        )
        .fetch_all(&mut *losing)
        .await?;
        let queued = sqlx::query_scalar!(
            "update payments set state = 'queued', transaction_hash = null, queued_at = now()
            where id = any($1) and state = 'inflight' returning id",
            &rode,
        )
        .fetch_all(&mut *losing)
        .await?;
        losing.commit().await?;
        Ok(queued.into_iter().map(PaymentId).collect())
    }

    /// All lanes that the ledger has ever seen.
    ///
    /// # Errors
    /// When the database fails or a row cannot be read.
    pub async fn lanes(&self) -> Result<Vec<LaneView>, LedgerError> {
        let rows = sqlx::query!(
            r#"select l.network, l.signer, l.next_nonce, l.epoch, l.owner, l.lease_until, l.stopped_reason,
                (select count(*) from transactions t where t.network = l.network and t.signer = l.signer and t.state = 'signed') as "open!",
                (select count(*) from transactions t join transaction_payments tp on tp.transaction_id = t.id
                    where t.network = l.network and t.signer = l.signer and t.state = 'signed') as "payments!"
            from lanes l order by l.network, l.signer"#,
        )
        .fetch_all(&self.pool)
        .await?;
        let views = rows.into_iter().map(|row| {
            let bad = |column| LedgerError::Inconsistent {
                table: "lanes",
                column,
                id: row.network.clone(),
            };
            Ok(LaneView {
                lane: LaneKey {
                    network: row.network.parse().map_err(|_| bad("network"))?,
                    signer: address(&row.signer).ok_or_else(|| bad("signer"))?,
                },
                next_nonce: u64::try_from(row.next_nonce).map_err(|_| bad("next_nonce"))?,
                epoch: row.epoch,
                owner: row.owner.map(ProcessId),
                lease_until: row.lease_until,
                stopped_reason: row.stopped_reason.clone(),
                open: u64::try_from(row.open).unwrap_or_default(),
                payments: u64::try_from(row.payments).unwrap_or_default(),
            })
        });
        views.collect()
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
