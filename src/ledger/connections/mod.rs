//! Connections to Postgres with limits on this side.
//!
//! The server's `statement_timeout` does not help when the server or the network is silent. So every wait has a limit here too: for a
//! connection, for the result of a statement, and for a ping before a connection is used again.
//!
//! When a connection does not answer in time, it and all connections made before that moment are closed and not used again. The same
//! happens when the server takes no writes any more, because a failover made it a standby.

mod connection;
mod errors;
mod pooler;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection as _, PgConnection, Row as _};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use crate::telemetry::metrics::{Limit, reached};

pub(super) use connection::{Connection, Transaction};
pub(super) use errors::{code, database_of, explain, is_read_only, options_of};

/// How long an idle connection may take to answer before it is used again.
const PING_LIMIT: Duration = Duration::from_secs(2);
/// How long an orderly close of a connection may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// An older connection is replaced, so that a new address of the server is found.
const AGE_MAX: Duration = Duration::from_mins(30);
/// A connection that was idle for this long is closed.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// Pauses between attempts to connect: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// Limits and settings of a set of connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Waiting for a connection, including connecting.
    pub(super) acquire: Duration,
    /// Waiting for the result of a statement; a little more than the server's own limit.
    pub(super) statement: Duration,
    /// Session settings as names and values. They are not sent as startup parameters, because poolers refuse those.
    pub(super) settings: &'static [(&'static str, &'static str)],
}

/// The server behind several sets of connections.
#[derive(Debug)]
pub(super) struct Server {
    options: PgConnectOptions,
    name: String,
    /// Connections of an earlier generation are not used again.
    generation: AtomicU64,
    /// A pooler in transaction mode may give each transaction another session: settings are sent with each transaction, and no statement is
    /// kept prepared.
    pooled: AtomicBool,
    /// Why the latest attempt to connect failed.
    last_error: Mutex<Option<String>>,
    tasks: TaskTracker,
}

/// A set of connections. Cheap to clone; a statement can be run on it as on a connection.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    server: Arc<Server>,
    limits: Limits,
    most: usize,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<VecDeque<OpenConnection>>>,
}

#[derive(Debug)]
struct OpenConnection {
    raw: PgConnection,
    generation: u64,
    connected_at: Instant,
    idle_since: Instant,
}

impl Server {
    /// Connects to the server, and finds out whether a pooler in transaction mode is in front of it.
    pub(super) async fn find(
        options: PgConnectOptions,
        limit: Duration,
    ) -> Result<Arc<Self>, sqlx::Error> {
        let server = Self {
            name: errors::name_of(&options),
            options,
            generation: AtomicU64::new(0),
            pooled: AtomicBool::new(false),
            last_error: Mutex::new(None),
            tasks: TaskTracker::new(),
        };
        let deadline = Instant::now() + limit;
        let mut first = server.connect_until(deadline, None).await?;
        let second = server
            .connect_until(Instant::now() + PING_LIMIT, None)
            .await;
        // Without a second connection it cannot be detected here; the first lost prepared statement shows it then.
        let pooled = match second {
            Ok(mut second) => {
                let pooled = pooler::shares_sessions(&mut first, &mut second).await;
                server.close_in_background(second);
                pooled
            }
            Err(_) => false,
        };
        server.close_in_background(first);
        if pooled {
            tracing::info!(
                database = server.name,
                "database is behind a pooler in transaction mode: settings are sent with each transaction, statements are not kept prepared"
            );
        }
        server.pooled.store(pooled, Ordering::Relaxed);
        Ok(Arc::new(server))
    }

