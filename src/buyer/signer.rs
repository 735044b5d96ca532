//! Who pays, and how their leave is signed.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;

/// A payer: a plain account with its key, or a contract wallet with its owner's key. Shows its address alone.
#[derive(Clone)]
pub struct Signer {
    key: PrivateKeySigner,
    payer: Address,
}

/// The text is no private key. It is not repeated here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a private key: 32 bytes in hex, within the range of secp256k1")]
pub struct KeyError;

impl Signer {
    /// A plain account, from its private key in hex, with or without `0x`.
    ///
    /// # Errors
    /// [`KeyError`] when the text is no key.
    pub fn from_key(hex: &str) -> Result<Self, KeyError> {
        // The library's own error would quote a character of the key.
        let key: PrivateKeySigner = hex.trim().parse().map_err(|_| KeyError)?;
        let payer = key.address();
        Ok(Self { key, payer })
    }

    /// A deployed contract wallet (ERC-1271) that accepts its owner's plain signature over the digest.
    ///
    /// # Errors
    /// [`KeyError`] when the owner's text is no key.
    pub fn for_wallet(owner_hex: &str, wallet: Address) -> Result<Self, KeyError> {
        let owner = Self::from_key(owner_hex)?;
        Ok(Self {
            payer: wallet,
            ..owner
        })
    }

    /// Whose money it is.
    pub const fn address(&self) -> Address {
        self.payer
    }

    /// 65 bytes, `r ‖ s ‖ v` with `v` 27 or 28, as tokens want it.
    pub(super) fn sign(&self, digest: B256) -> Result<Bytes, alloy::signers::Error> {
        let signature = self.key.sign_hash_sync(&digest)?;
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
    fn the_published_digest_gets_the_published_signature() {
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
    fn a_wallet_pays_from_its_own_address_and_no_key_is_shown() {
        let wallet = Address::repeat_byte(0x77);
        let signer = Signer::for_wallet(KEY, wallet).unwrap();
        assert_eq!(signer.address(), wallet);
        assert_eq!(format!("{signer:?}"), format!("Signer({wallet})"));
        let error = Signer::from_key("0xzz11").unwrap_err();
        assert!(!error.to_string().contains("zz"));
        assert!(
            Signer::from_key(&"0".repeat(64)).is_err(),
            "zero is no key of the curve"
        );
    }
}
