//! The paywall's responses: challenge, refusal, receipt and errors.

use axum::Json;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, RETRY_AFTER, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::protocol::challenge::Resource;
use crate::protocol::v1::PaymentRequirementsV1;
use crate::protocol::{
    PaymentRequired, PaymentRequirements, Reason, SettleResponse, X402Version, header,
};
use crate::seller::Priced;
use crate::seller::announced::Announced;

/// Browsers let scripts read only the response headers that are listed here.
const EXPOSED_HEADERS: HeaderValue =
    HeaderValue::from_static("PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE");

/// Any origin may read the response, but without credentials.
const ANY_ORIGIN: HeaderValue = HeaderValue::from_static("*");

/// The offers for one request, in both x402 versions.
#[derive(Debug)]
pub(super) struct Quote {
    offers: Vec<QuotedOffer>,
    resource: Resource,
    extensions: Option<Map<String, Value>>,
}

/// One offer and its JSON forms.
#[derive(Debug)]
struct QuotedOffer {
    requirements: PaymentRequirements,
    v2: Value,
    /// `None` when v1 has no name for the network or does not support the payment method.
    v1: Option<Value>,
}

impl Quote {
    /// The quote of the route `priced` for the resource at `url`.
    pub(super) fn new(
        priced: &Priced,
        offers: Vec<PaymentRequirements>,
        url: String,
        announced: &Announced,
    ) -> Result<Self, serde_json::Error> {
        let mime_type = priced.mime_type.as_deref().unwrap_or("application/json");
        let resource = Resource {
            url,
            description: priced.description.clone(),
            mime_type: Some(mime_type.to_owned()),
            other: Map::new(),
        };
        let extensions = announced.with(&offers);
        let offers: Result<Vec<_>, serde_json::Error> = offers
            .into_iter()
            .map(|requirements| {
                let v1 = PaymentRequirementsV1::of(&requirements, &resource);
                Ok(QuotedOffer {
                    v2: serde_json::to_value(&requirements)?,
                    v1: v1.map(serde_json::to_value).transpose()?,
                    requirements,
                })
            })
            .collect();
        Ok(Self {
            offers: offers?,
            resource,
            extensions,
        })
    }

    /// The offers in an x402 version: parsed, and as JSON for the facilitator.
    pub(super) fn offers(
        &self,
        version: X402Version,
    ) -> impl Iterator<Item = (&PaymentRequirements, &Value)> {
        self.offers.iter().filter_map(move |offer| {
            let json = match version {
                X402Version::V2 => Some(&offer.v2),
                X402Version::V1 => offer.v1.as_ref(),
            };
            Some((&offer.requirements, json?))
        })
    }

    fn required(&self, error: Option<&str>) -> PaymentRequired {
        PaymentRequired {
            x402_version: X402Version::V2,
            error: Some(error.unwrap_or("Payment required").to_owned()),
            resource: Some(self.resource.clone()),
            accepts: self.offers.iter().map(|offer| offer.v2.clone()).collect(),
            extensions: self.extensions.clone(),
        }
    }

    /// The challenge for a payment, in both x402 versions at once. `error` describes the presented payment's error, if there was one.
    pub(super) fn challenge(&self, error: Option<&str>) -> Response {
        let entries: Vec<_> = self
            .offers
            .iter()
            .filter_map(|offer| offer.v1.clone())
            .collect();
        let body = if entries.is_empty() {
            json!({})
        } else {
            json!({
                "x402Version": X402Version::V1,
                "error": error.unwrap_or("X-PAYMENT header is required"),
                "accepts": entries,
            })
        };
        Self::payment_required(&self.required(error), Json(body).into_response())
    }

    /// The challenge as an HTML page, for browsers.
    pub(super) fn page(&self) -> Response {
        let required = self.required(None);
        let page = crate::seller::page::of(&required);
        Self::payment_required(&required, Html(page).into_response())
    }

