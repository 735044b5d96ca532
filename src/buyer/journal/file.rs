//! The journal's file: one JSON object a line, appended and on the disk before anybody goes on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::{JournalError, Line, OpenPayment, PurchaseKey};

/// A file, locked for as long as this value lives; the kernel gives the lock back whatever ends the process.
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
}

type Open = HashMap<PurchaseKey, OpenPayment>;

impl JournalFile {
    /// Locks, reads, cuts off what a killed process left unfinished, and empties the file when nothing in it is open.
    pub(super) fn open(path: &Path) -> Result<(Self, Open), JournalError> {
        let io = |doing| failed(path, doing);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(io("opening"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io("locking")(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("reading"))?;
        let whole = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let open = replay(path, bytes.get(..whole).unwrap_or_default())?;
        let kept = if open.is_empty() { 0 } else { whole };
        if kept != bytes.len() {
            let length = u64::try_from(kept).unwrap_or(u64::MAX);
            file.set_len(length)
                .and_then(|()| file.sync_all())
                .map_err(io("shortening"))?;
        }
        file.seek(SeekFrom::End(0)).map_err(io("reading"))?;
        // The name of a new file has to be on the disk as well.
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))
            .and_then(|folder| folder.sync_all())
            .map_err(io("syncing the folder"))?;
        let path = path.to_owned();
        Ok((Self { path, file }, open))
    }

    /// On return the line is on the disk. After a failure the file ends as before, so that no later line joins a torn one.
    pub(super) fn append(&mut self, line: &Line) -> Result<(), JournalError> {
        let io = |doing| failed(&self.path, doing);
        let mut bytes = serde_json::to_vec(line).map_err(|error| io("writing")(error.into()))?;
        bytes.push(b'\n');
        let before = self.file.stream_position().map_err(io("writing"))?;
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.file.set_len(before).ok();
            self.file.seek(SeekFrom::Start(before)).ok();
        }
        written.map_err(io("writing"))
    }
}

fn failed(path: &Path, doing: &'static str) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io {
        path,
        doing,
        source,
    }
}

fn replay(path: &Path, bytes: &[u8]) -> Result<Open, JournalError> {
    let mut open = Open::new();
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let corrupt = |_| JournalError::Corrupt {
            path: path.to_owned(),
            line: index + 1,
        };
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
    Ok(open)
}
