//! The extensions by which a payer lets Permit2 take its token without paying for gas (`docs/architecture.md#gas-sponsoring`).
//! The seller declares them, the
//! buyer fills in `info`, the facilitator acts on it.

use alloy::primitives::{Address, B256, Bytes};
use alloy::sol;
use alloy::sol_types::SolStruct;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, DomainSeparator, field};

/// The payer signs the token's own permit (EIP-2612); it is submitted together with the payment.
pub const EIP2612: &str = "eip2612GasSponsoring";
/// The payer signs a whole transaction that approves Permit2; it is submitted before the payment.
pub const ERC20_APPROVAL: &str = "erc20ApprovalGasSponsoring";

sol! {
    /// The struct of EIP-2612.
    struct Permit { address owner; address spender; uint256 value; uint256 nonce; uint256 deadline; }
}

/// `info` of [`EIP2612`], filled in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eip2612Info {
    /// Whose token may be taken.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The token.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// Who may take it: Permit2.
    #[serde(with = "field::address")]
    pub spender: Address,
    /// Atomic units: what the payment permits, to the unit.
    pub amount: Amount,
    /// The payer's permit nonce at the token.
    pub nonce: Amount,
    /// Unix seconds.
    pub deadline: Amount,
    /// 65 bytes of ECDSA.
    #[serde(with = "field::signature")]
    pub signature: Bytes,
    /// Version of the extension.
    pub version: Version,
}

/// `info` of [`ERC20_APPROVAL`], filled in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erc20ApprovalInfo {
    /// Whose token may be taken.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The token.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// Who may take it: Permit2.
    #[serde(with = "field::address")]
    pub spender: Address,
    /// Atomic units; everything, in practice.
    pub amount: Amount,
    /// The signed EIP-1559 transaction.
    #[serde(with = "field::signature")]
    pub signed_transaction: Bytes,
    /// Version of the extension.
    pub version: Version,
}

/// The version of an extension: numbers with points between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version(String);

/// What a payment says in an extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extension<T> {
    /// Nothing, or only what the seller declared.
    Absent,
    /// Something that cannot be read; the text says what is wrong with it.
    Malformed(String),
    /// This.
    Given(T),
}

/// What a payment says about gas sponsoring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GasSponsoring {
    /// A permit of the token's.
    pub eip2612: Extension<Eip2612Info>,
    /// A signed approval.
    pub approval: Extension<Erc20ApprovalInfo>,
}

impl Version {
    /// The version of both extensions that is in use.
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
                .ok_or_else(|| "it is not numbers with points between them".to_owned())
        })
    }
}

impl GasSponsoring {
    /// Neither.
    pub const NONE: Self = Self {
        eip2612: Extension::Absent,
        approval: Extension::Absent,
    };

    /// Reads the `extensions` of a payment.
    pub fn read(extensions: &Map<String, Value>) -> Self {
        Self {
            eip2612: read(extensions, EIP2612, "signature"),
            approval: read(extensions, ERC20_APPROVAL, "signedTransaction"),
        }
    }
}

/// An extension is filled in once it holds what only the payer can make.
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
    /// The 32 bytes that the payer signs for the token.
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
        // Whoever holds the signature can submit it: it stays out of every log.
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
    fn what_the_buyer_filled_in_is_read() {
        let read = GasSponsoring::read(&extensions(|_| {}));
        let Extension::Given(info) = read.eip2612 else {
            panic!("expected a permit, got {read:?}");
        };
        assert_eq!(info.amount, "10000".parse().unwrap());
        assert_eq!(info.signature.len(), 65);
        assert_eq!(read.approval, Extension::Absent);
    }

    #[test]
    fn what_the_seller_declared_alone_is_nothing() {
        let declared = extensions(|all| {
            all[EIP2612]["info"] = json!({"description": "gas", "version": "1"});
        });
        assert_eq!(GasSponsoring::read(&declared), GasSponsoring::NONE);
        assert_eq!(GasSponsoring::read(&Map::new()), GasSponsoring::NONE);
    }

    #[test]
    fn what_is_filled_in_wrongly_is_malformed_and_never_repeated() {
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
                panic!("{member} is taken: {read:?}");
            };
            assert!(!why.contains("5d5"), "{why}");
        }
    }
}
