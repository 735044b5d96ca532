//! The account that runs Postgres: the caller's own, or another one if x402d is root, because Postgres refuses root.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::{Uid, User, getegid, geteuid};
use tokio::process::Command;

use super::error::EmbeddedError;
use super::handover;

/// The only search path that Postgres's own programs need.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// The accounts that run Postgres if x402d is root; the first that exists is used.
const STAND_INS: [&str; 2] = ["x402d", "postgres"];

/// Not one of them: several services run as this user, and each could change what belongs to it.
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
        let stand_in = || {
            let mut users = STAND_INS.iter();
            users.find_map(|name| User::from_name(name).ok().flatten())
        };
        let chosen = owner(cluster)
            .filter(|owner| !owner.uid.is_root() && owner.name != SHARED)
            .or_else(stand_in)
            .ok_or(EmbeddedError::NoAccount)?;
        Ok(Self {
            name: chosen.name,
            uid: chosen.uid.as_raw(),
            gid: chosen.gid.as_raw(),
            changes: true,
        })
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

    /// Makes sure that the folder exists, belongs to the account, and is closed to all other accounts. A link is not followed, and a folder
    /// with something in it keeps its owner.
    pub(super) fn own_folder(&self, folder: &Path) -> Result<(), EmbeddedError> {
        let failed = |what: &str| EmbeddedError::io(format!("{what} {}", folder.display()));
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(problem) if problem.kind() != ErrorKind::AlreadyExists => {
                return Err(failed("create")(problem));
            }
            Ok(()) | Err(_) => {}
        }
        // What is changed below is what was opened here, whatever is put in its place.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits())
            .open(folder)
            .map_err(failed("open as a folder, which it has to be and no link:"))?;
        let found = opened.metadata().map_err(failed("look at"))?;
        if self.changes && found.uid() != self.uid {
            let names = handover::names(&opened).map_err(failed("read"))?;
            if found.uid() != 0 || !names.is_empty() {
                return Err(EmbeddedError::ForeignFolder {
                    folder: folder.to_owned(),
                    user: self.name.clone(),
                });
            }
            fchown(&opened, Some(self.uid), Some(self.gid)).map_err(failed("hand over"))?;
        }
        if is_open(&found) {
            opened
                .set_permissions(fs::Permissions::from_mode(0o700))
                .map_err(failed("close"))?;
        }
        Ok(())
    }

    /// Takes a cluster from `nobody`, as whom earlier versions ran Postgres where there was no user `postgres`. No server may run on it.
    pub(super) fn take_from_nobody(&self, cluster: &Path) -> Result<(), EmbeddedError> {
        let Some(shared) = owner(cluster).filter(|owner| owner.name == SHARED) else {
            return Ok(());
        };
        if !self.changes {
            return Ok(());
        }
        handover::give(cluster, shared.uid.as_raw(), (self.uid, self.gid))?;
        tracing::warn!(
            folder = %cluster.display(),
            user = self.name,
            "private Postgres taken from the user nobody: until now every program that runs as nobody could change the ledger"
        );
        Ok(())
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

/// The owner of the folder itself, not of what a link leads to.
fn owner(folder: &Path) -> Option<User> {
    let found = fs::symlink_metadata(folder).ok()?;
    user(Uid::from_raw(found.uid()))
}

/// The users whom the private server lets in: root, who can do everything anyway, and the one that runs x402d.
pub(super) fn admitted() -> Vec<String> {
    let mut names: Vec<String> = [Uid::from_raw(0), geteuid()]
        .into_iter()
        .filter_map(user)
        .map(|user| user.name)
        .collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parent_folder_that_the_account_cannot_enter_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let other = other(true);
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

    fn other(changes: bool) -> Account {
        Account {
            name: "other".to_owned(),
            uid: 4_000_000,
            gid: 4_000_000,
            changes,
        }
    }

    /// Another user could put a link to somebody else's folder there, which then would be handed over.
    #[test]
    fn folder_is_not_handed_over_through_a_link() {
        let place = tempfile::tempdir().unwrap();
        let (link, victim) = (place.path().join("cluster"), place.path().join("victim"));
        DirBuilder::new().mode(0o755).create(&victim).unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        let before = fs::metadata(&victim).unwrap();
        for changes in [false, true] {
            let refused = other(changes).own_folder(&link).unwrap_err().to_string();
            assert!(refused.contains("no link"), "{refused}");
            let after = fs::metadata(&victim).unwrap();
            assert_eq!((after.uid(), after.mode()), (before.uid(), before.mode()));
        }
    }

    #[test]
    fn folder_with_something_in_it_keeps_its_owner() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cluster");
        fs::create_dir_all(folder.join("data")).unwrap();
        let before = fs::metadata(&folder).unwrap().uid();
        let refused = other(true).own_folder(&folder).unwrap_err().to_string();
        let advice = format!("chown -hR other {}", folder.display());
        assert!(refused.contains(&advice), "{refused}");
        assert_eq!(fs::metadata(&folder).unwrap().uid(), before);
        fs::remove_dir(folder.join("data")).unwrap();
        // Only root can hand over.
        let handed = other(true).own_folder(&folder);
        assert_eq!(handed.is_ok(), geteuid().is_root());
        let owner = if geteuid().is_root() {
            4_000_000
        } else {
            before
        };
        assert_eq!(fs::metadata(&folder).unwrap().uid(), owner);
    }

    #[test]
    fn root_and_the_own_user_are_let_in_and_nobody_is_not() {
        let names = admitted();
        let own = user(geteuid()).unwrap().name;
        let root = user(Uid::from_raw(0)).unwrap().name;
        assert!(names.contains(&own) && names.contains(&root), "{names:?}");
        assert!(names.len() <= 2, "{names:?}");
        let account = Account::choose(Path::new("/nonexistent")).unwrap();
        assert_ne!(account.name, SHARED);
        assert_eq!(account.changes, geteuid().is_root());
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
