//! The 402: what a seller answers before it is paid, in both dialects.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::protocol::{Network, PaymentRequirements, Scheme, X402Version, v1};

/// The decoded `PAYMENT-REQUIRED` header (v2) or the body of a v1 challenge.
///
/// `accepts` stays raw: a buyer must send back the chosen entry verbatim, because sellers compare it member by member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// The dialect of the entries.
    pub x402_version: X402Version,
    /// Why nothing was served; sellers also put a facilitator's refusal here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is being sold (v2 only; in v1 each entry says it). One of another shape is as good as none: it is not what is paid for.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "resource_if_readable"
    )]
    pub resource: Option<Resource>,
    /// The ways to pay, in the seller's order of preference.
    pub accepts: Vec<Value>,
    /// Extensions that the seller announces (v2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extensions: Option<Map<String, Value>>,
}

/// What is being sold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Its URL.
    pub url: String,
    /// For people and agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The type of the body that is served once paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
    /// Members that we do not know, kept because the resource is echoed.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

fn resource_if_readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Resource>, D::Error> {
    let raw = Value::deserialize(from)?;
    Ok(serde_json::from_value(raw).ok())
}

/// An entry of `accepts` that we understand, with the raw entry it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// In which dialect to pay it.
    pub version: X402Version,
    /// The entry as it came.
    pub raw: Value,
    /// The same, understood.
    pub requirements: PaymentRequirements,
}

impl PaymentRequired {
    /// The entries that this crate could pay, in the seller's order. Entries of unknown schemes, networks or payment flows are
    /// left out, as SDK buyers do.
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
                let requirements = self.understand(raw)?;
                known_flow(&requirements).then(|| Offer {
                    version: self.x402_version,
                    raw: raw.clone(),
                    requirements,
                })
            })
            .collect()
    }

    /// Adds to an extension that the seller declared what the buyer has to say in its `info`. What the seller wrote stays as it
    /// is, and an extension that it did not declare is not added.
    pub fn fill(&mut self, extension: &str, info: Map<String, Value>) {
        let declared = self
            .extensions
            .as_mut()
            .and_then(|all| all.get_mut(extension)?.as_object_mut());
        let Some(declared) = declared else { return };
        let place = declared
            .entry("info")
            .or_insert_with(|| Value::Object(Map::new()));
        let Some(place) = place.as_object_mut() else {
            return;
        };
        for (member, value) in info {
            place.entry(member).or_insert(value);
        }
    }

    /// Whether the seller declared this extension.
    pub fn declares(&self, extension: &str) -> bool {
        let declared = self.extensions.as_ref().and_then(|all| all.get(extension));
        declared.is_some_and(Value::is_object)
    }

    fn understand(&self, raw: &Value) -> Option<PaymentRequirements> {
        match self.x402_version {
            X402Version::V1 => {
                let entry: v1::PaymentRequirementsV1 = serde_json::from_value(raw.clone()).ok()?;
                entry.translate().ok()
            }
            X402Version::V2 => serde_json::from_value(raw.clone()).ok(),
        }
    }
}

/// The network's name in a dialect; v1 has none for networks that came later.
pub fn network_name(version: X402Version, network: Network) -> Option<String> {
    match version {
        X402Version::V1 => network.v1_name().map(str::to_owned),
        X402Version::V2 => Some(network.to_string()),
    }
}

/// The kinds of `/supported` that one network gives rise to: v2 always, v1 where the network has a v1 name.
pub fn kinds_of(
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
    fn entries_that_cannot_be_paid_are_left_out_and_the_rest_stays_verbatim() {
        let entry = json!({"scheme": "exact", "network": "eip155:84532", "amount": "10000", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "later": [1]}});
        let mut unknown = entry.clone();
        unknown["scheme"] = json!("barter");
        let mut strange_flow = entry.clone();
        strange_flow["extra"]["paymentFlow"] = json!("escrow");
        let challenge: PaymentRequired =
            serde_json::from_value(json!({"x402Version": 2, "accepts": [unknown, strange_flow, entry], "resource": {"url": "https://a/b", "tags": ["x"]}})).unwrap();
        let offers = challenge.offers();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].raw, entry);
        assert_eq!(
            serde_json::to_value(challenge.resource).unwrap()["tags"],
            json!(["x"])
        );
    }

    #[test]
    fn a_buyer_adds_to_what_was_declared_and_changes_nothing_of_it() {
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
