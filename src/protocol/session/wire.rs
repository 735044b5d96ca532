//! The request and response bodies of the session endpoints.

use std::fmt;

use alloy::primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Authorization, ExactPayload, Network, X402Version, field};

/// How a session is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub enum Rail {
    /// With an EIP-3009 authorization. The facilitator pays the gas.
    #[default]
    Authorization,
    /// With a plain ERC-20 transfer. The payer pays the gas.
    Transfer,
}

impl Rail {
    /// The rail's name on the wire and in the ledger.
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
    /// The protocol version of `accepted`; 2 when absent.
    #[serde(default = "default_version", deserialize_with = "version")]
    #[cfg_attr(feature = "server", schema(value_type = u8))]
    pub x402_version: X402Version,
    /// One entry of the seller's `accepts`, verbatim.
    #[cfg_attr(feature = "server", schema(value_type = Object))]
    pub accepted: Value,
    /// The payer's address.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub payer: Address,
    /// How the session will be paid; `authorization` when absent.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub rail: Rail,
    /// The resource: a URL, or an object with `url`. Stored in the history; no check depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub resource: Option<Value>,
    /// The buyer's own reference for this purchase, at most 200 characters. Stored in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_reference: Option<String>,
}

const fn default_version() -> X402Version {
    X402Version::V2
}

fn version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<X402Version, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(default_version()))
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub enum SessionState {
    /// No payment was submitted yet.
    Open,
    /// Cancelled before a payment was submitted.
    Cancelled,
    /// The session expired and no payment was mined in time.
    Expired,
    /// A payment was submitted and is not settled yet.
    Submitted,
    /// The payment is settled; no response has granted the resource yet.
    Paid,
    /// The payment is settled and the resource was granted.
    Consumed,
    /// The payment failed and cannot succeed any more.
    Failed,
}

/// A session, as `GET /sessions/{id}` returns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SessionView {
    /// The session's id: `ps_` and 26 characters.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub session_id: SessionId,
    /// The state of the session.
    pub state: SessionState,
    /// How the session is paid.
    pub rail: Rail,
    /// The network's CAIP-2 name.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub network: Network,
    /// The token contract.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub asset: Address,
    /// The payee's address.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub pay_to: Address,
    /// The payer's address.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub payer: Address,
    /// The amount, in atomic units.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub amount: Amount,
    /// The decimals of the token, for display.
    pub decimals: u8,
    /// Keccak-256 of the canonical JSON of the accepted entry.
    #[serde(with = "field::hash")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub requirements_hash: B256,
    /// Confirmations that the payment needs to be settled; 1 = in a block.
    pub confirmations: u32,
    /// The first block in which a transfer counts as payment.
    pub accept_from_block: u64,
    /// The latest block time at which a payment counts; also the latest `validBefore` of an authorization.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the session was opened.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// The buyer's own reference for the purchase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_reference: Option<String>,
    /// The ledger's id of the session's payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_id: Option<String>,
    /// The hash of the payment's transaction, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// The number of the block with the transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_number: Option<u64>,
    /// The stable code, when the payment failed or the latest attempt was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The message for people that belongs to `reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether a signature given for this session could still move money.
    pub money_may_move: bool,
}

/// The response of `POST /sessions`: the session, and the data to sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SessionOpened {
    /// The opened session; its members are part of this object.
    #[serde(flatten)]
    pub session: SessionView,
    /// The token that authorizes cancelling the session. Returned only here.
    pub cancel_token: String,
    /// Rail `authorization`: the typed data to sign (`eth_signTypedData_v4`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub authorization: Option<Value>,
    /// Rail `transfer`: the call to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferCall>,
    /// Rail `transfer`: the typed data to sign once the transaction's hash is known. Fill the hash into `message.transaction`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub claim: Option<Value>,
}

/// The transaction to send on rail `transfer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TransferCall {
    /// The EIP-155 chain id.
    pub chain_id: u64,
    /// The token contract.
    #[serde(with = "field::address")]
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub to: Address,
    /// The calldata: `transfer(payTo, amount)`, followed by the session's tag.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub data: Bytes,
    /// The native currency to send: always 0.
    pub value: String,
}

/// The body of `POST /sessions/{id}/transfer`. One of three forms: `authorization` and `signature`; `rawTransaction`; `transaction`. The
/// last two also need `signature`, the payer's claim, unless the transaction carries the session's tag.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct TransferSubmission {
    /// An EIP-3009 authorization with the session's nonce.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    authorization: Option<Authorization>,
    /// A signed transaction that the facilitator broadcasts, as 0x and hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    raw_transaction: Option<Hex>,
    /// The hash of a transaction that the payer has already broadcast.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    transaction: Option<Hash>,
    /// The payer's signature over the authorization or the claim.
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

/// The three forms of a [`TransferSubmission`].
#[derive(Clone, PartialEq, Eq)]
pub enum TransferForm {
    /// An authorization. The facilitator broadcasts it and pays the gas.
    Authorization(ExactPayload),
    /// A signed transaction. The facilitator broadcasts it; the payer pays the gas.
    Raw {
        /// The signed transaction bytes.
        bytes: Bytes,
        /// The payer's claim signature.
        claim: Option<Bytes>,
    },
    /// A transaction that was already broadcast.
    Sent {
        /// The hash of the transaction.
        transaction: B256,
        /// The payer's claim signature.
        claim: Option<Bytes>,
    },
}

impl TransferSubmission {
    /// The form of this submission. `None` if it has none of the three forms, or several.
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
                    session_id: None,
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
        // Signatures and signed bytes are bearer values, so they must not reach a log.
        formatter.write_str("TransferSubmission")
    }
}

/// The body of `POST /sessions/{id}/cancel`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Cancellation {
    /// The `cancelToken` of the response that opened the session.
    pub cancel_token: String,
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cancellation")
    }
}
