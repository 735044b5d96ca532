//! The keys of a network's signers: in the configuration, in a file of their own, in keystores, or in AWS KMS.

use alloy::primitives::Address;

use super::Reader;
use crate::chain::SignerKey;
use crate::config::file::NetworkFile;
use crate::config::keys;
use crate::protocol::field::parse_address;

const KEYS: &str = "signer_keys (X402D_SIGNER_KEYS)";
const KEYS_FILE: &str = "signer_keys_file (X402D_SIGNER_KEYS_FILE)";
const PASSWORD_FILE: &str = "signer_keystore_password_file (X402D_SIGNER_KEYSTORE_PASSWORD_FILE)";

impl Reader<'_> {
    pub(super) fn signers(&mut self, entry: &NetworkFile) -> Vec<SignerKey> {
        let mut signers = Vec::new();
        let anywhere = !entry.signer_keys.is_empty()
            || entry.signer_keys_file.is_some()
            || !entry.signer_keystores.is_empty()
            || !entry.signer_aws_kms.is_empty();
        self.needs(
            anywhere,
            KEYS,
            "at least one private key that pays for gas, here or in signer_keys_file, signer_keystores or signer_aws_kms",
        );
        self.plain_keys(entry, &mut signers);
        self.keystores(entry, &mut signers);
        self.aws_kms(entry, &mut signers);
        signers
    }

    fn plain_keys(&mut self, entry: &NetworkFile, signers: &mut Vec<SignerKey>) {
        let Some(path) = &entry.signer_keys_file else {
            let list = ("signer_keys", "X402D_SIGNER_KEYS");
            self.parsed_keys(list, &entry.signer_keys, signers);
            return;
        };
        self.needs(
            entry.signer_keys.is_empty(),
            KEYS_FILE,
            "either it or signer_keys (X402D_SIGNER_KEYS), not both",
        );
        match keys::read(path) {
            Ok(keys) => {
                let list = ("signer_keys_file", "X402D_SIGNER_KEYS_FILE");
                self.parsed_keys(list, &keys, signers);
            }
            Err(expected) => self.needs(false, KEYS_FILE, &expected),
        }
    }

    /// A problem names a key by its place in the list, never by its digits.
    fn parsed_keys(
        &mut self,
        (list, variable): (&str, &str),
        keys: &[String],
        signers: &mut Vec<SignerKey>,
    ) {
        for (index, key) in keys.iter().enumerate() {
            let place = format!("{list}[{index}] ({variable})");
            match SignerKey::from_hex(key) {
                Ok(key) => self.add(key, &place, signers),
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
    }

    fn keystores(&mut self, entry: &NetworkFile, signers: &mut Vec<SignerKey>) {
        if entry.signer_keystores.is_empty() {
            return;
        }
        let Some(password) = &entry.signer_keystore_password_file else {
            let expected = "the file with the password of signer_keystores";
            return self.needs(false, PASSWORD_FILE, expected);
        };
        let password = match keys::read_password(password) {
            Ok(password) => password,
            Err(expected) => return self.needs(false, PASSWORD_FILE, &expected),
        };
        for (index, file) in entry.signer_keystores.iter().enumerate() {
            let place = format!("signer_keystores[{index}] (X402D_SIGNER_KEYSTORES)");
            match SignerKey::from_keystore(file, &password) {
                Ok(key) => self.add(key, &place, signers),
                Err(error) => {
                    let expected = error.to_string();
                    let expected = expected.trim_start_matches("expected ");
                    let shown = file.display();
                    self.needs(
                        false,
                        &place,
                        &format!("{expected}, but {shown} is none or has another"),
                    );
                }
            }
        }
    }

    fn aws_kms(&mut self, entry: &NetworkFile, signers: &mut Vec<SignerKey>) {
        for (index, key) in entry.signer_aws_kms.iter().enumerate() {
            let place = format!("signer_aws_kms[{index}] (X402D_SIGNER_AWS_KMS)");
            let parts = key.split_once('=').and_then(|(address, id)| {
                let address = parse_address(address.trim()).ok()?;
                let id = id.trim();
                (!id.is_empty()).then(|| (address, id.to_owned()))
            });
            let Some((address, id)) = parts else {
                let expected = "0xADDRESS=KEY: the account, and the id, the alias or the ARN of its key in AWS KMS";
                self.needs(false, &place, expected);
                continue;
            };
            match in_aws_kms(address, id) {
                Some(key) => self.add(key, &place, signers),
                None => self.needs(
                    false,
                    &place,
                    "an x402d that was built with `--features aws`; this one was not",
                ),
            }
        }
    }

    fn add(&mut self, key: SignerKey, place: &str, signers: &mut Vec<SignerKey>) {
        let known = signers.iter().any(|other| other.address() == key.address());
        self.needs(!known, place, "each key once");
        if !known {
            signers.push(key);
        }
    }
}

/// `None`: this x402d was built without AWS KMS.
#[cfg(feature = "aws")]
#[expect(clippy::unnecessary_wraps, reason = "as without AWS KMS")]
fn in_aws_kms(address: Address, id: String) -> Option<SignerKey> {
    Some(crate::chain::aws_kms::key(address, id))
}

#[cfg(not(feature = "aws"))]
fn in_aws_kms(_address: Address, _id: String) -> Option<SignerKey> {
    None
}
