//! The running server as other processes see it: its pid file, its process, and how to end it.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;

/// Pause between two looks at a process that should end.
const RETRY: Duration = Duration::from_millis(20);

/// The state of the cluster's `postmaster.pid`, compared with the running processes.
#[derive(Debug)]
pub(super) enum PidFile {
    /// No server, or one that was stopped in order.
    Absent,
    /// The file of a server that died without cleaning up.
    Stale,
    /// A running server of this cluster.
    Running(Postmaster),
}

/// A running server.
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    cluster: PathBuf,
    /// Absent before the server has opened its socket.
    pub(super) socket_folder: Option<PathBuf>,
}

impl PidFile {
    /// Reads the cluster's file. The path has to be the one with which the server was started.
    pub(super) fn read(cluster: &Path) -> Result<Self, EmbeddedError> {
        let path = Self::path(cluster);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(problem) if problem.kind() == ErrorKind::NotFound => return Ok(Self::Absent),
            Err(problem) => {
                return Err(EmbeddedError::io(format!("read {}", path.display()))(
                    problem,
                ));
            }
        };
        let mut lines = text.lines();
        let Some(pid) = lines
            .next()
            .and_then(|line| line.trim().parse().ok())
            .map(Pid::from_raw)
        else {
            return Ok(Self::Stale);
        };
        // The fifth line, after directory, start time and port.
        let socket_folder = lines
            .nth(3)
            .filter(|line| !line.is_empty())
            .map(PathBuf::from);
        let postmaster = Postmaster {
            pid,
            cluster: cluster.to_path_buf(),
            socket_folder,
        };
        Ok(if postmaster.is_running() {
            Self::Running(postmaster)
        } else {
            Self::Stale
        })
    }

    /// Removes the file of a dead server: Postgres itself would not do so if another process has its pid by now. The caller has to know
    /// that no process uses the cluster.
    pub(super) fn remove(cluster: &Path) -> Result<(), EmbeddedError> {
        let path = Self::path(cluster);
        fs::remove_file(&path).map_err(EmbeddedError::io(format!("remove {}", path.display())))
    }

    fn path(cluster: &Path) -> PathBuf {
        cluster.join("postmaster.pid")
    }
}

impl Postmaster {
    /// Whether the process lives and is the server of this cluster, and not another process with the same id.
    pub(super) fn is_running(&self) -> bool {
        self.has_argument(self.cluster.as_os_str())
    }

    /// Whether the process lives and was started with this argument.
    pub(super) fn has_argument(&self, argument: &OsStr) -> bool {
        has_argument(self.pid, argument.as_encoded_bytes())
    }

    /// Ends the server by a fast shutdown: clients are disconnected, and committed data is written out.
    pub(super) async fn stop(&self, limit: Duration) -> Result<(), EmbeddedError> {
        match kill(self.pid, Signal::SIGINT) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(problem) => {
                return Err(EmbeddedError::io("stop the private Postgres")(
                    problem.into(),
                ));
            }
        }
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                return Err(EmbeddedError::Late {
                    what: "stopping the private Postgres".to_owned(),
                    limit,
                });
            }
            sleep(RETRY).await;
        }
        Ok(())
    }

    /// Kills the server, so that a test leaves no process behind.
    #[cfg(test)]
    pub(super) fn kill(&self) {
        kill(self.pid, Signal::SIGKILL).unwrap();
    }
}

/// A process that ended and was not yet reaped has no arguments.
fn has_argument(pid: Pid, wanted: &[u8]) -> bool {
    if Path::new("/proc/self/cmdline").exists() {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        return arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == wanted);
    }
    let listed = Command::new("ps")
        .args(["-ww", "-o", "args=", "-p", &pid.to_string()])
        .output();
    listed.is_ok_and(|listed| {
        listed
            .stdout
            .windows(wanted.len())
            .any(|part| part == wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_of_another_process_is_a_stale_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            PidFile::read(folder.path()).unwrap(),
            PidFile::Absent
        ));
        let text = format!("{}\n/elsewhere\n1\n5432\n/tmp\n", std::process::id());
        fs::write(folder.path().join("postmaster.pid"), text).unwrap();
        assert!(matches!(
            PidFile::read(folder.path()).unwrap(),
            PidFile::Stale
        ));
        PidFile::remove(folder.path()).unwrap();
        assert!(matches!(
            PidFile::read(folder.path()).unwrap(),
            PidFile::Absent
        ));
    }
}
