//! Reads the body of a call: bounded in size and time, parsed once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use alloy::primitives::Address;
use axum::Json;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::facilitator::Error;
use crate::http::Problem;
use crate::http::error::Malformed;
use crate::ledger::RefusedPayment;
use crate::protocol::field::read_text;
use crate::protocol::{Network, PaymentRequest, Rejection, RequestError};
use crate::telemetry::metrics::{Limit, reached};

/// How long a body may take to arrive.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long a response waits for the rest of a body that nobody needs.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);
/// How much of a body that nobody needs is read and discarded: as much as a body may have.
const REST_BYTES_MAX: usize = 1024 * 1024;
/// How much of a body that is too long is read and discarded.
const DISCARDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The character U+0000 as JSON writes it. A text with these very characters after a backslash is refused as well, and loses nothing.
const NUL: &[u8] = b"\\u0000";

/// The byte order mark that some editors and libraries put before a text. RFC 8259 §8.1 lets a parser ignore it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads the payment request in a body. The `Err` is the response to any other body; `rejected` gives the one to a request with a wrong
/// part, from the rejection, the payer and the network's name.
pub(super) async fn read<T: Serialize>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    rejected: impl FnOnce(Rejection, Option<Address>, String) -> T,
) -> Result<PaymentRequest, Response> {
    let bytes = whole(headers, body, bytes_max)
        .await
        .map_err(|(status, why)| with_accept_encoding(status, Malformed::answer(status, why)))?;
    PaymentRequest::parse(text(&bytes)).map_err(|error| {
        if let RequestError::Rejected {
            rejection,
            payer,
            network_name,
        } = error
        {
            return Json(rejected(rejection, payer, network_name)).into_response();
        }
        Malformed::answer(StatusCode::BAD_REQUEST, error.to_string())
    })
}

/// What is known of a payment that could not be read.
pub(super) fn refused_payment(network_name: &str, payer: Option<Address>) -> RefusedPayment {
    RefusedPayment {
        network: Network::from_name(network_name),
        payer,
        ..RefusedPayment::default()
    }
}

/// Reads the payment request in the body of a call that answers problems.
pub(super) async fn read_payment(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<PaymentRequest, Problem> {
    let bytes = whole(headers, body, bytes_max)
        .await
        .map_err(|(status, why)| Problem::new(status, "invalid_body", why))?;
    PaymentRequest::parse(text(&bytes)).map_err(|error| {
        if let RequestError::Rejected { rejection, .. } = error {
            return Error::Rejected(rejection).into();
        }
        Problem::invalid_body(error.to_string())
    })
}

/// Reads the JSON body of a call that is not one of the three standard ones.
pub(super) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<T, Problem> {
    let bytes = whole(headers, body, bytes_max)
        .await
        .map_err(|(status, why)| Problem::new(status, "invalid_body", why))?;
    if bytes.windows(NUL.len()).any(|window| window == NUL) {
        let why = "a text has the character U+0000, which no database keeps; leave it out";
        return Err(Problem::invalid_body(why));
    }
    read_text(text(&bytes)).map_err(Problem::invalid_body)
}

fn text(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// RFC 9110 §15.5.16: a response to an unsupported content encoding names the supported ones.
pub(super) fn with_accept_encoding(status: StatusCode, mut answer: Response) -> Response {
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        let identity = HeaderValue::from_static("identity");
        answer
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, identity);
    }
    answer
}

/// The `Content-Encoding` of a request, unless it is `identity`. Bodies are small and come once: compression is not worth a decoder that
/// any caller could attack.
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

/// Whether a request comes from a page of a browser and does not say that it is JSON. A page may send other content types to any origin
/// without asking that origin first.
fn is_unasked(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    let essence = content_type
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next());
    headers.contains_key(header::ORIGIN)
        && !essence.is_some_and(|text| text.trim().eq_ignore_ascii_case("application/json"))
}

async fn whole(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<Vec<u8>, (StatusCode, String)> {
    if is_unasked(headers) {
        let why = "a page (Origin) has to send Content-Type: application/json".to_owned();
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    if let Some(encoding) = encoding(headers) {
        let why = format!(
            "Content-Encoding is {encoding:?}, expected none: send the body without compression"
        );
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
    }
    bounded(body, bytes_max).await
}

/// A body of at most `bytes_max`, or the status and the reason of the answer. The rest of one that is too long is read and discarded.
pub(super) async fn bounded(body: Body, bytes_max: usize) -> Result<Vec<u8>, (StatusCode, String)> {
    match tokio::time::timeout(READ_LIMIT, collect(body, bytes_max, DISCARDED_BYTES_MAX)).await {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => {
            let why = format!(
                "the body could not be read completely; it may have {bytes_max} bytes at most"
            );
            Err((StatusCode::PAYLOAD_TOO_LARGE, why))
        }
        Err(_) => {
            let why = "the body did not arrive in time".to_owned();
            Err((StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

/// A body of which a handler reads as much as it needs, and [`discard_rest`] the rest.
#[derive(Debug, Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.size_hint()
    }
}

/// Reads and discards what a handler has left of a body before the response goes out. hyper closes the connection otherwise: a caller that
/// is still writing then sees a broken pipe in place of the response, and a proxy takes it for a broken server.
pub(super) async fn discard_rest(request: Request, next: Next) -> Response {
    // A caller that waits for `100 Continue` sends nothing after a refusal.
    let expected = request.headers().get(header::EXPECT);
    let waits =
        expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if waits || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let rest = SharedBody(Arc::new(Mutex::new(body)));
    let body = Body::new(rest.clone());
    let answer = next.run(Request::from_parts(head, body)).await;
    // These bodies have had their time, or their bytes.
    let is_read = [StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE];
    if !is_read.contains(&answer.status()) {
        let discarded = collect(Body::new(rest), 0, REST_BYTES_MAX);
        tokio::time::timeout(DISCARD_LIMIT, discarded).await.ok();
    }
    answer
}

/// The complete body; `None` when it is too long or breaks off. Never holds more than `bytes_max`, and reads `discarded_max` further ones.
async fn collect(mut body: Body, bytes_max: usize, discarded_max: usize) -> Option<Vec<u8>> {
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
        if discarded > discarded_max {
            break;
        }
    }
    if discarded > 0 && bytes_max > 0 {
        reached(Limit::Body);
    }
    (discarded == 0).then_some(bytes)
}
