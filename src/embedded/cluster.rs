//! One cluster on disk: creates it, starts its server and waits until it answers.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::account::{Account, admitted};
use super::binaries::{Binaries, Places, first_number};
use super::error::EmbeddedError;
use super::postmaster::{PidFile, Postmaster};
use super::{database, sockets};

/// `initdb` writes some 40 MB and syncs them.
const INITDB_LIMIT: Duration = Duration::from_mins(2);
/// A start after a crash replays the log since the last checkpoint, at most [`MAX_WAL`].
const READY_LIMIT: Duration = Duration::from_mins(2);
/// Pause between two tries to connect to a starting server.
const RETRY: Duration = Duration::from_millis(40);
/// Starts in a row: after a crash, the memory of the old server may stay in use for a moment.
const START_ATTEMPTS: u32 = 25;
/// Pause between such attempts.
const START_PAUSE: Duration = Duration::from_millis(200);
/// The message of Postgres in that case.
const STILL_IN_USE: &str = "pre-existing shared memory block";
/// The server's log is renamed once, at a start, when it is longer than this many bytes.
const LOG_MAX: u64 = 16 * 1024 * 1024;
/// How much of a log an error quotes, in bytes.
const QUOTE: u64 = 1_500;
/// The name of the list of users who may connect.
const MAP: &str = "x402d";
const MAX_WAL: &str = "max_wal_size=1GB";

/// Durable, reachable by its socket alone, and with a short log: statements and values are not logged, because the ledger's statements
/// contain signed payments.
const SETTINGS: &[&str] = &[
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "listen_addresses=",
    "port=5432",
    "unix_socket_permissions=0700",
    "max_connections=200",
    "shared_buffers=128MB",
    MAX_WAL,
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "logging_collector=off",
    "log_destination=stderr",
    "log_min_messages=log",
    "log_min_error_statement=panic",
    "log_error_verbosity=terse",
    "log_checkpoints=off",
    "cluster_name=x402d",
];

/// A cluster and the account that runs it.
#[derive(Debug)]
pub(super) struct Cluster {
    account: Account,
    /// Belongs to the account.
    folder: PathBuf,
    /// Postgres's data directory, below the folder.
    data: PathBuf,
    log: PathBuf,
    /// Who may connect (`pg_hba.conf`), and as which role (`pg_ident.conf`).
    access: PathBuf,
    names: PathBuf,
}

impl Cluster {
    /// The cluster in `folder`, which need not exist yet. The log is beside the folder, where only x402d writes.
    pub(super) fn below(folder: &Path) -> Result<Self, EmbeddedError> {
        Ok(Self {
            account: Account::choose(folder)?,
            folder: folder.to_owned(),
            data: folder.join("data"),
            log: folder.with_extension("log"),
            access: folder.with_extension("hba"),
            names: folder.with_extension("ident"),
        })
    }

    /// Makes the folder the account's, and creates it at the first use.
    pub(super) fn own_folder(&self, is_only_user: bool) -> Result<(), EmbeddedError> {
        if is_only_user && self.find_server()?.is_none() {
            self.account.take_from_nobody(&self.folder)?;
        }
        self.account.own_folder(&self.folder)?;
        match self.account.find_closed_folder(&self.folder) {
            Some(closed) => Err(closed),
            None => Ok(()),
        }
    }

    /// Whether a server of an earlier version runs, which lets in everybody who reaches its socket.
    pub(super) fn has_outdated_server(&self) -> Result<bool, EmbeddedError> {
        let server = self.find_server()?;
        Ok(server.is_some_and(|server| !server.has_argument(&self.access_setting())))
    }

    /// The server, if it runs.
    pub(super) fn find_server(&self) -> Result<Option<Postmaster>, EmbeddedError> {
        Ok(match PidFile::read(&self.data)? {
            PidFile::Running(server) => Some(server),
            PidFile::Absent | PidFile::Stale => None,
        })
    }

    /// Finds the server or starts it, and waits until it answers. Returns the child if it was started here.
    ///
    /// Without `is_only_user` another x402d uses the cluster, so a server must be running.
    pub(super) async fn run(
        &self,
        is_only_user: bool,
    ) -> Result<(Postmaster, Option<Child>), EmbeddedError> {
        for _ in 0..START_ATTEMPTS {
            let mut child = None;
            let log_from = fs::metadata(&self.log).map_or(0, |log| log.len());
            if self.find_server()?.is_none() {
                if !is_only_user {
                    return Err(EmbeddedError::InvisiblePostmaster {
                        cluster: self.data.clone(),
                    });
                }
                child = Some(self.launch().await?);
            }
            if let Some(server) = self.wait_until_ready(&mut child).await? {
                return Ok((server, child));
            }
            let output = self.quote_log(log_from);
            if child.is_some() && !output.contains(STILL_IN_USE) {
                return Err(EmbeddedError::Failed {
                    program: format!("postgres (log: {})", self.log.display()),
                    output,
                });
            }
            sleep(START_PAUSE).await;
        }
        let limit = START_PAUSE * START_ATTEMPTS;
        Err(EmbeddedError::Late {
            what: "the end of the server that used this cluster before".to_owned(),
            limit,
        })
    }

    /// Starts the server, and creates the cluster first if there is none.
    async fn launch(&self) -> Result<Child, EmbeddedError> {
        let mut command = self.command().await?;
        self.write_access()?;
        command.arg("-c").arg(self.access_setting());
        command
            .arg("-c")
            .arg(format!("ident_file={}", self.names.display()));
        spawn(&mut command, "postgres")
    }

