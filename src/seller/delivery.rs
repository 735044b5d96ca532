//! Knows whether an answer went out whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::{Frame, SizeHint};

use crate::seller::owed::Serving;

/// A body that strikes its purchase out once it was read to its end; dropped before, the purchase stays owed.
struct Delivery {
    body: Body,
    serving: Option<Serving>,
}

/// Watches over the answer of a purchase. What is handed to a connection and lost behind it cannot be seen from here.
pub(super) fn watched(response: Response, serving: Serving) -> Response {
    let (parts, body) = response.into_parts();
    let mut delivery = Delivery {
        body,
        serving: Some(serving),
    };
    delivery.note_end();
    Response::from_parts(parts, Body::new(delivery))
}

impl Delivery {
    /// Servers do not ask a body for more that says it has ended, and one without any is written with its head.
    fn note_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(serving) = self.serving.take()
        {
            serving.delivered();
        }
    }
}

impl HttpBody for Delivery {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => {
                if let Some(serving) = self.serving.take() {
                    serving.delivered();
                }
            }
            // A body that broke off has not been delivered.
            Poll::Ready(Some(Err(_))) => drop(self.serving.take()),
            Poll::Ready(Some(Ok(_))) => self.note_end(),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
