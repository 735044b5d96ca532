//! Payment sessions: terms that buyer and facilitator fix before money moves, and how the payer's signature is bound to them.
//!
//! A session fixes one entry of a seller's `accepts`. On rail `authorization` the nonce of an otherwise standard EIP-3009 authorization is
//! a hash of the session's id and of that entry. On rail `transfer` the payer sends a plain ERC-20 `transfer` and claims it for the session
//! with an EIP-712 signature. Buyer and facilitator can both recompute every value here, so neither has to trust the other.

mod wire;

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256, Bytes, FixedBytes, U256, keccak256};
use alloy::sol;
use alloy::sol_types::{Eip712Domain, SolCall, SolStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::protocol::{Amount, Network, field};

pub use wire::{
    Cancellation, Rail, SessionOpened, SessionRequest, SessionState, SessionView, TransferCall,
    TransferForm, TransferSubmission,
};

/// The extension in which a seller names the facilitator that offers sessions: `{"info": {"url": "https://…"}}`.
pub const EXTENSION: &str = "payment-session";
/// The value of `payload.type` in a payment on rail `transfer`.
pub const PROOF_TYPE: &str = "session-proof";

/// The prefix of every session id.
const ID_PREFIX: &str = "ps_";
/// The number of characters after the prefix: 130 random bits.
const ID_CHARACTERS: usize = 26;
/// Crockford's base32 in lower case.
const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// The domain tag at the start of the nonce's preimage; session id and requirements hash follow.
const NONCE_TAG: &[u8] = b"x402d/session/1";

sol! {
    #[derive(Debug)]
    struct SessionClaim {
        string session;
        bytes32 requirementsHash;
        bytes32 transaction;
    }

    function transfer(address to, uint256 value) external returns (bool);
}

/// The id of a session: `ps_` and 26 characters of Crockford's base32. Bearer value: anyone who knows it may read the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionId(String);

/// The text does not have the form of a session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a session id: ps_ and 26 characters of lower-case Crockford base32")]
pub struct InvalidSessionId;

impl SessionId {
    /// Builds an id from random bytes. Five bits of each byte are used.
    pub fn from_entropy(entropy: FixedBytes<ID_CHARACTERS>) -> Self {
        let letters = entropy
            .iter()
            .filter_map(|byte| ID_ALPHABET.get(usize::from(byte & 31)))
            .map(|letter| char::from(*letter));
        Self(ID_PREFIX.chars().chain(letters).collect())
    }

    /// The id with its prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        let letters = text.strip_prefix(ID_PREFIX).ok_or(InvalidSessionId)?;
        let known = letters.len() == ID_CHARACTERS
            && letters.bytes().all(|byte| ID_ALPHABET.contains(&byte));
        known.then(|| Self(text.to_owned())).ok_or(InvalidSessionId)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        field::parse_text(deserializer, "a session id", |text| {
            text.parse()
                .map_err(|error: InvalidSessionId| error.to_string())
        })
    }
}

/// Keccak-256 of the canonical JSON (RFC 8785) of an entry of `accepts`, as the seller wrote it.
///
/// # Errors
/// The entry contains a number that has no canonical form.
pub fn requirements_hash(entry: &Value) -> Result<B256, serde_json::Error> {
    serde_json_canonicalizer::to_vec(entry).map(keccak256)
}

/// The nonce of a session's authorization, and the tag of its transfer. It commits to the session and its terms.
pub fn nonce(session: &SessionId, requirements_hash: B256) -> B256 {
    let mut preimage = NONCE_TAG.to_vec();
    preimage.extend_from_slice(session.0.as_bytes());
    preimage.extend_from_slice(requirements_hash.as_slice());
    keccak256(preimage)
}

/// The EIP-712 digest that the payer signs to claim `transaction` for a session.
pub fn claim_digest(
    session: &SessionId,
    requirements_hash: B256,
    transaction: B256,
    network: Network,
) -> B256 {
    let claim = SessionClaim {
        session: session.0.clone(),
        requirementsHash: requirements_hash,
        transaction,
    };
    claim.eip712_signing_hash(&claim_domain(network))
}

fn claim_domain(network: Network) -> Eip712Domain {
    Eip712Domain::new(
        Some("x402d session".into()),
        Some("1".into()),
        Some(U256::from(network.chain_id())),
        None,
        None,
    )
}

/// The calldata of a session's transfer: `transfer(payee, amount)`, followed by the session's tag, which tokens ignore.
pub fn transfer_calldata(payee: Address, amount: Amount, tag: B256) -> Bytes {
    let mut data = transferCall {
        to: payee,
        value: amount.atomic(),
    }
    .abi_encode();
    data.extend_from_slice(tag.as_slice());
    data.into()
}

/// Checks that calldata is `transfer(payee, amount)`, and returns the 32-byte tag after it, if there is one.
///
/// # Errors
/// The calldata is another call, has another payee or amount, or ends with something other than a 32-byte tag.
pub fn transfer_tag(
    data: &[u8],
    payee: Address,
    amount: Amount,
) -> Result<Option<B256>, NotSessionTransfer> {
    let expected = transferCall {
        to: payee,
        value: amount.atomic(),
    }
    .abi_encode();
    match data.strip_prefix(expected.as_slice()) {
        Some([]) => Ok(None),
        Some(tag) => B256::try_from(tag)
            .map(Some)
            .map_err(|_| NotSessionTransfer),
        None => Err(NotSessionTransfer),
    }
}

/// The calldata is not the transfer of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the calldata is not transfer(payTo, amount) with at most a 32-byte tag after it")]
pub struct NotSessionTransfer;

/// The payload of a payment on rail `transfer`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionProof {
    /// Always [`PROOF_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The id of the session that the transfer pays.
    pub session_id: SessionId,
    /// The hash of the transfer's transaction.
    #[serde(with = "field::hash")]
    pub transaction: B256,
    /// The payer's signature over [`claim_digest`].
    #[serde(with = "field::signature")]
    pub signature: Bytes,
}

impl fmt::Debug for SessionProof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SessionProof")
            .field("session_id", &self.session_id)
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
