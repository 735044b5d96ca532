//! Connections to Postgres with limits of our own.
//!
//! A server's `statement_timeout` does not help when the server, or the network before it, is gone without a word. Here every wait
//! has a limit on this side too: for a connection, for an answer to a statement, and for a ping before a connection is used again.
//! A connection that did not answer in time is closed, never used again, and so is every other one that was made before. The same
//! happens when a server takes no writes any more, because a failover made it a standby.

mod cause;
mod held;
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

pub(super) use cause::{advice, code, database_of, options_of, takes_no_writes};
pub(super) use held::{Connection, Transaction};

/// How long an idle connection may take to answer before it is used again.
const PING_LIMIT: Duration = Duration::from_secs(2);
/// How long the server has to hear that a connection is closed.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A connection is replaced when it is older, so that a new address of the server is found.
const AGE_MAX: Duration = Duration::from_mins(30);
/// A connection that nobody needed for so long is closed.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// Pauses between attempts to connect: the first and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What a set of connections is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Waiting for a connection, including connecting.
    pub(super) acquire: Duration,
    /// Waiting for the answer to a statement; a little more than the server's own limit.
    pub(super) statement: Duration,
    /// The settings of these sessions, as names and values. Never startup parameters, because poolers refuse those.
    pub(super) settings: &'static [(&'static str, &'static str)],
}

/// The server behind several sets of connections.
#[derive(Debug)]
pub(super) struct Server {
    options: PgConnectOptions,
    name: String,
    /// Connections of an earlier generation are not used any more.
    generation: AtomicU64,
    /// A pooler gives each transaction another session: settings travel with each transaction, and no statement is kept prepared.
    pooled: AtomicBool,
    /// Why the latest attempt to connect failed.
    trouble: Mutex<Option<String>>,
    tasks: TaskTracker,
}

/// A set of connections. Cheap to clone; a statement can be run on it as on a connection.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    server: Arc<Server>,
    limits: Limits,
    permits: Arc<Semaphore>,
    idle: Arc<Mutex<VecDeque<Live>>>,
}

#[derive(Debug)]
struct Live {
    raw: PgConnection,
    generation: u64,
    made: Instant,
    idle_since: Instant,
}

