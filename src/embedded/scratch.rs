//! A database for the life of one local chain: the ledger of a chain that has ended is useless for the next one.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::timeout;
use url::Url;

use super::error::EmbeddedError;

/// The prefix of these databases, by which those of killed processes are found and dropped.
const PREFIX: &str = "x402d_local_";
/// Creating one copies a template and makes a checkpoint.
const LIMIT: Duration = Duration::from_mins(1);

/// A database beside the one of `x402d serve`, dropped by [`ScratchDatabase::remove`].
#[derive(Debug)]
pub struct ScratchDatabase {
    name: String,
    url: String,
    /// Kept open, so that no other process takes the database for an abandoned one.
    holder: PgConnection,
    server: PgConnection,
}

impl ScratchDatabase {
    /// Creates a database on the server of `url`, and drops those that earlier processes left behind.
    pub async fn create(url: &str) -> Result<Self, EmbeddedError> {
        match timeout(LIMIT, Self::try_create(url)).await {
            Ok(created) => created.map_err(EmbeddedError::Scratch),
            Err(_) => Err(EmbeddedError::Late {
                what: "creating a database".to_owned(),
                limit: LIMIT,
            }),
        }
    }

    async fn try_create(url: &str) -> Result<Self, sqlx::Error> {
        let mut server = PgConnection::connect(url).await?;
        let left: Vec<String> = sqlx::query_scalar(
            "select datname::text from pg_catalog.pg_database d where datname like $1
            -- Dropping one in use is refused, but only after five seconds.
            and not exists (select from pg_catalog.pg_stat_activity used where used.datid = d.oid)",
        )
        .bind(format!("{PREFIX}%"))
        .fetch_all(&mut server)
        .await?;
        for name in left {
            // A database that was just connected to cannot be dropped.
            let dropped = sqlx::raw_sql(AssertSqlSafe(format!("drop database \"{name}\"")))
                .execute(&mut server)
                .await;
            tracing::debug!(
                database = name,
                dropped = dropped.is_ok(),
                "dropping the database of an earlier local chain"
            );
        }
        let name = format!("{PREFIX}{}", uuid::Uuid::now_v7().simple());
        sqlx::raw_sql(AssertSqlSafe(format!("create database \"{name}\"")))
            .execute(&mut server)
            .await?;
        let mut beside =
            Url::parse(url).map_err(|error| sqlx::Error::Configuration(error.into()))?;
        beside.set_path(&name);
        let holder = PgConnection::connect(beside.as_str()).await?;
        Ok(Self {
            name,
            url: beside.into(),
            holder,
            server,
        })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Drops the database; its other connections are closed.
    pub async fn remove(mut self) {
        let statement = AssertSqlSafe(format!("drop database \"{}\" with (force)", self.name));
        let work = async {
            self.holder.close().await?;
            sqlx::raw_sql(statement).execute(&mut self.server).await?;
            self.server.close().await
        };
        if !matches!(timeout(LIMIT, work).await, Ok(Ok(()))) {
            tracing::warn!(
                database = self.name,
                "database of the local chain not dropped; the next start drops it"
            );
        }
    }
}
