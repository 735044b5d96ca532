//! Reading the body of a call: bounded in size and time, parsed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use axum::response::Response;

use serde::de::DeserializeOwned;

use crate::http::Problem;
use crate::http::error::Malformed;
use crate::protocol::{PaymentRequest, Refusal};

/// A body that trickles in slower than this is not waited for.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How much of a body that is too long is read and thrown away: a caller who is still writing when the connection closes never sees
/// the answer.
const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The request in a body. The `Err` is the ready answer to what is no request.
pub(super) async fn read(
    body: Body,
    bytes_max: usize,
) -> Result<Result<PaymentRequest, Refusal>, Response> {
    let bytes = whole(body, bytes_max)
        .await
        .map_err(|(status, why)| Malformed::answer(status, why))?;
    PaymentRequest::parse(&bytes).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        let text = format!(
            "{error}{}",
            cause
                .filter(|cause| !error.to_string().contains(cause.as_str()))
                .unwrap_or_default()
        );
        Malformed::answer(StatusCode::BAD_REQUEST, text)
    })
}

/// The JSON in the body of one of our own calls.
pub(super) async fn read_json<T: DeserializeOwned>(
    body: Body,
    bytes_max: usize,
) -> Result<T, Problem> {
    let bytes = whole(body, bytes_max)
        .await
        .map_err(|(status, why)| Problem::new(status, "invalid_body", why))?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::invalid_body(error.to_string()))
}

async fn whole(body: Body, bytes_max: usize) -> Result<Vec<u8>, (StatusCode, String)> {
    match tokio::time::timeout(READ_LIMIT, collect(body, bytes_max)).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            let why =
                format!("the body could not be read whole; it may have {bytes_max} bytes at most");
            Err((StatusCode::PAYLOAD_TOO_LARGE, why))
        }
        Err(_) => {
            let why = "the body did not arrive in time".to_owned();
            Err((StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// The whole body, `None` when it is too long or breaks off. Never holds more than `bytes_max`.
async fn collect(mut body: Body, bytes_max: usize) -> Option<Vec<u8>> {
    let (mut bytes, mut discarded) = (Vec::new(), 0_usize);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let Ok(data) = frame.ok()?.into_data() else {
            continue;
        };
        if discarded > 0 || bytes.len() + data.len() > bytes_max {
            bytes = Vec::new();
            discarded = discarded.saturating_add(data.len());
        } else {
            bytes.extend_from_slice(&data);
        }
        if discarded > DISCARDED_BYTES_MAX {
            break;
        }
    }
    (discarded == 0).then_some(bytes)
}
