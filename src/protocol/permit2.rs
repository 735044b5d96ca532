//! Permit2: the authorization of scheme `exact` for tokens without EIP-3009, and of scheme `upto`.
//!
//! Specified in the x402 specification, schemes `exact` and `upto` on EVM chains.

use alloy::primitives::{Address, B256, Bytes, U256, address};
use alloy::sol;
use alloy::sol_types::{Eip712Domain, SolStruct};
use serde::{Deserialize, Serialize};

use crate::protocol::{Amount, Authorization, DomainSeparator, Network, Scheme, field};

/// The Permit2 contract; the same address on every chain.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");
/// The proxy of scheme `exact`. It transfers exactly the permitted amount to the witness's payee. Any account may call it.
pub const EXACT_PROXY: Address = address!("402085c248EeA27D92E8b30b2C58ed07f9E20001");
/// The proxy of scheme `upto`. It transfers up to the permitted amount. Only the witness's facilitator may call it.
pub const UPTO_PROXY: Address = address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");

/// The EIP-712 structs of scheme `exact`. The proxies use one struct name for both schemes; the structs differ in the witness.
mod exact {
    use super::sol;

    sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; uint256 validAfter; }
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness;
        }
    }
}

/// The EIP-712 structs of scheme `upto`.
mod upto {
    use super::sol;

    sol! {
        struct TokenPermissions { address token; uint256 amount; }
        struct Witness { address to; address facilitator; uint256 validAfter; }
        struct PermitWitnessTransferFrom {
            TokenPermissions permitted; address spender; uint256 nonce; uint256 deadline; Witness witness;
        }
    }
}

/// `TokenPermissions` of Permit2: a token and the largest amount to transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with token and amount")]
pub struct Permitted {
    /// The token contract.
    #[serde(with = "field::address")]
    pub token: Address,
    /// Atomic units: the exact amount in `exact`, the maximum in `upto`.
    pub amount: Amount,
}

/// The signed terms that the proxy enforces, besides Permit2's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    expecting = "an object with to, validAfter and, in upto, facilitator"
)]
pub struct Witness {
    /// The payee's address.
    #[serde(with = "field::address")]
    pub to: Address,
    /// The only account that may settle, in `upto`. Absent in `exact`.
    #[serde(
        default,
        with = "field::optional_address",
        skip_serializing_if = "Option::is_none"
    )]
    pub facilitator: Option<Address>,
    /// Unix seconds. The block's time must not be earlier.
    pub valid_after: Amount,
}

/// Authorizes one transfer of a payer's token through a proxy, until a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with from, permitted, spender, nonce, deadline and witness")]
pub struct Permit2Authorization {
    /// The payer's address.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The token and the amount.
    pub permitted: Permitted,
    /// The proxy that may transfer it.
    #[serde(with = "field::address")]
    pub spender: Address,
    /// Chosen by the payer. Permit2 accepts each nonce of a payer once, across all tokens.
    pub nonce: Amount,
    /// Unix seconds. The block's time must not be later.
    pub deadline: Amount,
    /// The terms that the proxy enforces.
    pub witness: Witness,
}

/// The payload of a Permit2 payment: an authorization and the payer's signature over its digest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    expecting = "an object with signature and permit2Authorization"
)]
pub struct Permit2Payload {
    /// 65 bytes of ECDSA for a plain account; any bytes for a contract wallet (ERC-1271).
    #[serde(with = "field::signature")]
    pub signature: Bytes,
    /// The signed authorization.
    pub permit2_authorization: Permit2Authorization,
}

/// The proxy contract of a scheme.
pub const fn proxy_of(scheme: Scheme) -> Address {
    match scheme {
        Scheme::Exact => EXACT_PROXY,
        Scheme::Upto => UPTO_PROXY,
    }
}

impl DomainSeparator {
    /// The domain separator of Permit2 on a network. The domain has no `version`.
    pub fn of_permit2(network: Network) -> Self {
        let domain = Eip712Domain::new(
            Some("Permit2".into()),
            None,
            Some(U256::from(network.chain_id())),
            Some(PERMIT2),
            None,
        );
        Self(domain.separator())
    }
}

impl Permit2Authorization {
    /// The terms in the form of an EIP-3009 authorization. `value` is the amount to transfer, at most the permitted amount.
    pub fn terms(&self, value: Amount) -> Authorization {
        Authorization {
            from: self.from,
            to: self.witness.to,
            value,
            valid_after: self.witness.valid_after,
            valid_before: self.deadline,
            nonce: B256::from(self.nonce.atomic()),
        }
    }

