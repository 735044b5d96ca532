//! `POST /verify`

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::facilitator::{Caller, Endpoint};
use crate::http::caller::{Refused, refusal_status, settler};
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
    security((), ("key" = []), ("apiKey" = [])),
    responses(
        (status = 200, description = "whether the payment is valid, and if not, why", body = VerifyResponse),
        (status = 400, description = "not an x402 request", body = error::Malformed),
        (status = 401, description = "a key is needed, or the key is not good", body = VerifyResponse),
        (status = 403, description = "the key is not for this call, or not for this payee", body = VerifyResponse),
        (status = 408, description = "the body did not arrive in time", body = error::Malformed),
        (status = 413, description = "body too large", body = error::Malformed),
        (status = 415, description = "the body is compressed, or a page (Origin) sends no application/json", body = error::Malformed),
        (status = 429, description = "this caller asks too often", body = VerifyResponse),
        (status = 503, description = "the payment cannot be checked now; it may be valid or not", body = VerifyResponse),
    )
)]
pub(super) async fn verify(
    State(state): State<AppState>,
    caller: Result<Caller, Refused>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let caller = settler(caller, &state).map_err(|refused| {
        refused.in_shape(|rejection| VerifyResponse::rejected(rejection, None))
    })?;
    let rejected = |rejection, payer, network: String| {
        let of = (Endpoint::Verify, &caller);
        let asked = body::refused_payment(&network, payer);
        state.facilitator.refusals.note(of, asked, &rejection);
        VerifyResponse::rejected(rejection, payer)
    };
    let request = body::read(&headers, body, state.body_bytes_max, rejected).await?;
    match state.facilitator.verify(request, &caller).await {
        Ok(response) => {
            let reason = response.invalid_reason.as_deref().unwrap_or_default();
            Ok((refusal_status(reason), Json(response)).into_response())
        }
        Err(unavailable) => {
            let why = format!("{unavailable}; nothing was decided about the payment, try again");
            let why = Rejection::new(unavailable.reason(Reason::UnexpectedVerifyError), why);
            let response = VerifyResponse::rejected(why, None);
            Err(error::unavailable(&unavailable, &response))
        }
    }
}
