//! The condition of the ledger as a whole, for the operator: what waits, and the server that keeps it.

use std::time::Duration;

use time::OffsetDateTime;

use super::{Ledger, LedgerError};
use crate::protocol::Network;

/// The payments of a network that are not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    pub network: Network,
    pub queued: u64,
    /// How long the oldest queued payment has waited.
    pub oldest: Option<Duration>,
    pub inflight: u64,
    pub quarantined: u64,
}

/// A process whose lease runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningProcess {
    /// Version of the program.
    pub version: String,
    /// The networks that it reaches.
    pub serves: Vec<Network>,
}

/// The database server, as far as the safety of the ledger depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Such as `15.4`.
    pub version: String,
    /// Such as 150004.
    pub version_number: u32,
    /// It is a standby, or takes no writes for another reason.
    pub read_only: bool,
    /// Settings that are off although commits are safe only with them.
    pub unsafe_settings: Vec<&'static str>,
    pub max_connections: u32,
    /// The time of the server.
    pub now: OffsetDateTime,
    /// Whether a pooler in transaction mode is in front of it.
    pub pooled: bool,
}

impl Ledger {
    /// What waits on each network that has something waiting.
    pub async fn backlog(&self) -> Result<Vec<Backlog>, LedgerError> {
        let rows = sqlx::query!(
            r#"select network, count(*) filter (where state = 'queued') as "queued!",
                extract(epoch from now() - min(queued_at) filter (where state = 'queued'))::bigint as oldest,
                count(*) filter (where state = 'inflight') as "inflight!",
                count(*) filter (where quarantined_at is not null) as "quarantined!"
            from payments where state = 'queued' or state = 'inflight' or quarantined_at is not null
            group by network order by network"#,
        )
        .fetch_all(&self.history)
        .await?;
        let count = |number: i64| u64::try_from(number).unwrap_or_default();
        let networks = rows.into_iter().filter_map(|row| {
            Some(Backlog {
                network: row.network.parse().ok()?,
                queued: count(row.queued),
                oldest: row
                    .oldest
                    .map(|seconds| Duration::from_secs(count(seconds))),
                inflight: count(row.inflight),
                quarantined: count(row.quarantined),
            })
        });
        Ok(networks.collect())
    }

    /// The processes whose leases run.
    pub async fn running_processes(&self) -> Result<Vec<RunningProcess>, LedgerError> {
        let rows = sqlx::query!(
            "select version, serves from processes where lease_until > now() and ended_at is null"
        )
        .fetch_all(&self.leases)
        .await?;
        let processes = rows.into_iter().map(|row| RunningProcess {
            version: row.version,
            serves: row
                .serves
                .iter()
                .filter_map(|one| one.parse().ok())
                .collect(),
        });
        Ok(processes.collect())
    }

    /// The server's version and settings.
    pub async fn server_facts(&self) -> Result<ServerFacts, LedgerError> {
        let row = sqlx::query!(
            r#"select current_setting('server_version') as "version!", current_setting('server_version_num')::int as "number!",
                current_setting('transaction_read_only')::boolean as "read_only!", current_setting('fsync')::boolean as "fsync!",
                current_setting('full_page_writes')::boolean as "full_page_writes!",
                current_setting('synchronous_commit') as "synchronous_commit!",
                current_setting('max_connections')::int as "max_connections!", clock_timestamp() as "now!""#,
        )
        .fetch_one(&self.leases)
        .await?;
        let settings = [
            ("fsync", row.fsync),
            ("full_page_writes", row.full_page_writes),
            ("synchronous_commit", row.synchronous_commit != "off"),
        ];
        let unsafe_settings = settings.into_iter().filter(|(_, is_on)| !is_on);
        let unsafe_settings = unsafe_settings.map(|(name, _)| name);
        Ok(ServerFacts {
            version: row.version,
            version_number: u32::try_from(row.number).unwrap_or_default(),
            read_only: row.read_only,
            unsafe_settings: unsafe_settings.collect(),
            max_connections: u32::try_from(row.max_connections).unwrap_or_default(),
            now: row.now,
            pooled: self.leases.is_pooled(),
        })
    }
}

#[cfg(test)]
mod tests;
