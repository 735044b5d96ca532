//! The account that runs Postgres: the caller's own, or another one if x402d is root, because Postgres refuses root.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, getegid, geteuid};
use tokio::process::Command;

use super::error::EmbeddedError;

/// The only search path that Postgres's own programs need.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The account that runs Postgres if x402d is root.
const STAND_IN: &str = "postgres";
/// An account that several services run as, so that each could read what belongs to it.
const SHARED: &str = "nobody";

/// The account that owns the cluster and runs its processes.
#[derive(Debug, Clone)]
pub(super) struct Account {
    name: String,
    uid: u32,
    gid: u32,
    /// Set when x402d is root, and child processes have to change to the account.
    changes: bool,
}

impl Account {
    /// Chooses the account. As root, the owner of an existing cluster keeps it, so that it can read its files.
    pub(super) fn choose(cluster: &Path) -> Result<Self, EmbeddedError> {
        let me = geteuid();
        if !me.is_root() {
            let name = user(me).map_or_else(|| me.to_string(), |user| user.name);
            return Ok(Self {
                name,
                uid: me.as_raw(),
                gid: getegid().as_raw(),
                changes: false,
            });
        }
        let owner = fs::metadata(cluster)
            .ok()
            .map(|found| Uid::from_raw(found.uid()))
            .filter(|uid| !uid.is_root());
        let stand_in = || User::from_name(STAND_IN).ok().flatten();
        let chosen = owner
            .and_then(user)
            .or_else(stand_in)
            .ok_or(EmbeddedError::NoAccount)?;
        if chosen.name == SHARED {
            return Err(EmbeddedError::SharedAccount {
                folder: cluster.to_owned(),
            });
        }
        Ok(Self {
            name: chosen.name,
            uid: chosen.uid.as_raw(),
            gid: chosen.gid.as_raw(),
            changes: true,
        })
    }

    /// The account's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The name of the user that runs this process.
    pub(super) fn own_name() -> Option<String> {
        user(geteuid()).map(|user| user.name)
    }

    /// A command that runs as the account, without the environment of x402d, which may hold signer keys.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", SYSTEM_PATH)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir("/");
        if self.changes {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Makes sure that the folder exists, belongs to the account, and is closed to all other accounts.
    pub(super) fn own_folder(&self, folder: &Path) -> Result<(), EmbeddedError> {
        let failed = |what: &str| EmbeddedError::io(format!("{what} {}", folder.display()));
        if self.changes
            && let Some(open) = self.find_open_parent(folder)
        {
            return Err(open);
        }
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(problem) if problem.kind() != ErrorKind::AlreadyExists => {
                return Err(failed("create")(problem));
            }
            Ok(()) | Err(_) => {}
        }
        let found = fs::symlink_metadata(folder).map_err(failed("look at"))?;
        if !found.is_dir() {
            return Err(failed("use a file or link as folder:")(
                ErrorKind::NotADirectory.into(),
            ));
        }
        if self.changes && found.uid() != self.uid {
            lchown(folder, Some(self.uid), Some(self.gid)).map_err(failed("hand over"))?;
        }
        if is_open(&found) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
                .map_err(failed("close"))?;
        }
        Ok(())
    }

    /// The error for the first folder above `path` in which another user than root and the account could rename entries. In a folder with
    /// the sticky bit, such as `/tmp`, only the owner of an entry can.
    fn find_open_parent(&self, path: &Path) -> Option<EmbeddedError> {
        let is_open = |folder: &&Path| {
            fs::metadata(folder).is_ok_and(|found| {
                let mode = found.permissions().mode();
                let is_foreign = found.uid() != 0 && found.uid() != self.uid;
                is_foreign || (mode & 0o022 != 0 && mode & 0o1000 == 0)
            })
        };
        let open = path.ancestors().skip(1).find(is_open)?;
        Some(EmbeddedError::OpenFolder {
            folder: open.to_owned(),
        })
    }

    /// Whether a folder belongs to the account alone; required of a folder in `/tmp`.
    pub(super) fn has_alone(&self, found: &Metadata) -> bool {
        let mine = found.uid() == self.uid || (self.changes && found.uid() == 0);
        mine && found.is_dir() && !is_open(found)
    }

    /// The error for the first folder on the way to `path` that the account may not enter, by its mode.
    pub(super) fn find_closed_folder(&self, path: &Path) -> Option<EmbeddedError> {
        let mut folders: Vec<&Path> = path.ancestors().filter(|folder| folder.is_dir()).collect();
        folders.reverse();
        let closed = folders
            .into_iter()
            .find(|folder| fs::metadata(folder).is_ok_and(|found| !self.may_enter(&found)));
        closed.map(|folder| EmbeddedError::ClosedFolder {
            user: self.name.clone(),
            folder: PathBuf::from(folder),
        })
    }

    fn may_enter(&self, folder: &Metadata) -> bool {
        let shift = if folder.uid() == self.uid {
            6
        } else if folder.gid() == self.gid {
            3
        } else {
            0
        };
        self.uid == 0 || (folder.permissions().mode() >> shift) & 1 == 1
    }
}

/// Whether other accounts than the owner's have any permission.
fn is_open(found: &Metadata) -> bool {
    found.permissions().mode() & 0o077 != 0
}

fn user(uid: Uid) -> Option<User> {
    User::from_uid(uid).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_folder_that_the_account_cannot_enter_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let other = Account {
            name: "other".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
            changes: true,
        };
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let closed = other.find_closed_folder(&inner).unwrap().to_string();
        assert!(closed.contains("`other`"), "{closed}");
        assert!(
            closed.contains(&format!("chmod o+x {}`", folder.path().display())),
            "{closed}"
        );
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert!(other.find_closed_folder(&inner).is_none());
    }

    /// Another user could put a link to somebody else's folder there, which then would be handed over.
    #[test]
    fn folder_is_not_handed_over_through_links_or_in_open_parents() {
        let place = tempfile::tempdir().unwrap();
        let (folder, victim) = (place.path().join("cluster"), place.path().join("victim"));
        fs::create_dir(&victim).unwrap();
        std::os::unix::fs::symlink(&victim, &folder).unwrap();
        let account = Account {
            name: "other".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
            changes: geteuid().is_root(),
        };
        assert!(account.own_folder(&folder).is_err());
        let (before, after) = (fs::metadata(place.path()), fs::metadata(&victim));
        assert_eq!(after.unwrap().uid(), before.unwrap().uid());

        fs::remove_file(&folder).unwrap();
        let other = Account {
            changes: true,
            ..account
        };
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let open = other.own_folder(&folder).unwrap_err().to_string();
        assert!(open.contains("can be changed by other users"), "{open}");
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn child_process_has_no_environment_and_is_not_root() {
        let account = Account::choose(Path::new("/nonexistent")).unwrap();
        let printed = account
            .command("/bin/sh")
            .args(["-c", "id -u; env"])
            .output()
            .await
            .unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        assert_eq!(
            printed.lines().next(),
            Some(account.uid.to_string().as_str())
        );
        assert_ne!(account.uid, 0);
        assert!(!printed.contains("CARGO"), "{printed}");
    }
}
