//! A connection in use, and a transaction on it: each statement has a limit.

use std::fmt;
use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, PgConnection, Postgres, SqlStr};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, error::Elapsed, timeout};

use super::{Connections, Live, assignments, cause};

type Step = Either<PgQueryResult, PgRow>;

/// A connection in use. Goes back when it is dropped, if all its statements have ended and left no transaction open.
pub(in crate::ledger) struct Connection {
    live: Option<Live>,
    /// No statement is under way and none has broken it.
    sound: bool,
    in_transaction: bool,
    /// A statement of the transaction has failed: Postgres answers its commit by a rollback, without an error.
    failed: bool,
    home: Connections,
    permit: Option<OwnedSemaphorePermit>,
}

/// A connection in a transaction.
#[derive(Debug)]
pub(in crate::ledger) struct Transaction {
    connection: Connection,
}

impl Connection {
    pub(super) fn new(home: Connections, live: Live, permit: OwnedSemaphorePermit) -> Self {
        Self {
            live: Some(live),
            sound: true,
            in_transaction: false,
            failed: false,
            home,
            permit: Some(permit),
        }
    }

    /// Runs statements that have neither arguments nor rows.
    pub(in crate::ledger) async fn run(&mut self, statements: String) -> Result<(), sqlx::Error> {
        let limit = self.home.limits.statement;
        let raw = self.start()?;
        let work = raw.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statements)));
        let ended = timeout(limit, work).await;
        self.finish(ended).map(drop)
    }

    /// Runs a statement that may take as long as it takes, with no limit but the ones that the caller keeps.
    pub(in crate::ledger) async fn run_unlimited(
        &mut self,
        statements: SqlStr,
    ) -> Result<(), sqlx::Error> {
        let raw = self.start()?;
        let ended = raw
            .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(
                statements.as_str().to_owned(),
            )))
            .await;
        self.finish(Ok(ended)).map(drop)
    }

    async fn enter(&mut self, begin: &str) -> Result<(), sqlx::Error> {
        let settings = if self.home.server.is_pooled() {
            assignments("set local", self.home.limits.settings)
        } else {
            String::new()
        };
        self.in_transaction = true;
        self.run(format!("{begin}; {settings}")).await
    }

    async fn leave(&mut self, how: &str) -> Result<(), sqlx::Error> {
        self.run(how.to_owned()).await?;
        (self.in_transaction, self.failed) = (false, false);
        Ok(())
    }

    async fn all<'q, E: Execute<'q, Postgres> + 'q>(
        &mut self,
        query: E,
    ) -> Result<Vec<Step>, sqlx::Error> {
        let (limit, persistent) = (self.home.limits.statement, !self.home.server.is_pooled());
        let raw = self.start()?;
        let query = Kept { query, persistent };
        let ended = timeout(limit, raw.fetch_many(query).try_collect()).await;
        self.finish(ended)
    }

    async fn optional<'q, E: Execute<'q, Postgres> + 'q>(
        &mut self,
        query: E,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        let (limit, persistent) = (self.home.limits.statement, !self.home.server.is_pooled());
        let raw = self.start()?;
        let query = Kept { query, persistent };
        let ended = timeout(limit, raw.fetch_optional(query)).await;
        self.finish(ended)
    }

    /// From here on the connection is not sound, until [`Self::finish`] says so: a caller may stop waiting at any time.
    fn start(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.sound = false;
        let live = self.live.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut live.raw)
    }

    fn finish<T>(
        &mut self,
        ended: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let server = &self.home.server;
        let generation = self.live.as_ref().map(|live| live.generation);
        match ended {
            Ok(Ok(value)) => {
                self.sound = true;
                Ok(value)
            }
            Ok(Err(error)) => {
                self.failed = true;
                self.sound = !cause::breaks(&error);
                if cause::tells_of_a_pooler(&error) {
                    server.note_pooler();
                }
                if let (Some(generation), true) = (generation, cause::is_about_the_server(&error)) {
                    server.distrust(generation, &cause::words(&error));
                }
                Err(error)
            }
            Err(_) => {
                let limit = self.home.limits.statement.as_secs();
                let why = format!("a statement got no answer within {limit} s");
                if let Some(generation) = generation {
                    server.distrust(generation, &why);
                }
                Err(cause::late(format!("{}: {why}", server.name())))
            }
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // One that is not sound is simply dropped, which closes its socket: it may not even hear a goodbye.
        let Some(mut live) = self.live.take().filter(|_| self.sound) else {
            return;
        };
        if !self.in_transaction {
            live.idle_since = Instant::now();
            self.home.put_back(live);
            return;
        }
        let mut left_open = Self {
            live: Some(live),
            sound: true,
            in_transaction: true,
            failed: self.failed,
            home: self.home.clone(),
            permit: self.permit.take(),
        };
        let tasks = self.home.server.tasks.clone();
        match Handle::try_current() {
            Ok(runtime) => {
                let undoing = async move {
                    // What fails leaves a connection that is not sound, and the server undoes it at its end.
                    drop(left_open.leave("rollback").await);
                };
                tasks.spawn_on(undoing, &runtime);
            }
            Err(_) => left_open.sound = false,
        }
    }
}

