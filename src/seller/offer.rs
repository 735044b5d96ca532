//! The 402 in both dialects at once, and whether a payment takes what was offered.

use axum::http::{HeaderMap, Uri, header as http_header};
use serde_json::{Map, Value, json};

use super::paywall::Route;
use crate::protocol::challenge::{Resource, network_name};
use crate::protocol::{PaymentRequired, PaymentRequirements, X402Version, header};

/// A payment as it came in a header.
#[derive(Debug)]
pub(super) struct Presented {
    pub(super) version: X402Version,
    pub(super) payload: Value,
}

/// The payment in a request's headers, if there is one that can be read at all.
pub(super) fn presented(headers: &HeaderMap) -> Option<Presented> {
    [
        (header::PAYMENT_SIGNATURE, X402Version::V2),
        (header::X_PAYMENT, X402Version::V1),
    ]
    .into_iter()
    .find_map(|(name, version)| {
        let payload: Value = header::decode(headers.get(name)?.to_str().ok()?).ok()?;
        Some(Presented { version, payload })
    })
}

/// The requirement as the facilitator is to check it, in the payment's dialect. `None`: the payment takes another offer, or none.
pub(super) fn taken(route: &Route, resource: &str, presented: &Presented) -> Option<Value> {
    match presented.version {
        X402Version::V2 => {
            let accepted: PaymentRequirements =
                serde_json::from_value(presented.payload.get("accepted")?.clone()).ok()?;
            same_offer(&route.requirements, &accepted)
                .then(|| serde_json::to_value(&route.requirements).ok())
                .flatten()
        }
        X402Version::V1 => {
            let offer = v1_entry(route, resource)?;
            let same = |name: &str| presented.payload.get(name) == offer.get(name);
            (same("scheme") && same("network")).then_some(offer)
        }
    }
}

/// The core members are equal, and what we put into `extra` came back; buyers may add to it.
fn same_offer(ours: &PaymentRequirements, theirs: &PaymentRequirements) -> bool {
    let core = |offer: &PaymentRequirements| PaymentRequirements {
        extra: None,
        ..offer.clone()
    };
    let none = Map::new();
    let extra = theirs.extra.as_ref().unwrap_or(&none);
    core(ours) == core(theirs)
        && ours
            .extra
            .iter()
            .flatten()
            .all(|(name, value)| extra.get(name) == Some(value))
}

/// The challenge of v2, for the header.
pub(super) fn challenge(route: &Route, resource: &str, error: &str) -> PaymentRequired {
    PaymentRequired {
        x402_version: X402Version::V2,
        error: Some(error.to_owned()),
        resource: Some(Resource {
            url: resource.to_owned(),
            ..Resource::default()
        }),
        accepts: serde_json::to_value(&route.requirements)
            .into_iter()
            .collect(),
        extensions: None,
    }
}

/// The challenge of v1, for the body; an empty object where v1 has no name for the network.
pub(super) fn challenge_v1(route: &Route, resource: &str, error: &str) -> Value {
    match v1_entry(route, resource) {
        Some(entry) => json!({ "x402Version": 1, "error": error, "accepts": [entry] }),
        None => json!({}),
    }
}

fn v1_entry(route: &Route, resource: &str) -> Option<Value> {
    let required = &route.requirements;
    let network = network_name(X402Version::V1, required.network)?;
    let extra = json!({ "name": required.domain_name()?, "version": required.domain_version()? });
    Some(json!({
        "scheme": required.scheme, "network": network, "maxAmountRequired": required.amount, "resource": resource, "description": "",
        "mimeType": "", "payTo": required.pay_to.to_checksum(None), "maxTimeoutSeconds": required.max_timeout_seconds,
        "asset": required.asset.to_checksum(None), "extra": extra,
    }))
}

/// The URL that is being sold, as the buyer asked for it.
pub(super) fn resource_url(uri: &Uri, headers: &HeaderMap) -> String {
    let host = headers
        .get(http_header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    let scheme = headers
        .get("x-forwarded-proto")
        .and_then(|scheme| scheme.to_str().ok())
        .filter(|scheme| *scheme == "https")
        .unwrap_or("http");
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    format!("{scheme}://{host}{path}")
        .chars()
        .take(2048)
        .collect()
}