    fn payment_required(required: &PaymentRequired, mut response: Response) -> Response {
        let Some(value) = header_value(required) else {
            return internal_error();
        };
        // The official x402 SDKs use 412 for a missing allowance, which the buyer must fix on chain before it can pay.
        let allowance_missing =
            required.error.as_deref() == Some(Reason::Permit2AllowanceRequired.code());
        *response.status_mut() = if allowance_missing {
            StatusCode::PRECONDITION_FAILED
        } else {
            StatusCode::PAYMENT_REQUIRED
        };
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(header::PAYMENT_REQUIRED), value);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        allow_any_origin(response)
    }

    /// The challenge after a refused settlement, with the facilitator's response in a header.
    pub(super) fn refuse(&self, version: X402Version, outcome: &SettleResponse) -> Response {
        let reason = outcome.error_reason.as_deref();
        let mut response = self.challenge(Some(reason.unwrap_or("settlement failed")));
        insert_outcome(response.headers_mut(), version, outcome);
        response
    }
}

/// Adds the settlement result to a handler's response, and `cache-control: private` unless the handler restricts caching, because shared
/// caches must not store paid content.
pub(super) fn receipt(
    mut response: Response,
    version: X402Version,
    outcome: &SettleResponse,
) -> Response {
    let headers = response.headers_mut();
    insert_outcome(headers, version, outcome);
    let restricted = headers
        .get(CACHE_CONTROL)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            value.contains("no-store") || value.contains("private")
        });
    if !restricted {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
    allow_any_origin(response)
}

/// Lets pages of any origin read the response, unless the application sets the header itself.
fn allow_any_origin(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(ACCESS_CONTROL_ALLOW_ORIGIN)
        .or_insert(ANY_ORIGIN);
    response
}

/// 502: the facilitator or the file of owed purchases is unavailable. Nothing is served; the body has no internal details.
pub(super) fn unavailable() -> Response {
    let body = json!({"error": "the payment could not be processed; present the same payment again later"});
    let mut response = (StatusCode::BAD_GATEWAY, Json(body)).into_response();
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    allow_any_origin(response)
}

/// Answers a CORS preflight for a priced route. It is not passed on: a handler that accepts every method would serve its resource unpaid.
pub(super) fn preflight(request: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY_ORIGIN);
    for (requested, allowed) in [
        (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
        (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
    ] {
        if let Some(value) = request.get(requested) {
            headers.insert(allowed, value.clone());
        }
    }
    headers.insert(
        VARY,
        HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    response
}

/// 400: a server behind this one could read the path otherwise, or its readings have different prices.
pub(super) fn ambiguous() -> Response {
    let body = json!({"error": "the path is ambiguous: write it without dot segments, encoded slashes, double encoding, semicolons, backslashes and control characters"});
    allow_any_origin((StatusCode::BAD_REQUEST, Json(body)).into_response())
}

/// 413: the body of a paid request exceeds the limit.
pub(super) fn body_too_long(bytes_max: usize) -> Response {
    let body = json!({"error": format!("the body of a paid request may have at most {bytes_max} bytes; nothing was settled")});
    allow_any_origin((StatusCode::PAYLOAD_TOO_LARGE, Json(body)).into_response())
}

/// 408: the body of a paid request did not come in time.
pub(super) fn body_too_slow() -> Response {
    let body =
        json!({"error": "the body of the paid request did not come in time; nothing was settled"});
    allow_any_origin((StatusCode::REQUEST_TIMEOUT, Json(body)).into_response())
}

/// 503: other requests hold all the memory for bodies.
pub(super) fn busy() -> Response {
    let body = json!({"error": "too many requests are being read; nothing was settled, present the same payment again"});
    let answer = (
        StatusCode::SERVICE_UNAVAILABLE,
        [(RETRY_AFTER, "1")],
        Json(body),
    );
    allow_any_origin(answer.into_response())
}

/// 400: the request's `Host` is not the name of a host.
pub(super) fn invalid_host() -> Response {
    let body = json!({"error": "the Host header is not one host name with an optional port"});
    allow_any_origin((StatusCode::BAD_REQUEST, Json(body)).into_response())
}

/// 500, without internal details.
pub(super) fn internal_error() -> Response {
    let body = json!({"error": "internal error"});
    allow_any_origin((StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response())
}

/// Sets the payment response header of the version.
fn insert_outcome(headers: &mut HeaderMap, version: X402Version, outcome: &SettleResponse) {
    let name = match version {
        X402Version::V1 => header::X_PAYMENT_RESPONSE,
        X402Version::V2 => header::PAYMENT_RESPONSE,
    };
    if let Some(value) = header_value(outcome) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn header_value<T: serde::Serialize>(value: &T) -> Option<HeaderValue> {
    HeaderValue::from_str(&header::encode(value).ok()?).ok()
}
