//! The API specification: generated from the handlers, checked in as `openapi/x402d.json`.

use serde::Serialize;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

/// The body of `/verify`, `/settle` and `/status` in either version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentEnvelope {
    /// 1 or 2; if absent, the version in the payload counts.
    #[schema(minimum = 1, maximum = 2)]
    x402_version: u8,
    /// The decoded payment header.
    #[schema(value_type = Object)]
    payment_payload: serde_json::Value,
    /// The seller's requirements: `amount` in version 2, `maxAmountRequired` in version 1.
    #[schema(value_type = Object)]
    payment_requirements: serde_json::Value,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "x402d", description = "A self-hosted x402 facilitator: verifies, settles and records payments."),
    tags(
        (name = "facilitator", description = "The standard x402 calls, versions 1 and 2, and what became of a payment."),
        (name = "sessions", description = "Payment sessions, for buyers: terms first, then money, then the request."),
        (name = "history", description = "Every payment that was ever accepted, and what was refused, for the operator; to holders of a key those of their payees."),
        (name = "health", description = "For monitoring, and for the operator."),
    ),
    modifiers(&Credentials),
)]
struct Frame;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, specification: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token of X402D_ADMIN_TOKEN, or a key with the scope admin; programs on the machine itself need none while neither exists."))
            .build();
        let components = specification.components.get_or_insert_default();
        components.add_security_scheme("operator", SecurityScheme::Http(scheme));
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A key of `x402d keys create`."))
            .build();
        components.add_security_scheme("key", SecurityScheme::Http(scheme));
        let header = ApiKeyValue::with_description("X-API-Key", "The same key.");
        let scheme = SecurityScheme::ApiKey(ApiKey::Header(header));
        components.add_security_scheme("apiKey", scheme);
    }
}

/// Title, tags and security, without paths.
pub(super) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi()
}

/// The API specification as it is served.
pub fn specification() -> utoipa::openapi::OpenApi {
    super::routes().into_openapi()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/x402d.json");

    #[test]
    fn checked_in_specification_is_the_served_one() {
        let mut served = specification().to_pretty_json().unwrap();
        served.push('\n');
        if std::env::var_os("X402D_WRITE_OPENAPI").is_some_and(|wish| wish == "1") {
            std::fs::write(FILE, &served).unwrap();
        }
        let kept = std::fs::read_to_string(FILE).unwrap_or_default();
        assert!(
            kept == served,
            "openapi/x402d.json is stale; X402D_WRITE_OPENAPI=1 cargo test --lib http::openapi writes it anew"
        );
    }

    #[test]
    fn specification_has_every_call_and_the_operator_scheme() {
        let specification = specification();
        let paths: Vec<_> = specification
            .paths
            .paths
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            paths,
            [
                "/events",
                "/healthz",
                "/metrics",
                "/payments",
                "/payments/by-transaction/{network}/{hash}",
                "/payments/{id}",
                "/readyz",
                "/refusals",
                "/sessions",
                "/sessions/{id}",
                "/sessions/{id}/cancel",
                "/sessions/{id}/transfer",
                "/settle",
                "/signers",
                "/stats",
                "/status",
                "/supported",
                "/verify"
            ]
        );
        let components = specification.components.unwrap();
        for scheme in ["apiKey", "key", "operator"] {
            assert!(components.security_schemes.contains_key(scheme), "{scheme}");
        }
    }
}
