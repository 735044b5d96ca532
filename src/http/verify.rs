//! `POST /verify`

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::facilitator::Caller;
use crate::http::{AppState, body, error};
use crate::protocol::{Reason, Rejection, VerifyResponse};

/// Verify a payment
///
/// Says whether the payment would settle now. Nothing is sent, and the payer is not bound. A payment that was accepted before stays valid
/// here after its time window, until it has bought its resource.
#[utoipa::path(
    post,
    path = "/verify",
    tag = "facilitator",
    request_body(content = crate::http::openapi::PaymentEnvelope, description = "x402 v1 or v2"),
    responses(
        (status = 200, description = "whether the payment is valid, and if not, why", body = VerifyResponse),
        (status = 400, description = "not an x402 request", body = error::Malformed),
        (status = 408, description = "the body did not arrive in time", body = error::Malformed),
        (status = 413, description = "body too large", body = error::Malformed),
        (status = 415, description = "the body is compressed", body = error::Malformed),
        (status = 503, description = "the payment cannot be checked now; it may be valid or not", body = VerifyResponse),
    )
)]
pub(super) async fn verify(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let rejected = |rejection, payer, _| VerifyResponse::rejected(rejection, payer);
    let request = body::read(&headers, body, state.body_bytes_max, rejected).await?;
    match state.facilitator.verify(request, &caller).await {
        Ok(response) => Ok(Json(response).into_response()),
        Err(unavailable) => {
            let why = format!("{unavailable}; nothing was decided about the payment, try again");
            let why = Rejection::new(Reason::UnexpectedVerifyError, why);
            let response = VerifyResponse::rejected(why, None);
            Err(error::unavailable(&unavailable, &response))
        }
    }
}
