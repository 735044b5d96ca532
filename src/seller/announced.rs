//! The extensions that a challenge announces beside its offers (`PaymentRequired.extensions`).

use serde_json::{Map, Value, json};
use url::Url;

use crate::protocol::gas_sponsoring::EIP2612;
use crate::protocol::{PaymentMethod, PaymentRequirements, session};

/// The extensions of a paywall.
#[derive(Debug, Clone, Default)]
pub(super) struct Announced {
    /// The URL of the facilitator's payment sessions.
    pub(super) sessions: Option<Url>,
    /// Whether the facilitator pays the gas of a buyer's EIP-2612 permit for Permit2.
    pub(super) gas: bool,
}

impl Announced {
    /// The extensions for these offers; `None` when there are none.
    pub(super) fn with(&self, offers: &[PaymentRequirements]) -> Option<Map<String, Value>> {
        let mut extensions = Map::new();
        if let Some(url) = &self.sessions {
            let url = url.as_str().trim_end_matches('/');
            extensions.insert(session::EXTENSION.to_owned(), json!({"info": {"url": url}}));
        }
        let by_permit2 = |offer: &PaymentRequirements| {
            matches!(
                offer.payment_method(),
                Some(PaymentMethod::Permit2 | PaymentMethod::Metered)
            )
        };
        if self.gas && offers.iter().any(by_permit2) {
            extensions.insert(EIP2612.to_owned(), eip2612());
        }
        (!extensions.is_empty()).then_some(extensions)
    }
}

/// The declaration that the official x402 SDKs send.
fn eip2612() -> Value {
    let address = |what: &str| text("^0x[a-fA-F0-9]{40}$", what);
    let number = |what: &str| text("^[0-9]+$", what);
    json!({
        "info": {
            "description": "The facilitator accepts EIP-2612 gasless Permit to `Permit2` canonical contract.",
            "version": "1",
        },
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "from": address("The address of the sender."),
                "asset": address("The address of the ERC-20 token contract."),
                "spender": address("The address of the spender (Canonical Permit2)."),
                "amount": number("The amount to approve (uint256)."),
                "nonce": number("The current nonce of the sender."),
                "deadline": number("The timestamp at which the signature expires."),
                "signature": text("^0x[a-fA-F0-9]+$", "The 65-byte concatenated signature (r, s, v) as a hex string."),
                "version": text("^[0-9]+(\\.[0-9]+)*$", "Schema version identifier."),
            },
            "required": ["from", "asset", "spender", "amount", "nonce", "deadline", "signature", "version"],
        },
    })
}

fn text(pattern: &str, description: &str) -> Value {
    json!({"type": "string", "pattern": pattern, "description": description})
}
