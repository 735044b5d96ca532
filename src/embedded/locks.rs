//! Two lock files beside the cluster. The kernel releases them with the process, whatever ends it.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;

/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Takes the lock that makes starting and stopping the cluster one at a time.
///
/// Polled rather than waited for, so that the wait can end at `limit`.
pub(super) async fn hold_alone(path: &Path, limit: Duration) -> Result<File, EmbeddedError> {
    let file = open(path)?;
    let deadline = Instant::now() + limit;
    while !is_free(&file, path)? {
        if Instant::now() >= deadline {
            return Err(EmbeddedError::Locked {
                file: path.to_path_buf(),
                limit,
            });
        }
        sleep(RETRY).await;
    }
    Ok(file)
}

/// Joins the users of the cluster; the second value says whether nobody else uses it.
///
/// Only to be called while the lock of [`hold_alone`] is held: between the question and the joining there is a gap.
pub(super) fn join_users(path: &Path) -> Result<(File, bool), EmbeddedError> {
    let file = open(path)?;
    let alone = is_free_soon(&file, path)?;
    file.unlock()
        .and_then(|()| file.lock_shared())
        .map_err(EmbeddedError::io(format!("lock {}", path.display())))?;
    Ok((file, alone))
}

/// How often to look whether the last other user has gone, and how long between.
const FORK_LOOKS: u32 = 20;
const FORK_PAUSE: Duration = Duration::from_millis(20);

/// Leaves the users of the cluster and says whether nobody uses it any more. The same lock has to be held.
pub(super) fn leave_users(users: File, path: &Path) -> Result<bool, EmbeddedError> {
    drop(users);
    is_free_soon(&open(path)?, path)
}

/// The same as [`is_free`], with patience: a child that another thread is starting shares our locks until it runs its own program.
fn is_free_soon(file: &File, path: &Path) -> Result<bool, EmbeddedError> {
    for _ in 0..FORK_LOOKS {
        if is_free(file, path)? {
            return Ok(true);
        }
        std::thread::sleep(FORK_PAUSE);
    }
    Ok(false)
}

/// Takes the lock if nobody has it; an exclusive lock refuses both kinds of others.
fn is_free(file: &File, path: &Path) -> Result<bool, EmbeddedError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(EmbeddedError::io(format!(
            "lock {}",
            path.display()
        ))(source)),
    }
}

/// Opens a lock file without touching what is in it; never inherited by a child process.
fn open(path: &Path) -> Result<File, EmbeddedError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(EmbeddedError::io(format!("open {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_user_to_leave_is_told_that_nobody_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.lock");
        let (first, first_alone) = join_users(&path).unwrap();
        let (second, second_alone) = join_users(&path).unwrap();
        assert!(first_alone);
        assert!(!second_alone);
        assert!(!leave_users(first, &path).unwrap());
        assert!(leave_users(second, &path).unwrap());
    }

    #[tokio::test]
    async fn a_lock_that_is_held_too_long_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("starting.lock");
        let held = hold_alone(&path, Duration::ZERO).await.unwrap();
        let refused = hold_alone(&path, Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("starting.lock"), "{refused}");
        drop(held);
        hold_alone(&path, Duration::from_secs(5)).await.unwrap();
    }
}
