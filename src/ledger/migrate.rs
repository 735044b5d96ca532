//! Migrations of the schema: each in its own transaction, under an advisory lock that ends with it.
//!
//! Each attempt waits for locks for a short time only, so that statements of running processes do not queue behind it for long.
//! Nothing here outlives its transaction, because a pooler in transaction mode keeps no more than that.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};
use tokio::time::{Instant, sleep};

use super::connections::{Connection, Connections, code};
use super::{Ledger, LedgerError};

static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a migration tries to get its locks.
const LOCK_LIMIT: Duration = Duration::from_mins(1);
/// Pause between two attempts, in which other statements get their locks.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often it is read which session a migration waits for.
const WATCH_INTERVAL: Duration = Duration::from_millis(700);
/// A migration is given up when its session was not found more often than this in a row.
const MISSES_MAX: u32 = 5;
/// SQLSTATE `lock_not_available`: the lock timeout has passed.
const LOCK_NOT_AVAILABLE: &str = "55P03";

impl Ledger {
    /// Brings the schema up to this version of the program. Takes no lock when there is nothing to do. After an error the schema is as it
    /// was before the failed migration.
    pub async fn migrate(&self) -> Result<(), LedgerError> {
        let connections = &self.pool;
        let applied = applied(connections).await;
        let applied = applied.map_err(|error| self.cannot_use(&error))?;
        check(&applied)?;
        let missing = MIGRATOR
            .iter()
            .filter(|migration| applied.iter().all(|row| row.version != migration.version));
        for migration in missing {
            let applied = apply_with_retries((connections, &self.history), migration).await;
            if let Err(LedgerError::Driver(error)) = &applied
                && code(error).as_deref() == Some("42501")
            {
                return Err(self.cannot_use(error));
            }
            applied?;
        }
        Ok(())
    }

    /// The number of migrations that the database lacks. Fails when its schema is not one of this program.
    pub async fn missing_migrations(&self) -> Result<usize, LedgerError> {
        let applied = applied(&self.pool).await;
        let applied = applied.map_err(|error| self.cannot_use(&error))?;
        check(&applied)?;
        Ok(Self::migrations().saturating_sub(applied.len()))
    }

    /// The number of migrations of this program; a database that lacks them all has no ledger.
    pub fn migrations() -> usize {
        MIGRATOR.iter().count()
    }
}

/// A row of `_sqlx_migrations`.
struct Applied {
    version: i64,
    success: bool,
    checksum: Vec<u8>,
}

// The table `_sqlx_migrations` is not part of the checked schema, so statements about it are not checked at build time.

async fn applied(connections: &Connections) -> Result<Vec<Applied>, sqlx::Error> {
    let table_exists: bool =
        sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
            .fetch_one(connections)
            .await?;
    if !table_exists {
        return Ok(Vec::new());
    }
    let statement = "select version, success, checksum from _sqlx_migrations order by version";
    let rows: Vec<(i64, bool, Vec<u8>)> = sqlx::query_as(statement).fetch_all(connections).await?;
    let rows = rows
        .into_iter()
        .map(|(version, success, checksum)| Applied {
            version,
            success,
            checksum,
        });
    Ok(rows.collect())
}

/// Checks that the applied migrations are migrations of this program.
fn check(applied: &[Applied]) -> Result<(), LedgerError> {
    for row in applied {
        let version = row.version;
        let Some(ours) = MIGRATOR.iter().find(|ours| ours.version == version) else {
            return Err(LedgerError::NewerSchema { version });
        };
        if ours.checksum.as_ref() != row.checksum.as_slice() || !row.success {
            return Err(LedgerError::OtherSchema { version });
        }
    }
    Ok(())
}

