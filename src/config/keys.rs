//! Files that hold private keys or a password, and who else may read them.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::unistd::geteuid;

/// Bytes of a file of keys at most: about a thousand keys.
const BYTES_MAX: u64 = 64 * 1024;
/// The bits of a mode that let others than the owner read, write or run a file.
const OTHERS: u32 = 0o077;
const GROUP_READS: u32 = 0o040;
const OTHERS_READ: u32 = 0o004;

/// The keys in a file, one on a line; empty lines and lines that begin with `#` are ignored. An error says what was expected and what to
/// do, without any of the contents.
pub(super) fn read(path: &Path) -> Result<Vec<String>, String> {
    let text = read_text(path, "private keys as text, one on a line,")?;
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = keys.map(str::to_owned).collect();
    if keys.is_empty() {
        return Err(format!("at least one private key in {}", path.display()));
    }
    Ok(keys)
}

/// The password in a file: its first line. An error is like one of [`read`].
pub(super) fn read_password(path: &Path) -> Result<String, String> {
    let text = read_text(path, "a password as text")?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        return Err(format!(
            "a password on the first line of {}",
            path.display()
        ));
    }
    Ok(password.to_owned())
}

fn read_text(path: &Path, expected: &str) -> Result<String, String> {
    let shown = path.display();
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (found, file) =
        opened.map_err(|error| format!("a readable file, but {shown} cannot be read: {error}"))?;
    if is_open_to_others(&found, geteuid().as_raw()) {
        let mode = found.permissions().mode() & 0o777;
        return Err(format!(
            "a file that only its owner can read, but {shown} has mode {mode:o}: run `chmod 600 {shown}` as the user that runs x402d, and \
             replace the keys if others may have read them"
        ));
    }
    let mut text = String::new();
    let length = file.take(BYTES_MAX).read_to_string(&mut text);
    if !length.is_ok_and(|length| u64::try_from(length).is_ok_and(|length| length < BYTES_MAX)) {
        return Err(format!("{expected} in {shown}; at most {BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// Whether users that need not may read or change the file. Where systemd and Kubernetes hand a secret to a user other than root, root owns
/// the file, and the group's bit is what lets the process itself read it.
fn is_open_to_others(found: &Metadata, user: u32) -> bool {
    let is_handed_by_root = found.uid() == 0 && user != 0;
    let forbidden = if is_handed_by_root {
        OTHERS & !GROUP_READS
    } else {
        OTHERS
    };
    found.permissions().mode() & forbidden != 0
}

/// Warns when every user of the machine can read a configuration file that has keys in it.
pub(super) fn warn_if_open(path: &Path) {
    if is_open(path) {
        tracing::warn!(
            file = %path.display(),
            "configuration file with private keys can be read by every user: run chmod 600 on it, or use signer_keys_file"
        );
    }
}

fn is_open(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & OTHERS_READ != 0)
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

    /// The problem of a configuration whose keys are in the file.
    fn problem(file: &tempfile::NamedTempFile) -> String {
        let mut environment = base_sepolia();
        environment.remove("X402D_SIGNER_KEYS");
        environment.insert("X402D_SIGNER_KEYS_FILE", file.path().to_str().unwrap());
        let read = Config::read(&Flags::default(), &environment);
        read.unwrap_err().to_string()
    }

    #[test]
    fn file_of_keys_is_its_owners_alone() {
        for mode in [0o600, 0o400] {
            assert_eq!(read(file(KEYS, mode).path()).unwrap().len(), 2);
        }
        for mode in [0o644, 0o604, 0o640, 0o440, 0o620, 0o602] {
            let file = file(KEYS, mode);
            let error = problem(&file);
            let wanted = format!("`chmod 600 {}`", file.path().display());
            for part in [
                "base-sepolia.signer_keys_file (X402D_SIGNER_KEYS_FILE)",
                &format!("has mode {mode:o}"),
                &wanted,
            ] {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert!(!error.contains("1111"), "{error}");
        }
    }

    /// The group of a file of root's is what a process of another user reads it by.
    #[test]
    fn file_of_root_may_be_read_by_the_group_of_another_user() {
        let mine = file(KEYS, 0o640).as_file().metadata().unwrap();
        assert!(is_open_to_others(&mine, mine.uid()));
        let of_root = fs::metadata("/").unwrap();
        assert_eq!(of_root.uid(), 0);
        assert!(is_open_to_others(&of_root, 1000), "others read / too");
        if mine.uid() == 0 {
            assert!(!is_open_to_others(&mine, 1000));
        } else {
            assert!(is_open_to_others(&mine, mine.uid() + 1));
        }
    }

    #[test]
    fn contents_of_a_file_of_keys_are_never_shown() {
        let digits = "7".repeat(63);
        let wrong = [
            (digits.clone(), "signer_keys_file[0]"),
            (format!("{KEYS}0x{digits}"), "signer_keys_file[2]"),
            (format!("{KEYS}{}", "1".repeat(64)), "each key once"),
            ("7".repeat(70_000), "one on a line"),
            ("# none\n".to_owned(), "at least one private key"),
        ];
        for (text, part) in wrong {
            let error = problem(&file(&text, 0o600));
            assert!(error.contains(part), "{part}: {error}");
            assert!(!error.contains("777") && !error.contains("1111"), "{error}");
        }
        let missing = read(Path::new("/nonexistent")).unwrap_err();
        assert!(missing.contains("cannot be read"), "{missing}");
    }

    #[test]
    fn keys_come_from_a_file_or_from_a_list() {
        let file = file(KEYS, 0o600);
        let path = file.path().to_str().unwrap();
        let mut without = base_sepolia();
        without.remove("X402D_SIGNER_KEYS");
        let signers = |flags: &Flags, environment: &_| {
            let config = Config::read(flags, environment);
            config.map(|config| config.networks[0].signers.len())
        };
        let mut by_variable = without.clone();
        by_variable.insert("X402D_SIGNER_KEYS_FILE", path);
        assert_eq!(signers(&Flags::default(), &by_variable).unwrap(), 2);

        let line = format!("signer_keys_file = {path:?}");
        let (flags, _kept) = flags_with(&format!("[networks.base-sepolia]\n{line}\n"));
        assert_eq!(signers(&flags, &without).unwrap(), 2);
        // A variable overrides both settings of the file.
        assert_eq!(signers(&flags, &base_sepolia()).unwrap(), 1);

        let list = "signer_keys = [\"0x11\"]\n";
        let (flags, _kept) = flags_with(&format!("[networks.base-sepolia]\n{list}{line}\n"));
        assert_eq!(signers(&flags, &by_variable).unwrap(), 2);
        let error = signers(&flags, &without).unwrap_err().to_string();
        assert!(error.contains("not both"), "{error}");
    }

    /// The example of the Web3 secret storage definition; its key and password are public.
    const KEYSTORE: &str = r#"{"crypto": {"cipher": "aes-128-ctr", "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46", "kdf": "pbkdf2",
        "kdfparams": {"c": 262144, "dklen": 32, "prf": "hmac-sha256", "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"}, "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3}"#;

    #[test]
    fn keystores_are_opened_beside_other_keys() {
        let keystore = file(KEYSTORE, 0o644);
        let path = keystore.path().to_str().unwrap();
        let read = |password: &str, mode| {
            let password = file(password, mode);
            let mut environment = base_sepolia();
            environment.insert("X402D_SIGNER_KEYSTORES", path);
            let password = password.path().to_str().unwrap();
            environment.insert("X402D_SIGNER_KEYSTORE_PASSWORD_FILE", password);
            let config = Config::read(&Flags::default(), &environment);
            config.map_err(|error| error.to_string())
        };
        let config = read("testpassword\n", 0o600).unwrap();
        let addresses: Vec<_> = config.networks[0].policy.signers.clone();
        assert_eq!(addresses.len(), 2);
        let known = "0x008AeEda4D805471dF9b2A5B0f38A0C3bCBA786b";
        assert!(addresses.contains(&known.parse().unwrap()), "{addresses:?}");
        for (password, mode, part) in [
            ("another-secret\n", 0o600, "signer_keystores[0]"),
            ("testpassword\n", 0o644, "has mode 644"),
            ("\n", 0o600, "a password on the first line"),
        ] {
            let error = read(password, mode).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
            assert!(!error.contains("another-secret"), "{error}");
        }
        let mut environment = base_sepolia();
        environment.insert("X402D_SIGNER_KEYSTORES", path);
        let error = Config::read(&Flags::default(), &environment).unwrap_err();
        assert!(error.to_string().contains("signer_keystore_password_file"));
    }

    #[test]
    fn configuration_file_with_keys_that_every_user_can_read_is_noticed() {
        assert!(is_open(file(KEYS, 0o644).path()));
        assert!(!is_open(file(KEYS, 0o640).path()));
        assert!(!is_open(Path::new("/nonexistent")));
        let of = |text| {
            toml::from_str::<crate::config::File>(text)
                .unwrap()
                .has_keys()
        };
        assert!(of("[networks.base]\nsigner_keys = [\"0x11\"]"));
        assert!(!of("[networks.base]\nsigner_keys_file = \"keys\""));
    }
}
