//! Protocol version 1, translated to version 2 here and nowhere else (x402 v1 specification).

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::challenge::Resource;
use crate::protocol::{Amount, Network, PaymentMethod, PaymentRequirements, Scheme, field};

/// An entry of `accepts` in the v1 form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirementsV1 {
    /// The payment scheme.
    pub scheme: Scheme,
    /// The network's v1 name, such as `base-sepolia`.
    pub network: String,
    /// The price in atomic units of `asset`.
    pub max_amount_required: Amount,
    /// The URL of the resource.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub resource: String,
    /// A description of the resource for people and agents.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub description: String,
    /// The media type of the paid response body.
    #[serde(default)]
    pub mime_type: Option<String>,
    /// The payee's address.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// How long an authorization signed now should stay valid, in seconds.
    #[serde(deserialize_with = "field::seconds::deserialize")]
    pub max_timeout_seconds: u64,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// A description of input and output. Not read by this crate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// The token's EIP-712 name and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Map<String, Value>>,
}

/// The name is not a v1 name of a known network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a v1 network name such as base or base-sepolia, got {0:?}{hint}", hint = v1_hint(.0))]
pub struct UnknownV1Name(pub String);

fn v1_hint(text: &str) -> String {
    let suggestion = Network::from_name(text).and_then(Network::v1_name);
    suggestion.map_or_else(String::new, |name| format!("; write {name}"))
}

impl PaymentRequirementsV1 {
    /// Translates to version 2.
    ///
    /// # Errors
    /// [`UnknownV1Name`] when no known network has this v1 name.
    pub fn translate(self) -> Result<PaymentRequirements, UnknownV1Name> {
        let network = Network::from_v1_name(&self.network).ok_or(UnknownV1Name(self.network))?;
        Ok(PaymentRequirements {
            scheme: self.scheme,
            network,
            amount: self.max_amount_required,
            asset: self.asset,
            pay_to: self.pay_to,
            max_timeout_seconds: self.max_timeout_seconds,
            extra: self.extra,
        })
    }

    /// Translates a v2 requirement to v1. `None` if the network has no v1 name, and for Permit2, which v1 does not have.
    ///
    /// `description` and `mimeType` are always written, because v1 clients require them. `paymentFlow` is dropped, because v1 has none.
    pub fn of(requirements: &PaymentRequirements, resource: &Resource) -> Option<Self> {
        if requirements.payment_method() != Some(PaymentMethod::Authorization) {
            return None;
        }
        let mut extra = requirements.extra.clone();
        if let Some(extra) = &mut extra {
            extra.remove("paymentFlow");
        }
        let mime_type = resource.mime_type.as_deref().unwrap_or("application/json");
        Some(Self {
            scheme: requirements.scheme,
            network: requirements.network.v1_name()?.to_owned(),
            max_amount_required: requirements.amount,
            resource: resource.url.clone(),
            description: resource.description.clone().unwrap_or_default(),
            mime_type: Some(mime_type.to_owned()),
            pay_to: requirements.pay_to,
            max_timeout_seconds: requirements.max_timeout_seconds,
            asset: requirements.asset,
            output_schema: None,
            extra,
        })
    }
}
