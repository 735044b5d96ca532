//! The gas sponsoring extensions: the payer signs a token allowance to Permit2, and the facilitator pays the gas for it.
//!
//! Specified as `eip2612GasSponsoring` and `erc20ApprovalGasSponsoring` in the x402 specification. The seller declares the extension, the
//! buyer fills in `info`, the facilitator submits it.

use alloy::primitives::{Address, B256, Bytes};
use alloy::sol;
use alloy::sol_types::SolStruct;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, DomainSeparator, field};

/// Extension key: the payer signs an EIP-2612 permit, which is submitted together with the payment.
pub const EIP2612: &str = "eip2612GasSponsoring";
/// Extension key: the payer signs an `approve` transaction for Permit2, which is submitted before the payment.
pub const ERC20_APPROVAL: &str = "erc20ApprovalGasSponsoring";

sol! {
    /// The EIP-712 struct that the payer signs (EIP-2612).
    struct Permit { address owner; address spender; uint256 value; uint256 nonce; uint256 deadline; }
}

/// `info` of [`EIP2612`], as filled in by the buyer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eip2612Info {
    /// The owner of the tokens: the payer.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// The account that receives the allowance: Permit2.
    #[serde(with = "field::address")]
    pub spender: Address,
    /// Atomic units. Must equal the amount that the Permit2 payment permits.
    pub amount: Amount,
    /// The payer's EIP-2612 nonce in the token contract.
    pub nonce: Amount,
    /// Unix seconds. The permit must be mined by then.
    pub deadline: Amount,
    /// The payer's ECDSA signature, 65 bytes.
    #[serde(with = "field::signature")]
    pub signature: Bytes,
    /// The version of the extension.
    pub version: Version,
}

/// `info` of [`ERC20_APPROVAL`], as filled in by the buyer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erc20ApprovalInfo {
    /// The owner of the tokens: the payer.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// The account that receives the allowance: Permit2.
    #[serde(with = "field::address")]
    pub spender: Address,
    /// Atomic units; in practice the largest possible amount.
    pub amount: Amount,
    /// The signed EIP-1559 transaction, EIP-2718 encoded.
    #[serde(with = "field::signature")]
    pub signed_transaction: Bytes,
    /// The version of the extension.
    pub version: Version,
}

/// The version of an extension: decimal numbers joined by dots, such as `1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version(String);

/// The `info` of an extension in a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension<T> {
    /// The extension is absent, or holds only the seller's declaration.
    Absent,
    /// The buyer's part cannot be parsed; the text is the error.
    Malformed(String),
    /// The buyer's part, parsed.
    Given(T),
}

/// Both gas sponsoring extensions of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GasSponsoring {
    /// The token's own permit ([`EIP2612`]).
    pub eip2612: Extension<Eip2612Info>,
    /// A signed `approve` transaction ([`ERC20_APPROVAL`]).
    pub approval: Extension<Erc20ApprovalInfo>,
}

impl Version {
    /// The current version of both extensions.
    pub fn current() -> Self {
        Self("1".to_owned())
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        field::parse_text(deserializer, "a version such as 1", |text| {
            let number =
                |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let plain = text.len() <= 32 && text.split('.').all(number);
            plain
                .then(|| Self(text.to_owned()))
                .ok_or_else(|| "it is not decimal numbers joined by dots".to_owned())
        })
    }
}

impl GasSponsoring {
    /// Neither extension.
    pub const NONE: Self = Self {
        eip2612: Extension::Absent,
        approval: Extension::Absent,
    };

    /// Parses the `extensions` of a payment.
    pub fn read(extensions: &Map<String, Value>) -> Self {
        Self {
            eip2612: read(extensions, EIP2612, "signature"),
            approval: read(extensions, ERC20_APPROVAL, "signedTransaction"),
        }
    }
}

/// Parses the `info` under `key`. It counts as filled in once it has the member `filled`, which only the payer can make.
fn read<T: DeserializeOwned>(
    extensions: &Map<String, Value>,
    key: &str,
    filled: &str,
) -> Extension<T> {
    let info = extensions.get(key).and_then(|entry| entry.get("info"));
    match info {
        Some(info) if info.get(filled).is_some_and(|value| !value.is_null()) => {
            match T::deserialize(info) {
                Ok(given) => Extension::Given(given),
                Err(error) => Extension::Malformed(error.to_string()),
            }
        }
        Some(_) | None => Extension::Absent,
    }
}

impl Eip2612Info {
    /// The EIP-712 digest that the payer signs, in the token's domain.
    pub fn digest(&self, token: DomainSeparator) -> B256 {
        let message = Permit {
            owner: self.from,
            spender: self.spender,
            value: self.amount.atomic(),
            nonce: self.nonce.atomic(),
            deadline: self.deadline.atomic(),
        };
        token.digest(message.eip712_hash_struct())
    }
}

impl std::fmt::Debug for Eip2612Info {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bearer value: anyone who holds the signature can submit it, so it must not reach a log.
        formatter
            .debug_struct("Eip2612Info")
            .field("from", &self.from)
            .field("asset", &self.asset)
            .field("amount", &self.amount)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Erc20ApprovalInfo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Erc20ApprovalInfo")
            .field("from", &self.from)
            .field("asset", &self.asset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::permit2::PERMIT2;
    use serde_json::json;

    fn extensions(change: impl FnOnce(&mut Value)) -> Map<String, Value> {
        let mut extensions = json!({
            EIP2612: { "info": {
                "description": "gas", "version": "1", "from": Address::repeat_byte(1), "asset": Address::repeat_byte(2), "spender": PERMIT2,
                "amount": "10000", "nonce": "0", "deadline": "1900000000", "signature": format!("0x{}", "5d".repeat(65)),
            }, "schema": {} },
        });
        change(&mut extensions);
        extensions.as_object().unwrap().clone()
    }

    #[test]
    fn filled_in_extension_is_parsed() {
        let read = GasSponsoring::read(&extensions(|_| {}));
        let Extension::Given(info) = read.eip2612 else {
            panic!("expected a permit, got {read:?}");
        };
        assert_eq!(info.amount, "10000".parse().unwrap());
        assert_eq!(info.signature.len(), 65);
        assert_eq!(read.approval, Extension::Absent);
    }

    #[test]
    fn declaration_alone_reads_as_absent() {
        let declared = extensions(|all| {
            all[EIP2612]["info"] = json!({"description": "gas", "version": "1"});
        });
        assert_eq!(GasSponsoring::read(&declared), GasSponsoring::NONE);
        assert_eq!(GasSponsoring::read(&Map::new()), GasSponsoring::NONE);
    }

    #[test]
    fn malformed_info_is_reported_without_the_signature() {
        for (member, value) in [
            ("from", json!("0x1")),
            ("amount", json!(10_000)),
            ("nonce", json!("0x0")),
            ("deadline", json!("-1")),
            ("signature", json!("0x5d5")),
            ("version", json!("one")),
            ("spender", Value::Null),
        ] {
            let read = GasSponsoring::read(&extensions(|all| {
                all[EIP2612]["info"][member] = value;
            }));
            let Extension::Malformed(why) = read.eip2612 else {
                panic!("{member} was accepted: {read:?}");
            };
            assert!(!why.contains("5d5"), "{why}");
        }
    }
}
