//! A fresh ledger for each test.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use url::Url;
use uuid::Uuid;
use x402d::embedded::EmbeddedPostgres;

use super::TcpProxy;

/// A fresh database on the server of `DATABASE_URL`, or a data directory in which x402d runs its private Postgres.
pub(crate) enum Database {
    Server {
        server: String,
        name: String,
        url: String,
    },
    Private(TempDir),
    /// A private Postgres that the test itself runs, so that it can send SQL to it.
    TestOwned {
        postgres: Option<Box<EmbeddedPostgres>>,
        url: String,
        /// Kept until drop.
        _folder: TempDir,
    },
}

impl Database {
    pub(crate) async fn fresh() -> Self {
        match server() {
            Some(server) => Self::on(server).await,
            None => Self::Private(private_folder()),
        }
    }

    /// A database to which the test can send SQL.
    pub(crate) async fn queryable() -> Self {
        let Some(server) = server() else {
            let folder = private_folder();
            let postgres = EmbeddedPostgres::start(folder.path()).await.unwrap();
            return Self::TestOwned {
                url: postgres.url().to_owned(),
                postgres: Some(Box::new(postgres)),
                _folder: folder,
            };
        };
        Self::on(server).await
    }

    /// The test's own connection; only to a queryable database.
    pub(crate) async fn connection(&self) -> PgConnection {
        PgConnection::connect(self.url()).await.unwrap()
    }

    /// A TCP proxy to the database, and the variable with which x402d connects through it; only for a queryable database.
    pub(crate) async fn proxied(&self) -> (TcpProxy, (&'static str, String)) {
        let options: PgConnectOptions = self.url().parse().unwrap();
        let port = options.get_port();
        let socket = options.get_socket();
        let socket = socket.map(|folder| folder.join(format!(".s.PGSQL.{port}")));
        let proxy = TcpProxy::to_database(port, socket).await;
        let url = format!(
            "postgres://{}@127.0.0.1:{}/{}",
            options.get_username(),
            proxy.port(),
            options.get_database().unwrap()
        );
        (proxy, ("DATABASE_URL", url))
    }

    /// Copies the database while no process is connected; only a queryable one.
    pub(crate) async fn copy(&self) -> String {
        let copy = format!("{}_copy", self.name());
        self.run_admin_sql(&[format!(
            "create database \"{copy}\" template \"{}\"",
            self.name()
        )])
        .await;
        copy
    }

    /// Replaces the database by its copy.
    pub(crate) async fn restore(&self, copy: &str) {
        let name = self.name();
        self.run_admin_sql(&[
            format!("drop database \"{name}\" with (force)"),
            format!("alter database \"{copy}\" rename to \"{name}\""),
        ])
        .await;
    }

    async fn run_admin_sql(&self, statements: &[String]) {
        let options: PgConnectOptions = self.url().parse().unwrap();
        let options = options.database("template1");
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        for statement in statements {
            let statement = AssertSqlSafe(statement.clone());
            sqlx::raw_sql(statement)
                .execute(&mut connection)
                .await
                .unwrap();
        }
    }

    fn name(&self) -> String {
        let options: PgConnectOptions = self.url().parse().unwrap();
        options.get_database().unwrap().to_owned()
    }

    fn url(&self) -> &str {
        let (Self::Server { url, .. } | Self::TestOwned { url, .. }) = self else {
            panic!("ask for a queryable database");
        };
        url
    }

    async fn on(server: String) -> Self {
        let name = format!("x402d_it_{}", Uuid::now_v7().simple());
        let mut connection = PgConnection::connect(&server).await.unwrap();
        let create = AssertSqlSafe(format!("create database \"{name}\""));
        sqlx::raw_sql(create)
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        let mut url: Url = server.parse().unwrap();
        url.set_path(&name);
        Self::Server {
            server,
            name,
            url: url.into(),
        }
    }

    /// The variable with which x402d connects.
    pub(crate) fn variable(&self) -> (&'static str, String) {
        match self {
            Self::Server { url, .. } | Self::TestOwned { url, .. } => ("DATABASE_URL", url.clone()),
            Self::Private(folder) => ("X402D_DATA_DIR", folder.path().display().to_string()),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> = match self {
            Self::Server { server, name, .. } => {
                Box::pin(drop_database(server.clone(), name.clone()))
            }
            Self::Private(folder) if has_postmaster(folder.path()) => {
                Box::pin(stop_postgres(folder.path().to_owned()))
            }
            Self::Private(_) => return,
            Self::TestOwned { postgres, .. } => match postgres.take() {
                Some(postgres) => Box::pin(async move {
                    if let Err(error) = postgres.stop().await {
                        eprintln!("a test's Postgres may still run: {error}");
                    }
                }),
                None => return,
            },
        };
        // A separate thread, because the test's runtime may be unwinding.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let cleaner = std::thread::spawn(move || runtime.map(|runtime| runtime.block_on(work)));
        if !matches!(cleaner.join(), Ok(Ok(()))) {
            eprintln!("a test's database was not dropped");
        }
    }
}

fn server() -> Option<String> {
    let server = std::env::var("DATABASE_URL").ok();
    server.filter(|server| !server.trim().is_empty())
}

fn private_folder() -> TempDir {
    let folder = TempDir::with_prefix("x402d-it-").unwrap();
    // The `postgres` user, which runs Postgres when the tests run as root, needs access.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
    folder
}

async fn drop_database(server: String, name: String) {
    let statement = AssertSqlSafe(format!("drop database \"{name}\" with (force)"));
    let dropped = async {
        let mut connection = PgConnection::connect(&server).await?;
        sqlx::raw_sql(statement).execute(&mut connection).await
    };
    if let Err(error) = dropped.await {
        eprintln!("the database {name} was not dropped: {error}");
    }
}

/// A killed x402d leaves its Postgres running for the next process. Here none follows, so this adopts it and stops it.
async fn stop_postgres(folder: std::path::PathBuf) {
    let stopped = async { EmbeddedPostgres::start(&folder).await?.stop().await };
    if let Err(error) = stopped.await {
        eprintln!(
            "the Postgres of {} may still run: {error}",
            folder.display()
        );
    }
}

fn has_postmaster(folder: &Path) -> bool {
    let inside = std::fs::read_dir(folder.join("postgres"));
    inside.is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.path().join("postmaster.pid").exists())
    }) || folder.join("postgres/postmaster.pid").exists()
}
