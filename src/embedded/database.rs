//! The few words that are spoken with the private server before its URL is handed out.

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
/// The port, which over a Unix socket is only a part of a file's name.
const PORT: u16 = 5432;
/// A connection over a socket either comes at once or not at all.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Copies a template of 7 MB and makes a checkpoint.
const CREATE_LIMIT: Duration = Duration::from_mins(1);

/// The URL of the ledger's database. Complete, so that no `PG…` variable of the environment adds anything to it.
pub(super) fn url(socket_folder: &Path) -> String {
    format!(
        "postgres://{USER}@localhost:{PORT}/{NAME}?host={}&sslmode=disable",
        socket_folder.display()
    )
}

/// Whether the server accepts a connection by now.
pub(super) async fn answers(socket_folder: Option<&Path>) -> bool {
    let Some(folder) = socket_folder else {
        return false;
    };
    match connect(folder).await {
        Ok(connection) => {
            // What the closing of a connection that served its purpose has to say concerns nobody.
            drop(timeout(CONNECT_LIMIT, connection.close()).await);
            true
        }
        Err(problem) => {
            tracing::trace!(%problem, "the private Postgres does not answer yet");
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
