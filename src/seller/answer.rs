//! What a buyer is answered: the challenge, the refusal, the receipt, the outage.

use axum::Json;
use axum::http::header::{ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::protocol::challenge::Resource;
use crate::protocol::v1::PaymentRequirementsV1;
use crate::protocol::{PaymentRequired, SettleResponse, X402Version, header};
use crate::seller::Priced;

/// Browsers show scripts only the headers that are named here.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE");

/// What one request is asked for, in both dialects.
#[derive(Debug)]
pub(super) struct Quote {
    v2: Value,
    v1: Option<Value>,
    resource: Resource,
}

impl Quote {
    /// The price of `priced` for the resource at `url`.
    pub(super) fn new(priced: &Priced, url: String) -> Result<Self, serde_json::Error> {
        let resource = Resource {
            url,
            description: priced.description.clone(),
            mime_type: Some(
                priced
                    .mime_type
                    .clone()
                    .unwrap_or_else(|| "application/json".to_owned()),
            ),
            other: serde_json::Map::new(),
        };
        Ok(Self {
            v2: serde_json::to_value(&priced.requirements)?,
            v1: PaymentRequirementsV1::of(&priced.requirements, &resource)
                .map(serde_json::to_value)
                .transpose()?,
            resource,
        })
    }

    /// What the facilitator is told, `None` where v1 has no name for the network.
    pub(super) const fn requirements(&self, version: X402Version) -> Option<&Value> {
        match version {
            X402Version::V2 => Some(&self.v2),
            X402Version::V1 => self.v1.as_ref(),
        }
    }

    /// Asks for the payment in both dialects at once. `error` says what was wrong with the one that came, if one came.
    pub(super) fn challenge(self, error: Option<&str>) -> Response {
        let v2 = PaymentRequired {
            x402_version: X402Version::V2,
            error: Some(error.unwrap_or("Payment required").to_owned()),
            resource: Some(self.resource),
            accepts: vec![self.v2],
            extensions: None,
        };
        let body = match self.v1 {
            Some(entry) => json!({
                "x402Version": X402Version::V1,
                "error": error.unwrap_or("X-PAYMENT header is required"),
                "accepts": [entry],
            }),
            None => json!({}),
        };
        let Some(value) = value_of(&v2) else {
            return broken();
        };
        let mut response = (StatusCode::PAYMENT_REQUIRED, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(header::PAYMENT_REQUIRED), value);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        response
    }

    /// Says that a payment was not settled, with the facilitator's answer, and asks again.
    pub(super) fn refuse(self, version: X402Version, outcome: &SettleResponse) -> Response {
        let reason = outcome.error_reason.as_deref();
        let mut response = self.challenge(Some(reason.unwrap_or("settlement failed")));
        attach(response.headers_mut(), version, outcome);
        response
    }
}

/// Adds the outcome to the answer of a handler. What was paid for is nobody else's to keep.
pub(super) fn receipt(
    mut response: Response,
    version: X402Version,
    outcome: &SettleResponse,
) -> Response {
    let headers = response.headers_mut();
    attach(headers, version, outcome);
    let kept = headers
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("no-store") || value.contains("private")
        });
    if !kept {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    response
}

/// No facilitator, no verdict: nothing is served, and the buyer is told nothing about the inside.
pub(super) fn outage() -> Response {
    let body = json!({"error": "the payment could not be processed now; present the same payment again later"});
    let mut response = (StatusCode::BAD_GATEWAY, Json(body)).into_response();
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A path that means different prices to different readers.
pub(super) fn ambiguous() -> Response {
    let body = json!({"error": "the path is ambiguous: write it without dots, encoded slashes and the like"});
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

/// Our own fault.
pub(super) fn broken() -> Response {
    let body = json!({"error": "internal error"});
    (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
}

fn attach(headers: &mut HeaderMap, version: X402Version, outcome: &SettleResponse) {
    let name = match version {
        X402Version::V1 => header::X_PAYMENT_RESPONSE,
        X402Version::V2 => header::PAYMENT_RESPONSE,
    };
    if let Some(value) = value_of(outcome) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn value_of<T: serde::Serialize>(value: &T) -> Option<HeaderValue> {
    HeaderValue::from_str(&header::encode(value).ok()?).ok()
}
