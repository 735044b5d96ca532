//! x402d as a child process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{Caller, eventually};

/// The first start initialises a database cluster, which takes a while on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(90);
/// An orderly stop waits up to ten seconds each for requests and for the engine.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// Rates that no test reaches.
const UNLIMITED: &str = "[limits]\nverify_per_second = 1000000\nsettle_per_second = 1000000\nsessions_per_second = 1000000\nunattended_per_caller = 1000000\nwaits_per_caller = 1000000\n";
/// Bytes of the log that a failing test shows.
const LOG_SHOWN: usize = 6_000;

/// The service process; killed on drop.
pub(crate) struct Facilitator {
    variables: Vec<(&'static str, String)>,
    folder: TempDir,
    child: Option<Child>,
    /// Client of the process since its latest start.
    caller: Caller,
    /// Length of the log before the latest start.
    log_start: usize,
    /// The pipe of a log that nobody reads.
    unread_log: Option<BufReader<ChildStderr>>,
}

impl Facilitator {
    /// A service with only `variables` in its environment and `toml` as its file. [`restart`](Self::restart) starts it.
    pub(crate) fn new(variables: Vec<(&'static str, String)>, toml: &str) -> Self {
        let folder = TempDir::with_prefix("x402d-it-serve-").unwrap();
        // A test calls as often as it likes, unless it is about rates.
        let rates = if toml.contains("[limits]") {
            ""
        } else {
            UNLIMITED
        };
        // One payer may be the whole crowd of a test.
        let network = variables.iter().rfind(|(name, _)| *name == "X402D_NETWORK");
        let payers = network
            .filter(|_| !toml.contains("[networks."))
            .map(|(_, network)| format!("[networks.{network}]\nqueue_max_per_payer = 1000000\n"));
        let toml = format!("{toml}\n{rates}\n{}", payers.unwrap_or_default());
        std::fs::write(folder.path().join("x402d.toml"), toml).unwrap();
        Self {
            variables,
            folder,
            child: None,
            caller: Caller::default(),
            log_start: 0,
            unread_log: None,
        }
    }

    /// Starts it, also after a kill or an orderly stop, and waits until it is ready. It dies at `failpoint`, if given.
    pub(crate) async fn restart(&mut self, failpoint: Option<&str>) {
        self.spawn(failpoint).await;
        self.wait_until_ready().await;
    }

    /// The same at its previous address, for sellers configured with it.
    pub(crate) async fn restart_at(&mut self, url: &str, failpoint: Option<&str>) {
        let address = url.trim_start_matches("http://").to_owned();
        self.variables.retain(|(name, _)| *name != "X402D_LISTEN");
        self.variables.push(("X402D_LISTEN", address));
        self.restart(failpoint).await;
    }

    /// The same, waiting only until it listens and not for `/readyz`.
    pub(crate) async fn spawn(&mut self, failpoint: Option<&str>) {
        self.log_start = self.log().len();
        let log = self.log_file();
        self.begin(failpoint, log.into());
        self.wait_until_it_listens().await;
    }

    /// Starts it with a log that is read up to the line that names its address, and then never again.
    pub(crate) async fn restart_with_unread_log(&mut self) {
        self.log_start = self.log().len();
        let mut log = self.log_file();
        self.begin(None, Stdio::piped());
        let pipe = self.child.as_mut().unwrap().stderr.take().unwrap();
        let unread = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::with_capacity(1, pipe);
            let mut line = String::new();
            while !line.contains("x402d listens") {
                line.clear();
                assert!(lines.read_line(&mut line).unwrap() > 0, "no more lines");
                log.write_all(line.as_bytes()).unwrap();
            }
            lines
        });
        self.unread_log = Some(unread.await.unwrap());
        self.wait_until_it_listens().await;
        self.wait_until_ready().await;
    }

    fn log_file(&self) -> File {
        let mut options = File::options();
        let options = options.create(true).append(true);
        options.open(self.log_path()).unwrap()
    }

    fn begin(&mut self, failpoint: Option<&str>, log: Stdio) {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
        command
            .arg("serve")
            .arg("--config")
            .arg(self.folder.path().join("x402d.toml"));
        command
            .env_clear()
            .env("X402D_LISTEN", "127.0.0.1:0")
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .envs(failpoint.map(|step| ("X402D_FAILPOINT", step)));
        command
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    async fn wait_until_it_listens(&mut self) {
        let url = eventually("x402d to listen", START_LIMIT, async || {
            self.assert_running();
            self.listen_url()
        })
        .await;
        self.caller.connect_to(url);
    }

    pub(crate) async fn wait_until_ready(&mut self) {
        eventually("x402d to be ready", START_LIMIT, async || {
            self.assert_running();
            let asked = self.caller.try_get("/readyz").await;
            asked.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    fn assert_running(&mut self) {
        let ended = self
            .child
            .as_mut()
            .and_then(|child| child.try_wait().unwrap());
        assert!(ended.is_none(), "x402d ended while it started: {ended:?}");
    }

    fn listen_url(&self) -> Option<String> {
        let log = self.log();
        let line = log
            .get(self.log_start..)?
            .lines()
            .find(|line| line.contains("x402d listens"))?;
        let line: Value = serde_json::from_str(line).ok()?;
        Some(format!("http://{}", line["address"].as_str()?))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The whole log, across restarts.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let id = self.child.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends SIGTERM and returns the exit status and the time it took.
    pub(crate) async fn terminate(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_end().await;
        (status, began.elapsed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    /// Waits for the end of the process, for example at a failpoint.
    pub(crate) async fn wait_for_end(&mut self) -> ExitStatus {
        let status = eventually("x402d to end", STOP_LIMIT, async || {
            self.child.as_mut().unwrap().try_wait().unwrap()
        })
        .await;
        self.child = None;
        status
    }
}

impl Deref for Facilitator {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

impl Drop for Facilitator {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Killed, not stopped: the database has its own cleanup.
            drop(child.kill());
            drop(child.wait());
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.ceil_char_boundary(log.len().saturating_sub(LOG_SHOWN));
            eprintln!("x402d logged last:\n{}", &log[from..]);
        }
    }
}
