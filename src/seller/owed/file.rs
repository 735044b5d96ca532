//! The file of owed purchases: one JSON object a line, appended, and written anew at each start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Purchase, PurchaseKey};

/// The file of owed purchases cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OwedFileError {
    /// Another process sells with this file.
    #[error("{0} is in use by another process; each seller needs a file of its own")]
    InUse(PathBuf),
    /// The disk.
    #[error("{path} cannot be read or written")]
    Disk {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something else was written into it.
    #[error("line {line} of {path} is no purchase; move the file away if it is not x402d's")]
    Strange {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// The runtime is shutting down.
    #[error("the server is stopping")]
    Interrupted,
}

/// A line: what stands about a purchase from now on, nothing once it is delivered.
#[derive(Serialize, Deserialize)]
struct Line {
    key: PurchaseKey,
    purchase: Option<Purchase>,
}

/// Lines after which the file is written anew, when most of them speak of what is delivered.
const LINES_MAX: usize = 20_000;

#[derive(Debug)]
pub(super) struct OwedFile {
    /// Held for as long as this lives. On a file of its own, because the other one is replaced.
    _lock: File,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Where the last whole line ends.
    end: u64,
    /// A line behind that was begun and not finished, and could not be taken back yet.
    torn: bool,
    lines: usize,
    /// What a reader of the file would find open.
    open: HashMap<PurchaseKey, Purchase>,
}

impl OwedFile {
    /// Opens the file for this process alone, and reads what is owed. What it says of delivered purchases is cleared away.
    pub(super) fn open(
        path: &Path,
    ) -> Result<(Self, HashMap<PurchaseKey, Purchase>), OwedFileError> {
        let failed = |source| OwedFileError::Disk {
            path: path.to_owned(),
            source,
        };
        let lock = appending(&path.with_extension("lock")).map_err(failed)?;
        if !is_locked(&lock).map_err(failed)? {
            return Err(OwedFileError::InUse(path.to_owned()));
        }
        let open = read(path)?;
        let (file, end) = rewritten(path, &open).map_err(failed)?;
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

    /// Adds what stands about a purchase from now on; with `durably` it is on the disk afterwards.
    pub(super) fn append(
        &self,
        key: PurchaseKey,
        purchase: Option<&Purchase>,
        durably: bool,
    ) -> Result<(), OwedFileError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let written = state.append(&self.path, key, purchase, durably);
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
        durably: bool,
    ) -> io::Result<()> {
        self.add(&line(key, purchase)?, durably)?;
        self.lines += 1;
        match purchase {
            Some(purchase) => drop(self.open.insert(key, purchase.clone())),
            None => drop(self.open.remove(&key)),
        }
        if self.lines > LINES_MAX && self.lines > 4 * self.open.len() {
            // Strangers can present what nobody settles, and each leaves its lines.
            self.tidy(path);
        }
        Ok(())
    }

    /// Writes a line behind the last whole one. After a failure the file ends as before, so that no later line joins a torn one.
    fn add(&mut self, line: &[u8], durably: bool) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.end)?;
            self.torn = false;
        }
        let written = self.file.write_all(line).and_then(|()| {
            if durably {
                self.file.sync_data()
            } else {
                Ok(())
            }
        });
        match written {
            Ok(()) => self.end += u64::try_from(line.len()).unwrap_or_default(),
            Err(_) => self.torn = self.file.set_len(self.end).is_err(),
        }
        written
    }

    /// Writes the file anew. What cannot be tidied now goes on as it is.
    fn tidy(&mut self, path: &Path) {
        match rewritten(path, &self.open) {
            Ok((file, end)) => {
                (self.file, self.end, self.torn) = (file, end, false);
                self.lines = self.open.len();
                if let Err(error) = sync_folder(path) {
                    tracing::warn!(%error, "the folder of the owed purchases cannot be synced");
                }
            }
            Err(error) => tracing::warn!(%error, "the file of owed purchases cannot be tidied"),
        }
    }
}

/// Opens a file to append to, for its owner alone.
fn appending(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The name of a new file has to be on the disk as well.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Replaces the file by one that holds what is open, and opens it; with its length.
fn rewritten(path: &Path, open: &HashMap<PurchaseKey, Purchase>) -> io::Result<(File, u64)> {
    let fresh = path.with_extension("new");
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let (mut file, mut end) = (appending(&fresh)?, 0);
    for (key, purchase) in open {
        let line = line(*key, Some(purchase))?;
        file.write_all(&line)?;
        end += u64::try_from(line.len()).unwrap_or_default();
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok((file, end))
}

fn line(key: PurchaseKey, purchase: Option<&Purchase>) -> io::Result<Vec<u8>> {
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
    let mut lines = BufReader::new(appending(path).map_err(failed)?);
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
            // The process died while it wrote the last line: what it was about to say had not happened yet.
            Err(_) if !text.ends_with(b"\n") => {}
            Err(_) => {
                return Err(OwedFileError::Strange {
                    path: path.to_owned(),
                    line: number,
                });
            }
        }
    }
    Ok(open)
}

/// Takes the lock, with a little patience: a child that another thread is just starting shares our locks until it runs its own program.
fn is_locked(lock: &File) -> io::Result<bool> {
    for _ in 0..20 {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}
