//! Suspensions of payers whose payments were mined in vain by their own doing, and of the code of such wallets.

use alloy::primitives::{Address, B256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::connections::Connections;
use super::row::{address, hash};
use super::{Ledger, LedgerError};
use crate::protocol::Network;

/// Suspensions that a process keeps in memory: those that last longest.
const KNOWN_MAX: i64 = 20_000;

/// Who has wasted gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wasteful {
    Payer(Address),
    /// Keccak-256 of the code of the payer's account.
    Code(B256),
}

impl Wasteful {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Payer(_) => "payer",
            Self::Code(_) => "code",
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Payer(address) => address.as_slice(),
            Self::Code(hash) => hash.as_slice(),
        }
    }
}

/// No payment of this payer, or of wallets with this code, is sent before a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspension {
    pub of: Wasteful,
    pub until: OffsetDateTime,
}

/// Counts a failure against each of them: a minute for a payer's first, twice the last time for each further one, a day at most. Payments in
/// transactions written before the last failure was counted were under way already, and count with it. A code is suspended for
/// two minutes at most, because honest wallets may share it. Returns the suspensions that hold now.
async fn suspend(
    connections: &Connections,
    network: Network,
    transaction: Uuid,
    wasteful: &[Wasteful],
) -> Result<Vec<Suspension>, LedgerError> {
    let kinds: Vec<String> = wasteful.iter().map(|one| one.kind().to_owned()).collect();
    let subjects: Vec<&[u8]> = wasteful.iter().map(Wasteful::bytes).collect();
    sqlx::query!(
        "with failed as (
            select one.kind, one.subject, written.created_at, known.counted_at,
                case when known.suspended_until > now() - interval '1 day' then known.failures + 1 else 1 end as failures
            from unnest($2::text[], $3::bytea[]) as one (kind, subject)
            cross join (select created_at from transactions where id = $4) written
            left join suspensions known on known.network = $1 and known.kind = one.kind and known.subject = one.subject
        )
        insert into suspensions as s (network, kind, subject, failures, counted_at, suspended_until)
        select $1, kind, subject, failures, now(), now() + case kind
            -- Honest wallets share code, and anybody can have it counted: it is never suspended for long.
            when 'code' then least(interval '15 seconds' * power(2, least(failures - 1, 20)), interval '2 minutes')
            else least(interval '1 minute' * power(2, least(failures - 1, 20)), interval '1 day') end
        from failed where counted_at is null or created_at > counted_at order by kind, subject
        on conflict on constraint suspensions_pkey do update
            set failures = excluded.failures, counted_at = excluded.counted_at, suspended_until = excluded.suspended_until
            where excluded.failures > s.failures or s.suspended_until < now()",
        network.to_string(),
        &kinds,
        &subjects as _,
        transaction,
    )
    .execute(connections)
    .await?;
    let rows = sqlx::query!(
        "select s.kind, s.subject, s.suspended_until from unnest($2::text[], $3::bytea[]) as one (kind, subject)
        join suspensions s on s.network = $1 and s.kind = one.kind and s.subject = one.subject
        where s.suspended_until > now()",
        network.to_string(),
        &kinds,
        &subjects as _,
    )
    .fetch_all(connections)
    .await?;
    let found = rows
        .iter()
        .filter_map(|row| suspension(&row.kind, &row.subject, row.suspended_until));
    Ok(found.collect())
}

fn suspension(kind: &str, subject: &[u8], until: OffsetDateTime) -> Option<Suspension> {
    let of = match kind {
        "payer" => Wasteful::Payer(address(subject)?),
        _ => Wasteful::Code(hash(subject)?),
    };
    Some(Suspension { of, until })
}

impl Ledger {
    /// Counts that payments of `transaction` were mined in vain by the doing of these. Repeating it changes nothing. Returns the suspensions
    /// of them that hold now.
    pub async fn suspend(
        &self,
        network: Network,
        transaction: Uuid,
        wasteful: &[Wasteful],
    ) -> Result<Vec<Suspension>, LedgerError> {
        if wasteful.is_empty() {
            return Ok(Vec::new());
        }
        suspend(&self.engine, network, transaction, wasteful).await
    }

    /// The suspensions of a network that hold now.
    pub async fn suspensions(&self, network: Network) -> Result<Vec<Suspension>, LedgerError> {
        let rows = sqlx::query!(
            "select kind, subject, suspended_until from suspensions
            where network = $1 and suspended_until > now() order by suspended_until desc limit $2",
            network.to_string(),
            KNOWN_MAX,
        )
        .fetch_all(&self.engine)
        .await?;
        let found = rows
            .iter()
            .filter_map(|row| suspension(&row.kind, &row.subject, row.suspended_until));
        Ok(found.collect())
    }

    /// Whether this payer has paid in this token before.
    pub async fn has_paid(
        &self,
        network: Network,
        asset: Address,
        payer: Address,
    ) -> Result<bool, LedgerError> {
        let paid = sqlx::query_scalar!(
            r#"select exists (
                select from payer_accounts where network = $1 and asset = $2 and payer = $3 and settled_block > 0
            ) as "paid!""#,
            network.to_string(),
            asset.as_slice(),
            payer.as_slice(),
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(paid)
    }
}

#[cfg(test)]
mod tests;
