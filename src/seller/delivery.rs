//! Detects whether a response was sent completely.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http_body::{Frame, SizeHint};

use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::seller::copies::Copying;
use crate::seller::held::frame_of;
use crate::seller::owed::ClaimedPurchase;

/// The limit of one data frame, in bytes. A server polls the next frame only when its write buffer has room, so the last frame is polled
/// when nearly everything was sent.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// How long the rest of an answer that broke off is read for its copy. The payment stays claimed meanwhile.
const REST_LIMIT: Duration = Duration::from_secs(10);

/// A body that closes its purchase once it was read to its end. If it is dropped before, the purchase stays owed, with a copy of the answer
/// if that is short enough.
struct TrackedBody {
    body: Body,
    /// The part of the last data frame that was not polled yet.
    pending: Bytes,
    copying: Option<Copying>,
    claim: Option<Arc<ClaimedPurchase>>,
    tasks: TaskTracker,
}

/// Tracks the delivery of a purchase's response. Data that was given to the connection and lost on the network cannot be detected here.
pub(super) fn track_delivery(
    response: Response,
    claim: Arc<ClaimedPurchase>,
    (copying, tasks): (Option<Copying>, TaskTracker),
) -> Response {
    let (parts, body) = response.into_parts();
    let mut tracked = TrackedBody {
        body,
        pending: Bytes::new(),
        copying,
        claim: Some(claim),
        tasks,
    };
    tracked.close_at_end();
    Response::from_parts(parts, Body::new(tracked))
}

/// Reads the rest of an answer that broke off, and keeps its copy. Then the claim is dropped, which counts it.
async fn copy_rest(mut body: Body, copying: Copying, claim: Arc<ClaimedPurchase>) {
    let complete = async {
        let mut copying = copying;
        while let Some(frame) = frame_of(&mut body).await {
            copying = copying.with(frame.ok()?.data_ref()?)?;
        }
        Some(copying.finish())
    };
    if let Ok(Some(copy)) = timeout(REST_LIMIT, complete).await {
        claim.keep_copy(copy);
    }
}

impl TrackedBody {
    /// Closes the purchase when the body has ended. A server stops polling a body that reports its end, and never polls an empty one.
    fn close_at_end(&mut self) {
        if self.is_end_stream()
            && let Some(claim) = self.claim.take()
        {
            claim.record_delivered();
        }
    }

    /// The next frame of `data`; the rest becomes `pending`.
    fn next_frame(&mut self, mut data: Bytes) -> Frame<Bytes> {
        let frame = data.split_to(data.len().min(FRAME_BYTES_MAX));
        self.pending = data;
        self.close_at_end();
        Frame::data(frame)
    }
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            return Poll::Ready(Some(Ok(self.next_frame(pending))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match polled {
            Poll::Ready(None) => {
                if let Some(claim) = self.claim.take() {
                    claim.record_delivered();
                }
                Poll::Ready(None)
            }
            // An incomplete body was not delivered: the purchase stays owed.
            Poll::Ready(Some(Err(error))) => {
                self.copying = None;
                drop(self.claim.take());
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let frame = match frame.into_data() {
                    Ok(data) => {
                        self.copying = self.copying.take().and_then(|copying| copying.with(&data));
                        self.next_frame(data)
                    }
                    Err(other) => {
                        // A copy has no trailers.
                        self.copying = None;
                        self.close_at_end();
                        other
                    }
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, pending) = (self.body.size_hint(), self.pending.len());
        let pending = u64::try_from(pending).unwrap_or(u64::MAX);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(pending));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(pending));
        }
        hint
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        let (Some(claim), Some(copying)) = (self.claim.take(), self.copying.take()) else {
            return;
        };
        let body = std::mem::replace(&mut self.body, Body::empty());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.tasks
                .spawn_on(copy_rest(body, copying, claim), &runtime);
        }
    }
}