    /// The EIP-712 digest that the payer signs for a scheme. `separator` is that of Permit2.
    pub fn digest(&self, scheme: Scheme, separator: DomainSeparator) -> B256 {
        let (token, amount) = (self.permitted.token, self.permitted.amount.atomic());
        let (nonce, deadline) = (self.nonce.atomic(), self.deadline.atomic());
        let valid_after = self.witness.valid_after.atomic();
        let message = match scheme {
            Scheme::Exact => exact::PermitWitnessTransferFrom {
                permitted: exact::TokenPermissions { token, amount },
                spender: self.spender,
                nonce,
                deadline,
                witness: exact::Witness {
                    to: self.witness.to,
                    validAfter: valid_after,
                },
            }
            .eip712_hash_struct(),
            Scheme::Upto => upto::PermitWitnessTransferFrom {
                permitted: upto::TokenPermissions { token, amount },
                spender: self.spender,
                nonce,
                deadline,
                witness: upto::Witness {
                    to: self.witness.to,
                    facilitator: self.witness.facilitator.unwrap_or_default(),
                    validAfter: valid_after,
                },
            }
            .eip712_hash_struct(),
        };
        separator.digest(message)
    }
}

impl std::fmt::Debug for Permit2Payload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bearer value: anyone who holds the signature can settle the payment, so it must not reach a log.
        formatter
            .debug_struct("Permit2Payload")
            .field("permit2_authorization", &self.permit2_authorization)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{b256, keccak256};

    fn authorization(facilitator: Option<Address>) -> Permit2Authorization {
        Permit2Authorization {
            from: address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"),
            permitted: Permitted {
                token: address!("036CbD53842c5426634e7929541eC2318f3dCF7e"),
                amount: "10000".parse().unwrap(),
            },
            spender: if facilitator.is_some() {
                UPTO_PROXY
            } else {
                EXACT_PROXY
            },
            nonce: "7".parse().unwrap(),
            deadline: "1900000000".parse().unwrap(),
            witness: Witness {
                to: Address::repeat_byte(0x22),
                facilitator,
                valid_after: Amount::ZERO,
            },
        }
    }

    fn separator() -> DomainSeparator {
        DomainSeparator::of_permit2(Network::from_chain_id(84_532))
    }

    #[test]
    fn separator_matches_the_published_one() {
        let expected = b256!("010f27a92fb9a32622f44f001dc4d15706a85b33499cfc2ce9033113ab26592c");
        assert_eq!(separator().0, expected);
    }

    #[test]
    fn type_strings_match_those_of_the_proxies() {
        let exact = exact::PermitWitnessTransferFrom::eip712_encode_type();
        assert_eq!(
            keccak256(exact.as_bytes()),
            b256!("ebc156cd23678a74c94df13d772ef5478420637f0c94bd10d509e1dc98f521c7")
        );
        let upto = upto::PermitWitnessTransferFrom::eip712_encode_type();
        assert_eq!(
            keccak256(upto.as_bytes()),
            b256!("51dff6974ad4388c499e7fcfe838d2bd767162553a144098ce20ea661d70c2ee")
        );
    }

    #[test]
    fn digests_match_the_published_vectors() {
        assert_eq!(
            authorization(None).digest(Scheme::Exact, separator()),
            b256!("5ee092a968e1122befb3e982389460ecb49eea18ae8278f2b9856bb37856e9a3")
        );
        assert_eq!(
            authorization(Some(Address::repeat_byte(0x33))).digest(Scheme::Upto, separator()),
            b256!("4c7d9b366872d727e413b629c0ceebc80007003a383bf3b13600cfddc290fbd0")
        );
    }

    #[test]
    fn exact_witness_is_written_without_a_facilitator() {
        let written = serde_json::to_value(authorization(None)).unwrap();
        let expected = serde_json::json!({"to": Address::repeat_byte(0x22).to_checksum(None), "validAfter": "0"});
        assert_eq!(written.pointer("/witness"), Some(&expected));
        assert_eq!(written.pointer("/nonce"), Some(&"7".into()));
        let read: Permit2Authorization = serde_json::from_value(written).unwrap();
        assert_eq!(read, authorization(None));
    }
}
