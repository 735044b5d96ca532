//! The table from errors to status codes and bodies.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use axum::{Extension, Json};
use serde::Serialize;
use tower_http::request_id::RequestId;
use utoipa::ToSchema;

use crate::facilitator::Unavailable;
use crate::http::body::with_accept_encoding;
use crate::ledger::LedgerError;
use crate::protocol::Reason;
use crate::telemetry::causes;

/// An RFC 9457 problem document: the error format of all calls but the three standard ones.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Always `about:blank`: `code` names the kind of problem.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The reason phrase of the status.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// A stable code.
    code: &'static str,
    /// What was expected, what was received, what to do.
    detail: String,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// Where money is concerned: whether any may move although the request was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    money_may_move: Option<bool>,
    /// The id of the request in the log; also in the header `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// When to try again, as in the header `Retry-After`.
    #[serde(skip)]
    retry_after: Option<Duration>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            code,
            detail: detail.into(),
            retryable: status == StatusCode::SERVICE_UNAVAILABLE,
            money_may_move: None,
            request_id: None,
            retry_after: None,
        }
    }

    /// Says whether the same request may succeed later.
    pub(super) fn retryable(self, retryable: bool) -> Self {
        Self { retryable, ..self }
    }

    /// Says whether money may move although the request failed.
    pub(super) fn money_may_move(self, may: bool) -> Self {
        Self {
            money_may_move: Some(may),
            ..self
        }
    }

    /// A parameter of the query or path is invalid.
    pub(super) fn invalid_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail)
    }

    /// The body is not what this call expects.
    pub(super) fn invalid_body(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
    }

    /// A dependency is unavailable.
    pub(super) fn unavailable(unavailable: &Unavailable) -> Self {
        if let Unavailable::RateLimited(wait) = unavailable {
            let problem = Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                Reason::RateLimited.code(),
                format!("{unavailable}; nothing was accepted, try again after Retry-After"),
            );
            return Self {
                retry_after: Some(*wait),
                ..problem.retryable(true)
            };
        }
        tracing::warn!(
            error = causes(unavailable),
            "request failed: dependency unavailable"
        );
        // A statement without an answer may have been committed.
        let detail = if matches!(unavailable, Unavailable::Ledger(_)) {
            format!(
                "{unavailable}; whether anything was accepted is not known, try again: repeating the call is harmless"
            )
        } else {
            format!("{unavailable}; nothing was accepted, try again")
        };
        Self {
            retry_after: Some(unavailable.retry_after()),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
        }
    }

    /// The status and the detail, for a page.
    pub(super) fn told(&self) -> (StatusCode, &str) {
        let status = StatusCode::from_u16(self.status);
        (
            status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            &self.detail,
        )
    }

    /// The caller is not the operator.
    pub(super) fn operator_only(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "operator_only", detail)
    }

    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }
}

impl IntoResponse for Problem {
    /// Only the status and the problem: `render` writes the body, because it knows the request id.
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Extension(self)).into_response()
    }
}

/// Writes the body of every problem, with the id of its request.
pub(super) async fn render(request: Request, next: Next) -> Response {
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .map(str::to_owned);
    let mut response = next.run(request).await;
    let mut problem = match response.extensions_mut().remove::<Problem>() {
        Some(problem) => problem,
        // The files of /docs are served by a router that does not answer problems.
        None if response.status() == StatusCode::NOT_FOUND && !is_page(&response) => {
            no_such_path().await
        }
        None => return response,
    };
    problem.request_id = id;
    let retry_after = problem.retry_after;
    let status = response.status();
    // Headers that layers have added stay: without those of CORS a page could not read the problem.
    let kept = std::mem::take(response.headers_mut());
    let mut response = (status, kept, Json(problem)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    if let Some(pause) = retry_after {
        headers.insert(header::RETRY_AFTER, seconds(pause));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    with_accept_encoding(status, response)
}

/// Whether an answer is a page for people, which says itself what is wrong.
fn is_page(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"))
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        tracing::error!(error = causes(&error), "request failed: ledger unavailable");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger_unavailable",
            "the ledger cannot be read now; try again",
        )
    }
}

/// The response of the three standard calls to a body that is not an x402 request. Never contains `isValid` or `success`: an SDK would read
/// those as a result for a payment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Malformed {
    /// What was expected and what was received.
    error: String,
}

impl Malformed {
    pub(super) fn answer(status: StatusCode, error: impl Into<String>) -> Response {
        (
            status,
            Json(Self {
                error: error.into(),
            }),
        )
            .into_response()
    }
}

/// Marks a response whose cause is logged once elsewhere, so that it is not logged again for each request.
#[derive(Debug, Clone, Copy)]
pub(super) struct AlreadyLogged;

impl IntoResponseParts for AlreadyLogged {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// The response of the standard calls when a dependency is unavailable, or the caller asks too often: 503 or 429, so that machines see a
/// failure, with the x402 shape, so that a seller's SDK can read a reason.
pub(super) fn unavailable<T: Serialize>(unavailable: &Unavailable, body: &T) -> Response {
    let status = if matches!(unavailable, Unavailable::RateLimited(_)) {
        StatusCode::TOO_MANY_REQUESTS
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (status, Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        tracing::debug!("payment request refused: its caller asks too often");
    } else if let Unavailable::CannotSend(cannot) = unavailable {
        tracing::debug!(%cannot, "payment request failed: no signer can send");
        response.extensions_mut().insert(AlreadyLogged);
    } else {
        tracing::warn!(
            error = causes(unavailable),
            "payment request failed: dependency unavailable"
        );
    }
    let pause = seconds(unavailable.retry_after());
    response.headers_mut().insert(header::RETRY_AFTER, pause);
    response
}

/// The value of `Retry-After`: whole seconds, at least one.
fn seconds(pause: Duration) -> HeaderValue {
    let rounded_up = pause.as_secs() + u64::from(pause.subsec_nanos() > 0);
    HeaderValue::from(rounded_up.max(1))
}

pub(super) async fn no_such_path() -> Problem {
    Problem::not_found(
        "nothing is served at this path; the API specification is at /openapi.json, its page at /docs",
    )
}

pub(super) async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not have this method; see /docs",
    )
}

/// A panic is a bug; it ends one request, not the service.
pub(super) fn after_panic(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    tracing::error!("request handler panicked");
    let detail = "an internal error; look for this request's id in the log";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail).into_response()
}
