//! Two lock files beside the cluster. The kernel releases them when the process ends, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;

/// How often a held lock is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Takes the lock under which one process at a time starts or stops the cluster.
///
/// Polled, so that the wait can end at `limit`.
pub(super) async fn lock_exclusive(path: &Path, limit: Duration) -> Result<File, EmbeddedError> {
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

/// Joins the users of the cluster; the second value is whether no other process uses it.
///
/// Only to be called while the lock of [`lock_exclusive`] is held, because testing and joining are two steps.
pub(super) fn join_users(path: &Path) -> Result<(File, bool), EmbeddedError> {
    let file = open(path)?;
    let is_only_user = is_free_soon(&file, path)?;
    file.unlock()
        .and_then(|()| file.lock_shared())
        .map_err(EmbeddedError::io(format!("lock {}", path.display())))?;
    Ok((file, is_only_user))
}

/// How often to test whether the last other user has left, and the pause in between.
const FORK_TRIES: u32 = 20;
const FORK_PAUSE: Duration = Duration::from_millis(20);

/// Leaves the users of the cluster, and returns whether no process uses it any more. The same lock has to be held.
pub(super) fn leave_users(users: File, path: &Path) -> Result<bool, EmbeddedError> {
    drop(users);
    is_free_soon(&open(path)?, path)
}

/// The same as [`is_free`] with retries: a child that another thread is starting shares this process's locks until it runs its own program.
fn is_free_soon(file: &File, path: &Path) -> Result<bool, EmbeddedError> {
    for _ in 0..FORK_TRIES {
        if is_free(file, path)? {
            return Ok(true);
        }
        std::thread::sleep(FORK_PAUSE);
    }
    Ok(false)
}

/// Takes the lock if it is free; an exclusive lock excludes shared and exclusive ones.
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

/// Opens a lock file without changing its content; child processes do not inherit it.
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
    fn only_the_last_user_to_leave_finds_the_cluster_unused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.lock");
        let (first, first_is_only_user) = join_users(&path).unwrap();
        let (second, second_is_only_user) = join_users(&path).unwrap();
        assert!(first_is_only_user);
        assert!(!second_is_only_user);
        assert!(!leave_users(first, &path).unwrap());
        assert!(leave_users(second, &path).unwrap());
    }

    #[tokio::test]
    async fn error_names_a_lock_that_is_held_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("starting.lock");
        let held = lock_exclusive(&path, Duration::ZERO).await.unwrap();
        let refused = lock_exclusive(&path, Duration::from_millis(50))
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("starting.lock"), "{refused}");
        drop(held);
        lock_exclusive(&path, Duration::from_secs(5)).await.unwrap();
    }
}
