//! What a buyer is answered: the challenge, the refusal, the receipt, the outage.

use axum::Json;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, VARY,
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

/// Browsers show scripts only the headers that are named here.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE");

/// Any page, without cookies.
const ANYBODY: HeaderValue = HeaderValue::from_static("*");

/// What one request is asked for, in both dialects.
#[derive(Debug)]
pub(super) struct Quote {
    offers: Vec<Asked>,
    resource: Resource,
    extensions: Option<Map<String, Value>>,
}

/// One way to pay, as it is written.
#[derive(Debug)]
struct Asked {
    terms: PaymentRequirements,
    v2: Value,
    /// `None` where v1 has no name for the network, or does not know the means.
    v1: Option<Value>,
}

impl Quote {
    /// What `priced` costs for the resource at `url`.
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
            .map(|terms| {
                let v1 = PaymentRequirementsV1::of(&terms, &resource);
                Ok(Asked {
                    v2: serde_json::to_value(&terms)?,
                    v1: v1.map(serde_json::to_value).transpose()?,
                    terms,
                })
            })
            .collect();
        Ok(Self {
            offers: offers?,
            resource,
            extensions,
        })
    }

    /// The ways to pay in a dialect, understood and as the facilitator is told.
    pub(super) fn offers(
        &self,
        version: X402Version,
    ) -> impl Iterator<Item = (&PaymentRequirements, &Value)> {
        self.offers.iter().filter_map(move |asked| {
            let written = match version {
                X402Version::V2 => Some(&asked.v2),
                X402Version::V1 => asked.v1.as_ref(),
            };
            Some((&asked.terms, written?))
        })
    }

    fn required(&self, error: Option<&str>) -> PaymentRequired {
        PaymentRequired {
            x402_version: X402Version::V2,
            error: Some(error.unwrap_or("Payment required").to_owned()),
            resource: Some(self.resource.clone()),
            accepts: self.offers.iter().map(|asked| asked.v2.clone()).collect(),
            extensions: self.extensions.clone(),
        }
    }

    /// Asks for the payment in both dialects at once. `error` says what was wrong with the one that came, if one came.
    pub(super) fn challenge(&self, error: Option<&str>) -> Response {
        let entries: Vec<_> = self
            .offers
            .iter()
            .filter_map(|asked| asked.v1.clone())
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
        Self::asking(&self.required(error), Json(body).into_response())
    }

    /// The same for a person with a browser.
    pub(super) fn page(&self) -> Response {
        let required = self.required(None);
        let page = crate::seller::page::of(&required);
        Self::asking(&required, Html(page).into_response())
    }

    fn asking(required: &PaymentRequired, mut response: Response) -> Response {
        let Some(value) = value_of(required) else {
            return broken();
        };
        // The one refusal that the buyer mends outside of the payment: official sellers tell it by its status.
        let allowance = required.error.as_deref() == Some(Reason::Permit2AllowanceRequired.code());
        *response.status_mut() = if allowance {
            StatusCode::PRECONDITION_FAILED
        } else {
            StatusCode::PAYMENT_REQUIRED
        };
        let headers = response.headers_mut();
        headers.insert(HeaderName::from_static(header::PAYMENT_REQUIRED), value);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        readable(response)
    }

    /// Says that a payment was not settled, with the facilitator's answer, and asks again.
    pub(super) fn refuse(&self, version: X402Version, outcome: &SettleResponse) -> Response {
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
    readable(response)
}

/// A page that may pay may read what comes of it; the application's own word on that counts.
fn readable(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers
        .entry(ACCESS_CONTROL_ALLOW_ORIGIN)
        .or_insert(ANYBODY);
    response
}

/// No facilitator, no verdict: nothing is served, and the buyer is told nothing about the inside.
pub(super) fn outage() -> Response {
    let body = json!({"error": "the payment could not be processed now; present the same payment again later"});
    let mut response = (StatusCode::BAD_GATEWAY, Json(body)).into_response();
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    readable(response)
}

/// Answers the question of a browser whether a page may send a request with these headers. The application never sees it: one that answers
/// to every method would give away what it sells.
pub(super) fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYBODY);
    for (question, answer) in [
        (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
        (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
    ] {
        if let Some(value) = asked.get(question) {
            headers.insert(answer, value.clone());
        }
    }
    headers.insert(
        VARY,
        HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"),
    );
    response
}

/// A path that means different prices to different readers.
pub(super) fn ambiguous() -> Response {
    let body = json!({"error": "the path is ambiguous: write it without dots, encoded slashes and the like"});
    readable((StatusCode::BAD_REQUEST, Json(body)).into_response())
}

/// The body of a paid request is longer than what can be held until it is paid.
pub(super) fn too_long(bytes_max: usize) -> Response {
    let body = json!({"error": format!("the body of a paid request may have {bytes_max} bytes; nothing was settled")});
    readable((StatusCode::PAYLOAD_TOO_LARGE, Json(body)).into_response())
}

/// Our own fault.
pub(super) fn broken() -> Response {
    let body = json!({"error": "internal error"});
    readable((StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response())
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
