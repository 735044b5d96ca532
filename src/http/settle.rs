//! `POST /settle`

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::facilitator::{Caller, Endpoint, SettleAnswer};
use crate::http::caller::{Refused, refusal_status, settler};
use crate::http::connection::Connection;
use crate::http::{AppState, body, error};
use crate::protocol::{Reason, Rejection, SettleResponse};

/// Settle a payment
///
/// Moves the money and answers `success` once, to one caller, with the hash of the transaction. While the outcome is open, the answer is
/// `settlement_pending` with the hash: present the same payment again. A caller that presents a payment which has bought its resource gets
/// `duplicate_settlement` with the same hash, and with the `X-Request-Id` of the request that was told success in `extra.grantedTo`: a
/// caller that lost an answer knows by it whether that success was its own. The request that had the payment accepted is the first to be
/// told, until its connection or its wait ends; then its presenters in the order in which they came.
#[utoipa::path(
    post,
    path = "/settle",
    tag = "facilitator",
    params(
        ("x-request-id" = Option<String>, Header, description = "The caller's own id of this request: 1 to 128 characters of visible ASCII that nobody can guess. Any other is ignored. Without one, the id in the header of the response counts"),
    ),
    request_body(content = crate::http::openapi::PaymentEnvelope, description = "x402 v1 or v2"),
    security((), ("key" = []), ("apiKey" = [])),
    responses(
        (status = 200, description = "the outcome, good or bad", body = SettleResponse),
        (status = 400, description = "not an x402 request", body = error::Malformed),
        (status = 401, description = "a key is needed, or the key is not good; nothing was done", body = SettleResponse),
        (status = 403, description = "the key is not for this call, or not for this payee; nothing was done", body = SettleResponse),
        (status = 408, description = "the body did not arrive in time", body = error::Malformed),
        (status = 413, description = "body too large", body = error::Malformed),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = error::Malformed),
        (status = 429, description = "this caller asks too often; nothing was broadcast for this request", body = SettleResponse),
        (status = 503, description = "the payment cannot be checked now; nothing was broadcast for this request", body = SettleResponse),
    )
)]
pub(super) async fn settle(
    State(state): State<AppState>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    caller: Result<Caller, Refused>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let caller = settler(caller, &state).map_err(|refused| {
        refused.in_shape(|rejection| SettleResponse::rejected(rejection, None, String::new()))
    })?;
    let rejected = |rejection, payer, network: String| {
        let of = (Endpoint::Settle, &caller);
        let asked = body::refused_payment(&network, payer);
        state.facilitator.refusals.note(of, asked, &rejection);
        SettleResponse::rejected(rejection, payer, network)
    };
    let request = body::read(&headers, body, state.body_bytes_max, rejected).await?;
    let network_name = request.network_name.clone();
    match state.facilitator.settle(request, caller).await {
        Ok(answer) => Ok(render(answer, &connection)),
        Err(unavailable) => {
            let why = format!("{unavailable}; present the same payment again");
            let why = Rejection::new(unavailable.reason(Reason::UnexpectedSettleError), why);
            let response = SettleResponse::rejected(why, None, network_name);
            Err(error::unavailable(&unavailable, &response))
        }
    }
}

fn render(answer: SettleAnswer, connection: &Connection) -> Response {
    let Some(grant) = answer.grant else {
        let reason = answer.response.error_reason.as_deref().unwrap_or_default();
        return (refusal_status(reason), Json(answer.response)).into_response();
    };
    match serde_json::to_vec(&answer.response) {
        Ok(json) => {
            let mut response = Response::new(connection.granting(Bytes::from(json), grant));
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
