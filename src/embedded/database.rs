//! Connects to the private server before its URL is used: checks that it answers, and creates the database.

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::timeout;

use super::error::EmbeddedError;

/// The cluster's only role.
pub(super) const USER: &str = "x402d";
/// The database of the ledger.
pub(super) const NAME: &str = "x402d";
/// The port; for a Unix socket it is only a part of the file's name.
const PORT: u16 = 5432;
/// A connection over a Unix socket succeeds at once or not at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Copies a template of 7 MB and makes a checkpoint.
const CREATE_LIMIT: Duration = Duration::from_mins(1);

/// The URL of the ledger's database. Complete, so that no `PG…` variable of the environment changes it.
pub(super) fn url(socket_folder: &Path) -> String {
    format!(
        "postgres://{USER}@localhost:{PORT}/{NAME}?host={}&sslmode=disable",
        socket_folder.display()
    )
}

/// Whether the server accepts a connection.
pub(super) async fn answers(socket_folder: Option<&Path>) -> bool {
    let Some(folder) = socket_folder else {
        return false;
    };
    match connect(folder).await {
        Ok(connection) => {
            // The connection was only a test, so an error while closing it does not matter.
            drop(timeout(CONNECT_LIMIT, connection.close()).await);
            true
        }
        Err(problem) => {
            tracing::trace!(%problem, "private Postgres does not answer yet");
            false
        }
    }
}

/// Creates the ledger's database if there is none.
pub(super) async fn ensure(socket_folder: &Path) -> Result<(), EmbeddedError> {
    let work = async {
        let mut connection = connect(socket_folder).await?;
        let found = sqlx::query("select 1 from pg_catalog.pg_database where datname = $1")
            .bind(NAME)
            .fetch_optional(&mut connection)
            .await?;
        if found.is_none() {
            sqlx::raw_sql("create database x402d")
                .execute(&mut connection)
                .await?;
        }
        connection.close().await
    };
    match timeout(CREATE_LIMIT, work).await {
        Ok(done) => done.map_err(|source| EmbeddedError::Sql {
            what: "to create its database",
            source,
        }),
        Err(_) => Err(EmbeddedError::Late {
            what: "creating the database".to_owned(),
            limit: CREATE_LIMIT,
        }),
    }
}

async fn connect(socket_folder: &Path) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(socket_folder)
        .port(PORT)
        .username(USER)
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .disable_statement_logging();
    let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(CONNECT_LIMIT, PgConnection::connect_with(&options))
        .await
        .map_err(late)?
}
