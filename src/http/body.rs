//! Reading the body of a call: bounded in size and time, parsed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use serde::de::DeserializeOwned;

use crate::http::Problem;
use crate::http::error::Malformed;
use crate::protocol::field::read_text;
use crate::protocol::{PaymentRequest, Refusal};

/// A body that trickles in slower than this is not waited for.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How much of a body that is too long is read and thrown away: a caller who is still writing when the connection closes never sees
/// the answer.
const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What some editors and libraries write before a text. RFC 8259 lets a reader pass over it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The request in a body. The `Err` is the ready answer to what is no request.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Result<PaymentRequest, Refusal>, Response> {
    let bytes = whole(headers, body, bytes_max)
        .await
        .map_err(|(status, why)| with_hint(status, Malformed::answer(status, why)))?;
    PaymentRequest::parse(text(&bytes))
        .map_err(|error| Malformed::answer(StatusCode::BAD_REQUEST, error.to_string()))
}

/// The JSON in the body of one of our own calls.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<T, Problem> {
    let bytes = whole(headers, body, bytes_max)
        .await
        .map_err(|(status, why)| Problem::new(status, "invalid_body", why))?;
    read_text(text(&bytes)).map_err(Problem::invalid_body)
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// RFC 9110 §15.5.16: the answer to an encoding that is not read says which ones are.
pub(super) fn with_hint(status: StatusCode, mut answer: Response) -> Response {
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        let identity = HeaderValue::from_static("identity");
        answer
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, identity);
    }
    answer
}

/// `Content-Encoding`, where it is one that has to be undone. What is encoded is small and comes once: it is not worth a decoder that
/// strangers could feed.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let texts = encodings.map(|value| String::from_utf8_lossy(value.as_bytes()));
    let mut texts = texts.flat_map(|text| {
        let parts = text.split(',').map(|part| part.trim().to_owned());
        parts.collect::<Vec<_>>()
    });
    let encoded = texts.find(|text| !text.is_empty() && !text.eq_ignore_ascii_case("identity"));
    encoded.map(|text| text.chars().take(40).collect())
}

async fn whole(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Vec<u8>, (StatusCode, String)> {
    if let Some(encoding) = encoding(headers) {
        let why = format!(
            "Content-Encoding is {encoding:?}: a body is read as it comes; send it without compression"
        );
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
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
