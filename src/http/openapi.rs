//! The contract: generated from the handlers, checked in as `openapi/x402d.json`.

use serde::Serialize;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

/// The body of `/verify` and `/settle` in either version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PaymentEnvelope {
    /// 1 or 2; the payload's own counts when this is absent.
    #[schema(minimum = 1, maximum = 2)]
    x402_version: u8,
    /// The decoded payment header.
    #[schema(value_type = Object)]
    payment_payload: serde_json::Value,
    /// What the seller asks for: `amount` in version 2, `maxAmountRequired` in version 1.
    #[schema(value_type = Object)]
    payment_requirements: serde_json::Value,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "x402d", description = "A self-hosted x402 facilitator: verifies, settles and records payments."),
    tags(
        (name = "facilitator", description = "The standard x402 calls, versions 1 and 2."),
        (name = "sessions", description = "Payment sessions, for buyers: terms first, then money, then the request."),
        (name = "history", description = "Every payment that was ever accepted, for the operator."),
        (name = "health", description = "For whatever keeps the service alive."),
    ),
    modifiers(&OperatorToken),
)]
struct Frame;

struct OperatorToken;

impl Modify for OperatorToken {
    fn modify(&self, contract: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token of X402D_ADMIN_TOKEN; callers on the loopback address need none unless it is set."))
            .build();
        contract
            .components
            .get_or_insert_default()
            .add_security_scheme("operator", SecurityScheme::Http(scheme));
    }
}

/// Title, tags and security, without paths.
pub(super) fn frame() -> utoipa::openapi::OpenApi {
    Frame::openapi()
}

/// The whole contract as the service serves it.
pub fn contract() -> utoipa::openapi::OpenApi {
    super::routes().into_openapi()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/x402d.json");

    #[test]
    fn the_checked_in_contract_is_the_one_that_is_served() {
        let mut served = contract().to_pretty_json().unwrap();
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
    fn the_contract_names_every_call_once_and_says_who_may_make_it() {
        let contract = contract();
        let paths: Vec<_> = contract.paths.paths.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "/healthz",
                "/payments",
                "/payments/by-transaction/{network}/{hash}",
                "/payments/{id}",
                "/readyz",
                "/sessions",
                "/sessions/{id}",
                "/sessions/{id}/cancel",
                "/sessions/{id}/transfer",
                "/settle",
                "/signers",
                "/stats",
                "/supported",
                "/verify"
            ]
        );
        let components = contract.components.unwrap();
        assert!(components.security_schemes.contains_key("operator"));
    }
}
