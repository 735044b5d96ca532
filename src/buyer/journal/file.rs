//! The journal file: one JSON object per line. A line is on disk before the call continues.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{JournalError, Line, OpenPayment, PurchaseKey};

/// A journal file, locked while this value lives. The kernel releases the lock when the process ends in any way.
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// A file of its own, because the journal file is replaced when it is compacted.
    _lock: File,
}

type Open = HashMap<PurchaseKey, OpenPayment>;

impl JournalFile {
    /// Locks and reads the file, and rewrites it without closed purchases and an incomplete last line.
    pub(super) fn open(path: &Path) -> Result<(Self, Open), JournalError> {
        let io = |doing| io_error(path, doing);
        let lock = open_private(&with_suffix(path, "lock")).map_err(io("opening its lock"))?;
        if !try_lock(&lock).map_err(io("locking"))? {
            return Err(JournalError::InUse(path.to_owned()));
        }
        let mut file = open_private(path).map_err(io("opening"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("reading"))?;
        let complete = bytes.iter().rposition(|byte| *byte == b'\n');
        let complete = complete.map_or(0, |end| end + 1);
        let (open, lines) = replay(path, bytes.get(..complete).unwrap_or_default())?;
        if complete != bytes.len() || lines != open.len() {
            file = compact(path, &open).map_err(io("compacting"))?;
        }
        sync_folder(path).map_err(io("syncing its folder"))?;
        let journal = Self {
            path: path.to_owned(),
            file,
            _lock: lock,
        };
        Ok((journal, open))
    }

    /// On return the line is on disk. After a failure the file is cut back to its length before, so that no later line joins a torn one.
    pub(super) fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        let io = |doing| io_error(&self.path, doing);
        let bytes = encode(line).map_err(io("writing"))?;
        let before = self.file.stream_position().map_err(io("writing"))?;
        let appended = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        if appended.is_err() {
            self.file.set_len(before).ok();
            self.file.seek(SeekFrom::Start(before)).ok();
        }
        appended.map_err(io("writing"))
    }
}

/// Opens or creates a file with mode 0600. An existing one that others may read or write gets that mode, or is refused.
fn open_private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    #[cfg(unix)]
    close_to_others(&file, path)?;
    Ok(file)
}

/// The permissions of everybody but the owner.
#[cfg(unix)]
const OTHERS: u32 = 0o077;

#[cfg(unix)]
fn close_to_others(file: &File, path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut permissions = file.metadata()?.permissions();
    let is_open = permissions.mode() & OTHERS != 0;
    if !is_open {
        return Ok(());
    }
    permissions.set_mode(0o600);
    file.set_permissions(permissions)?;
    tracing::warn!(path = %path.display(), "purchase journal was open to other users: its mode is 0600 now");
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes a new file with the open payments, and replaces the old one by it once it is on disk.
fn compact(path: &Path, open: &Open) -> std::io::Result<File> {
    let fresh = with_suffix(path, "new");
    let mut file = open_private(&fresh)?;
    file.set_len(0)?;
    for (key, payment) in open {
        let (key, payment) = (key.clone(), Box::new(payment.clone()));
        file.write_all(&encode(&Line::Opened { key, payment })?)?;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok(file)
}

/// Syncs the folder, so that the name of a new file is on disk as well.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn encode(line: &Line) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn io_error(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io {
        path,
        doing,
        source,
    }
}

/// The open payments after all lines, and the number of lines.
fn replay(path: &Path, bytes: &[u8]) -> Result<(Open, usize), JournalError> {
    let (mut open, mut read) = (Open::new(), 0);
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let corrupt = |_| JournalError::Corrupt {
            path: path.to_owned(),
            line: index + 1,
        };
        read += 1;
        match serde_json::from_slice(line).map_err(corrupt)? {
            Line::Opened { key, payment } => {
                open.insert(key, *payment);
            }
            Line::Named { key, transaction } => {
                if let Some(payment) = open.get_mut(&key) {
                    payment.transaction = Some(transaction);
                }
            }
            Line::Closed { key } => {
                open.remove(&key);
            }
        }
    }
    Ok((open, read))
}

/// Takes the lock, retrying for 200 ms: a child process that another thread is starting shares our locks until it executes its own program.
fn try_lock(lock: &File) -> std::io::Result<bool> {
    for _ in 0..20 {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}
