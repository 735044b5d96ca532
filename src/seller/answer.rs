//! The answers of the paywall itself.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header as http_header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::offer::{challenge, challenge_v1};
use super::paywall::Route;
use crate::protocol::{SettleResponse, X402Version, header};

/// Browsers may read these.
const EXPOSED: &str = "PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE";

/// 402: how to pay, in both dialects, and why nothing was served.
pub(super) fn payment_required(route: &Route, resource: &str, why: &str) -> Response {
    let mut response = (
        StatusCode::PAYMENT_REQUIRED,
        Json(challenge_v1(route, resource, why)),
    )
        .into_response();
    let headers = response.headers_mut();
    put(
        headers,
        header::PAYMENT_REQUIRED,
        &challenge(route, resource, why),
    );
    headers.insert(
        http_header::CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    );
    headers.insert(
        http_header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
    response
}

/// 402 after a settlement that failed or is still open: with its outcome, so that the buyer learns the hash.
pub(super) fn not_settled(
    route: &Route,
    resource: &str,
    version: X402Version,
    settlement: &SettleResponse,
) -> Response {
    let why = settlement
        .error_reason
        .as_deref()
        .unwrap_or("the settlement failed");
    let mut response = payment_required(route, resource, why);
    put(response.headers_mut(), result_header(version), settlement);
    response
}

/// The handler's answer, with the proof.
pub(super) fn with_proof(
    mut response: Response,
    version: X402Version,
    settlement: &SettleResponse,
) -> Response {
    let headers = response.headers_mut();
    put(headers, result_header(version), settlement);
    headers.append(
        http_header::CACHE_CONTROL,
        HeaderValue::from_static("private"),
    );
    headers.append(
        http_header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(EXPOSED),
    );
    response
}

/// 502: the facilitator gave no verdict, so nothing is served, and nobody knows whether money moved.
pub(super) fn no_verdict() -> Response {
    let error = "the payment could not be checked now; present the same payment again";
    let mut response = (StatusCode::BAD_GATEWAY, Json(json!({ "error": error }))).into_response();
    response.headers_mut().insert(
        http_header::CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    );
    response
}

const fn result_header(version: X402Version) -> &'static str {
    match version {
        X402Version::V1 => header::X_PAYMENT_RESPONSE,
        X402Version::V2 => header::PAYMENT_RESPONSE,
    }
}

fn put<T: Serialize>(headers: &mut HeaderMap, name: &'static str, value: &T) {
    if let Some(value) = header::encode(value)
        .ok()
        .and_then(|text| HeaderValue::from_str(&text).ok())
    {
        headers.insert(HeaderName::from_static(name), value);
    }
}
