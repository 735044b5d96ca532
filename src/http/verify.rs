//! `POST /verify`

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::http::{AppState, body, error};
use crate::protocol::{Reason, VerifyResponse};

/// Judge a payment
///
/// Says whether the payment would settle now. Advice: nothing moves, and the payer can still change their mind. A payment that was
/// accepted before stays good here after its time window, until it has bought its resource.
#[utoipa::path(
    post,
    path = "/verify",
    tag = "facilitator",
    request_body(content = crate::http::openapi::PaymentEnvelope, description = "x402 v1 or v2"),
    responses(
        (status = 200, description = "the verdict, good or bad", body = VerifyResponse),
        (status = 400, description = "no x402 request", body = error::Malformed),
        (status = 408, description = "the body did not arrive in time", body = error::Malformed),
        (status = 413, description = "body too large", body = error::Malformed),
        (status = 415, description = "the body is compressed", body = error::Malformed),
        (status = 503, description = "cannot be judged now; says nothing about the payment", body = VerifyResponse),
    )
)]
pub(super) async fn verify(
    State(state): State<AppState>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let request = match body::read(&headers, body, state.body_bytes_max).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return Json(VerifyResponse::from(refusal)).into_response(),
        Err(answer) => return answer,
    };
    match state.facilitator.verify(request).await {
        Ok(verdict) => Json(verdict).into_response(),
        Err(outage) => {
            let verdict = VerifyResponse {
                is_valid: false,
                invalid_reason: Some(Reason::UnexpectedVerifyError.code().to_owned()),
                invalid_message: Some(format!(
                    "{outage}; nothing was decided about the payment, try again"
                )),
                payer: None,
            };
            error::unavailable(&outage, &verdict)
        }
    }
}