    /// Host and port, or the path of the socket.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn is_pooled(&self) -> bool {
        self.pooled.load(Ordering::Relaxed)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Replaces all connections of `generation` and before.
    fn retire_generation(&self, generation: u64, why: &str) {
        let next = generation.saturating_add(1);
        let exchanged =
            self.generation
                .compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire);
        if exchanged.is_ok() {
            tracing::warn!(database = self.name, why, "database connections replaced");
        }
    }

    /// Records that a prepared statement is missing on its connection: a pooler shares sessions.
    fn record_pooler(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                database = self.name,
                "prepared statement lost: the database seems to be behind a pooler in transaction mode; statements are not kept prepared from now on"
            );
            // Their cached statement names may belong to other sessions now.
            self.retire_generation(self.generation(), "they have prepared statements");
        }
    }

    fn last_error(&self) -> MutexGuard<'_, Option<String>> {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects; tries again until the deadline while the error is transient: a restart, a failover, too many connections.
    async fn connect_until(
        &self,
        deadline: Instant,
        limits: Option<Limits>,
    ) -> Result<PgConnection, sqlx::Error> {
        let (mut pause, longest) = PAUSES;
        loop {
            let attempt = timeout_at(deadline, self.connect(limits)).await;
            let error = match attempt {
                Ok(Ok(raw)) => {
                    self.last_error().take();
                    return Ok(raw);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let earlier = self.last_error().clone();
                    let why = earlier.unwrap_or_else(|| "it does not answer".to_owned());
                    return Err(errors::timed_out(format!("{}: {why}", self.name)));
                }
            };
            let why = errors::message_of(&error);
            *self.last_error() = Some(why.clone());
            if !errors::is_transient(&error) {
                return Err(error);
            }
            if Instant::now() + pause >= deadline {
                return Err(errors::described(&error, format!("{}: {why}", self.name)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Connects once. A server that takes no writes is an error.
    async fn connect(&self, limits: Option<Limits>) -> Result<PgConnection, sqlx::Error> {
        let mut raw = self.options.connect().await?;
        let settings = match limits {
            Some(limits) if !self.is_pooled() => assignments("set", limits.settings),
            Some(_) | None => String::new(),
        };
        let statement = sqlx::AssertSqlSafe(format!("{settings}show transaction_read_only"));
        let shown = sqlx::raw_sql(statement).fetch_one(&mut raw).await?;
        if shown.try_get::<String, _>(0)? == "on" {
            self.close_in_background(raw);
            return Err(errors::read_only());
        }
        Ok(raw)
    }

    /// Closes a connection in the background.
    fn close_in_background(&self, raw: PgConnection) {
        if let Ok(runtime) = Handle::try_current() {
            let closing = async move { drop(timeout(CLOSE_LIMIT, raw.close()).await) };
            self.tasks.spawn_on(closing, &runtime);
        }
    }
}

impl Connections {
    /// At most `connections_max` connections to a server, made on demand.
    pub(super) fn new(server: &Arc<Server>, connections_max: u32, limits: Limits) -> Self {
        let most = usize::try_from(connections_max).unwrap_or(Semaphore::MAX_PERMITS);
        let most = most.max(1);
        Self {
            server: Arc::clone(server),
            limits,
            most,
            permits: Arc::new(Semaphore::new(most)),
            idle: Arc::default(),
        }
    }

    /// Host and port, or the path of the socket.
    pub(super) fn name(&self) -> &str {
        self.server.name()
    }

    /// Whether a pooler in transaction mode is in front of the server.
    pub(super) fn is_pooled(&self) -> bool {
        self.server.is_pooled()
    }

    /// How many connections are in use, and how many are open and idle.
    pub(super) fn in_use_and_idle(&self) -> (usize, usize) {
        let free = self.permits.available_permits();
        (self.most.saturating_sub(free), self.idle().len())
    }

    /// A connection that answers, within the limit.
    pub(super) async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let deadline = Instant::now() + self.limits.acquire;
        let waited = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = match waited {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => {
                let last_error = self.server.last_error().clone();
                if last_error.is_none() {
                    reached(Limit::DatabaseConnections);
                }
                let why = last_error
                    .unwrap_or_else(|| "all connections have been in use for too long".to_owned());
                return Err(errors::timed_out(format!("{}: {why}", self.name())));
            }
        };
        while let Some(open) = self.pop() {
            if let Some(open) = self.check_usable(open).await {
                return Ok(Connection::new(self.clone(), open, permit));
            }
        }
        // Read before connecting: if the generation is retired in the meantime, this connection is retired too.
        let generation = self.server.generation();
        let limits = Some(self.limits);
        let raw = self.server.connect_until(deadline, limits).await?;
        let now = Instant::now();
        let open = OpenConnection {
            raw,
            generation,
            connected_at: now,
            idle_since: now,
        };
        Ok(Connection::new(self.clone(), open, permit))
    }

    /// Begins a transaction. [`Transaction::commit`] ends it; dropped before that, it is rolled back.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_with("begin").await
    }

    /// Begins a transaction with the given `begin` statement.
    pub(super) async fn begin_with(&self, begin: &str) -> Result<Transaction, sqlx::Error> {
        Transaction::begin(self.acquire().await?, begin).await
    }

    /// Closes idle connections, and those in use when they are returned.
    pub(super) async fn close(&self) {
        self.permits.close();
        while let Some(open) = self.pop() {
            self.server.close_in_background(open.raw);
        }
        self.server.tasks.close();
        drop(timeout(CLOSE_LIMIT, self.server.tasks.wait()).await);
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<OpenConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the connection that was used last. Closes the one that was idle longest, if that is over [`IDLE_MAX`].
    fn pop(&self) -> Option<OpenConnection> {
        let (taken, surplus) = {
            let mut idle = self.idle();
            let taken = idle.pop_back();
            let surplus = idle
                .front()
                .map(|open| open.idle_since.elapsed() > IDLE_MAX);
            let surplus = surplus
                .unwrap_or_default()
                .then(|| idle.pop_front())
                .flatten();
            (taken, surplus)
        };
        if let Some(open) = surplus {
            self.server.close_in_background(open.raw);
        }
        taken
    }

    /// The connection, if it is not too old, its generation is not retired, and it answers a ping.
    async fn check_usable(&self, mut open: OpenConnection) -> Option<OpenConnection> {
        if open.generation != self.server.generation() || open.connected_at.elapsed() > AGE_MAX {
            self.server.close_in_background(open.raw);
            return None;
        }
        match timeout(PING_LIMIT, open.raw.ping()).await {
            Ok(Ok(())) => {
                self.server.last_error().take();
                Some(open)
            }
            Ok(Err(_)) => None,
            Err(_) => {
                self.server
                    .retire_generation(open.generation, "an idle connection does not answer");
                None
            }
        }
    }

    /// Keeps a connection for its next use, or closes it.
    fn return_connection(&self, open: OpenConnection) {
        if self.permits.is_closed() || open.generation != self.server.generation() {
            self.server.close_in_background(open.raw);
        } else {
            self.idle().push_back(open);
        }
    }
}

/// Statements that set each of `settings`.
fn assignments(set: &str, settings: &[(&str, &str)]) -> String {
    let each = settings
        .iter()
        .map(|(name, value)| format!("{set} {name} = '{value}'; "));
    each.collect()
}

#[cfg(test)]
mod tests;