/// Applies a migration; tries again until [`LOCK_LIMIT`] while it gets no lock. The second set of connections watches the session of the
/// first.
async fn apply_with_retries(
    connections: (&Connections, &Connections),
    migration: &Migration,
) -> Result<(), LedgerError> {
    let deadline = Instant::now() + LOCK_LIMIT;
    let version = migration.version;
    loop {
        let holder = Mutex::new(None);
        match apply(connections, migration, &holder).await {
            Err(error) if code(&error).as_deref() == Some(LOCK_NOT_AVAILABLE) => {
                let holder = holder.into_inner().unwrap_or_else(PoisonError::into_inner);
                let holder = holder.unwrap_or_else(|| "another session".to_owned());
                if Instant::now() >= deadline {
                    return Err(LedgerError::Locked {
                        version,
                        holder,
                        limit: LOCK_LIMIT,
                    });
                }
                tracing::warn!(
                    version,
                    holder,
                    "migration waits for a lock that another session holds"
                );
                sleep(RETRY_PAUSE).await;
            }
            ended => return Ok(ended?),
        }
    }
}

async fn apply(
    (connections, watching): (&Connections, &Connections),
    migration: &Migration,
    holder: &Mutex<Option<String>>,
) -> Result<(), sqlx::Error> {
    let mut transaction = connections.begin().await?;
    // Building an index over a large table may take long; waiting for a lock may not.
    let settings = "set local statement_timeout = 0; set local lock_timeout = '3s'; set local idle_in_transaction_session_timeout = '30s'";
    transaction.run(settings.to_owned()).await?;
    let backend: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *transaction)
        .await?;
    let work = async {
        if write(&mut transaction, migration).await? {
            transaction.commit().await
        } else {
            transaction.rollback().await
        }
    };
    tokio::select! {
        ended = work => ended,
        session_lost = watch(watching, backend, holder) => Err(session_lost),
    }
}

/// `false`: another process has applied it in the meantime.
async fn write(connection: &mut Connection, migration: &Migration) -> Result<bool, sqlx::Error> {
    // One process at a time. The number is x402d's own.
    let lock = "select pg_advisory_xact_lock(402402402)";
    connection.run(lock.to_owned()).await?;
    let table = "create table if not exists _sqlx_migrations (
        version bigint primary key,
        description text not null,
        installed_on timestamptz not null default now(),
        success boolean not null,
        checksum bytea not null,
        execution_time bigint not null
    )";
    connection.run(table.to_owned()).await?;
    let already_applied: bool =
        sqlx::query_scalar("select exists (select from _sqlx_migrations where version = $1)")
            .bind(migration.version)
            .fetch_one(&mut *connection)
            .await?;
    if already_applied {
        return Ok(false);
    }
    let started = Instant::now();
    connection.run_unlimited(migration.sql.clone()).await?;
    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values ($1, $2, true, $3, $4)",
    )
    .bind(migration.version)
    .bind(migration.description.as_ref())
    .bind(migration.checksum.as_ref())
    .bind(i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(true)
}

/// Reads again and again which session holds the lock that a migration waits for. Ends when the server has lost the migration's session.
async fn watch(
    connections: &Connections,
    backend: i32,
    holder: &Mutex<Option<String>>,
) -> sqlx::Error {
    let mut misses = 0;
    loop {
        sleep(WATCH_INTERVAL).await;
        let seen = sqlx::query!(
            r#"select exists (select from pg_stat_activity where pid = $1) as "lives!", (
                select string_agg(format('pid %s, user %s, application "%s", %s', pid, usename, application_name, state), '; ')
                from pg_stat_activity where pid = any(pg_blocking_pids($1))
            ) as holder"#,
            backend,
        )
        .fetch_one(connections)
        .await;
        match seen {
            Ok(row) if row.lives => {
                misses = 0;
                if row.holder.is_some() {
                    *holder.lock().unwrap_or_else(PoisonError::into_inner) = row.holder;
                }
            }
            Ok(_) => misses += 1,
            Err(_) if misses < MISSES_MAX => misses += 1,
            Err(error) => return error,
        }
        if misses > MISSES_MAX {
            return sqlx::Error::WorkerCrashed;
        }
    }
}

#[cfg(test)]
mod tests;
