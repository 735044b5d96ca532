//! The keys of a network's signers: in the configuration, or in a file of their own.

use super::Reader;
use crate::chain::SignerKey;
use crate::config::file::NetworkFile;
use crate::config::keys;
use crate::protocol::field::parse_address;

impl Reader<'_> {
    pub(super) fn signers(&mut self, entry: &NetworkFile) -> Vec<SignerKey> {
        let Some(path) = &entry.signer_keys_file else {
            self.needs(
                !entry.signer_keys.is_empty(),
                "signer_keys (X402D_SIGNER_KEYS)",
                "at least one private key that pays for gas, here or in signer_keys_file",
            );
            return self.parsed_keys("signer_keys", "X402D_SIGNER_KEYS", &entry.signer_keys);
        };
        let (key, variable) = ("signer_keys_file", "X402D_SIGNER_KEYS_FILE");
        let both = format!("{key} ({variable})");
        self.needs(
            entry.signer_keys.is_empty(),
            &both,
            "either it or signer_keys (X402D_SIGNER_KEYS), not both",
        );
        match keys::read(path) {
            Ok(keys) => self.parsed_keys(key, variable, &keys),
            Err(expected) => {
                self.needs(false, &both, &expected);
                Vec::new()
            }
        }
    }

    /// A problem names a key by its place in the list, never by its digits.
    fn parsed_keys(&mut self, list: &str, variable: &str, keys: &[String]) -> Vec<SignerKey> {
        let mut signers: Vec<SignerKey> = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let place = format!("{list}[{index}] ({variable})");
            match SignerKey::from_hex(key) {
                Ok(key) if signers.iter().any(|other| other.address() == key.address()) => {
                    self.needs(false, &place, "each key once");
                }
                Ok(key) => signers.push(key),
                Err(error) => {
                    let found = if parse_address(key).is_ok() {
                        "; this is an address"
                    } else {
                        ""
                    };
                    let expected = error.to_string();
                    let expected = expected.trim_start_matches("expected ");
                    self.needs(false, &place, &format!("{expected}{found}"));
                }
            }
        }
        signers
    }
}
