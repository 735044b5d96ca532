//! Scheme `exact` with EIP-3009: the authorization, its EIP-712 digest and the payload (x402 v2 specification §6.1.1).

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol;
use alloy::sol_types::{Eip712Domain, SolStruct};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Network, field};

sol! {
    /// The EIP-712 struct that the payer signs (EIP-3009).
    #[derive(Debug)]
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// Authorizes one transfer of `value` from `from` to `to` within a time window: the signed struct of EIP-3009.
///
/// The terms of a Permit2 payment are stored in the same struct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "camelCase",
    expecting = "an object with from, to, value, validAfter, validBefore and nonce"
)]
pub struct Authorization {
    /// The payer's address.
    #[serde(with = "field::address")]
    pub from: Address,
    /// The payee's address.
    #[serde(with = "field::address")]
    pub to: Address,
    /// Atomic units of the token.
    pub value: Amount,
    /// Unix seconds. The block's time must be later than this.
    pub valid_after: Amount,
    /// Unix seconds. The block's time must be earlier than this.
    pub valid_before: Amount,
    /// 32 bytes chosen by the payer. A token accepts each nonce of a payer once.
    #[serde(with = "field::hash")]
    pub nonce: B256,
}

/// The payload of an `exact` payment: an authorization and the payer's signature over its digest.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(expecting = "an object with signature and authorization")]
pub struct ExactPayload {
    /// 65 bytes of ECDSA for a plain account; any bytes for a contract wallet (ERC-1271, ERC-6492).
    #[serde(with = "field::signature")]
    pub signature: Bytes,
    /// The signed authorization.
    pub authorization: Authorization,
    /// The id of the session that the nonce is made of. It never goes on the chain, so it tells the buyer from those who have read the
    /// signature there.
    #[serde(
        rename = "sessionId",
        default,
        deserialize_with = "session_id",
        skip_serializing_if = "Option::is_none"
    )]
    pub session_id: Option<SessionId>,
}

/// Other clients may use the member for ids of their own, which are none of a session here.
fn session_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SessionId>, D::Error> {
    let given = Value::deserialize(deserializer)?;
    Ok(given.as_str().and_then(|text| text.parse().ok()))
}

/// The EIP-712 domain separator of a token on a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DomainSeparator(pub B256);

impl DomainSeparator {
    /// The separator of the domain `{name, version, chainId, verifyingContract}`.
    pub fn of_token(name: &str, version: &str, network: Network, token: Address) -> Self {
        let domain = Eip712Domain::new(
            Some(name.to_owned().into()),
            Some(version.to_owned().into()),
            Some(U256::from(network.chain_id())),
            Some(token),
            None,
        );
        Self(domain.separator())
    }

    /// The EIP-712 digest of a struct in this domain: `keccak256(0x1901 ‖ separator ‖ struct hash)`.
    pub fn digest(self, structure_hash: B256) -> B256 {
        let mut preimage = [0_u8; 66];
        let (prefix, rest) = preimage.split_at_mut(2);
        let (domain, structure) = rest.split_at_mut(32);
        prefix.copy_from_slice(&[0x19, 0x01]);
        domain.copy_from_slice(self.0.as_slice());
        structure.copy_from_slice(structure_hash.as_slice());
        keccak256(preimage)
    }
}

impl Authorization {
    /// The EIP-712 digest that the payer signs. `separator` is that of the token.
    pub fn digest(&self, separator: DomainSeparator) -> B256 {
        let message = TransferWithAuthorization {
            from: self.from,
            to: self.to,
            value: self.value.atomic(),
            validAfter: self.valid_after.atomic(),
            validBefore: self.valid_before.atomic(),
            nonce: self.nonce,
        };
        separator.digest(message.eip712_hash_struct())
    }
}

impl std::fmt::Debug for ExactPayload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bearer value: anyone who holds the signature can settle the payment, so it must not reach a log.
        formatter
            .debug_struct("ExactPayload")
            .field("authorization", &self.authorization)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{address, b256};

    const USDC: Address = address!("036CbD53842c5426634e7929541eC2318f3dCF7e");

    #[test]
    fn separators_match_those_of_well_known_tokens() {
        let cases = [
            (
                8453,
                "USD Coin",
                address!("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
                b256!("02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"),
            ),
            (
                84_532,
                "USDC",
                USDC,
                b256!("71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818"),
            ),
            (
                1,
                "USD Coin",
                address!("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"),
                b256!("06c37168a7db5138defc7866392bb87a741f9b3d104deb5094588ce041cae335"),
            ),
            (
                42_161,
                "USD Coin",
                address!("af88d065e77c8cC2239327C5EDb3A432268e5831"),
                b256!("08d11903f8419e68b1b8721bcbe2e9fc68569122a77ef18c216f10b3b5112c78"),
            ),
            (
                43_114,
                "USD Coin",
                address!("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"),
                b256!("bbea200329a938bc3438984a49cb0732e66d66d7bd59c127abacc1710e77f7b3"),
            ),
            (
                137,
                "USD Coin",
                address!("3c499c542cEF5E3811e1192ce70d8cC03d5c3359"),
                b256!("caa2ce1a5703ccbe253a34eb3166df60a705c561b44b192061e28f2a985be2ca"),
            ),
        ];
        for (chain_id, name, token, separator) in cases {
            let computed =
                DomainSeparator::of_token(name, "2", Network::from_chain_id(chain_id), token);
            assert_eq!(computed.0, separator, "chain {chain_id}");
        }
    }

    #[test]
    fn digest_matches_the_published_vector() {
        let authorization = Authorization {
            from: address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"),
            to: Address::repeat_byte(0x22),
            value: "10000".parse().unwrap(),
            valid_after: Amount::ZERO,
            valid_before: "1900000000".parse().unwrap(),
            nonce: B256::repeat_byte(0xab),
        };
        let separator =
            DomainSeparator::of_token("USDC", "2", Network::from_chain_id(84_532), USDC);
        assert_eq!(
            authorization.digest(separator),
            b256!("381b86af084fb5aae332949d22d96326ab5f699c65fe1a865807217d5ecb7c86")
        );
    }
}
