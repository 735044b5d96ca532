//! The file of owed purchases: one JSON object a line, appended, and written anew at each start.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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

#[derive(Debug)]
pub(super) struct OwedFile {
    /// Held for as long as this lives.
    _lock: File,
    path: PathBuf,
    file: Mutex<File>,
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
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        // The lock is on a file of its own, because the other one is replaced.
        let lock = options.open(path.with_extension("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OwedFileError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let open = read(path, &options)?;
        let fresh = path.with_extension("new");
        let mut text = Vec::new();
        for (key, purchase) in &open {
            text.extend(line(*key, Some(purchase)).map_err(failed)?);
        }
        std::fs::write(&fresh, &text)
            .and_then(|()| File::open(&fresh)?.sync_all())
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(failed)?;
        let file = Self {
            _lock: lock,
            path: path.to_owned(),
            file: Mutex::new(options.open(path).map_err(failed)?),
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
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = line(key, purchase).and_then(|text| {
            file.write_all(&text)?;
            if durably { file.sync_data() } else { Ok(()) }
        });
        written.map_err(|source| OwedFileError::Disk {
            path: self.path.clone(),
            source,
        })
    }
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

fn read(
    path: &Path,
    options: &OpenOptions,
) -> Result<HashMap<PurchaseKey, Purchase>, OwedFileError> {
    let failed = |source| OwedFileError::Disk {
        path: path.to_owned(),
        source,
    };
    let mut open = HashMap::new();
    let mut lines = BufReader::new(options.open(path).map_err(failed)?);
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
