//! The private Postgres of one data directory, shared by all x402d on it.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Child;
use tokio::time::timeout;

use super::cluster::Cluster;
use super::error::EmbeddedError;
use super::place::running_as_root;
use super::{database, locks, sockets};

/// Longer than making and starting a cluster may last, which is what another x402d may be doing.
const LOCK_LIMIT: Duration = Duration::from_mins(5);
/// A fast shutdown writes one checkpoint.
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// A use of the private cluster in a data directory.
///
/// The server is not tied to this value: it outlives a process that ends without [`stop`](Self::stop), and the next
/// one adopts it. Dropping the value is such an end.
pub struct EmbeddedPostgres {
    url: String,
    /// Held shared as long as this process uses the cluster; the kernel lets go of it with the process.
    users: File,
    files: Files,
    cluster: Cluster,
    /// The server, if it was started here: somebody has to reap it.
    child: Option<Child>,
}

/// What x402d keeps in the data directory beside the cluster, in files of its own.
#[derive(Debug)]
struct Files {
    /// The folder of the cluster, which belongs to the account that runs it.
    room: PathBuf,
    starting: PathBuf,
    users: PathBuf,
}

impl EmbeddedPostgres {
    /// Starts the cluster in `data_dir`, or adopts or shares the one that runs there; makes it on the first use.
    ///
    /// # Errors
    /// No usable Postgres is installed, a folder cannot be used, the server does not start, or it takes too long.
    /// After an error nothing runs that was started by this call.
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let files = Files::below(data_dir)?;
        let starting = locks::hold_alone(&files.starting, LOCK_LIMIT).await?;
        let (users, alone) = locks::join_users(&files.users)?;
        let cluster = Cluster::below(&files.room)?;
        let started = Self::bring_up(&cluster, alone).await;
        if started.is_err()
            && alone
            && let Err(problem) = stop_server(&cluster, None).await
        {
            tracing::warn!(%problem, "a private Postgres that is of no use goes on");
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

    /// The URL of the database `x402d`, for sqlx and for `psql` alike: a Unix socket, so it works on this machine only,
    /// for root and for the user that owns the cluster. It holds no secret.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends this use of the cluster. The last one out stops the server, by a fast shutdown; before, others keep it.
    ///
    /// # Errors
    /// The server could not be stopped in time; it then goes on, and the next start adopts it.
    pub async fn stop(self) -> Result<(), EmbeddedError> {
        let starting = locks::hold_alone(&self.files.starting, LOCK_LIMIT).await?;
        if locks::leave_users(self.users, &self.files.users)? {
            stop_server(&self.cluster, self.child).await?;
        }
        drop(starting);
        Ok(())
    }

    async fn bring_up(
        cluster: &Cluster,
        alone: bool,
    ) -> Result<(String, Option<Child>), EmbeddedError> {
        let (server, child) = cluster.run(alone).await?;
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
        // As root another user has to get through to the cluster; what is in the folder is closed by itself.
        let mode = if running_as_root() { 0o711 } else { 0o700 };
        let usable = DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(data_dir);
        // One name for one folder: processes recognise the cluster's server by it.
        let usable = usable.and_then(|()| fs::canonicalize(data_dir));
        let action = format!(
            "use {} as the data directory (X402D_DATA_DIR names another)",
            data_dir.display()
        );
        let data_dir = usable.map_err(EmbeddedError::io(action))?;
        Ok(Self {
            room: data_dir.join("postgres"),
            starting: data_dir.join("postgres-starting.lock"),
            users: data_dir.join("postgres-users.lock"),
        })
    }
}

/// Stops the cluster's server, if one runs. Nobody may use it, and the lock of starting has to be held.
async fn stop_server(cluster: &Cluster, child: Option<Child>) -> Result<(), EmbeddedError> {
    let Some(server) = cluster.find_server()? else {
        return Ok(());
    };
    server.stop(STOP_LIMIT).await?;
    if let Some(mut child) = child {
        // Only reaping is left to do, since the process has ended.
        drop(timeout(STOP_LIMIT, child.wait()).await);
    }
    if let Some(folder) = &server.socket_folder {
        sockets::release(folder);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use sqlx::{Connection, PgConnection, Row};

    use super::*;
    use crate::embedded::postmaster::Postmaster;

    /// A data directory in which nothing runs any more after the test, whatever comes of it.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
            Self(folder)
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("x402d")
        }

        fn server(&self) -> Option<Postmaster> {
            let data = fs::canonicalize(self.path()).ok()?;
            Cluster::below(&data.join("postgres"))
                .ok()?
                .find_server()
                .ok()?
        }
    }

    impl Drop for Place {
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
    async fn a_first_start_makes_a_durable_cluster_and_the_last_one_out_stops_it() {
        let place = Place::new();
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
        let second = EmbeddedPostgres::start(&place.path()).await.unwrap();
        assert_eq!(second.url(), first.url());
        first.stop().await.unwrap();
        assert_eq!(run(second.url(), "select 'shared'").await, "shared");
        second.stop().await.unwrap();
        assert!(place.server().is_none());
    }

    #[tokio::test]
    async fn a_server_that_survived_its_x402d_is_adopted() {
        let place = Place::new();
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
    async fn a_server_that_was_killed_is_started_again_with_what_was_committed() {
        let place = Place::new();
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
    async fn a_server_that_is_not_to_be_seen_is_not_started_twice_beside_another_user() {
        let place = Place::new();
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
    async fn the_same_folder_can_be_started_by_several_at_once() {
        let place = Place::new();
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
    async fn a_data_directory_that_is_a_file_is_named_in_the_error() {
        let place = Place::new();
        fs::write(place.path(), "").unwrap();
        let refused = EmbeddedPostgres::start(&place.path())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("X402D_DATA_DIR"), "{refused}");
    }
}
