//! The seller's payment requirements (x402 v2 specification §5.1.2).

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Amount, Network, field};

/// The payment scheme: how the charged amount is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Exactly the required amount, with an authorization that the payer signed.
    Exact,
    /// At most the amount: the seller names the charge when it settles. Only with Permit2, and only in v2.
    Upto,
}

impl Scheme {
    /// Every scheme.
    pub const ALL: [Self; 2] = [Self::Exact, Self::Upto];

    /// The scheme's name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Upto => "upto",
        }
    }

    /// Finds a scheme by its name; `None` for schemes that this crate does not implement.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == name)
    }
}

/// One payment option for a resource, in the v2 form: an entry of a 402's `accepts`, and the terms that `/verify` and `/settle`
/// check a payment against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirements {
    /// The payment scheme.
    pub scheme: Scheme,
    /// The network to pay on.
    pub network: Network,
    /// The price in atomic units of `asset`.
    pub amount: Amount,
    /// The token contract.
    #[serde(with = "field::address")]
    pub asset: Address,
    /// The payee's address.
    #[serde(with = "field::address")]
    pub pay_to: Address,
    /// How long an authorization signed now should stay valid, in seconds.
    #[serde(deserialize_with = "field::seconds::deserialize")]
    pub max_timeout_seconds: u64,
    /// Scheme-specific members; unknown ones are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Map<String, Value>>,
}

impl PaymentRequirements {
    /// A string member of `extra`; `None` if absent or not a string.
    pub fn extra_text(&self, member: &str) -> Option<&str> {
        self.extra.as_ref()?.get(member)?.as_str()
    }

    /// `extra.name`: the token's EIP-712 name. `None` if absent or empty.
    pub fn domain_name(&self) -> Option<&str> {
        self.extra_text("name").filter(|text| !text.is_empty())
    }

    /// `extra.version`: the token's EIP-712 version. `None` if absent or empty.
    pub fn domain_version(&self) -> Option<&str> {
        self.extra_text("version").filter(|text| !text.is_empty())
    }

    /// `extra.assetTransferMethod`; absent for the default of the scheme: `eip3009` in `exact`, `permit2` in `upto`.
    pub fn transfer_method(&self) -> Option<&str> {
        self.extra_text("assetTransferMethod")
    }

    /// `extra.paymentFlow`; absent for the default flow, `authorization`.
    pub fn payment_flow(&self) -> Option<&str> {
        self.extra_text("paymentFlow")
    }
}
