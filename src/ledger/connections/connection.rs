//! A connection in use, and a transaction on it. Each statement has a time limit.

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

use super::{Connections, OpenConnection, assignments, errors};

type Step = Either<PgQueryResult, PgRow>;

/// A connection in use. On drop it returns to its pool if all its statements have ended; an open transaction is rolled back before.
pub(in crate::ledger) struct Connection {
    open: Option<OpenConnection>,
    /// No statement is running, and none has broken the connection.
    usable: bool,
    in_transaction: bool,
    /// A statement of the transaction has failed. Postgres would answer the commit with a rollback and without an error.
    failed: bool,
    pool: Connections,
    permit: Option<OwnedSemaphorePermit>,
}

/// A connection in a transaction.
#[derive(Debug)]
pub(in crate::ledger) struct Transaction {
    connection: Connection,
}

impl Connection {
    pub(super) fn new(
        pool: Connections,
        open: OpenConnection,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            open: Some(open),
            usable: true,
            in_transaction: false,
            failed: false,
            pool,
            permit: Some(permit),
        }
    }

    /// Runs statements without arguments and rows.
    pub(in crate::ledger) async fn run(&mut self, statements: String) -> Result<(), sqlx::Error> {
        let limit = self.pool.limits.statement;
        let raw = self.start()?;
        let work = raw.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statements)));
        let ended = timeout(limit, work).await;
        self.finish(ended).map(drop)
    }

    /// Runs statements without a time limit here; the caller has to limit them.
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

    async fn begin(&mut self, begin: &str) -> Result<(), sqlx::Error> {
        let settings = if self.pool.server.is_pooled() {
            assignments("set local", self.pool.limits.settings)
        } else {
            String::new()
        };
        self.in_transaction = true;
        self.run(format!("{begin}; {settings}")).await
    }

    async fn end(&mut self, how: &str) -> Result<(), sqlx::Error> {
        self.run(how.to_owned()).await?;
        (self.in_transaction, self.failed) = (false, false);
        Ok(())
    }

    async fn all<'q, E: Execute<'q, Postgres> + 'q>(
        &mut self,
        query: E,
    ) -> Result<Vec<Step>, sqlx::Error> {
        let (limit, persistent) = (self.pool.limits.statement, !self.pool.server.is_pooled());
        let raw = self.start()?;
        let query = WithPersistence { query, persistent };
        let ended = timeout(limit, raw.fetch_many(query).try_collect()).await;
        self.finish(ended)
    }

    async fn optional<'q, E: Execute<'q, Postgres> + 'q>(
        &mut self,
        query: E,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        let (limit, persistent) = (self.pool.limits.statement, !self.pool.server.is_pooled());
        let raw = self.start()?;
        let query = WithPersistence { query, persistent };
        let ended = timeout(limit, raw.fetch_optional(query)).await;
        self.finish(ended)
    }

    /// Marks the connection as unusable until [`Self::finish`], because the caller may stop waiting at any time.
    fn start(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.usable = false;
        let open = self.open.as_mut().ok_or(sqlx::Error::PoolClosed)?;
        Ok(&mut open.raw)
    }

    fn finish<T>(
        &mut self,
        ended: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let server = &self.pool.server;
        let generation = self.open.as_ref().map(|open| open.generation);
        match ended {
            Ok(Ok(value)) => {
                self.usable = true;
                Ok(value)
            }
            Ok(Err(error)) => {
                self.failed = true;
                self.usable = !errors::breaks_connection(&error);
                if errors::shows_pooler(&error) {
                    server.record_pooler();
                }
                if let (Some(generation), true) =
                    (generation, errors::affects_all_connections(&error))
                {
                    server.retire_generation(generation, &errors::message_of(&error));
                }
                Err(error)
            }
            Err(_) => {
                let limit = self.pool.limits.statement.as_secs();
                let why = format!("a statement got no answer within {limit} s");
                if let Some(generation) = generation {
                    server.retire_generation(generation, &why);
                }
                Err(errors::timed_out(format!("{}: {why}", server.name())))
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
        // An unusable connection is dropped, which closes its socket: the server may not answer an orderly close.
        let Some(mut open) = self.open.take().filter(|_| self.usable) else {
            return;
        };
        if !self.in_transaction {
            open.idle_since = Instant::now();
            self.pool.return_connection(open);
            return;
        }
        let mut unfinished = Self {
            open: Some(open),
            // Until the rollback has ended: a runtime that shuts down drops the task without running it.
            usable: false,
            in_transaction: true,
            failed: self.failed,
            pool: self.pool.clone(),
            permit: self.permit.take(),
        };
        let tasks = self.pool.server.tasks.clone();
        if let Ok(runtime) = Handle::try_current() {
            let rollback = async move {
                // If this fails the connection is unusable; the server rolls back when its socket is closed.
                drop(unfinished.end("rollback").await);
            };
            tasks.spawn_on(rollback, &runtime);
        }
    }
}

impl Transaction {
    pub(super) async fn begin(mut connection: Connection, how: &str) -> Result<Self, sqlx::Error> {
        connection.begin(how).await?;
        Ok(Self { connection })
    }

    /// Commits. After an error the outcome is unknown.
    pub(in crate::ledger) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if self.connection.failed {
            let problem = "commit of a transaction with a failed statement; nothing was committed";
            return Err(sqlx::Error::Protocol(problem.to_owned()));
        }
        self.connection.end("commit").await
    }

    pub(in crate::ledger) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.connection.end("rollback").await
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

/// A query for which the server keeps a prepared statement, or not.
struct WithPersistence<E> {
    query: E,
    persistent: bool,
}

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for WithPersistence<E> {
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

/// Implements `Executor` for a connection and for a set of them. All rows are read before the first is returned, so that the limit covers
/// them all.
macro_rules! impl_executor {
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
                Box::pin(std::future::ready(Err(unsupported())))
            }

            fn describe<'e>(
                self,
                _: SqlStr,
            ) -> BoxFuture<'e, Result<Describe<Postgres>, sqlx::Error>>
            where
                'c: 'e,
            {
                Box::pin(std::future::ready(Err(unsupported())))
            }
        }
    };
}

impl_executor!(&'c mut Connection);
impl_executor!(&'c Connections);

/// `sqlx` needs `describe` and `prepare` only for statements that are neither checked at build time nor run at once.
fn unsupported() -> sqlx::Error {
    sqlx::Error::Configuration("statements cannot be described or prepared separately".into())
}
