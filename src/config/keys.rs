//! Private keys in a file of their own, and who else may read the files that hold keys.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;

/// Bytes of a file of keys at most: about a thousand keys.
const BYTES_MAX: u64 = 64 * 1024;

/// The keys in a file, one on a line; empty lines and lines that begin with `#` are ignored. An error says what to correct, without any
/// of the contents.
pub(super) fn read(path: &Path) -> Result<Vec<String>, String> {
    let problem = |why: &str| format!("{}: {why}", path.display());
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) = opened.map_err(|error| problem(&format!("cannot be read: {error}")))?;
    if let Some(readers) = other_readers(&found) {
        let why = format!(
            "{readers} can read it; run `chmod 600 {}` as its owner, the user that runs x402d",
            path.display()
        );
        return Err(problem(&why));
    }
    let mut text = String::new();
    let length = file.take(BYTES_MAX).read_to_string(&mut text);
    match length {
        Ok(length) if u64::try_from(length).is_ok_and(|length| length < BYTES_MAX) => {}
        Ok(_) | Err(_) => return Err(problem("expected private keys as text, one on a line")),
    }
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(keys.map(str::to_owned).collect())
}

/// Who else may read a file. A file of another owner, as Kubernetes mounts them for a process that is not root, is read by its group.
fn other_readers(found: &Metadata) -> Option<&'static str> {
    let mode = found.permissions().mode();
    if mode & 0o007 != 0 {
        return Some("every user of the machine");
    }
    (mode & 0o070 != 0 && found.uid() == geteuid().as_raw()).then_some("its group")
}

/// Warns when every user of the machine can read a configuration file that has keys in it.
pub(super) fn warn_if_open(path: &Path) {
    let mode = std::fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o004 != 0 {
        tracing::warn!(
            file = %path.display(),
            "configuration file with private keys can be read by every user: run chmod 600 on it, or use signer_keys_file"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::tests::{base_sepolia, flags_with};
    use crate::config::{Config, Flags};

    const KEYS: &str = "# of the house\n\n0x1111111111111111111111111111111111111111111111111111111111111111\n 2222222222222222222222222222222222222222222222222222222222222222 \n";

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn file_of_keys_is_its_owners_alone() {
        for mode in [0o600, 0o400] {
            let file = file(KEYS, mode);
            assert_eq!(read(file.path()).unwrap().len(), 2);
        }
        for mode in [0o644, 0o604, 0o640, 0o620, 0o601] {
            let file = file(KEYS, mode);
            let error = read(file.path()).unwrap_err();
            assert!(
                error.contains("chmod 600") && !error.contains("1111"),
                "{error}"
            );
        }
        let long = file(&"0".repeat(70_000), 0o600);
        assert!(read(long.path()).unwrap_err().contains("one on a line"));
        assert!(
            read(Path::new("/nonexistent"))
                .unwrap_err()
                .contains("cannot be read")
        );
    }

    #[test]
    fn keys_come_from_a_file_or_from_a_list() {
        let file = file(KEYS, 0o600);
        let mut environment = base_sepolia();
        environment.remove("X402D_SIGNER_KEYS");
        environment.insert("X402D_SIGNER_KEYS_FILE", file.path().to_str().unwrap());
        let config = Config::read(&Flags::default(), &environment).unwrap();
        assert_eq!(config.networks[0].signers.len(), 2);

        let mut environment = base_sepolia();
        environment.remove("X402D_SIGNER_KEYS");
        let line = format!("signer_keys_file = {:?}", file.path());
        let (flags, _file) = flags_with(&format!("[networks.base-sepolia]\n{line}\n"));
        let config = Config::read(&flags, &environment).unwrap();
        assert_eq!(config.networks[0].signers.len(), 2);

        let list = "signer_keys = [\"0x11\"]\n";
        let (flags, _file) = flags_with(&format!("[networks.base-sepolia]\n{list}{line}\n"));
        let error = Config::read(&flags, &environment).unwrap_err().to_string();
        assert!(
            error.contains("one of signer_keys and signer_keys_file"),
            "{error}"
        );
    }
}
