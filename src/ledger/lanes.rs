//! Lanes: who may use the next nonce of a signer.

use alloy::primitives::Address;
use time::OffsetDateTime;

use super::row::{address, bigint};
use super::{Ledger, LedgerError, ProcessId};
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
    /// How often transactions of the lane had been opened again.
    pub reopened: i64,
}

/// What came of renewing a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The lane is still ours, and as it was.
    Kept,
    /// It is ours, and transactions of it were opened again: so often by now.
    Reopened(i64),
    /// It is ours, and another process that serves the network should have it: it has fewer, or this one is blind.
    Surplus,
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
    /// Tries to become the owner of a lane: ours already, or free, or its owner's lease has run out. A process takes no more of the network's
    /// `lanes` than is fair among those that serve it, unless nobody else has taken one for a while.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim_lane(&self, lane: LaneKey, lanes: usize) -> Result<Claim, LedgerError> {
        let row = sqlx::query!(
            r#"with serving as (
                select greatest(count(*), 1) as processes from processes
                where lease_until > now() and (id = $3 or $1 = any(serves))
            ), owned as (
                select count(*) as lanes from lanes where network = $1 and owner = $3 and lease_until > now()
            ), claimed as (
                update lanes
                set owner = $3, epoch = epoch + 1, lease_until = now() + interval '10 seconds'
                where network = $1 and signer = $2 and (
                    owner = $3 or (owner is null or lease_until < now()) and (
                        (select o.lanes * s.processes < $4 from owned o, serving s)
                        or lease_until < now() - interval '4 seconds'
                    )
                )
                returning epoch, next_nonce, stopped_reason, reopened
            )
            select exists (select from lanes where network = $1 and signer = $2) as "known!",
                (select epoch from claimed), (select next_nonce from claimed), (select reopened from claimed),
                (select stopped_reason is not null from claimed) as stopped"#,
            lane.network.to_string(),
            lane.signer.as_slice(),
            self.process().0,
            i64::try_from(lanes).unwrap_or(i64::MAX),
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
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Stays the owner for another ten seconds, one of the network's `lanes`. `blind`: this process hears nothing of the chain.
    ///
    /// # Errors
    /// When the database fails.
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
                update lanes set lease_until = now() + interval '10 seconds'
                where network = $1 and signer = $2 and owner = $3 and epoch = $4 and (stopped_reason is not null) = $5
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

    /// Gives a lane up for another process to take at once.
    ///
    /// # Errors
    /// When the database fails; the lease then runs out by itself.
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

    /// Stops a lane until the operator clears `stopped_reason`: something that only a person can explain has happened. Nonces that the chain has
    /// used without the ledger knowing are not ours to use again: the lane moves on to `next_nonce` at least. `false`: it is not ours any more.
    ///
    /// # Errors
    /// When the database fails.
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
        // Its constraints let no other row in; one that cannot be read all the same is nobody's lane.
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
                open: u64::try_from(row.open).unwrap_or_default(),
                payments: u64::try_from(row.payments).unwrap_or_default(),
            })
        });
        Ok(views.collect())
    }

    /// Signers of a network that are none of `configured` and have transactions whose outcome is open, with their number.
    ///
    /// # Errors
    /// When the database fails.
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

    /// Signers of a network whose lanes wait for the operator, with the reason.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn stopped_lanes(
        &self,
        network: Network,
    ) -> Result<Vec<(Address, String)>, LedgerError> {
        let rows = sqlx::query!(
            r#"select signer, stopped_reason as "reason!" from lanes where network = $1 and stopped_reason is not null"#,
            network.to_string(),
        )
        .fetch_all(&self.pool)
        .await?;
        let stopped = rows.into_iter();
        let stopped = stopped.filter_map(|row| Some((address(&row.signer)?, row.reason)));
        Ok(stopped.collect())
    }
}
