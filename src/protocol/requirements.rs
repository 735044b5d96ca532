//! What a seller asks for.

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, Network, field};

/// How money is moved for a requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Exactly the amount, by an authorization that the payer signed.
    Exact,
    /// At most the amount: the seller says how much when it settles. By Permit2 alone, in v2 alone.
    Upto,
}

impl Scheme {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Upto => "upto",
        }
    }

    /// The scheme of a name, `None` for those that we do not serve.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Exact, Self::Upto]
            .into_iter()
            .find(|scheme| scheme.name() == name)
    }
}

/// One way to pay for a resource, in the v2 shape: an entry of a 402's `accepts`, and what `/verify` and `/settle` check
/// a payment against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirements {
    /// How to pay.
    pub scheme: Scheme,
    /// Where to pay.
    pub network: Network,
    /// The price in atomic units of `asset`.
    pub amount: Amount,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// Who is paid.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// For how long an authorization made now should be valid, in seconds.
    #[serde(deserialize_with = "field::seconds::deserialize")]
    pub max_timeout_seconds: u64,
    /// Facts that belong to the scheme; members that we do not know are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Map<String, Value>>,
}

impl PaymentRequirements {
    /// A text member of `extra`.
    pub fn extra_text(&self, member: &str) -> Option<&str> {
        self.extra.as_ref()?.get(member)?.as_str()
    }

    /// `extra.name`: the token's EIP-712 name, when it is there and not empty.
    pub fn domain_name(&self) -> Option<&str> {
        self.extra_text("name").filter(|text| !text.is_empty())
    }

    /// `extra.version`: the token's EIP-712 version, when it is there and not empty.
    pub fn domain_version(&self) -> Option<&str> {
        self.extra_text("version").filter(|text| !text.is_empty())
    }

    /// `extra.assetTransferMethod`; absent for the default of the scheme (the x402 specification of the scheme).
    pub fn transfer_method(&self) -> Option<&str> {
        self.extra_text("assetTransferMethod")
    }

    /// `extra.paymentFlow`, absent for the default flow (`docs/architecture.md#payment-flow`).
    pub fn payment_flow(&self) -> Option<&str> {
        self.extra_text("paymentFlow")
    }
}
