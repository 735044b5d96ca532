//! Lanes: the process that owns a lane may use the next nonce of its signer.

use alloy::primitives::Address;
use time::OffsetDateTime;

use super::row::{address, bigint};
use super::{Ledger, LedgerError, Pause, ProcessId};
use crate::protocol::Network;

/// Why a paused lane takes no new payments.
const PAUSED: &str = "paused by the operator; `x402d signers resume` ends that";

/// One signer on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneKey {
    pub network: Network,
    pub signer: Address,
}

/// The lease of a lane that this process owns until it fails to renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneLease {
    /// Counts the lane's owners and pauses. Every write of a nonce is fenced by it.
    pub epoch: i64,
    /// The first nonce without a signed transaction.
    pub next_nonce: u64,
    /// The lane waits for the operator: no new transactions are written, open ones are followed.
    pub stopped: bool,
    /// How often a reorg had reopened transactions of the lane when the lease was taken.
    pub reopened: i64,
}

/// The result of renewing a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// This process still owns the lane, and it is unchanged.
    Kept,
    /// This process owns the lane, and a reorg has reopened transactions of it; the new value of the counter.
    Reopened(i64),
    /// This process owns the lane and should release it to another process that serves the network: that one owns fewer lanes, or this
    /// one gets no blocks.
    Surplus,
    /// Another process owns the lane, or it was stopped, paused or resumed.
    Changed,
}

/// A lane as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    pub lane: LaneKey,
    /// The first nonce without a signed transaction.
    pub next_nonce: u64,
    /// Counts the lane's owners and pauses.
    pub epoch: i64,
    /// The process that owns the lane while the lease runs.
    pub owner: Option<ProcessId>,
    pub lease_until: OffsetDateTime,
    /// Why the lane writes no new transactions.
    pub stopped_reason: Option<String>,
    /// The operator's pause, if there is one.
    pub pause: Option<Pause>,
    /// Number of transactions whose outcome is open.
    pub open: u64,
    /// Number of payments in these transactions.
    pub payments: u64,
}

/// The result of claiming a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// This process owns the lane.
    Owned(LaneLease),
    /// Another process owns it, or should.
    Taken,
    /// The ledger has no row for it.
    Unknown,
}

/// A signer that takes no new payments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoppedLane {
    pub signer: Address,
    pub reason: String,
    /// It still sends what is queued.
    pub is_draining: bool,
    /// By the operator, who may drain it too, and not by x402d.
    pub is_paused: bool,
}

