//! Keys that pay for gas: an unsigned transaction goes in, signed bytes and their hash come out. The key is in memory, or with a service.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use alloy::consensus::transaction::Transaction;
use alloy::consensus::{SignableTransaction, Signed, TxEip1559, TxEnvelope, TxLegacy};
use alloy::eips::eip2718::{Decodable2718, Encodable2718};
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use futures_util::future::BoxFuture;

use crate::chain::Fees;
use crate::protocol::Network;

/// Gas limit of an empty transfer to an account without code. It uses 21,000 gas, and more on rollups that charge for L1 data in gas.
const EMPTY_TRANSFER_GAS: u64 = 100_000;

/// The key of a lane's signer.
#[derive(Clone)]
pub struct SignerKey(Holder);

/// Who holds the private key.
#[derive(Clone)]
enum Holder {
    Process(PrivateKeySigner),
    Service(Arc<dyn KeyService>),
}

/// A service that keeps a key and signs with it. Each call ends within a few seconds, as the owner of a lane waits for it.
pub trait KeyService: Send + Sync {
    /// The account of the key.
    fn address(&self) -> Address;

    /// Asks the service whether it has the key.
    fn check(&self) -> BoxFuture<'_, Result<(), SigningFailed>>;

    /// Signs what is already hashed.
    fn sign(&self, digest: B256) -> BoxFuture<'_, Result<Signature, SigningFailed>>;
}

/// A key that cannot be parsed. The error never contains the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a private key of 0x and 64 hex digits")]
pub struct InvalidKey;

/// A keystore that cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a Web3 v3 keystore, as geth and foundry write it, and its password")]
pub struct InvalidKeystore;

/// The transaction could not be signed. Nothing was recorded and nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum SigningFailed {
    #[error("signing failed; nothing was sent")]
    Key(#[source] alloy::signers::Error),
    /// The signature was not made with the lane's key over these bytes: a transaction with it would come from a foreign account.
    #[error("the signature is not one of signer {0}; nothing was sent")]
    WrongSignature(Address),
    /// The service that keeps the key did not answer, or refused.
    #[error("{service} did not sign; nothing was sent")]
    Service {
        service: &'static str,
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The service has another key than the configuration says.
    #[error("the key is that of {found}, and the configuration says {expected}; nothing was sent")]
    OtherKey { expected: Address, found: Address },
    /// The key cannot be used now.
    #[error("the key cannot be used now; nothing was sent")]
    Unavailable,
}

/// A transaction before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedTransaction {
    pub network: Network,
    /// Account nonce of the signer.
    pub nonce: u64,
    pub gas_limit: u64,
    pub fees: Fees,
    pub to: Address,
    pub data: Bytes,
    /// Native currency in wei. Zero, except where a payer is given gas money.
    pub value: U256,
}

impl UnsignedTransaction {
    /// Decodes signed bytes; `None` for bytes or transaction types that x402d does not make.
    pub fn from_signed_bytes(network: Network, raw: &Bytes) -> Option<Self> {
        let envelope = TxEnvelope::decode_2718_exact(raw).ok()?;
        let fees = match &envelope {
            TxEnvelope::Eip1559(signed) => Fees {
                max_fee_wei: signed.tx().max_fee_per_gas,
                max_priority_fee_wei: signed.tx().max_priority_fee_per_gas,
                legacy: false,
            },
            TxEnvelope::Legacy(signed) => Fees::legacy(signed.tx().gas_price),
            TxEnvelope::Eip2930(_) | TxEnvelope::Eip4844(_) | TxEnvelope::Eip7702(_) => {
                return None;
            }
        };
        Some(Self {
            network,
            nonce: envelope.nonce(),
            gas_limit: envelope.gas_limit(),
            fees,
            to: envelope.to()?,
            data: envelope.input().clone(),
            value: envelope.value(),
        })
    }

