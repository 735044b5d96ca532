//! The session endpoints, for buyers.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::facilitator::{Caller, Error, Unavailable};
use crate::http::caller::refusal_status;
use crate::http::{AppState, Problem, body};
use crate::protocol::session::{
    Cancellation, SessionId, SessionOpened, SessionRequest, SessionView, TransferForm,
    TransferSubmission,
};
use crate::protocol::{Reason, Rejection};

/// How long to wait for a change.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wait {
    /// Seconds to wait, at most 60, while the session is `open` or `submitted` and nothing changes.
    #[serde(default)]
    wait: u8,
}

impl Wait {
    fn duration(self) -> Duration {
        Duration::from_secs(self.wait.into())
    }
}

/// Open a payment session
///
/// Fixes one entry of a seller's `accepts` before any money moves, and answers with the data to sign. Costs nothing, and makes no RPC call.
#[utoipa::path(
    post,
    path = "/sessions",
    tag = "sessions",
    request_body = SessionRequest,
    responses(
        (status = 201, description = "the session, and the data to sign", body = SessionOpened),
        (status = 400, description = "not such a request; the detail names the member", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "the key is not good; buyers need none", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "the payee is not among those of the key, or of any key", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "such a payment could not be settled here; the code says why", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "too many sessions are open, or this caller asks too often", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the request cannot be checked now; the detail says whether anything was accepted", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn open(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let request: SessionRequest = body::read_json(&headers, body, state.body_bytes_max).await?;
    let opened = state.sessions.open(request, &caller).await?;
    Ok((StatusCode::CREATED, Json(opened)).into_response())
}

/// Read a session
///
/// For callers that know its id. With `wait`, the response comes when something changes.
#[utoipa::path(
    get,
    path = "/sessions/{id}",
    tag = "sessions",
    params(("id" = String, Path, description = "the session's id"), Wait),
    responses(
        (status = 200, description = "the session", body = SessionView),
        (status = 400, description = "wait is not a number of seconds up to 60", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such session", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "this caller asks too often, or waits too often already", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn show(
    State(state): State<AppState>,
    Path(id): Path<String>,
    wait: Result<Query<Wait>, QueryRejection>,
    caller: Caller,
) -> Result<Json<SessionView>, Problem> {
    let (id, wait) = (session_id(&id)?, waiting(&wait)?);
    Ok(Json(state.sessions.show(&id, wait, &caller).await?))
}

/// Submit the transfer
///
/// One of: an authorization with the session's nonce, which the facilitator sends at its own cost; a signed transaction of the payer, which
/// is stored and sent; the hash of a transaction that was sent already. The last two come with the claim, unless the transaction carries
/// the session's tag, as the calldata of the 201 does. Repeating it is harmless.
#[utoipa::path(
    post,
    path = "/sessions/{id}/transfer",
    tag = "sessions",
    params(("id" = String, Path, description = "the session's id"), Wait),
    request_body = TransferSubmission,
    responses(
        (status = 200, description = "accepted; the session shows its state", body = SessionView),
        (status = 400, description = "not such a request; the detail names the member", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "not sent before the seller asks; the header is valid all the same", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such session, or no such transaction yet", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "something else was submitted before, or the session was cancelled", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "the session has expired", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "not what the session asks for; the code says why", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "this caller asks too often", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the submission cannot be checked now", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn transfer(
    State(state): State<AppState>,
    Path(id): Path<String>,
    caller: Caller,
    wait: Result<Query<Wait>, QueryRejection>,
    request: Request,
) -> Result<Json<SessionView>, Problem> {
    let (id, wait) = (session_id(&id)?, waiting(&wait)?);
    let (head, body) = request.into_parts();
    let submission: TransferSubmission =
        body::read_json(&head.headers, body, state.body_bytes_max).await?;
    let form = submission.form().ok_or_else(|| {
        Problem::invalid_body(
            "expected one of: authorization and signature; rawTransaction; transaction",
        )
    })?;
    let is_sent = matches!(form, TransferForm::Sent { .. });
    let outcome = state.sessions.submit(id, form, wait, caller).await;
    // A transaction that the payer has sent moves money whatever the response is.
    outcome
        .map(Json)
        .map_err(|error| Problem::from(error).money_may_move(is_sent))
}

/// Cancel a session
///
/// While nothing was submitted. It stops the facilitator's early broadcast and nothing else: a header that was signed for the session stays
/// an ordinary payment until `expiresAt`, as `moneyMayMove` says.
#[utoipa::path(
    post,
    path = "/sessions/{id}/cancel",
    tag = "sessions",
    params(("id" = String, Path, description = "the session's id")),
    request_body = Cancellation,
    responses(
        (status = 200, description = "cancelled", body = SessionView),
        (status = 400, description = "not such a request; the detail names the member", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such session, or another token", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "something was submitted already", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "this caller asks too often", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(state): State<AppState>,
    Path(id): Path<String>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SessionView>, Problem> {
    let id = session_id(&id)?;
    let Cancellation { cancel_token } =
        body::read_json(&headers, body, state.body_bytes_max).await?;
    let view = state.sessions.cancel(&id, &cancel_token, &caller).await?;
    Ok(Json(view))
}

fn session_id(text: &str) -> Result<SessionId, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            StatusCode::NOT_FOUND,
            Reason::SessionNotFound.code(),
            "there is no session of this name: an id is ps_ and 26 characters",
        )
    })
}

fn waiting(wait: &Result<Query<Wait>, QueryRejection>) -> Result<Duration, Problem> {
    match wait {
        Ok(Query(wait)) if wait.wait <= 60 => Ok(wait.duration()),
        _ => Err(Problem::invalid_parameter("wait: expected 0 to 60 seconds")),
    }
}

fn status_of(reason: Reason) -> StatusCode {
    const STATUSES: [(Reason, StatusCode); 8] = [
        (Reason::SessionNotFound, StatusCode::NOT_FOUND),
        (Reason::TransferNotFound, StatusCode::NOT_FOUND),
        (Reason::SessionInUse, StatusCode::CONFLICT),
        (Reason::SessionCancelled, StatusCode::CONFLICT),
        (Reason::TransferAlreadyUsed, StatusCode::CONFLICT),
        (Reason::SessionExpired, StatusCode::GONE),
        (Reason::SponsorshipRefused, StatusCode::FORBIDDEN),
        (Reason::AddressDenied, StatusCode::FORBIDDEN),
    ];
    let known = STATUSES.iter().find(|(known, _)| *known == reason);
    known.map_or_else(
        // Of a caller that may not do this, or of the payment.
        || match refusal_status(reason.code()) {
            StatusCode::OK => StatusCode::UNPROCESSABLE_ENTITY,
            of_caller => of_caller,
        },
        |(_, status)| *status,
    )
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Rejected(Rejection { reason, message }) => {
                let problem = Self::new(status_of(reason), reason.code(), message);
                problem.retryable(reason == Reason::TransferNotFound)
            }
            Error::Unavailable(Unavailable::TooManySessions) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_sessions",
                "too many sessions are open; those that are not paid end by themselves, try again later",
            )
            .retryable(true),
            Error::Unavailable(unavailable) => Self::unavailable(&unavailable),
        }
    }
}
