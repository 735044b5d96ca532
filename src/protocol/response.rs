//! What the facilitator answers on its three standard calls (the x402 specification, facilitator interface).

use std::collections::BTreeMap;

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, X402Version, field};

/// The answer of `POST /verify`. Advice: nothing has moved, and the payer can still change their mind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct VerifyResponse {
    /// Whether `/settle` would be expected to succeed now.
    pub is_valid: bool,
    /// The stable code when it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_reason: Option<String>,
    /// What was expected and what came, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_message: Option<String>,
    /// Who pays, when the payload was good enough to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
}

/// The answer of `POST /settle`, and what a seller puts into `PAYMENT-RESPONSE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SettleResponse {
    /// The money has moved, and this answer is the one that buys the resource.
    pub success: bool,
    /// The stable code when `success` is false.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        alias = "error_reason"
    )]
    pub error_reason: Option<String>,
    /// What was expected, what came and what to do, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Who pays, when the payload was good enough to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// The hash of the transaction, or the empty text when there is none.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub transaction: String,
    /// The network in the naming of the request (CAIP-2, or a v1 name).
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub network: String,
    /// What was moved, in atomic units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub amount: Option<Amount>,
    /// Our own additions: `paymentId`, the ledger's id of the payment, and `sessionId` where a session was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub extra: Option<Map<String, Value>>,
}

/// The answer of `GET /supported`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Supported {
    /// One entry per scheme, concrete network and version: SDK sellers look for the exact network.
    pub kinds: Vec<SupportedKind>,
    /// Extensions that this facilitator acts on.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub extensions: Vec<String>,
    /// The addresses that transactions are sent from, by CAIP-2 family.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub signers: BTreeMap<String, Vec<String>>,
}

/// One way of paying that the facilitator serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SupportedKind {
    /// 1 or 2.
    #[cfg_attr(feature = "server", schema(value_type = u8))]
    pub x402_version: X402Version,
    /// Such as `exact`.
    pub scheme: String,
    /// CAIP-2 in version 2, a friendly name in version 1.
    pub network: String,
    /// Facts that a seller must copy into its requirements; none for `exact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub extra: Option<Map<String, Value>>,
}

/// An address as answers spell it: checksummed.
pub fn spelled(address: Address) -> String {
    address.to_checksum(None)
}