    /// The most gas may cost, in wei.
    pub fn cost(&self) -> U256 {
        U256::from(self.gas_limit).saturating_mul(U256::from(self.fees.max_fee_wei))
    }

    /// Whether it does nothing but use its nonce, as [`Self::empty_replacement`].
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.value.is_zero()
    }

    /// An empty replacement under the same nonce: a transfer of 0 wei to the signer itself.
    #[must_use]
    pub fn empty_replacement(self, signer: Address) -> Self {
        Self {
            gas_limit: EMPTY_TRANSFER_GAS,
            to: signer,
            data: Bytes::new(),
            value: U256::ZERO,
            ..self
        }
    }
}

impl SignerKey {
    /// A key from 0x and 64 hex digits.
    ///
    /// # Errors
    /// [`InvalidKey`] for any other text.
    pub fn from_hex(text: &str) -> Result<Self, InvalidKey> {
        let key = text.trim().parse().map_err(|_| InvalidKey)?;
        Ok(Self(Holder::Process(key)))
    }

    /// A key from an encrypted keystore file. Takes about a second of computation by design.
    ///
    /// # Errors
    /// When the file cannot be read, is no keystore, or has another password.
    pub fn from_keystore(file: &Path, password: &str) -> Result<Self, InvalidKeystore> {
        let key =
            PrivateKeySigner::decrypt_keystore(file, password).map_err(|_| InvalidKeystore)?;
        Ok(Self(Holder::Process(key)))
    }

    /// A key that a service keeps. Nothing is asked before the first signature.
    pub fn kept_by(service: impl KeyService + 'static) -> Self {
        Self(Holder::Service(Arc::new(service)))
    }

    /// The signer's account.
    pub fn address(&self) -> Address {
        match &self.0 {
            Holder::Process(key) => key.address(),
            Holder::Service(key) => key.address(),
        }
    }

    /// Checks that the key is available and belongs to the configured account.
    ///
    /// # Errors
    /// When the service does not answer, or has another key. A key in memory has no errors.
    pub async fn check(&self) -> Result<(), SigningFailed> {
        match &self.0 {
            Holder::Process(_) => Ok(()),
            Holder::Service(key) => key.check().await,
        }
    }

    /// Signs a transaction; returns the encoded bytes and the transaction hash.
    ///
    /// # Errors
    /// When the key cannot sign, which a key in memory always can, or when the signature does not match the signer and the bytes.
    pub async fn sign(
        &self,
        transaction: UnsignedTransaction,
    ) -> Result<(Bytes, B256), SigningFailed> {
        let (chain_id, to) = (transaction.network.chain_id(), TxKind::Call(transaction.to));
        let raw = if transaction.fees.legacy {
            self.sign_and_encode(TxLegacy {
                chain_id: Some(chain_id),
                nonce: transaction.nonce,
                gas_price: transaction.fees.max_fee_wei,
                gas_limit: transaction.gas_limit,
                to,
                value: transaction.value,
                input: transaction.data,
            })
            .await?
        } else {
            self.sign_and_encode(TxEip1559 {
                chain_id,
                nonce: transaction.nonce,
                gas_limit: transaction.gas_limit,
                max_fee_per_gas: transaction.fees.max_fee_wei,
                max_priority_fee_per_gas: transaction.fees.max_priority_fee_wei,
                to,
                value: transaction.value,
                access_list: alloy::eips::eip2930::AccessList::default(),
                input: transaction.data,
            })
            .await?
        };
        let hash = keccak256(&raw);
        Ok((raw, hash))
    }

    async fn sign_and_encode<T>(&self, transaction: T) -> Result<Bytes, SigningFailed>
    where
        T: SignableTransaction<Signature> + Send,
        TxEnvelope: From<Signed<T>>,
    {
        let digest = transaction.signature_hash();
        let signature = self.sign_digest(digest).await?;
        verify_signature(self.address(), digest, &signature)?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        Ok(envelope.encoded_2718().into())
    }

