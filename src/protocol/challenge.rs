//! The 402 response of a seller, in both protocol versions (x402 v2 specification §5.1).

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Network, PaymentRequirements, Scheme, X402Version, v1};

/// The decoded `PAYMENT-REQUIRED` header (v2) or the body of a v1 challenge.
///
/// `accepts` stays raw JSON: a buyer must send the chosen entry back verbatim, because sellers compare it member by member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// The protocol version of the entries.
    pub x402_version: X402Version,
    /// Why the resource was not served. Sellers also put a facilitator's rejection here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The resource for sale (v2 only; in v1 it is part of each entry). A malformed one reads as absent: no check depends on it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "resource_if_readable"
    )]
    pub resource: Option<Resource>,
    /// The payment options, in the seller's order of preference.
    pub accepts: Vec<Value>,
    /// Extensions that the seller announces (v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Map<String, Value>>,
}

/// The resource for sale: `ResourceInfo` of the specification.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// The URL of the resource.
    pub url: String,
    /// A description for people and agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The media type of the paid response body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
    /// Unknown members, kept because a v2 payment echoes the resource.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn resource_if_readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Resource>, D::Error> {
    let raw = Value::deserialize(from)?;
    Ok(serde_json::from_value(raw).ok())
}

/// An entry of `accepts` that this crate can parse, with the raw entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The protocol version of the payment.
    pub version: X402Version,
    /// The entry as received.
    pub raw: Value,
    /// The parsed entry.
    pub requirements: PaymentRequirements,
}

impl PaymentRequired {
    /// The entries that this crate can pay, in the seller's order. Entries with unknown schemes, networks or payment flows are
    /// skipped, as SDK buyers do.
    pub fn offers(&self) -> Vec<Offer> {
        let known_flow = |requirements: &PaymentRequirements| {
            matches!(
                requirements.payment_flow(),
                None | Some("authorization" | "upfront")
            )
        };
        self.accepts
            .iter()
            .filter_map(|raw| {
                let requirements = self.parse_entry(raw)?;
                known_flow(&requirements).then(|| Offer {
                    version: self.x402_version,
                    raw: raw.clone(),
                    requirements,
                })
            })
            .collect()
    }

    /// Adds the buyer's members to the `info` of an extension that the seller declared. Members that the seller wrote are not
    /// overwritten, and an undeclared extension is not added (x402 v2 specification §5.1.2).
    pub fn fill(&mut self, extension: &str, info: Map<String, Value>) {
        let declared = self
            .extensions
            .as_mut()
            .and_then(|all| all.get_mut(extension)?.as_object_mut());
        let Some(declared) = declared else { return };
        let target = declared
            .entry("info")
            .or_insert_with(|| Value::Object(Map::new()));
        let Some(target) = target.as_object_mut() else {
            return;
        };
        for (member, value) in info {
            target.entry(member).or_insert(value);
        }
    }

    /// Whether the seller declared this extension.
    pub fn declares(&self, extension: &str) -> bool {
        let declared = self.extensions.as_ref().and_then(|all| all.get(extension));
        declared.is_some_and(Value::is_object)
    }

    fn parse_entry(&self, raw: &Value) -> Option<PaymentRequirements> {
        match self.x402_version {
            X402Version::V1 => {
                let entry: v1::PaymentRequirementsV1 = serde_json::from_value(raw.clone()).ok()?;
                entry.translate().ok()
            }
            X402Version::V2 => serde_json::from_value(raw.clone()).ok(),
        }
    }
}

/// The network's name in a protocol version. `None` in v1 for networks that v1 has no name for.
pub fn network_name(version: X402Version, network: Network) -> Option<String> {
    match version {
        X402Version::V1 => network.v1_name().map(str::to_owned),
        X402Version::V2 => Some(network.to_string()),
    }
}

/// The entries of `/supported` for one network: v2 always, v1 where the network has a v1 name.
pub fn supported_kinds(
    scheme: Scheme,
    network: Network,
) -> impl Iterator<Item = (X402Version, &'static str, String)> {
    [X402Version::V2, X402Version::V1]
        .into_iter()
        .filter_map(move |version| {
            network_name(version, network).map(|name| (version, scheme.name(), name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn offers_skip_unpayable_entries_and_keep_the_rest_verbatim() {
        let entry = json!({"scheme": "exact", "network": "eip155:84532", "amount": "10000", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "later": [1]}});
        let mut unknown = entry.clone();
        unknown["scheme"] = json!("barter");
        let mut unknown_flow = entry.clone();
        unknown_flow["extra"]["paymentFlow"] = json!("escrow");
        let challenge: PaymentRequired =
            serde_json::from_value(json!({"x402Version": 2, "accepts": [unknown, unknown_flow, entry], "resource": {"url": "https://a/b", "tags": ["x"]}})).unwrap();
        let offers = challenge.offers();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].raw, entry);
        assert_eq!(
            serde_json::to_value(challenge.resource).unwrap()["tags"],
            json!(["x"])
        );
    }

    #[test]
    fn fill_adds_members_but_overwrites_nothing() {
        let mut challenge: PaymentRequired = serde_json::from_value(
            json!({"x402Version": 2, "accepts": [], "extensions": {"gas": {"info": {"version": "1"}, "schema": {"a": 1}}, "odd": true}}),
        )
        .unwrap();
        assert!(challenge.declares("gas"));
        assert!(!challenge.declares("odd") && !challenge.declares("other"));
        let info = json!({"version": "2", "from": "me"});
        for extension in ["gas", "odd", "other"] {
            challenge.fill(extension, info.as_object().unwrap().clone());
        }
        assert_eq!(
            Value::Object(challenge.extensions.unwrap()),
            json!({"gas": {"info": {"version": "1", "from": "me"}, "schema": {"a": 1}}, "odd": true})
        );
    }
}
