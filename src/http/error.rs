//! Error to status and body: the one table.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use axum::{Extension, Json};
use serde::Serialize;
use tower_http::request_id::RequestId;
use utoipa::ToSchema;

use crate::facilitator::Outage;
use crate::http::body::with_hint;
use crate::ledger::LedgerError;
use crate::telemetry::causes;

/// An RFC 9457 problem document: how our own endpoints say no.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Always `about:blank`: the code tells the kind.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status, in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The stable code.
    code: &'static str,
    /// What was expected, what came, what to do.
    detail: String,
    /// Whether the same request may succeed later.
    retryable: bool,
    /// Where money is concerned: whether any may move although the request was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    money_may_move: Option<bool>,
    /// The request, as the log names it; also in the header `x-request-id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// When to try again, as the header `Retry-After` says it.
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

    /// The same, saying whether to try again.
    pub(super) fn retryable(self, retryable: bool) -> Self {
        Self { retryable, ..self }
    }

    /// The same, saying whether money may move all the same.
    pub(super) fn money_may_move(self, may: bool) -> Self {
        Self {
            money_may_move: Some(may),
            ..self
        }
    }

    /// A parameter of the query or path cannot be read.
    pub(super) fn invalid_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail)
    }

    /// The body is not what this call takes.
    pub(super) fn invalid_body(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", detail)
    }

    /// The service cannot judge now.
    pub(super) fn outage(outage: &Outage) -> Self {
        tracing::warn!(error = causes(outage), "cannot judge a session now");
        let detail = format!("{outage}; nothing was taken up, try again");
        Self {
            retry_after: Some(outage.retry_after()),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
        }
    }

    /// The caller is not the operator.
    pub(super) fn operator_only(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "operator_only", detail)
    }

    /// There is no such thing.
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }
}

impl IntoResponse for Problem {
    /// Only the status and the problem itself: `render` writes the body, because it knows the request.
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
        // What serves the files of /docs knows no problems.
        None if response.status() == StatusCode::NOT_FOUND => no_such_path().await,
        None => return response,
    };
    problem.request_id = id;
    let retry_after = problem.retry_after;
    let status = response.status();
    // What layers have added stays: without the headers of CORS a page could not read why it was refused.
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
    with_hint(status, response)
}

impl From<LedgerError> for Problem {
    fn from(error: LedgerError) -> Self {
        tracing::error!(error = causes(&error), "the ledger failed");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger_unavailable",
            "the ledger cannot be read now; try again",
        )
    }
}

/// How the three standard calls say that a request is no x402 request. Never holds `isValid` or `success`: an SDK would take those for
/// a verdict on a payment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Malformed {
    /// What was expected and what came.
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

/// Marks an answer whose cause has its own line in the log, once: none is written for each answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct SaidElsewhere;

impl IntoResponseParts for SaidElsewhere {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

/// An outage as the standard calls answer it: 503 with the x402 shape, so that machines see an outage and SDK sellers a reason.
pub(super) fn unavailable<T: Serialize>(outage: &Outage, body: &T) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    if let Outage::CannotSend(cannot) = outage {
        tracing::debug!(%cannot, "a payment cannot be sent now");
        response.extensions_mut().insert(SaidElsewhere);
    } else {
        tracing::warn!(error = causes(outage), "cannot judge a payment now");
    }
    let pause = seconds(outage.retry_after());
    response.headers_mut().insert(header::RETRY_AFTER, pause);
    response
}

/// As `Retry-After` is written: whole seconds, at least one.
fn seconds(pause: Duration) -> HeaderValue {
    HeaderValue::from(pause.as_secs().max(1))
}

pub(super) async fn no_such_path() -> Problem {
    Problem::not_found(
        "there is nothing at this path; the contract is at /openapi.json, its page at /docs",
    )
}

pub(super) async fn no_such_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not answer to this method; see /docs",
    )
}

/// A panic is a bug; it ends one request, not the service.
pub(super) fn after_panic(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    tracing::error!("a handler panicked");
    let detail = "an internal error; the log has it under this request's id";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", detail).into_response()
}
