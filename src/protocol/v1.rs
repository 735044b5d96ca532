//! The v1 dialect, translated to v2 here and nowhere else (`docs/architecture.md#versions`).

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::challenge::Resource;
use crate::protocol::{Amount, Means, Network, PaymentRequirements, Scheme, field};

/// An entry of `accepts` as v1 writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirementsV1 {
    /// How to pay.
    pub scheme: Scheme,
    /// A friendly name such as `base-sepolia`.
    pub network: String,
    /// The price in atomic units.
    pub max_amount_required: Amount,
    /// What is being sold.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub resource: String,
    /// For people and agents.
    #[serde(default, deserialize_with = "field::optional::deserialize")]
    pub description: String,
    /// The type of the paid body.
    #[serde(default)]
    pub mime_type: Option<String>,
    /// Who is paid.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// For how long an authorization made now should be valid, in seconds.
    #[serde(deserialize_with = "field::seconds::deserialize")]
    pub max_timeout_seconds: u64,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// A description of input and output that nothing here reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// The token's EIP-712 name and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Map<String, Value>>,
}

/// The v1 name belongs to no network that we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a v1 network name such as base or base-sepolia, got {0:?}")]
pub struct UnknownV1Name(pub String);

impl PaymentRequirementsV1 {
    /// The same requirement in v2's terms.
    ///
    /// # Errors
    /// [`UnknownV1Name`] when the network has no such name.
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

    /// What v1 says for a v2 requirement, `None` where the network has no v1 name, and for Permit2, which v1 does not know. `description` and `mimeType` are always
    /// written, because v1 clients insist on them; `paymentFlow` is not, because v1 knows none.
    pub fn of(requirements: &PaymentRequirements, resource: &Resource) -> Option<Self> {
        if requirements.means() != Some(Means::Authorization) {
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
