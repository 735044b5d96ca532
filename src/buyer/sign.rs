//! Who pays: a key, or a contract wallet whose owner signs.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;

use crate::protocol::{Authorization, DomainSeparator, ExactPayload};

/// A payer.
#[derive(Clone)]
pub struct Signer {
    key: PrivateKeySigner,
    payer: Address,
}

/// A key that cannot be used. Never repeats the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a private key of 0x and 64 hex digits")]
pub struct InvalidKey;

impl Signer {
    /// The account of a private key, 0x and 64 hex digits.
    ///
    /// # Errors
    /// [`InvalidKey`] for anything else.
    pub fn from_key(key: &str) -> Result<Self, InvalidKey> {
        let key: PrivateKeySigner = key.trim().parse().map_err(|_| InvalidKey)?;
        Ok(Self {
            payer: key.address(),
            key,
        })
    }

    /// A contract wallet (ERC-1271) that accepts its owner's signatures over the bare digest.
    ///
    /// # Errors
    /// [`InvalidKey`] when the owner's key cannot be read.
    pub fn for_wallet(owner_key: &str, wallet: Address) -> Result<Self, InvalidKey> {
        Ok(Self {
            payer: wallet,
            ..Self::from_key(owner_key)?
        })
    }

    /// Whose money it is.
    pub const fn address(&self) -> Address {
        self.payer
    }

    /// Signs an authorization of this payer.
    pub(super) fn authorize(
        &self,
        authorization: Authorization,
        domain: DomainSeparator,
    ) -> Option<ExactPayload> {
        let digest: B256 = authorization.digest(domain);
        let signature = self.key.sign_hash_sync(&digest).ok()?;
        Some(ExactPayload {
            signature: Bytes::copy_from_slice(&signature.as_bytes()),
            authorization,
        })
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Signer")
            .field("payer", &self.payer)
            .finish_non_exhaustive()
    }
}
