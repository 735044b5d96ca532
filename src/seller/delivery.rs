//! Knows whether an answer went out whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::{Frame, SizeHint};

use crate::seller::owed::Serving;

/// Data goes out in pieces of this size at most, in bytes: servers take the next one once there is room, so that the last one is taken
/// when nearly everything has left.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// A body that strikes its purchase out once it was read to its end; dropped before, the purchase stays owed.
struct Delivery {
    body: Body,
    /// Data of the body that was not taken yet.
    rest: Bytes,
    serving: Option<Arc<Serving>>,
}

/// Watches over the answer of a purchase. What is handed to a connection and lost behind it cannot be seen from here.
pub(super) fn watched(response: Response, serving: Arc<Serving>) -> Response {
    let (parts, body) = response.into_parts();
    let mut delivery = Delivery {
        body,
        rest: Bytes::new(),
        serving: Some(serving),
    };
    delivery.note_end();
    Response::from_parts(parts, Body::new(delivery))
}

impl Delivery {
    /// Servers do not ask a body for more that says it has ended, and one without any is written with its head.
    fn note_end(&mut self) {
        if self.is_end_stream()
            && let Some(serving) = self.serving.take()
        {
            serving.delivered();
        }
    }

    /// The next piece of `data`; what is behind it waits.
    fn piece(&mut self, mut data: Bytes) -> Frame<Bytes> {
        let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
        self.rest = data;
        self.note_end();
        Frame::data(piece)
    }
}

impl HttpBody for Delivery {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.piece(rest))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match polled {
            Poll::Ready(None) => {
                if let Some(serving) = self.serving.take() {
                    serving.delivered();
                }
                Poll::Ready(None)
            }
            // A body that broke off has not been delivered.
            Poll::Ready(Some(Err(error))) => {
                drop(self.serving.take());
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let frame = match frame.into_data() {
                    Ok(data) => self.piece(data),
                    Err(other) => {
                        self.note_end();
                        other
                    }
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len());
        let rest = u64::try_from(rest).unwrap_or(u64::MAX);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}