impl Ledger {
    /// Claims a lane that this process owns already, or that is free, or whose owner's lease has run out. Of the network's `lanes` a
    /// process claims no more than its equal share among the processes that serve the network, unless a lane has been without an owner for
    /// a while.
    pub async fn claim_lane(&self, lane: LaneKey, lanes: usize) -> Result<Claim, LedgerError> {
        let row = sqlx::query!(
            r#"with serving as (
                select greatest(count(*), 1) as processes from processes
                where lease_until > now() and (id = $3 or $1 = any(serves))
            ), owned as (
                select count(*) as lanes from lanes where network = $1 and owner = $3 and lease_until > now()
            ), claimed as (
                update lanes
                set owner = $3, epoch = epoch + 1, lease_until = now() + make_interval(secs => $5)
                where network = $1 and signer = $2 and (
                    owner = $3 or (owner is null or lease_until < now()) and (
                        (select o.lanes * s.processes < $4 from owned o, serving s)
                        or lease_until < now() - make_interval(secs => $6)
                    )
                )
                returning epoch, next_nonce, reopened, (stopped_reason is not null or paused_at is not null and not draining) as stopped
            )
            select exists (select from lanes where network = $1 and signer = $2) as "known!",
                (select epoch from claimed), (select next_nonce from claimed), (select reopened from claimed),
                (select stopped from claimed)"#,
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            i64::try_from(lanes).unwrap_or(i64::MAX),
            self.timing.lane_lease.as_secs_f64(),
            self.timing.lane_unowned.as_secs_f64(),
        )
        .fetch_one(&self.leases)
        .await?;
        Ok(match (row.known, row.epoch, row.next_nonce) {
            (_, Some(epoch), Some(nonce)) => Claim::Owned(LaneLease {
                epoch,
                next_nonce: u64::try_from(nonce).unwrap_or_default(),
                stopped: row.stopped.unwrap_or_default(),
                reopened: row.reopened.unwrap_or_default(),
            }),
            (true, ..) => Claim::Taken,
            (false, ..) => Claim::Unknown,
        })
    }

    /// Inserts a lane that the ledger has no row for, without an owner. `first_nonce` is the signer's nonce on chain.
    pub async fn open_lane(&self, lane: LaneKey, first_nonce: u64) -> Result<(), LedgerError> {
        sqlx::query!(
            "insert into lanes (network, signer, next_nonce, epoch, lease_until) values ($1, $2, $3, 1, now())
            on conflict on constraint lanes_pkey do nothing",
            lane.network.to_string(),
            lane.signer.as_slice(),
            bigint(first_nonce),
        )
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Renews the lease. `lanes`: number of lanes of the network. `blind`: this process gets no blocks of the chain.
    pub async fn renew_lane(
        &self,
        lane: LaneKey,
        lease: LaneLease,
        (lanes, blind): (usize, bool),
    ) -> Result<Renewal, LedgerError> {
        let renewed = sqlx::query!(
            r#"with serving as (
                select greatest(count(*), 1) as processes from processes
                where lease_until > now() and (id = $3 or $1 = any(serves))
            ), before as (
                select count(*) as lanes from lanes where network = $1 and owner = $3 and lease_until > now() and signer < $2
            ), renewed as (
                update lanes set lease_until = now() + make_interval(secs => $8)
                where network = $1 and signer = $2 and owner = $3 and epoch = $4
                    and (stopped_reason is not null or paused_at is not null and not draining) = $5
                returning reopened
            )
            select reopened, (
                select b.lanes * s.processes >= $6 or $7 and s.processes > 1 from before b, serving s
            ) as "surplus!"
            from renewed"#,
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            lease.epoch,
            lease.stopped,
            i64::try_from(lanes).unwrap_or(i64::MAX),
            blind,
            self.timing.lane_lease.as_secs_f64(),
        )
        .fetch_optional(&self.leases)
        .await?;
        Ok(match renewed {
            None => Renewal::Changed,
            Some(row) if row.surplus => Renewal::Surplus,
            Some(row) if row.reopened != lease.reopened => Renewal::Reopened(row.reopened),
            Some(_) => Renewal::Kept,
        })
    }

    /// Releases a lane, so that another process can claim it at once. On an error the lease runs out by itself.
    pub async fn release_lane(&self, lane: LaneKey, lease: LaneLease) -> Result<(), LedgerError> {
        sqlx::query!(
            "update lanes set owner = null, lease_until = now()
            where network = $1 and signer = $2 and owner = $3 and epoch = $4",
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            lease.epoch,
        )
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Stops a lane until the operator resumes it, because of something that only a person can explain. Nonces that the chain
    /// has used without the ledger cannot be used again: the lane continues at `next_nonce` or above. `false`: this process does not own
    /// the lane any more.
    pub async fn stop_lane(
        &self,
        lane: LaneKey,
        lease: LaneLease,
        next_nonce: u64,
        why: &str,
    ) -> Result<bool, LedgerError> {
        let stopped = sqlx::query!(
            "update lanes set stopped_reason = $5, next_nonce = greatest(next_nonce, $6)
            where network = $1 and signer = $2 and owner = $3 and epoch = $4",
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            lease.epoch,
            why,
            bigint(next_nonce),
        )
        .execute(&self.leases)
        .await?;
        Ok(stopped.rows_affected() == 1)
    }

    /// Whether an account is, or was at any time, one of our signers on a network.
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

    /// All lanes of the ledger, also those of signers that are not configured any more.
    pub async fn lanes(&self) -> Result<Vec<LaneView>, LedgerError> {
        let rows = sqlx::query!(
            r#"select l.network, l.signer, l.next_nonce, l.epoch, l.owner, l.lease_until, l.stopped_reason, l.paused_at, l.draining,
                (select count(*) from transactions t where t.network = l.network and t.signer = l.signer and t.state = 'signed') as "open!",
                (select count(*) from transactions t join transaction_payments tp on tp.transaction_id = t.id
                    where t.network = l.network and t.signer = l.signer and t.state = 'signed') as "payments!"
            from lanes l order by l.network, l.signer"#,
        )
        .fetch_all(&self.pool)
        .await?;
        // The table's constraints admit readable rows only. A row that cannot be read all the same is left out.
        let views = rows.into_iter().filter_map(|row| {
            Some(LaneView {
                lane: LaneKey {
                    network: row.network.parse().ok()?,
                    signer: address(&row.signer)?,
                },
                next_nonce: u64::try_from(row.next_nonce).ok()?,
                epoch: row.epoch,
                owner: row.owner.map(ProcessId),
                lease_until: row.lease_until,
                stopped_reason: row.stopped_reason.clone(),
                pause: row.paused_at.map(|at| Pause {
                    at,
                    draining: row.draining,
                }),
                open: u64::try_from(row.open).unwrap_or_default(),
                payments: u64::try_from(row.payments).unwrap_or_default(),
            })
        });
        Ok(views.collect())
    }

    /// Signers of a network that are not in `configured` and have open transactions, with the number of these.
    pub async fn unconfigured(
        &self,
        network: Network,
        configured: &[Address],
    ) -> Result<Vec<(Address, i64)>, LedgerError> {
        let configured: Vec<Vec<u8>> = configured.iter().map(|one| one.to_vec()).collect();
        let rows = sqlx::query!(
            r#"select signer, count(*) as "transactions!" from transactions
            where network = $1 and state = 'signed' and signer <> all($2) group by signer"#,
            network.to_string(),
            &configured,
        )
        .fetch_all(&self.pool)
        .await?;
        let found = rows.into_iter();
        let found = found.filter_map(|row| Some((address(&row.signer)?, row.transactions)));
        Ok(found.collect())
    }

    /// Signers of a network that take no new payments until the operator resumes them.
    pub async fn stopped_lanes(&self, network: Network) -> Result<Vec<StoppedLane>, LedgerError> {
        let rows = sqlx::query!(
            r#"select signer, coalesce(stopped_reason, $2) as "reason!", draining and stopped_reason is null as "is_draining!",
                stopped_reason is null as "is_paused!"
            from lanes
            where network = $1 and (stopped_reason is not null or paused_at is not null)"#,
            network.to_string(),
            PAUSED,
        )
        .fetch_all(&self.pool)
        .await?;
        let stopped = rows.into_iter();
        let stopped = stopped.filter_map(|row| {
            Some(StoppedLane {
                signer: address(&row.signer)?,
                reason: row.reason,
                is_draining: row.is_draining,
                is_paused: row.is_paused,
            })
        });
        Ok(stopped.collect())
    }
}

#[cfg(test)]
mod tests;
