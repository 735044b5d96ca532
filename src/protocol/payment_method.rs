//! Scheme and transfer method of a requirement as one value, for buyers and sellers.

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};

use crate::protocol::{PaymentRequirements, Scheme, field};

/// How a requirement is paid: which signature authorizes the transfer, and whether the amount is exact or a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PaymentMethod {
    /// Exactly the amount, with an EIP-3009 authorization: scheme `exact` with its default transfer method.
    #[default]
    Authorization,
    /// Exactly the amount, with Permit2: scheme `exact` for tokens without EIP-3009.
    Permit2,
    /// At most the amount, with Permit2; the seller names the charge when it settles: scheme `upto`.
    Metered,
}

impl PaymentMethod {
    /// The scheme that this method belongs to.
    pub const fn scheme(self) -> Scheme {
        match self {
            Self::Authorization | Self::Permit2 => Scheme::Exact,
            Self::Metered => Scheme::Upto,
        }
    }

    /// The value of `extra.assetTransferMethod`; `None` where the scheme's default applies.
    pub const fn transfer_method(self) -> Option<&'static str> {
        match self {
            Self::Authorization => None,
            Self::Permit2 | Self::Metered => Some("permit2"),
        }
    }
}

impl PaymentRequirements {
    /// The payment method of this requirement. `None` for an unknown transfer method.
    pub fn payment_method(&self) -> Option<PaymentMethod> {
        match (self.scheme, self.transfer_method()) {
            (Scheme::Exact, None | Some("eip3009")) => Some(PaymentMethod::Authorization),
            (Scheme::Exact, Some("permit2")) => Some(PaymentMethod::Permit2),
            (Scheme::Upto, None | Some("permit2")) => Some(PaymentMethod::Metered),
            (Scheme::Exact | Scheme::Upto, Some(_)) => None,
        }
    }

    /// `extra.facilitatorAddress`: the only account that may settle a metered payment. `None` if absent, malformed or the zero address.
    pub fn facilitator(&self) -> Option<Address> {
        let text = self.extra_text("facilitatorAddress")?;
        field::parse_address(text)
            .ok()
            .filter(|address| !address.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scheme_and_transfer_method_give_the_payment_method() {
        let none = serde_json::Value::Null;
        for (scheme, transfer_method, expected) in [
            ("exact", none.clone(), Some(PaymentMethod::Authorization)),
            (
                "exact",
                json!("eip3009"),
                Some(PaymentMethod::Authorization),
            ),
            ("exact", json!("permit2"), Some(PaymentMethod::Permit2)),
            ("exact", json!("erc7710"), None),
            ("upto", none, Some(PaymentMethod::Metered)),
            ("upto", json!("permit2"), Some(PaymentMethod::Metered)),
            ("upto", json!("eip3009"), None),
        ] {
            let entry = json!({"scheme": scheme, "network": "eip155:84532", "amount": "1", "asset": Address::ZERO, "payTo": Address::ZERO,
                "maxTimeoutSeconds": 60, "extra": {"assetTransferMethod": transfer_method}});
            let requirements: PaymentRequirements = serde_json::from_value(entry).unwrap();
            assert_eq!(
                requirements.payment_method(),
                expected,
                "{scheme} {transfer_method}"
            );
            if let Some(method) = expected {
                assert_eq!(method.scheme(), requirements.scheme);
            }
        }
    }

    #[test]
    fn zero_or_malformed_facilitator_address_is_none() {
        for (named, expected) in [
            ("0x3333333333333333333333333333333333333333", true),
            ("0x0000000000000000000000000000000000000000", false),
            ("0x33", false),
        ] {
            let entry = json!({"scheme": "upto", "network": "eip155:84532", "amount": "1", "asset": Address::ZERO, "payTo": Address::ZERO,
                "maxTimeoutSeconds": 60, "extra": {"facilitatorAddress": named}});
            let requirements: PaymentRequirements = serde_json::from_value(entry).unwrap();
            assert_eq!(requirements.facilitator().is_some(), expected, "{named}");
        }
    }
}
