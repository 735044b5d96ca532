//! The private Postgres of one data directory, shared by all x402d on it.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::cluster::Cluster;
use super::data_dir::running_as_root;
use super::error::EmbeddedError;
use super::{database, locks, sockets};

/// Longer than another x402d may take to create and start a cluster.
const LOCK_LIMIT: Duration = Duration::from_mins(5);
/// The cluster's folder in the data directory.
const CLUSTER: &str = "postgres";
/// A fast shutdown writes one checkpoint.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// A use of the private cluster in a data directory.
///
/// The server does not end with this value: when the process ends without [`stop`](Self::stop), or the value is dropped, the server keeps
/// running, and the next x402d uses it.
pub struct EmbeddedPostgres {
    url: String,
    /// Locked shared as long as this process uses the cluster; the kernel unlocks it when the process ends.
    users: File,
    files: Files,
    cluster: Cluster,
    /// The server, if it was started here, to be reaped.
    child: Option<Child>,
}

/// The files of x402d in the data directory.
#[derive(Debug)]
struct Files {
    /// The folder of the cluster, which belongs to the account that runs it.
    cluster: PathBuf,
    starting: PathBuf,
    users: PathBuf,
}

impl EmbeddedPostgres {
    /// Starts the cluster in `data_dir`, or uses the one that runs there already; creates it at the first use. After an error, no server
    /// runs that this call started.
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let files = Files::below(data_dir)?;
        let starting = locks::lock_exclusive(&files.starting, LOCK_LIMIT).await?;
        let (users, is_only_user) = locks::join_users(&files.users)?;
        let cluster = Cluster::below(&files.cluster)?;
        let started = Self::start_server(&cluster, is_only_user).await;
        if started.is_err()
            && is_only_user
            && let Err(problem) = stop_server(&cluster, None).await
        {
            tracing::warn!(%problem, "private Postgres not stopped after a failed start");
        }
        drop(starting);
        let (url, child) = started?;
        Ok(Self {
            url,
            users,
            files,
            cluster,
            child,
        })
    }

    /// Whether `data_dir` has a cluster, running or not.
    pub fn is_in(data_dir: &Path) -> bool {
        data_dir.join(CLUSTER).is_dir()
    }

    /// The URL of the database `x402d`, for sqlx and for `psql`: a Unix socket, so it works on this machine only, for root and for the user
    /// that runs x402d. It holds no secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends this use of the cluster. The last user stops the server, by a fast shutdown. If that takes too long, the server keeps running,
    /// and the next start uses it.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        let starting = locks::lock_exclusive(&self.files.starting, LOCK_LIMIT).await?;
        if locks::leave_users(self.users, &self.files.users)? {
            stop_server(&self.cluster, self.child).await?;
        }
        drop(starting);
        Ok(())
    }

    async fn start_server(
        cluster: &Cluster,
        is_only_user: bool,
    ) -> Result<(String, Option<Child>), EmbeddedError> {
        if is_only_user && cluster.has_outdated_server()? {
            tracing::info!(
                "private Postgres restarted: an earlier version started it, with open access for who reaches its socket"
            );
            stop_server(cluster, None).await?;
        }
        cluster.own_folder(is_only_user)?;
        let (server, child) = cluster.run(is_only_user).await?;
        let socket_folder = server.socket_folder.unwrap_or_default();
        database::ensure(&socket_folder).await?;
        Ok((database::url(&socket_folder), child))
    }
}

impl fmt::Debug for EmbeddedPostgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedPostgres")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Files {
    fn below(data_dir: &Path) -> Result<Self, EmbeddedError> {
        // As root, the account of Postgres has to pass through this folder; the files in it have modes of their own.
        let mode = if running_as_root() { 0o711 } else { 0o700 };
        let usable = DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(data_dir);
        // The canonical path: processes recognise the cluster's server by the path in its arguments.
        let usable = usable.and_then(|()| fs::canonicalize(data_dir));
        let action = format!(
            "use {} as the data directory (X402D_DATA_DIR names another)",
            data_dir.display()
        );
        let data_dir = usable.map_err(EmbeddedError::io(action))?;
        Ok(Self {
            cluster: data_dir.join(CLUSTER),
            starting: data_dir.join("postgres-starting.lock"),
            users: data_dir.join("postgres-users.lock"),
        })
    }
}

