//! Gives a folder and all that is in it to another account.
//!
//! The old owner can put links into the folder, also while this runs. So no link is followed, each entry is opened below the folder that was
//! opened before it, and what is given is what was opened and looked at, never a path.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::error::EmbeddedError;

/// Folders within each other; Postgres has four.
const DEPTH_MAX: usize = 16;

/// The old owner's id, and the new one's with its group.
#[derive(Clone, Copy)]
struct Hands {
    from: u32,
    to: (u32, u32),
}

/// Gives the folder with its contents from one account to another. What belongs to a third one, links and files with a second name are
/// refused. The folder itself comes last, so that an interrupted call can be repeated.
pub(super) fn give(folder: &Path, from: u32, to: (u32, u32)) -> Result<(), EmbeddedError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags().bits())
        .open(folder)
        .map_err(EmbeddedError::io(format!("open {}", folder.display())))?;
    give_opened(&opened, folder, Hands { from, to }, 0)
}

fn give_opened(
    opened: &File,
    path: &Path,
    hands: Hands,
    depth: usize,
) -> Result<(), EmbeddedError> {
    let failed = || EmbeddedError::io(format!("hand over {}", path.display()));
    let found = opened.metadata().map_err(failed())?;
    let is_theirs = [hands.from, hands.to.0].contains(&found.uid());
    let is_plain = found.is_dir() || (found.is_file() && found.nlink() == 1);
    if !is_theirs || !is_plain || depth > DEPTH_MAX {
        return Err(strange(path));
    }
    if found.is_dir() {
        for name in names(opened).map_err(failed())? {
            let inner = path.join(OsStr::from_bytes(name.to_bytes()));
            let entry = match openat(opened, name.as_c_str(), flags(), Mode::empty()) {
                Ok(entry) => File::from(entry),
                // A link, and a socket.
                Err(Errno::ELOOP | Errno::ENXIO) => return Err(strange(&inner)),
                Err(problem) => return Err(failed()(problem.into())),
            };
            give_opened(&entry, &inner, hands, depth + 1)?;
        }
    }
    fchown(opened, Some(hands.to.0), Some(hands.to.1)).map_err(failed())
}

/// The names in an open folder.
pub(super) fn names(folder: &File) -> io::Result<Vec<CString>> {
    let mut folder = Dir::from_fd(OwnedFd::from(folder.try_clone()?))?;
    let mut names = Vec::new();
    for entry in folder.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Without `O_NONBLOCK` a named pipe would keep the opening waiting.
fn flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC
}

fn strange(path: &Path) -> EmbeddedError {
    EmbeddedError::StrangeEntry {
        path: path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::unistd::{getegid, geteuid};

    use super::*;

    /// Puts a way to the victim at a place.
    type Plant = fn(&Path, &Path);

    /// An ordinary user can give only to itself; root gives to an account without a name.
    fn hands() -> (u32, (u32, u32)) {
        let me = geteuid().as_raw();
        let to = if me == 0 {
            (4_000_000, 4_000_000)
        } else {
            (me, getegid().as_raw())
        };
        (me, to)
    }

    #[test]
    fn all_that_is_in_a_folder_is_given() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cluster");
        fs::create_dir_all(folder.join("data/base")).unwrap();
        fs::write(folder.join("data/base/1"), "row").unwrap();
        let (from, to) = hands();
        give(&folder, from, to).unwrap();
        for path in ["", "data", "data/base", "data/base/1"] {
            let found = fs::metadata(folder.join(path)).unwrap();
            assert_eq!((found.uid(), found.gid()), to, "{path}");
        }
        // Once more, as after an interruption.
        give(&folder, from, to).unwrap();
        assert_eq!(fs::read(folder.join("data/base/1")).unwrap(), b"row");
    }

    #[test]
    fn links_and_foreign_files_are_refused_and_stay_as_they_are() {
        let place = tempfile::tempdir().unwrap();
        let victim = place.path().join("victim");
        fs::write(&victim, "secret").unwrap();
        let (from, to) = hands();
        let plants: [(&str, Plant); 3] = [
            ("symbolic", |victim, at| symlink(victim, at).unwrap()),
            ("second name", |victim, at| {
                fs::hard_link(victim, at).unwrap();
            }),
            ("folder", |victim, at| {
                symlink(victim.parent().unwrap(), at).unwrap();
            }),
        ];
        for (name, plant) in plants {
            let folder = place.path().join(name);
            fs::create_dir_all(folder.join("data")).unwrap();
            let planted = folder.join("data/planted");
            plant(&victim, &planted);
            let refused = give(&folder, from, to).unwrap_err().to_string();
            assert!(
                refused.contains(&planted.display().to_string()),
                "{refused}"
            );
            assert_eq!(fs::metadata(&victim).unwrap().uid(), from, "{name}");
            assert_eq!(fs::metadata(&folder).unwrap().uid(), from, "{name}");
        }
        let foreign = place.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        let refused = give(&foreign, from + 1, (from + 1, to.1)).unwrap_err();
        assert!(
            matches!(refused, EmbeddedError::StrangeEntry { .. }),
            "{refused}"
        );
    }
}
