//! The payer and its key.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::{MnemonicBuilder, PrivateKeySigner};

/// Signs digests with one key. Implement it for a key outside this process, such as an HSM or a remote signer.
pub trait DigestSigner: Send + Sync {
    /// The account of the key.
    fn account(&self) -> Address;

    /// Signs `digest` without a message prefix. Returns 65 bytes, `r ‖ s ‖ v` with `v` 27 or 28, as tokens expect.
    ///
    /// # Errors
    /// The cause as text, which becomes [`crate::buyer::BuyerError::Signing`]. It must not contain key material.
    fn sign_digest(&self, digest: B256) -> Result<Bytes, String>;
}

/// A payer: a plain account with its key, or a contract wallet with its owner's key. `Debug` shows only the address.
#[derive(Clone)]
pub struct Signer {
    key: Arc<dyn DigestSigner>,
    payer: Address,
}

/// Why a key could not be loaded. Messages contain nothing of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is not a private key.
    #[error("expected a private key: 32 bytes in hex, within the range of secp256k1")]
    Key,
    /// The text is not a BIP-39 mnemonic.
    #[error("expected a BIP-39 mnemonic: 12 to 24 English words with a valid checksum")]
    Mnemonic,
    /// The keystore file is missing, is not a Web3 v3 keystore, or has another password.
    #[error(
        "the keystore cannot be opened: expected a readable Web3 v3 JSON file and its password"
    )]
    Keystore,
}

impl Signer {
    /// A plain account, from its private key in hex, with or without `0x`.
    ///
    /// # Errors
    /// [`KeyError::Key`] when the text is not a private key.
    pub fn from_key(hex: &str) -> Result<Self, KeyError> {
        // The library's error quotes a character of the key, so it is dropped.
        let key: PrivateKeySigner = hex.trim().parse().map_err(|_| KeyError::Key)?;
        Ok(Self::from_signer(Arc::new(key)))
    }

    /// The account `m/44'/60'/0'/0/index` of a BIP-39 mnemonic without passphrase.
    ///
    /// # Errors
    /// [`KeyError::Mnemonic`] when the words are not a BIP-39 mnemonic.
    pub fn from_mnemonic(words: &str, index: u32) -> Result<Self, KeyError> {
        // The words may be on several lines.
        let words: Vec<&str> = words.split_whitespace().collect();
        let key = MnemonicBuilder::try_from_phrase_nth(words.join(" "), index)
            .map_err(|_| KeyError::Mnemonic)?;
        Ok(Self::from_signer(Arc::new(key)))
    }

    /// The account of an encrypted keystore file (Web3 v3 JSON, as geth and foundry write it). Opening it takes seconds of
    /// computation by design.
    ///
    /// # Errors
    /// [`KeyError::Keystore`] when the file cannot be read or the password is wrong.
    pub fn from_keystore(file: &Path, password: &str) -> Result<Self, KeyError> {
        let key =
            PrivateKeySigner::decrypt_keystore(file, password).map_err(|_| KeyError::Keystore)?;
        Ok(Self::from_signer(Arc::new(key)))
    }

    /// A plain account whose key is held by `key`.
    pub fn from_signer(key: Arc<dyn DigestSigner>) -> Self {
        let payer = key.account();
        Self { key, payer }
    }

    /// A deployed contract wallet (ERC-1271) that accepts its owner's plain signature over the digest. The payer is `wallet`.
    ///
    /// # Errors
    /// [`KeyError::Key`] when `owner_hex` is not a private key.
    pub fn for_wallet(owner_hex: &str, wallet: Address) -> Result<Self, KeyError> {
        let owner = Self::from_key(owner_hex)?;
        Ok(Self {
            payer: wallet,
            ..owner
        })
    }

    /// The account whose money is paid.
    pub const fn address(&self) -> Address {
        self.payer
    }

    /// Whether the payer is the account of the key, which can send transactions and sign permits.
    pub(super) fn is_plain_account(&self) -> bool {
        self.key.account() == self.payer
    }

    /// Signs as [`DigestSigner::sign_digest`].
    pub(super) fn sign(&self, digest: B256) -> Result<Bytes, String> {
        self.key.sign_digest(digest)
    }
}

impl DigestSigner for PrivateKeySigner {
    fn account(&self) -> Address {
        self.address()
    }

    fn sign_digest(&self, digest: B256) -> Result<Bytes, String> {
        let signature = self
            .sign_hash_sync(&digest)
            .map_err(|error| error.to_string())?;
        Ok(Bytes::copy_from_slice(&signature.as_bytes()))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signer({})", self.payer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{address, b256};

    const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";

    #[test]
    fn published_digest_gets_published_signature() {
        let signer = Signer::from_key(KEY).unwrap();
        assert_eq!(
            signer.address(),
            address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A")
        );
        let digest = b256!("381b86af084fb5aae332949d22d96326ab5f699c65fe1a865807217d5ecb7c86");
        assert_eq!(
            signer.sign(digest).unwrap().to_string(),
            "0x34810545ab6517f1d4b463d8748b29fca88d3216c54eadaf5fde914d5a837b6b05d4ea2c5f87f89b5235499dd0469e3c1861a25bb8ad56e25ea8693fb73327771b"
        );
    }

    #[test]
    fn wallet_address_is_the_payer_and_no_key_is_shown() {
        let wallet = Address::repeat_byte(0x77);
        let signer = Signer::for_wallet(KEY, wallet).unwrap();
        assert_eq!(signer.address(), wallet);
        assert_eq!(format!("{signer:?}"), format!("Signer({wallet})"));
        let error = Signer::from_key("0xzz11").unwrap_err();
        assert!(!error.to_string().contains("zz"));
        assert!(
            Signer::from_key(&"0".repeat(64)).is_err(),
            "zero is not a valid key of the curve"
        );
    }

    /// The mnemonic of the default accounts of local development chains.
    const WORDS: &str = "test test test test test test test test test test test junk";

    #[test]
    fn mnemonic_derives_standard_accounts() {
        let first = Signer::from_mnemonic(WORDS, 0).unwrap();
        assert_eq!(
            first.address(),
            address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
        );
        let lines = WORDS.replace(' ', "\n");
        assert_eq!(
            Signer::from_mnemonic(&lines, 9).unwrap().address(),
            address!("a0Ee7A142d267C1f36714E4a8F75612F20a79720")
        );
        let error = Signer::from_mnemonic("test test junk", 0).unwrap_err();
        assert_eq!(error, KeyError::Mnemonic);
        assert!(!error.to_string().contains("junk"));
    }

    /// The example of the Web3 secret storage definition; its key and password are public.
    const KEYSTORE: &str = r#"{"crypto": {"cipher": "aes-128-ctr", "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
        "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46", "kdf": "pbkdf2",
        "kdfparams": {"c": 262144, "dklen": 32, "prf": "hmac-sha256", "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
        "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"}, "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3}"#;

    #[test]
    fn keystore_opens_only_with_its_password() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.json");
        std::fs::write(&file, KEYSTORE).unwrap();
        let opened = Signer::from_keystore(&file, "testpassword").unwrap();
        let key = "7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d";
        assert_eq!(opened.address(), Signer::from_key(key).unwrap().address());
        assert_eq!(
            Signer::from_keystore(&file, "another").unwrap_err(),
            KeyError::Keystore
        );
        std::fs::write(&file, "{}").unwrap();
        assert!(Signer::from_keystore(&file, "testpassword").is_err());
    }
}
