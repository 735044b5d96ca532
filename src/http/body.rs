//! Reading the body of a standard call: bounded in size and time, parsed once.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::Response;

use crate::http::error::Malformed;
use crate::protocol::{PaymentRequest, Refusal};

/// A body that trickles in slower than this is not waited for.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The request in a body. The `Err` is the ready answer to what is no request.
pub(super) async fn read(
    body: Body,
    bytes_max: usize,
) -> Result<Result<PaymentRequest, Refusal>, Response> {
    let bytes = match tokio::time::timeout(READ_LIMIT, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let why =
                format!("the body could not be read whole; it may have {bytes_max} bytes at most");
            return Err(Malformed::answer(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        Err(_) => {
            return Err(Malformed::answer(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            ));
        }
    };
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