    async fn sign_digest(&self, digest: B256) -> Result<Signature, SigningFailed> {
        match &self.0 {
            Holder::Process(key) => key.sign_hash_sync(&digest).map_err(SigningFailed::Key),
            Holder::Service(key) => key.sign(digest).await,
        }
    }
}

/// Checks that a signature is by `signer` over `digest`, before its transaction takes a nonce.
fn verify_signature(
    signer: Address,
    digest: B256,
    signature: &Signature,
) -> Result<(), SigningFailed> {
    match signature.recover_address_from_prehash(&digest) {
        Ok(found) if found == signer => Ok(()),
        Ok(_) | Err(_) => Err(SigningFailed::WrongSignature(signer)),
    }
}

impl fmt::Debug for SignerKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("SignerKey")
            .field(&self.address())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenario_42_rejects_signature_of_another_key_or_over_other_bytes() {
        let [ours, other] = ["11", "22"].map(|byte| byte.repeat(32).parse().unwrap());
        let [ours, other]: [PrivateKeySigner; 2] = [ours, other];
        let digest = B256::repeat_byte(7);
        let good = ours.sign_hash_sync(&digest).unwrap();
        assert!(verify_signature(ours.address(), digest, &good).is_ok());
        for (signature, digest) in [
            (other.sign_hash_sync(&digest).unwrap(), digest),
            (good, B256::repeat_byte(8)),
        ] {
            let refused = verify_signature(ours.address(), digest, &signature);
            assert!(matches!(refused, Err(SigningFailed::WrongSignature(_))));
        }
    }

    #[tokio::test]
    async fn legacy_transaction_is_signed_with_chain_id_and_decodes_again() {
        let key = SignerKey::from_hex(&format!("0x{}", "11".repeat(32))).unwrap();
        let transaction = UnsignedTransaction {
            network: "eip155:84532".parse().unwrap(),
            nonce: 7,
            gas_limit: 90_000,
            fees: Fees::legacy(12),
            to: Address::repeat_byte(3),
            data: Bytes::from_static(b"data"),
            value: U256::ZERO,
        };
        let (raw, hash) = key.sign(transaction.clone()).await.unwrap();
        assert!(raw[0] >= 0xc0, "an RLP list, not a typed envelope");
        assert_eq!(hash, keccak256(&raw));
        assert_eq!(
            UnsignedTransaction::from_signed_bytes(transaction.network, &raw),
            Some(transaction.clone())
        );
        let envelope = TxEnvelope::decode_2718_exact(&raw).unwrap();
        assert_eq!(envelope.chain_id(), Some(84_532), "EIP-155");
        assert!(transaction.empty_replacement(key.address()).fees.legacy);
    }

    #[tokio::test]
    async fn signed_transaction_decodes_again_and_can_be_emptied() {
        let key = SignerKey::from_hex(&format!("0x{}", "11".repeat(32))).unwrap();
        let transaction = UnsignedTransaction {
            network: "eip155:84532".parse().unwrap(),
            nonce: 7,
            gas_limit: 90_000,
            fees: Fees {
                max_fee_wei: 10,
                max_priority_fee_wei: 1,
                legacy: false,
            },
            to: Address::repeat_byte(3),
            data: Bytes::from_static(b"data"),
            value: U256::from(5),
        };
        let (raw, _) = key.sign(transaction.clone()).await.unwrap();
        let read = UnsignedTransaction::from_signed_bytes(transaction.network, &raw).unwrap();
        assert_eq!(read, transaction);
        let empty = read.empty_replacement(key.address());
        assert_eq!((empty.nonce, empty.to), (7, key.address()));
        assert!(empty.data.is_empty() && empty.value.is_zero());
        assert_eq!(
            UnsignedTransaction::from_signed_bytes(transaction.network, &Bytes::from_static(b"x")),
            None
        );
    }
}
