//! The journal's file: one JSON object a line, appended and on the disk before anybody goes on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{JournalError, Line, OpenPayment, PurchaseKey};

/// A file, locked for as long as this value lives; the kernel gives the lock back whatever ends the process.
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// Beside the journal, which is replaced when it is tidied.
    _lock: File,
}

type Open = HashMap<PurchaseKey, OpenPayment>;

impl JournalFile {
    /// Locks, reads, and writes it anew without what is closed and what a killed process left unfinished.
    pub(super) fn open(path: &Path) -> Result<(Self, Open), JournalError> {
        let io = |doing| failed(path, doing);
        let lock = private(&beside(path, "lock")).map_err(io("opening its lock"))?;
        if !is_locked(&lock).map_err(io("locking"))? {
            return Err(JournalError::InUse(path.to_owned()));
        }
        let mut file = private(path).map_err(io("opening"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("reading"))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |end| end + 1);
        let (open, lines) = replay(path, bytes.get(..whole).unwrap_or_default())?;
        if whole != bytes.len() || lines != open.len() {
            file = tidied(path, &open).map_err(io("tidying"))?;
        }
        sync_folder(path).map_err(io("syncing its folder"))?;
        let journal = Self {
            path: path.to_owned(),
            file,
            _lock: lock,
        };
        Ok((journal, open))
    }

    /// On return the line is on the disk. After a failure the file ends as before, so that no later line joins a torn one.
    pub(super) fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        let io = |doing| failed(&self.path, doing);
        let bytes = written(line).map_err(io("writing"))?;
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

/// Opens a file that its owner alone may read.
fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// A new file with what is open, in the old one's place once it is on the disk.
fn tidied(path: &Path, open: &Open) -> std::io::Result<File> {
    let fresh = beside(path, "new");
    let mut file = private(&fresh)?;
    file.set_len(0)?;
    for (key, payment) in open {
        let (key, payment) = (key.clone(), Box::new(payment.clone()));
        file.write_all(&written(&Line::Opened { key, payment })?)?;
    }
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok(file)
}

/// The name of a new file has to be on the disk as well.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

fn written(line: &Line) -> std::io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io {
        path,
        doing,
        source,
    }
}

/// What is open, and how many lines it took to say so.
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

/// Takes the lock, with a little patience: a child that another thread is just starting shares our locks until it runs its own program.
fn is_locked(lock: &File) -> std::io::Result<bool> {
    for _ in 0..20 {
        match lock.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}
