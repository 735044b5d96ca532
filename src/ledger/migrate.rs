//! The schema is brought up to date: each migration in a transaction of its own, under a lock that ends with it.
//!
//! Locks are waited for in short turns, so that the statements of running processes are not held up behind them for long.
//! Nothing here outlives its transaction, which is all that a pooler in transaction mode gives.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::migrate::{Migration, Migrator};
use tokio::time::{Instant, sleep};

use super::connections::{Connection, Connections, code};
use super::{Ledger, LedgerError};

static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a migration tries to get its locks.
const LOCK_LIMIT: Duration = Duration::from_mins(1);
/// Between two turns, so that others get theirs.
const PAUSE: Duration = Duration::from_millis(500);
/// How often somebody looks what a migration waits for.
const LOOK_INTERVAL: Duration = Duration::from_millis(700);
/// So often in a row the session of a migration must be missing before it is given up.
const MISSED_MAX: u32 = 5;
/// What Postgres says when a lock was not to be had in time.
const NO_LOCK: &str = "55P03";

impl Ledger {
    /// Brings the schema up to this version of the program. Takes no lock when there is nothing to do.
    ///
    /// # Errors
    /// When a migration fails, or a newer version of the program has made the schema; the database is then as it was before that migration.
    pub async fn migrate(&self) -> Result<(), LedgerError> {
        let connections = &self.pool;
        let applied = applied(connections).await;
        let applied = applied.map_err(|error| self.cannot_use(&error))?;
        check(&applied)?;
        let missing = MIGRATOR
            .iter()
            .filter(|migration| applied.iter().all(|row| row.version != migration.version));
        for migration in missing {
            let applied = apply_patiently((connections, &self.history), migration).await;
            if let Err(LedgerError::Driver(error)) = &applied
                && code(error).as_deref() == Some("42501")
            {
                return Err(self.cannot_use(error));
            }
            applied?;
        }
        Ok(())
    }
}

/// A migration that the database has had.
struct Applied {
    version: i64,
    success: bool,
    checksum: Vec<u8>,
}

// The table of migrations is made by the first one, so that statements about it cannot be checked against the schema beforehand.

async fn applied(connections: &Connections) -> Result<Vec<Applied>, sqlx::Error> {
    let begun: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(connections)
        .await?;
    if !begun {
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

/// Whether this program can go on from what the database has had.
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

/// The second connections are for looking at the first.
async fn apply_patiently(
    connections: (&Connections, &Connections),
    migration: &Migration,
) -> Result<(), LedgerError> {
    let deadline = Instant::now() + LOCK_LIMIT;
    let version = migration.version;
    loop {
        let holder = Mutex::new(None);
        match apply(connections, migration, &holder).await {
            Err(error) if code(&error).as_deref() == Some(NO_LOCK) => {
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
                    "migration waits for a lock that somebody else holds"
                );
                sleep(PAUSE).await;
            }
            ended => return Ok(ended?),
        }
    }
}

async fn apply(
    (connections, looking): (&Connections, &Connections),
    migration: &Migration,
    holder: &Mutex<Option<String>>,
) -> Result<(), sqlx::Error> {
    let mut transaction = connections.begin().await?;
    // An index over a large table may take longer than any other statement; a lock may not.
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
        lost = watch(looking, backend, holder) => Err(lost),
    }
}

/// `false`: another process has done it meanwhile.
async fn write(connection: &mut Connection, migration: &Migration) -> Result<bool, sqlx::Error> {
    // One process at a time; the number is only ours.
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
    let known: bool =
        sqlx::query_scalar("select exists (select from _sqlx_migrations where version = $1)")
            .bind(migration.version)
            .fetch_one(&mut *connection)
            .await?;
    if known {
        return Ok(false);
    }
    let begun = Instant::now();
    connection.run_unlimited(migration.sql.clone()).await?;
    sqlx::query(
        "insert into _sqlx_migrations (version, description, success, checksum, execution_time) values ($1, $2, true, $3, $4)",
    )
    .bind(migration.version)
    .bind(migration.description.as_ref())
    .bind(migration.checksum.as_ref())
    .bind(i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(true)
}

/// Keeps in mind who holds what a migration waits for. Ends when the server does not know its session any more.
async fn watch(
    connections: &Connections,
    backend: i32,
    holder: &Mutex<Option<String>>,
) -> sqlx::Error {
    let mut missed = 0;
    loop {
        sleep(LOOK_INTERVAL).await;
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
                missed = 0;
                if row.holder.is_some() {
                    *holder.lock().unwrap_or_else(PoisonError::into_inner) = row.holder;
                }
            }
            Ok(_) => missed += 1,
            Err(_) if missed < MISSED_MAX => missed += 1,
            Err(error) => return error,
        }
        if missed > MISSED_MAX {
            return sqlx::Error::WorkerCrashed;
        }
    }
}
