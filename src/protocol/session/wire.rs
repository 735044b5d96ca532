//! The bodies of the session endpoints.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Authorization, ExactPayload, Network, X402Version, field};

/// How the money of a session moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub enum Rail {
    /// By an EIP-3009 authorization; the facilitator pays for gas.
    #[default]
    Authorization,
    /// By a plain ERC-20 transfer; the payer pays for gas.
    Transfer,
}

impl Rail {
    /// The name on the wire and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Transfer => "transfer",
        }
    }
}

/// The body of `POST /sessions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SessionRequest {
    /// The dialect of `accepted`: 2 when absent.
    #[serde(default = "newest", deserialize_with = "version")]
    #[cfg_attr(feature = "server", schema(value_type = u8))]
    pub x402_version: X402Version,
    /// One entry of the seller's `accepts`, verbatim.
    #[cfg_attr(feature = "server", schema(value_type = Object))]
    pub accepted: Value,
    /// Whose money it is.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub payer: Address,
    /// How it moves.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub rail: Rail,
    /// What is bought: a URL, or an object with one. Advice, for the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub resource: Option<Value>,
    /// The buyer's own name for this purchase, at most 200 characters. For the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_reference: Option<String>,
}

const fn newest() -> X402Version {
    X402Version::V2
}

fn version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<X402Version, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(newest()))
}

/// How far a session got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub enum SessionState {
    /// Nothing was submitted.
    Open,
    /// Cancelled before anything was submitted.
    Cancelled,
    /// Its time has passed and nothing moved in time.
    Expired,
    /// Its payment is on its way.
    Submitted,
    /// The money has moved; nobody was told success yet.
    Paid,
    /// It has bought its resource.
    Consumed,
    /// Its payment can never succeed.
    Failed,
}

/// A session, as `GET /sessions/{id}` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SessionView {
    /// Its name.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub session_id: SessionId,
    /// How far it got.
    pub state: SessionState,
    /// How its money moves.
    pub rail: Rail,
    /// CAIP-2.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub network: Network,
    /// The token.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub asset: Address,
    /// Who is paid.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub pay_to: Address,
    /// Who pays.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub payer: Address,
    /// Atomic units.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub amount: Amount,
    /// Decimals of the token.
    pub decimals: u8,
    /// Keccak-256 of the canonical JSON of the accepted entry.
    #[serde(with = "field::hash")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub requirements_hash: B256,
    /// Blocks that the money's block must be deep; 1 = in a block.
    pub confirmations: u32,
    /// A transfer counts from this block on.
    pub accept_from_block: u64,
    /// Until when money that moves counts, in the chain's time; `validBefore` of an authorization.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When it was opened.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The buyer's own name for the purchase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_reference: Option<String>,
    /// The ledger's id of its payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// The hash of the transaction, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// The block of the money's move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_number: Option<u64>,
    /// A stable code when it failed, or when the newest try was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether anything that was signed for it could still move money.
    pub money_may_move: bool,
}

/// The answer of `POST /sessions`: the session, and what to sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SessionOpened {
    /// The session.
    #[serde(flatten)]
    pub session: SessionView,
    /// Whoever holds it may cancel. Told once.
    pub cancel_token: String,
    /// Rail `authorization`: the typed data to sign (`eth_signTypedData_v4`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub authorization: Option<Value>,
    /// Rail `transfer`: the call to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferCall>,
    /// Rail `transfer`: the typed data to sign once the transaction's hash is known; `message.transaction` is to be filled in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub claim: Option<Value>,
}

/// The transaction that pays a session on rail `transfer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TransferCall {
    /// The chain.
    pub chain_id: u64,
    /// The token.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub to: Address,
    /// Calldata: `transfer(payTo, amount)` and the session's tag.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub data: Bytes,
    /// Always 0.
    pub value: String,
}

/// The body of `POST /sessions/{id}/transfer`, one of: `authorization` and `signature`; `rawTransaction`; `transaction`. The last two come
/// with `signature`, the claim, unless the transaction carries the session's tag.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TransferSubmission {
    /// An EIP-3009 authorization with the session's nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    authorization: Option<Authorization>,
    /// A signed transaction that was not sent yet, as 0x and hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    raw_transaction: Option<Hex>,
    /// The hash of a transaction that was sent already.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    transaction: Option<Hash>,
    /// Over the authorization, or over the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    signature: Option<Hex>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Hex(#[serde(with = "field::signature")] Bytes);

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Hash(#[serde(with = "field::hash")] B256);

/// What was submitted.
#[derive(Clone, PartialEq, Eq)]
pub enum TransferForm {
    /// To be broadcast by the facilitator at its own cost.
    Authorization(ExactPayload),
    /// To be broadcast by the facilitator at the payer's cost.
    Raw {
        /// The signed bytes.
        bytes: Bytes,
        /// The claim.
        claim: Option<Bytes>,
    },
    /// Sent by somebody already.
    Sent {
        /// Its hash.
        transaction: B256,
        /// The claim.
        claim: Option<Bytes>,
    },
}

impl TransferSubmission {
    /// Which of the three forms it is; `None` when it is none, or several.
    pub fn form(self) -> Option<TransferForm> {
        let claim = |signature: Option<Hex>| signature.map(|Hex(bytes)| bytes);
        match (
            self.authorization,
            self.raw_transaction,
            self.transaction,
            self.signature,
        ) {
            (Some(authorization), None, None, Some(Hex(signature))) => {
                Some(TransferForm::Authorization(ExactPayload {
                    signature,
                    authorization,
                }))
            }
            (None, Some(Hex(bytes)), None, signature) => Some(TransferForm::Raw {
                bytes,
                claim: claim(signature),
            }),
            (None, None, Some(Hash(transaction)), signature) => Some(TransferForm::Sent {
                transaction,
                claim: claim(signature),
            }),
            _ => None,
        }
    }
}

impl fmt::Debug for TransferForm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Authorization(_) => "Authorization",
            Self::Raw { .. } => "Raw",
            Self::Sent { .. } => "Sent",
        })
    }
}

impl From<TransferForm> for TransferSubmission {
    fn from(form: TransferForm) -> Self {
        match form {
            TransferForm::Authorization(payload) => Self {
                authorization: Some(payload.authorization),
                signature: Some(Hex(payload.signature)),
                ..Self::default()
            },
            TransferForm::Raw { bytes, claim } => Self {
                raw_transaction: Some(Hex(bytes)),
                signature: claim.map(Hex),
                ..Self::default()
            },
            TransferForm::Sent { transaction, claim } => Self {
                transaction: Some(Hash(transaction)),
                signature: claim.map(Hex),
                ..Self::default()
            },
        }
    }
}

impl fmt::Debug for TransferSubmission {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Signatures and signed bytes are money until they are used.
        formatter.write_str("TransferSubmission")
    }
}

/// The body of `POST /sessions/{id}/cancel`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Cancellation {
    /// From the answer that opened the session.
    pub cancel_token: String,
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cancellation")
    }
}
