//! Keys that pay for gas: unsigned transaction in, bytes and hash out. No clock, no RPC.

use std::fmt;

use alloy::consensus::transaction::Transaction;
use alloy::consensus::{SignableTransaction, Signed, TxEip1559, TxEnvelope, TxLegacy};
use alloy::eips::eip2718::{Decodable2718, Encodable2718};
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;

use crate::chain::Fees;
use crate::protocol::Network;

/// Gas allowed to a transfer of nothing to a plain account. It uses 21,000; where the chain underneath is paid in gas as well, more.
const PLAIN_GAS: u64 = 100_000;

/// The key of a lane.
#[derive(Clone)]
pub struct SignerKey(PrivateKeySigner);

/// A key that cannot be used. Never repeats the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a private key of 0x and 64 hex digits")]
pub struct InvalidKey;

/// The transaction could not be signed. Nothing was written and nothing is sent.
#[derive(Debug, thiserror::Error)]
pub enum SigningFailed {
    /// The key does not sign.
    #[error("signing failed")]
    Key(#[source] alloy::signers::Error),
    /// What came back was not made with the lane's key over these bytes: sent, it would come from a stranger's account.
    #[error("the signature does not belong to {0}")]
    WrongSignature(Address),
    /// The key cannot be asked now.
    #[error("the key cannot be asked now")]
    Unavailable,
}

/// What a transaction is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// On which chain.
    pub network: Network,
    /// Under which account nonce.
    pub nonce: u64,
    /// Gas at most.
    pub gas_limit: u64,
    /// Wei per gas.
    pub fees: Fees,
    /// Which contract.
    pub to: Address,
    /// With which data.
    pub data: Bytes,
    /// How much native money goes along, in wei: none, but where a payer is given gas money.
    pub value: U256,
}

impl Order {
    /// What signed bytes of ours say; `None` for any other bytes.
    pub fn of_raw(network: Network, raw: &Bytes) -> Option<Self> {
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

    /// Wei that it may cost.
    pub fn cost(&self) -> U256 {
        U256::from(self.gas_limit).saturating_mul(U256::from(self.fees.max_fee_wei))
    }

    /// Whether it does nothing but use the nonce.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The same nonce for nothing: a transfer of 0 to the signer itself.
    #[must_use]
    pub fn emptied(self, signer: Address) -> Self {
        Self {
            gas_limit: PLAIN_GAS,
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
    /// [`InvalidKey`] for anything else.
    pub fn from_hex(text: &str) -> Result<Self, InvalidKey> {
        text.trim().parse().map(Self).map_err(|_| InvalidKey)
    }

    /// The account that transactions come from.
    pub const fn address(&self) -> Address {
        self.0.address()
    }

    /// Signs, and computes the hash that the network will know the bytes by.
    ///
    /// # Errors
    /// When the key cannot sign, which a local key always can, or signs something else.
    pub fn sign(&self, order: Order) -> Result<(Bytes, B256), SigningFailed> {
        let (chain_id, to) = (order.network.chain_id(), TxKind::Call(order.to));
        let raw = if order.fees.legacy {
            self.signed(TxLegacy {
                chain_id: Some(chain_id),
                nonce: order.nonce,
                gas_price: order.fees.max_fee_wei,
                gas_limit: order.gas_limit,
                to,
                value: order.value,
                input: order.data,
            })?
        } else {
            self.signed(TxEip1559 {
                chain_id,
                nonce: order.nonce,
                gas_limit: order.gas_limit,
                max_fee_per_gas: order.fees.max_fee_wei,
                max_priority_fee_per_gas: order.fees.max_priority_fee_wei,
                to,
                value: order.value,
                access_list: alloy::eips::eip2930::AccessList::default(),
                input: order.data,
            })?
        };
        let hash = keccak256(&raw);
        Ok((raw, hash))
    }

    fn signed<T>(&self, transaction: T) -> Result<Bytes, SigningFailed>
    where
        T: SignableTransaction<Signature>,
        TxEnvelope: From<Signed<T>>,
    {
        let digest = transaction.signature_hash();
        let signature = self.0.sign_hash_sync(&digest).map_err(SigningFailed::Key)?;
        is_made_by(self.address(), digest, &signature)?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        Ok(envelope.encoded_2718().into())
    }
}

/// A signature is looked at before its transaction takes a nonce.
fn is_made_by(signer: Address, digest: B256, signature: &Signature) -> Result<(), SigningFailed> {
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
    fn scenario_42_a_signature_of_another_key_or_over_other_bytes_is_not_taken() {
        let [ours, other] = ["11", "22"].map(|byte| byte.repeat(32).parse().unwrap());
        let [ours, other]: [PrivateKeySigner; 2] = [ours, other];
        let digest = B256::repeat_byte(7);
        let good = ours.sign_hash_sync(&digest).unwrap();
        assert!(is_made_by(ours.address(), digest, &good).is_ok());
        for (signature, digest) in [
            (other.sign_hash_sync(&digest).unwrap(), digest),
            (good, B256::repeat_byte(8)),
        ] {
            let refused = is_made_by(ours.address(), digest, &signature);
            assert!(matches!(refused, Err(SigningFailed::WrongSignature(_))));
        }
    }

    #[test]
    fn legacy_transactions_are_signed_for_one_chain_and_read_back() {
        let key = SignerKey::from_hex(&format!("0x{}", "11".repeat(32))).unwrap();
        let order = Order {
            network: "eip155:84532".parse().unwrap(),
            nonce: 7,
            gas_limit: 90_000,
            fees: Fees::legacy(12),
            to: Address::repeat_byte(3),
            data: Bytes::from_static(b"data"),
            value: U256::ZERO,
        };
        let (raw, hash) = key.sign(order.clone()).unwrap();
        assert!(raw[0] >= 0xc0, "a list, not a typed envelope");
        assert_eq!(hash, keccak256(&raw));
        assert_eq!(Order::of_raw(order.network, &raw), Some(order.clone()));
        let envelope = TxEnvelope::decode_2718_exact(&raw).unwrap();
        assert_eq!(envelope.chain_id(), Some(84_532), "EIP-155");
        assert!(order.emptied(key.address()).fees.legacy);
    }

    #[test]
    fn an_order_is_read_back_from_its_bytes_and_may_be_emptied() {
        let key = SignerKey::from_hex(&format!("0x{}", "11".repeat(32))).unwrap();
        let order = Order {
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
        let (raw, _) = key.sign(order.clone()).unwrap();
        let read = Order::of_raw(order.network, &raw).unwrap();
        assert_eq!(read, order);
        let empty = read.emptied(key.address());
        assert_eq!((empty.nonce, empty.to), (7, key.address()));
        assert!(empty.data.is_empty() && empty.value.is_zero());
        assert_eq!(
            Order::of_raw(order.network, &Bytes::from_static(b"x")),
            None
        );
    }
}
