//! Payment sessions: what a buyer and a facilitator agree on before money moves, and how it is bound to what is signed.
//!
//! A session fixes one entry of a seller's `accepts`. On rail `authorization` its id and the hash of that entry are the nonce of an
//! otherwise standard EIP-3009 authorization; on rail `transfer` the payer sends a plain ERC-20 `transfer` and claims it for the session
//! with an EIP-712 signature. Everything here can be recomputed by either side, so that neither has to believe the other.

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

/// The extension under which a seller names the facilitator that offers sessions: `{"info": {"url": "https://…"}}`.
pub const EXTENSION: &str = "payment-session";
/// `payload.type` of a payment on rail `transfer`.
pub const PROOF_TYPE: &str = "session-proof";

/// What every id begins with.
const PREFIX: &str = "ps_";
/// Characters behind the prefix: 130 random bits.
const LENGTH: usize = 26;
/// Crockford's base32 in lower case.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// What the nonce of a session is the hash of, before id and requirements hash.
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

/// The name of a session: `ps_` and 26 characters of Crockford's base32. Who knows it may read the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionId(String);

/// The text is no session's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a session id: ps_ and 26 characters of lower-case Crockford base32")]
pub struct NotASessionId;

impl SessionId {
    /// The id of these random bytes, of which five bits each are used.
    pub fn from_entropy(entropy: FixedBytes<LENGTH>) -> Self {
        let letters = entropy
            .iter()
            .filter_map(|byte| ALPHABET.get(usize::from(byte & 31)))
            .map(|letter| char::from(*letter));
        Self(PREFIX.chars().chain(letters).collect())
    }

    /// The whole id.
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
    type Err = NotASessionId;

    fn from_str(text: &str) -> Result<Self, NotASessionId> {
        let letters = text.strip_prefix(PREFIX).ok_or(NotASessionId)?;
        let known = letters.len() == LENGTH && letters.bytes().all(|byte| ALPHABET.contains(&byte));
        known.then(|| Self(text.to_owned())).ok_or(NotASessionId)
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
                .map_err(|error: NotASessionId| error.to_string())
        })
    }
}

/// Keccak-256 of the canonical JSON (RFC 8785) of an entry of `accepts`, as the seller wrote it.
///
/// # Errors
/// When the entry holds a number that JSON's canonical form cannot have.
pub fn requirements_hash(entry: &Value) -> Result<B256, serde_json::Error> {
    serde_json_canonicalizer::to_vec(entry).map(keccak256)
}

/// The nonce of a session's authorization, and the tag of its transfer: it says which session and which terms are meant.
pub fn nonce(session: &SessionId, requirements_hash: B256) -> B256 {
    let mut preimage = NONCE_TAG.to_vec();
    preimage.extend_from_slice(session.0.as_bytes());
    preimage.extend_from_slice(requirements_hash.as_slice());
    keccak256(preimage)
}

/// The 32 bytes that a payer signs to claim `transaction` for a session (EIP-712).
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

/// Calldata of the transfer that pays a session: `transfer(payee, amount)` and behind it the session's tag, which tokens ignore.
pub fn transfer_calldata(payee: Address, amount: Amount, tag: B256) -> Bytes {
    let mut data = transferCall {
        to: payee,
        value: amount.atomic(),
    }
    .abi_encode();
    data.extend_from_slice(tag.as_slice());
    data.into()
}

/// What stands behind `transfer(payee, amount)` in calldata: nothing, or a tag. The `Err` is any other calldata.
///
/// # Errors
/// When the call is another one, or pays somebody else or another amount.
pub fn transfer_tag(
    data: &[u8],
    payee: Address,
    amount: Amount,
) -> Result<Option<B256>, OtherCall> {
    let expected = transferCall {
        to: payee,
        value: amount.atomic(),
    }
    .abi_encode();
    match data.strip_prefix(expected.as_slice()) {
        Some([]) => Ok(None),
        Some(tag) => B256::try_from(tag).map(Some).map_err(|_| OtherCall),
        None => Err(OtherCall),
    }
}

/// Calldata that is not the transfer of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the calldata is not transfer(payTo, amount) with at most a 32-byte tag behind it")]
pub struct OtherCall;

/// The payload of a payment on rail `transfer`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionProof {
    /// Always [`PROOF_TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// Which session.
    pub session_id: SessionId,
    /// The transaction that paid it.
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
