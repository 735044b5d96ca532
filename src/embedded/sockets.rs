//! The folder of the Unix socket: short, because a socket's path is limited to about a hundred bytes and a data directory can be anywhere,
//! and closed to all other accounts.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use alloy::primitives::keccak256;

use super::account::Account;
use super::error::EmbeddedError;

/// The parent folder: a short path that exists on every Unix.
const PARENT: &str = "/tmp";

/// The prefix of the folder's name; the rest is a digest of the cluster's path.
const PREFIX: &str = "x402d-";

/// Names that are tried when others are in use, by accident or by an attack.
const NAMES: u32 = 8;

/// Creates the folder for a cluster's socket, or finds the one of an earlier start. No server may run on the cluster.
///
/// An existing folder is used only if it belongs to the account and is closed to others: every account can write to `/tmp`, and one that
/// could write into this folder could put its own server there.
pub(super) fn own(account: &Account, cluster: &Path) -> Result<PathBuf, EmbeddedError> {
    let digest = keccak256(cluster.as_os_str().as_encoded_bytes()).to_string();
    let name: String = digest.chars().skip(2).take(16).collect();
    for number in 0..NAMES {
        let folder = Path::new(PARENT).join(format!("{PREFIX}{name}-{number}"));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(problem) if problem.kind() != ErrorKind::AlreadyExists => {
                return Err(EmbeddedError::io(format!("create {}", folder.display()))(
                    problem,
                ));
            }
            Ok(()) | Err(_) => {}
        }
        if fs::symlink_metadata(&folder).is_ok_and(|found| account.has_alone(&found)) {
            account.own_folder(&folder)?;
            clear(&folder)?;
            return Ok(folder);
        }
    }
    let action = format!(
        "create an own folder in {PARENT}: all {NAMES} names beginning {PREFIX}{name} are taken"
    );
    Err(EmbeddedError::io(action)(ErrorKind::AlreadyExists.into()))
}

/// Removes the files of a killed server: its lock file names a pid that another process may have by now, and then Postgres would refuse to
/// start.
fn clear(folder: &Path) -> Result<(), EmbeddedError> {
    let failed = || EmbeddedError::io(format!("clear {}", folder.display()));
    for entry in fs::read_dir(folder).map_err(failed())? {
        fs::remove_file(entry.map_err(failed())?.path()).map_err(failed())?;
    }
    Ok(())
}

/// Removes the folder after the last use. If that fails, the next start finds it again.
pub(super) fn release(folder: &Path) {
    let is_own = folder.parent() == Some(Path::new(PARENT))
        && folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if is_own && let Err(problem) = fs::remove_dir(folder) {
        tracing::debug!(folder = %folder.display(), %problem, "socket folder not removed");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn socket_folder_is_short_stable_and_private() {
        let cluster = tempfile::tempdir().unwrap();
        let account = Account::choose(cluster.path()).unwrap();
        let first = own(&account, cluster.path()).unwrap();
        assert!(first.as_os_str().len() < 80);
        fs::write(first.join(".s.PGSQL.5432.lock"), "1\n").unwrap();
        assert_eq!(own(&account, cluster.path()).unwrap(), first);
        assert_eq!(fs::read_dir(&first).unwrap().count(), 0);
        fs::set_permissions(&first, fs::Permissions::from_mode(0o777)).unwrap();
        let second = own(&account, cluster.path()).unwrap();
        assert_ne!(second, first);
        release(&first);
        release(&second);
        assert!(!first.exists() && !second.exists());
    }
}