/// Stops the cluster's server, if it runs. The starting lock has to be held, and no process may use the cluster.
async fn stop_server(cluster: &Cluster, child: Option<Child>) -> Result<(), EmbeddedError> {
    let Some(server) = cluster.find_server()? else {
        return Ok(());
    };
    server.stop(STOP_LIMIT).await?;
    if let Some(mut child) = child {
        // The process has ended and only has to be reaped.
        drop(timeout(STOP_LIMIT, child.wait()).await);
    }
    if let Some(folder) = &server.socket_folder {
        sockets::release(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use nix::unistd::User;
    use sqlx::{Connection, PgConnection, Row};

    use super::*;
    use crate::embedded::handover;
    use crate::embedded::postmaster::Postmaster;

    /// How those who connect have to show who they are.
    const METHODS: &str = "select string_agg(distinct auth_method, ',') from pg_hba_file_rules";

    /// A data directory whose server is killed after the test.
    struct TestDataDir(tempfile::TempDir);

    impl TestDataDir {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
            Self(folder)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("x402d")
        }

        fn cluster(&self) -> Cluster {
            let data = fs::canonicalize(self.path()).unwrap();
            Cluster::below(&data.join("postgres")).unwrap()
        }

        fn server(&self) -> Option<Postmaster> {
            // The test of a data directory that is a file has none.
            let is_folder = self.path().is_dir();
            is_folder
                .then(|| self.cluster().find_server().unwrap())
                .flatten()
        }
    }

    impl Drop for TestDataDir {
        fn drop(&mut self) {
            if let Some(server) = self.server() {
                server.kill();
                server.socket_folder.map(fs::remove_dir_all);
            }
        }
    }

    async fn run(url: &str, sql: &'static str) -> String {
        let mut connection = PgConnection::connect(url).await.unwrap();
        let row = sqlx::query(sql).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        row.get::<String, _>(0)
    }

    #[tokio::test]
    async fn first_start_creates_durable_cluster_and_last_user_stops_it() {
        let place = TestDataDir::new();
        let first = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(
            run(first.url(), "select current_database()::text").await,
            "x402d"
        );
        for setting in [
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "data_checksums",
        ] {
            let mut connection = PgConnection::connect(first.url()).await.unwrap();
            let value = sqlx::query("select current_setting($1)")
                .bind(setting)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert_eq!(value.get::<String, _>(0), "on", "{setting}");
        }
        assert_eq!(
            run(first.url(), "select current_setting('listen_addresses')").await,
            ""
        );
        assert_eq!(run(first.url(), METHODS).await, "peer");
        let second = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(second.url(), first.url());
        first.stop().await.unwrap();
        assert_eq!(run(second.url(), "select 'shared'").await, "shared");
        second.stop().await.unwrap();
        assert!(place.server().is_none());
    }

    #[tokio::test]
    async fn server_of_an_earlier_version_is_replaced_by_one_that_asks_who_connects() {
        let place = TestDataDir::new();
        let first = EmbeddedPostgres::start(&place.path()).await.unwrap();
        let mut connection = PgConnection::connect(first.url()).await.unwrap();
        sqlx::raw_sql("create table kept as select 'committed' as word")
            .execute(&mut connection)
            .await
            .unwrap();
        first.stop().await.unwrap();
        let cluster = place.cluster();
        let access = place.path().join("postgres/data/pg_hba.conf");
        fs::write(access, "local all all trust\n").unwrap();
        let mut old = Some(cluster.command().await.unwrap().spawn().unwrap());
        let server = cluster.wait_until_ready(&mut old).await.unwrap().unwrap();
        let url = database::url(&server.socket_folder.unwrap());
        assert_eq!(run(&url, METHODS).await, "trust");
        // The old version was killed, so another process reaps its server.
        let (mut old, path) = (old.unwrap(), place.path());
        let (ended, next) = tokio::join!(old.wait(), EmbeddedPostgres::start(&path));
        assert!(ended.unwrap().success());
        let next = next.unwrap();
        assert_eq!(run(next.url(), METHODS).await, "peer");
        assert_eq!(run(next.url(), "select word from kept").await, "committed");
        next.stop().await.unwrap();
    }

    /// Only root can make this folder; for another user it is its own, and stays so.
    #[tokio::test]
    async fn cluster_of_nobody_is_taken_and_starts() {
        let place = TestDataDir::new();
        let first = EmbeddedPostgres::start(&place.path()).await.unwrap();
        first.stop().await.unwrap();
        let folder = fs::canonicalize(place.path()).unwrap().join("postgres");
        let before = fs::metadata(&folder).unwrap();
        let ids = (before.uid(), before.gid());
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let nobody = (nobody.uid.as_raw(), nobody.gid.as_raw());
        let old = if running_as_root() { nobody } else { ids };
        handover::give(&folder, ids.0, old).unwrap();
        let next = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(run(next.url(), "select 'started'").await, "started");
        for path in ["", "data", "data/PG_VERSION", "data/base/1"] {
            let found = fs::metadata(folder.join(path)).unwrap();
            assert_eq!((found.uid(), found.gid()), ids, "{path}");
        }
        assert_ne!(ids.0, nobody.0);
        next.stop().await.unwrap();
    }

    #[tokio::test]
    async fn running_server_of_a_killed_process_is_used_again() {
        let place = TestDataDir::new();
        let killed = EmbeddedPostgres::start(&place.path()).await.unwrap();
        let of_server = "select pg_postmaster_start_time()::text";
        let before = run(killed.url(), of_server).await;
        drop(killed);
        let next = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(run(next.url(), of_server).await, before);
        next.stop().await.unwrap();
        assert!(place.server().is_none());
    }

    #[tokio::test]
    async fn killed_server_restarts_with_committed_data() {
        let place = TestDataDir::new();
        let killed = EmbeddedPostgres::start(&place.path()).await.unwrap();
        let mut connection = PgConnection::connect(killed.url()).await.unwrap();
        sqlx::raw_sql("create table kept as select 'committed' as word")
            .execute(&mut connection)
            .await
            .unwrap();
        place.server().unwrap().kill();
        drop(killed);
        let next = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(run(next.url(), "select word from kept").await, "committed");
        next.stop().await.unwrap();
    }

    #[tokio::test]
    async fn missing_server_is_not_restarted_beside_another_user() {
        let place = TestDataDir::new();
        let first = EmbeddedPostgres::start(&place.path()).await.unwrap();
        place.server().unwrap().kill();
        let refused = EmbeddedPostgres::start(&place.path()).await.unwrap_err();
        assert!(
            matches!(refused, EmbeddedError::InvisiblePostmaster { .. }),
            "{refused}"
        );
        first.stop().await.unwrap();
        let next = EmbeddedPostgres::start(&place.path()).await.unwrap();
        next.stop().await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_starts_share_one_server() {
        let place = TestDataDir::new();
        let path = place.path();
        let (one, two) = tokio::join!(
            EmbeddedPostgres::start(&path),
            EmbeddedPostgres::start(&path)
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(one.url(), two.url());
        let (first, second) = tokio::join!(one.stop(), two.stop());
        first.unwrap();
        second.unwrap();
        assert!(place.server().is_none());
    }

    #[tokio::test]
    async fn error_names_a_data_directory_that_is_a_file() {
        let place = TestDataDir::new();
        fs::write(place.path(), "").unwrap();
        let refused = EmbeddedPostgres::start(&place.path())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("X402D_DATA_DIR"), "{refused}");
    }
}
