//! `POST /status`

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;

use crate::facilitator::Caller;
use crate::http::{AppState, Problem, body};
use crate::protocol::status::StatusResponse;

/// Show what became of a payment
///
/// For whoever holds the payment: a buyer before it signs another one, a seller whose response was lost. Changes nothing and asks no chain, so
/// it answers at once. A payment that the ledger does not have is answered with `known: false`. `/settle` with the same body waits for the
/// outcome and is told success.
#[utoipa::path(
    post,
    path = "/status",
    tag = "facilitator",
    request_body(content = crate::http::openapi::PaymentEnvelope, description = "the body of `/settle`"),
    security((), ("key" = []), ("apiKey" = [])),
    responses(
        (status = 200, description = "what the ledger knows of the payment", body = StatusResponse),
        (status = 400, description = "not an x402 request", body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "the key is not good; none is needed", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "no such session", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "the body did not arrive in time", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "another transaction was submitted for the session", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "body too large", body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "not a payment that could be settled here, or not proven to be held; the code says why", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "this caller asks too often", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "the ledger does not answer", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn status(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<StatusResponse>, Problem> {
    let request = body::read_payment(&headers, body, state.body_bytes_max).await?;
    let status = state.facilitator.status(request, &caller).await;
    // What cannot be said here says nothing about the money.
    status
        .map(Json)
        .map_err(|error| Problem::from(error).money_may_move(true))
}