impl Transaction {
    pub(super) async fn begin(mut connection: Connection, how: &str) -> Result<Self, sqlx::Error> {
        connection.enter(how).await?;
        Ok(Self { connection })
    }

    /// Makes it so. After an error nobody knows whether it is.
    pub(in crate::ledger) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if self.connection.failed {
            let problem = "a transaction is committed although one of its statements failed";
            return Err(sqlx::Error::Protocol(problem.to_owned()));
        }
        self.connection.leave("commit").await
    }

    /// Undoes it.
    pub(in crate::ledger) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.connection.leave("rollback").await
    }
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// A statement that the server keeps prepared, or not.
struct Kept<E> {
    query: E,
    persistent: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Kept<E> {
    fn sql(self) -> SqlStr {
        self.query.sql()
    }

    fn statement(&self) -> Option<&PgStatement> {
        self.query.statement()
    }

    fn take_arguments(&mut self) -> Result<Option<PgArguments>, sqlx::error::BoxDynError> {
        self.query.take_arguments()
    }

    fn persistent(&self) -> bool {
        self.persistent && self.query.persistent()
    }
}

impl Connections {
    async fn all<'q, E: Execute<'q, Postgres> + 'q>(
        &self,
        query: E,
    ) -> Result<Vec<Step>, sqlx::Error> {
        if !self.server.is_pooled() {
            return self.acquire().await?.all(query).await;
        }
        let mut transaction = self.begin().await?;
        let steps = transaction.all(query).await?;
        transaction.commit().await?;
        Ok(steps)
    }

    async fn optional<'q, E: Execute<'q, Postgres> + 'q>(
        &self,
        query: E,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        if !self.server.is_pooled() {
            return self.acquire().await?.optional(query).await;
        }
        let mut transaction = self.begin().await?;
        let row = transaction.optional(query).await?;
        transaction.commit().await?;
        Ok(row)
    }
}

/// Both run statements with `query!(…).execute(…)`. Rows are read to the end before the first is given out, so that the limit counts for all.
macro_rules! runs_statements {
    ($executor:ty) => {
        impl<'c> Executor<'c> for $executor {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                let all = async move { self.all(query).await };
                stream::once(all)
                    .map_ok(|steps| stream::iter(steps.into_iter().map(Ok)))
                    .try_flatten()
                    .boxed()
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
            where
                'c: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Box::pin(async move { self.optional(query).await })
            }

            fn prepare_with<'e>(
                self,
                _: SqlStr,
                _: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(std::future::ready(Err(not_here())))
            }

            fn describe<'e>(
                self,
                _: SqlStr,
            ) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(std::future::ready(Err(not_here())))
            }
        }
    };
}

runs_statements!(&'c mut Connection);
runs_statements!(&'c Connections);

/// Statements are checked when x402d is built, and prepared when they are run.
fn not_here() -> sqlx::Error {
    sqlx::Error::Configuration("statements are neither described nor prepared by themselves".into())
}
