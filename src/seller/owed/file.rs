//! The file of owed purchases: one JSON object per line, appended, and rewritten at each start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Purchase, PurchaseKey};

/// Why the file of owed purchases cannot be used ([`crate::seller::Paywall::owed_in`]).
#[derive(Debug, thiserror::Error)]
pub enum OwedFileError {
    /// Another process has locked the file.
    #[error("{0} is in use by another process: each process needs its own file")]
    InUse(PathBuf),
    /// A file system error.
    #[error("{path} cannot be read or written")]
    Disk {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A line is not a purchase: the file belongs to another program or an earlier version, or is damaged.
    #[error(
        "line {line} of {path} is not a purchase of this version: if the file is of an earlier version, serve or refund what it lists, and move \
         it away"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
    },
    /// The write was cancelled because the tokio runtime is shutting down.
    #[error("the server is stopping")]
    Interrupted,
}

/// A line: the new state of a purchase, `None` once it is delivered or was not settled.
#[derive(Serialize, Deserialize)]
struct Line {
    key: PurchaseKey,
    purchase: Option<Purchase>,
}

/// The number of lines after which the file is rewritten, if most of them are about closed purchases.
const LINES_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct OwedFile {
    /// Held while this value lives. A file of its own, because the purchase file is replaced when it is rewritten.
    _lock: File,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// The offset behind the last complete line, in bytes.
    end: u64,
    /// An incomplete line follows `end`, and could not be cut off yet.
    torn: bool,
    lines: usize,
    /// The open purchases after all lines of the file.
    open: HashMap<PurchaseKey, Purchase>,
}

impl OwedFile {
    /// Locks the file, reads the open purchases, and rewrites it without closed and expired ones.
    pub(super) fn open(
        path: &Path,
        now: i64,
    ) -> Result<(Self, HashMap<PurchaseKey, Purchase>), OwedFileError> {
        let failed = |source| OwedFileError::Disk {
            path: path.to_owned(),
            source,
        };
        let lock = open_append(&path.with_extension("lock")).map_err(failed)?;
        if !try_lock(&lock).map_err(failed)? {
            return Err(OwedFileError::InUse(path.to_owned()));
        }
        let mut open = read(path)?;
        open.retain(|_, purchase| purchase.until >= now);
        let (file, end) = rewrite(path, &open).map_err(failed)?;
        sync_folder(path).map_err(failed)?;
        let state = State {
            file,
            end,
            torn: false,
            lines: open.len(),
            open: open.clone(),
        };
        let file = Self {
            _lock: lock,
            path: path.to_owned(),
            state: Mutex::new(state),
        };
        Ok((file, open))
    }

    /// Appends the new state of a purchase; with `sync` it is on disk on return.
    pub(super) fn append(
        &self,
        key: PurchaseKey,
        purchase: Option<&Purchase>,
        sync: bool,
    ) -> Result<(), OwedFileError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let written = state.append(&self.path, key, purchase, sync);
        written.map_err(|source| OwedFileError::Disk {
            path: self.path.clone(),
            source,
        })
    }
}

impl State {
    fn append(
        &mut self,
        path: &Path,
        key: PurchaseKey,
        purchase: Option<&Purchase>,
        sync: bool,
    ) -> io::Result<()> {
        self.write_line(&encode(key, purchase)?, sync)?;
        self.lines += 1;
        match purchase {
            Some(purchase) => drop(self.open.insert(key, purchase.clone())),
            None => drop(self.open.remove(&key)),
        }
        if self.lines > LINES_MAX && self.lines > 4 * self.open.len() {
            // Every payment that is presented and not settled leaves lines too, so any client can make the file grow.
            self.compact(path);
        }
        Ok(())
    }

    /// Writes a line behind the last complete one. After a failure the file is cut back to its length before, so that no later line joins a
    /// torn one.
    fn write_line(&mut self, line: &[u8], sync: bool) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.end)?;
            self.torn = false;
        }
        let written = self
            .file
            .write_all(line)
            .and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        match written {
            Ok(()) => self.end += u64::try_from(line.len()).unwrap_or_default(),
            Err(_) => self.torn = self.file.set_len(self.end).is_err(),
        }
        written
    }

    /// Rewrites the file with the open purchases only. After a failure the old file stays in use.
    fn compact(&mut self, path: &Path) {
        match rewrite(path, &self.open) {
            Ok((file, end)) => {
                (self.file, self.end, self.torn) = (file, end, false);
                self.lines = self.open.len();
                if let Err(error) = sync_folder(path) {
                    tracing::warn!(%error, "folder sync failed after rewriting the file of owed purchases");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "rewriting the file of owed purchases failed: it stays as it is");
            }
        }
    }
}

/// Opens or creates a file for appending, with mode 0600.
fn open_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Syncs the folder, so that the name of a new file is on disk as well.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Replaces the file by one with the open purchases. Returns the new file and its length in bytes.
fn rewrite(path: &Path, open: &HashMap<PurchaseKey, Purchase>) -> io::Result<(File, u64)> {
    let fresh = path.with_extension("new");
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let (mut file, mut end) = (open_append(&fresh)?, 0);
    for (key, purchase) in open {
        let line = encode(*key, Some(purchase))?;
        file.write_all(&line)?;
        end += u64::try_from(line.len()).unwrap_or_default();
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok((file, end))
}

fn encode(key: PurchaseKey, purchase: Option<&Purchase>) -> io::Result<Vec<u8>> {
    let line = Line {
        key,
        purchase: purchase.cloned(),
    };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    Ok(text)
}

fn read(path: &Path) -> Result<HashMap<PurchaseKey, Purchase>, OwedFileError> {
    let failed = |source| OwedFileError::Disk {
        path: path.to_owned(),
        source,
    };
    let mut open = HashMap::new();
    let mut lines = BufReader::new(open_append(path).map_err(failed)?);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        if lines.read_until(b'\n', &mut text).map_err(failed)? == 0 {
            break;
        }
        match serde_json::from_slice(&text) {
            Ok(Line {
                key,
                purchase: Some(purchase),
            }) => drop(open.insert(key, purchase)),
            Ok(Line {
                key,
                purchase: None,
            }) => drop(open.remove(&key)),
            // The process ended while it wrote the last line: the recorded event had not happened yet.
            Err(_) if !text.ends_with(b"\n") => {}
            Err(_) => {
                return Err(OwedFileError::Corrupt {
                    path: path.to_owned(),
                    line: number,
                });
            }
        }
    }
    Ok(open)
}

/// Takes the lock, retrying for 200 ms: a child process that another thread is starting shares our locks until it executes its own program.
fn try_lock(lock: &File) -> io::Result<bool> {
    for _ in 0..20 {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}
