//! The responses of the facilitator's three standard calls (x402 v2 specification §5.3, §5.4 and §7).

use std::collections::BTreeMap;

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, Rejection, X402Version, field};

/// The response of `POST /verify`. Advisory: no money has moved, and the payer can still invalidate the payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct VerifyResponse {
    /// Whether `/settle` is expected to succeed now.
    pub is_valid: bool,
    /// The stable code when `isValid` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_reason: Option<String>,
    /// The expected and the received value, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid_message: Option<String>,
    /// The payer's address, when it could be read from the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
}

impl VerifyResponse {
    /// The response to a payment that is not valid.
    pub fn rejected(rejection: Rejection, payer: Option<Address>) -> Self {
        Self {
            is_valid: false,
            invalid_reason: Some(rejection.reason.code().to_owned()),
            invalid_message: Some(rejection.message),
            payer: payer.map(checksummed),
        }
    }
}

/// The response of `POST /settle`, which a seller also puts into `PAYMENT-RESPONSE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SettleResponse {
    /// The money has moved, and this response grants the resource.
    pub success: bool,
    /// The stable code when `success` is false.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        alias = "error_reason"
    )]
    pub error_reason: Option<String>,
    /// What was expected, what was received and what to do, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The payer's address, when it could be read from the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// The transaction hash, or the empty string when there is none.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub transaction: String,
    /// The network as the request names it (CAIP-2, or a v1 name).
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub network: String,
    /// The transferred amount, in atomic units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<String>))]
    pub amount: Option<Amount>,
    /// Additions of x402d: `paymentId`, the ledger's id of the payment, and `sessionId` if a session was paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub extra: Option<Map<String, Value>>,
}

impl SettleResponse {
    /// The response to a payment that is not settled; `network` as the request names it.
    pub fn rejected(rejection: Rejection, payer: Option<Address>, network: String) -> Self {
        Self {
            success: false,
            error_reason: Some(rejection.reason.code().to_owned()),
            error_message: Some(rejection.message),
            payer: payer.map(checksummed),
            transaction: String::new(),
            network,
            amount: None,
            extra: None,
        }
    }
}

/// The response of `GET /supported`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct Supported {
    /// One entry per scheme, network and version. No wildcards, because SDK sellers look for the exact network.
    pub kinds: Vec<SupportedKind>,
    /// The extensions that this facilitator implements.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub extensions: Vec<String>,
    /// The addresses that send transactions, by CAIP-2 namespace.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub signers: BTreeMap<String, Vec<String>>,
}

/// A scheme on a network that the facilitator serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct SupportedKind {
    /// The protocol version: 1 or 2.
    #[cfg_attr(feature = "server", schema(value_type = u8))]
    pub x402_version: X402Version,
    /// The scheme, such as `exact`.
    pub scheme: String,
    /// The network: a CAIP-2 name in version 2, a name such as `base` in version 1.
    pub network: String,
    /// Scheme-specific facts for the seller's requirements, such as `facilitatorAddress` for `upto`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<Object>))]
    pub extra: Option<Map<String, Value>>,
}

/// The EIP-55 form of an address, as responses write it.
pub fn checksummed(address: Address) -> String {
    address.to_checksum(None)
}