impl Server {
    /// The server of a `DATABASE_URL` that was read; tells whether a pooler in transaction mode is before it.
    pub(super) async fn find(
        options: PgConnectOptions,
        limit: Duration,
    ) -> Result<Arc<Self>, sqlx::Error> {
        let server = Self {
            name: cause::name_of(&options),
            options,
            generation: AtomicU64::new(0),
            pooled: AtomicBool::new(false),
            trouble: Mutex::new(None),
            tasks: TaskTracker::new(),
        };
        let deadline = Instant::now() + limit;
        let mut first = server.connect_until(deadline, None).await?;
        let second = server
            .connect_until(Instant::now() + PING_LIMIT, None)
            .await;
        // Without a second one it cannot be told; then a statement that is not there when it is used will tell.
        let pooled = match second {
            Ok(mut second) => {
                let pooled = pooler::shares_sessions(&mut first, &mut second).await;
                server.say_goodbye(second);
                pooled
            }
            Err(_) => false,
        };
        server.say_goodbye(first);
        if pooled {
            tracing::info!(
                database = server.name,
                "the database is behind a pooler in transaction mode: settings travel with each transaction, statements are not kept prepared"
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

    /// No connection of `generation` or before is used again.
    fn distrust(&self, generation: u64, why: &str) {
        let next = generation.saturating_add(1);
        let exchanged =
            self.generation
                .compare_exchange(generation, next, Ordering::AcqRel, Ordering::Acquire);
        if exchanged.is_ok() {
            tracing::warn!(
                database = self.name,
                why,
                "database connections are replaced"
            );
        }
    }

    /// A statement that was prepared on this connection is not there: something between us and the server shares its sessions.
    fn note_pooler(&self) {
        if !self.pooled.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                database = self.name,
                "a prepared statement was lost: the database seems to be behind a pooler in transaction mode, and is used so from now on"
            );
            // What they have prepared is kept under names that mean nothing any more.
            self.distrust(self.generation(), "their statements are prepared");
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, again and again while the cause is one that passes: a restart, a failover, too many connections.
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
                    self.trouble().take();
                    return Ok(raw);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let earlier = self.trouble().clone();
                    let why = earlier.unwrap_or_else(|| "it does not answer".to_owned());
                    return Err(cause::late(format!("{}: {why}", self.name)));
                }
            };
            let why = cause::words(&error);
            *self.trouble() = Some(why.clone());
            if !cause::passes(&error) {
                return Err(error);
            }
            if Instant::now() + pause >= deadline {
                return Err(cause::retold(&error, format!("{}: {why}", self.name)));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Connects once; to a server that takes writes.
    async fn connect(&self, limits: Option<Limits>) -> Result<PgConnection, sqlx::Error> {
        let mut raw = self.options.connect().await?;
        let settings = match limits {
            Some(limits) if !self.is_pooled() => assignments("set", limits.settings),
            Some(_) | None => String::new(),
        };
        let statement = sqlx::AssertSqlSafe(format!("{settings}show transaction_read_only"));
        let shown = sqlx::raw_sql(statement).fetch_one(&mut raw).await?;
        if shown.try_get::<String, _>(0)? == "on" {
            self.say_goodbye(raw);
            return Err(cause::read_only());
        }
        Ok(raw)
    }

    /// Closes a connection in the background.
    fn say_goodbye(&self, raw: PgConnection) {
        if let Ok(runtime) = Handle::try_current() {
            let closing = async move { drop(timeout(CLOSE_LIMIT, raw.close()).await) };
            self.tasks.spawn_on(closing, &runtime);
        }
    }
}

impl Connections {
    /// At most `connections_max` connections to a server. None is made yet.
    pub(super) fn new(server: &Arc<Server>, connections_max: u32, limits: Limits) -> Self {
        let permits = usize::try_from(connections_max).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            server: Arc::clone(server),
            limits,
            permits: Arc::new(Semaphore::new(permits.max(1))),
            idle: Arc::default(),
        }
    }

    /// Host and port, or the path of the socket.
    pub(super) fn name(&self) -> &str {
        self.server.name()
    }

    /// A connection that answers; waits for one no longer than the limit.
    pub(super) async fn acquire(&self) -> Result<Connection, sqlx::Error> {
        let deadline = Instant::now() + self.limits.acquire;
        let waited = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        let permit = match waited {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(sqlx::Error::PoolClosed),
            Err(_) => {
                let trouble = self.server.trouble().clone();
                let why = trouble
                    .unwrap_or_else(|| "all connections have been in use for too long".to_owned());
                return Err(cause::late(format!("{}: {why}", self.name())));
            }
        };
        while let Some(live) = self.pop() {
            if let Some(live) = self.tested(live).await {
                return Ok(Connection::new(self.clone(), live, permit));
            }
        }
        // Read before connecting: what is learnt about the server meanwhile is about this connection too.
        let generation = self.server.generation();
        let limits = Some(self.limits);
        let raw = self.server.connect_until(deadline, limits).await?;
        let now = Instant::now();
        let live = Live {
            raw,
            generation,
            made: now,
            idle_since: now,
        };
        Ok(Connection::new(self.clone(), live, permit))
    }

    /// A connection in a transaction. [`Transaction::commit`] ends it; dropped before, it is rolled back.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        self.begin_with("begin").await
    }

    /// The same with a `begin` of one's own.
    pub(super) async fn begin_with(&self, begin: &str) -> Result<Transaction, sqlx::Error> {
        Transaction::begin(self.acquire().await?, begin).await
    }

    /// Closes what is idle, and what is in use when it comes back.
    pub(super) async fn close(&self) {
        self.permits.close();
        while let Some(live) = self.pop() {
            self.server.say_goodbye(live.raw);
        }
        self.server.tasks.close();
        drop(timeout(CLOSE_LIMIT, self.server.tasks.wait()).await);
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Live>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last; closes one that nobody needs.
    fn pop(&self) -> Option<Live> {
        let (taken, unneeded) = {
            let mut idle = self.idle();
            let taken = idle.pop_back();
            let unneeded = idle
                .front()
                .map(|live| live.idle_since.elapsed() > IDLE_MAX);
            let unneeded = unneeded
                .unwrap_or_default()
                .then(|| idle.pop_front())
                .flatten();
            (taken, unneeded)
        };
        if let Some(live) = unneeded {
            self.server.say_goodbye(live.raw);
        }
        taken
    }

    /// A connection that may be used: it is not too old, nothing is held against its generation, and it answers.
    async fn tested(&self, mut live: Live) -> Option<Live> {
        if live.generation != self.server.generation() || live.made.elapsed() > AGE_MAX {
            self.server.say_goodbye(live.raw);
            return None;
        }
        match timeout(PING_LIMIT, live.raw.ping()).await {
            Ok(Ok(())) => {
                self.server.trouble().take();
                Some(live)
            }
            Ok(Err(_)) => None,
            Err(_) => {
                self.server
                    .distrust(live.generation, "an idle connection does not answer");
                None
            }
        }
    }

    /// Takes a connection back.
    fn put_back(&self, live: Live) {
        if self.permits.is_closed() || live.generation != self.server.generation() {
            self.server.say_goodbye(live.raw);
        } else {
            self.idle().push_back(live);
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
