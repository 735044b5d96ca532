//! Postgres servers that a test may kill, and a pooler before one.

use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use super::eventually;

const PGBOUNCER: &str = "/usr/sbin/pgbouncer";
const START_LIMIT: Duration = Duration::from_mins(1);

/// A Postgres server on its own port; killed on drop.
pub(crate) struct Cluster {
    folder: TempDir,
    pub(crate) port: u16,
    /// Additional settings.
    settings: Vec<String>,
    server: Option<Child>,
}

impl Cluster {
    /// A new server.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A new server with additional settings.
    pub(crate) async fn start_with(settings: &[&str]) -> Self {
        let mut cluster = Self::empty();
        cluster.settings = settings.iter().map(ToString::to_string).collect();
        let data = cluster.data();
        run(program("initdb")
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--no-sync",
                "-D",
            ])
            .arg(data));
        cluster.run().await;
        cluster
    }

    /// A streaming standby of the server at a port.
    pub(crate) async fn standby_of(port: u16) -> Self {
        let mut cluster = Self::empty();
        let port = port.to_string();
        let mut copy = program("pg_basebackup");
        copy.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
            "-p",
            &port,
            "-D",
        ]);
        run(copy.arg(cluster.data()));
        cluster.run().await;
        cluster
    }

    fn empty() -> Self {
        let folder = TempDir::with_prefix("x402d-it-cluster-").unwrap();
        chown_to_postgres(folder.path());
        Self {
            folder,
            port: free_port(),
            settings: Vec::new(),
            server: None,
        }
    }

    /// Starts it, also after a stop or a kill.
    pub(crate) async fn run(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let mut server = program("postgres");
        server
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "max_connections=100",
        ] {
            server.args(["-c", setting]);
        }
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        self.server = Some(server.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("a Postgres of the test", START_LIMIT, async || {
            PgConnection::connect(&self.url("postgres")).await.ok()
        })
        .await;
    }

    /// Ends it by a signal: immediate shutdown or crash.
    pub(crate) fn end(&mut self, signal: Signal) {
        let mut server = self.server.take().unwrap();
        kill(Pid::from_raw(i32::try_from(server.id()).unwrap()), signal).unwrap();
        server.wait().unwrap();
    }

    /// Runs a statement as superuser.
    pub(crate) async fn run_sql(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let statement = AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }

    pub(crate) fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.end(Signal::SIGQUIT);
        }
    }
}

/// `PgBouncer` before a server; killed on drop.
pub(crate) struct Pooler {
    pub(crate) port: u16,
    server: Child,
    _folder: TempDir,
}

impl Pooler {
    /// Whether the installed version has `max_prepared_statements` (1.21 and later).
    pub(crate) fn supports_prepared_statements() -> bool {
        let output = Command::new(PGBOUNCER).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let version = text.lines().next().unwrap().rsplit(' ').next().unwrap();
        let mut numbers = version
            .split('.')
            .map(|number| number.parse::<u32>().unwrap());
        (numbers.next(), numbers.next()) >= (Some(1), Some(21))
    }

    /// Additional settings, one per line.
    pub(crate) async fn before(server_port: u16, settings: &str) -> Self {
        let folder = TempDir::with_prefix("x402d-it-pooler-").unwrap();
        let port = free_port();
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
            listen_port = {port}\nauth_type = any\nunix_socket_dir =\n{settings}\n"
        );
        std::fs::write(&file, text).unwrap();
        chown_to_postgres(folder.path());
        let mut pooler = as_postgres(PathBuf::from(PGBOUNCER));
        let server = pooler
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Self {
            port,
            server,
            _folder: folder,
        };
        eventually("a pooler", START_LIMIT, async || {
            connect(&url(port, "postgres")).await.ok()
        })
        .await;
        pooler
    }

    pub(crate) fn url(&self, database: &str) -> String {
        url(self.port, database)
    }

    /// A foreign client's session.
    pub(crate) async fn connection(&self, database: &str) -> PgConnection {
        connect(&self.url(database)).await.unwrap()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// Leaves out a startup parameter that poolers reject.
async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    PgConnection::connect_with(&options.extra_float_digits(None)).await
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The user to run as: Postgres and `PgBouncer` refuse to run as root.
fn postgres() -> Option<User> {
    let root = geteuid().is_root();
    root.then(|| User::from_name("postgres").unwrap().unwrap())
}

fn chown_to_postgres(folder: &Path) {
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    if let Some(user) = postgres() {
        chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

fn program(name: &str) -> Command {
    let places = std::fs::read_dir("/usr/lib/postgresql").unwrap();
    let mut found: Vec<_> = places
        .map(|entry| entry.unwrap().path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    as_postgres(found.pop().unwrap())
}

fn as_postgres(program: PathBuf) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    if let Some(user) = postgres() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn run(command: &mut Command) {
    match command.output() {
        Ok(output) => assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => panic!("{command:?} is not installed"),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