    /// The setting of `pg_hba.conf`, as an argument.
    fn access_setting(&self) -> OsString {
        let mut setting = OsString::from("hba_file=");
        setting.push(&self.access);
        setting
    }

    /// The server's command, but for who may connect.
    pub(super) async fn command(&self) -> Result<Command, EmbeddedError> {
        let version = fs::read_to_string(self.data.join("PG_VERSION")).ok();
        let wanted = version
            .as_deref()
            .and_then(first_number)
            .map(|major| (major, self.data.as_path()));
        let binaries = Places::usual(std::env::var_os("PATH"))
            .find(&self.account, wanted)
            .await?;
        if wanted.is_none() {
            self.create(&binaries).await?;
        }
        if matches!(PidFile::read(&self.data)?, PidFile::Stale) {
            PidFile::remove(&self.data)?;
        }
        let socket_folder = sockets::own(&self.account, &self.data)?;
        let log = self.open_log()?;
        let errors = log
            .try_clone()
            .map_err(EmbeddedError::io("share the log"))?;
        let mut command = self.account.command(&binaries.postgres);
        command.arg("-D").arg(&self.data);
        command.arg("-c").arg(format!(
            "unix_socket_directories={}",
            socket_folder.display()
        ));
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        // A process group of its own: Ctrl-C must reach x402d alone, which stops the server after its own work.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        Ok(command)
    }

    /// Writes who may connect, by what the kernel says of the process at the other end of the socket. The files are beside the folder, where
    /// only x402d writes, and hold no secret.
    fn write_access(&self) -> Result<(), EmbeddedError> {
        let names = admitted()
            .into_iter()
            .map(|user| format!("{MAP} \"{user}\" {}\n", database::USER));
        let files = [
            (&self.access, format!("local all all peer map={MAP}\n")),
            (&self.names, names.collect()),
        ];
        for (path, text) in files {
            let failed = EmbeddedError::io(format!("write {}", path.display()));
            let written = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .custom_flags(OFlag::O_NOFOLLOW.bits())
                .open(path)
                .and_then(|mut file| {
                    file.write_all(text.as_bytes())?;
                    // Whatever the umask: the account has to read it.
                    file.set_permissions(fs::Permissions::from_mode(0o644))
                });
            written.map_err(failed)?;
        }
        Ok(())
    }

    /// Creates the cluster under another name and then renames it, so that an interrupted attempt never looks like a cluster.
    async fn create(&self, binaries: &Binaries) -> Result<(), EmbeddedError> {
        let unfinished = self.data.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).map_err(EmbeddedError::io(format!(
                "remove {}",
                unfinished.display()
            )))?;
        }
        tracing::info!(version = binaries.major, folder = %self.data.display(), "creating a private Postgres cluster");
        let mut command = self.account.command(&binaries.initdb);
        command
            .arg("-D")
            .arg(&unfinished)
            .args(["-U", database::USER]);
        // For a server that is started without x402d; x402d's own has a file of its own.
        command.args([
            "--auth=reject",
            "--encoding=UTF8",
            "--no-locale",
            "--data-checksums",
        ]);
        command
            .process_group(0)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let late = |_| EmbeddedError::Late {
            what: "initdb".to_owned(),
            limit: INITDB_LIMIT,
        };
        let output = timeout(INITDB_LIMIT, command.output())
            .await
            .map_err(late)?;
        let output = output.map_err(EmbeddedError::io("run initdb"))?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EmbeddedError::Failed {
                program: "initdb".to_owned(),
                output,
            });
        }
        let renamed = fs::rename(&unfinished, &self.data).and_then(|()| match self.data.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        });
        renamed.map_err(EmbeddedError::io(format!(
            "move the new cluster to {}",
            self.data.display()
        )))
    }

    /// Waits until the server answers; `None` when it has ended.
    pub(super) async fn wait_until_ready(
        &self,
        child: &mut Option<Child>,
    ) -> Result<Option<Postmaster>, EmbeddedError> {
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            if let Some(child) = child
                && child
                    .try_wait()
                    .map_err(EmbeddedError::io("look at postgres"))?
                    .is_some()
            {
                return Ok(None);
            }
            match self.find_server()? {
                Some(server) if database::answers(server.socket_folder.as_deref()).await => {
                    return Ok(Some(server));
                }
                None if child.is_none() => return Ok(None),
                Some(_) | None => sleep(RETRY).await,
            }
        }
        let what = format!(
            "the start of the private Postgres (log: {})",
            self.log.display()
        );
        Err(EmbeddedError::Late {
            what,
            limit: READY_LIMIT,
        })
    }

    fn open_log(&self) -> Result<File, EmbeddedError> {
        let failed = || EmbeddedError::io(format!("open {}", self.log.display()));
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_MAX) {
            fs::rename(&self.log, self.log.with_extension("log.1")).map_err(failed())?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.log)
            .map_err(failed())
    }

    /// The server's output since byte `from`, at most the last [`QUOTE`] bytes.
    fn quote_log(&self, from: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut log = File::open(&self.log)?;
            let length = log.metadata()?.len();
            let from = if from > length { 0 } else { from };
            log.seek(SeekFrom::Start(from.max(length.saturating_sub(QUOTE))))?;
            let mut text = Vec::new();
            log.take(QUOTE).read_to_end(&mut text)?;
            Ok(text)
        };
        read()
            .map(|text| String::from_utf8_lossy(&text).trim().to_owned())
            .unwrap_or_default()
    }
}

fn spawn(command: &mut Command, program: &str) -> Result<Child, EmbeddedError> {
    command
        .spawn()
        .map_err(EmbeddedError::io(format!("run {program}")))
}
