//! Bytes that are held in memory for others: bodies of paid requests, and responses that wait for their settlement. Each is bounded, and so
//! is their sum.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use http_body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The limit of a request's body before its payment was verified, in bytes.
pub(super) const UNVERIFIED_BYTES_MAX: usize = 64 * 1024;
/// The share of the total that unverified payments may hold.
const UNVERIFIED_SHARE: usize = 4;

/// Limits of the bodies of paid requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimits {
    /// Of one body, in bytes.
    pub(super) bytes_max: usize,
    /// From the first byte to the last.
    pub(super) deadline: Duration,
    /// Of everything that is held, in bytes.
    pub(super) held_bytes_max: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            bytes_max: 1024 * 1024,
            deadline: Duration::from_secs(30),
            held_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// The room that is left, in bytes. Unverified payments have their own, so that nobody without money takes the room of those who pay.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) unverified: Arc<Semaphore>,
    pub(super) verified: Arc<Semaphore>,
}

impl Room {
    pub(super) fn new(limits: BodyLimits) -> Self {
        let bytes = limits.held_bytes_max.min(Semaphore::MAX_PERMITS);
        Self {
            unverified: Arc::new(Semaphore::new(bytes / UNVERIFIED_SHARE)),
            verified: Arc::new(Semaphore::new(bytes)),
        }
    }
}

/// How far a body was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Complete,
    /// The body is longer than the limit of this read.
    LimitReached,
    /// Others hold all the room.
    NoRoom,
}

/// Why a body could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadError {
    TooSlow,
    /// The sender ended it too early.
    Broken,
}

/// A body that is read in steps, each within its own limit and room.
pub(super) struct BodyReader {
    body: Body,
    bytes: Vec<u8>,
    /// The frame that no longer fitted into the last step.
    rest: Option<Bytes>,
    room: Option<OwnedSemaphorePermit>,
    deadline: Option<Instant>,
}

impl BodyReader {
    /// Without a deadline the body is this server's own.
    pub(super) fn new(body: Body, deadline: Option<Duration>) -> Self {
        Self {
            body,
            bytes: Vec::new(),
            rest: None,
            room: None,
            deadline: deadline.map(|limit| Instant::now() + limit),
        }
    }

    /// The announced or known length, in bytes; the body may still be longer.
    pub(super) fn length_min(&self) -> u64 {
        let waiting = self.rest.as_ref().map_or(0, Bytes::len);
        let known = u64::try_from(self.bytes.len().saturating_add(waiting)).unwrap_or(u64::MAX);
        known.saturating_add(self.body.size_hint().lower())
    }

    /// Reads on until the end, or until `bytes_max` bytes are held. What was read before moves into this `room`.
    pub(super) async fn read(
        &mut self,
        bytes_max: usize,
        room: &Arc<Semaphore>,
    ) -> Result<Progress, ReadError> {
        if self.length_min() > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
            return Ok(Progress::LimitReached);
        }
        self.room = None;
        if !self.reserve(self.bytes.len(), room) {
            return Ok(Progress::NoRoom);
        }
        loop {
            let Some(frame) = self.next().await? else {
                return Ok(Progress::Complete);
            };
            let fits = self.bytes.len().saturating_add(frame.len()) <= bytes_max;
            if !fits || !self.reserve(frame.len(), room) {
                self.rest = Some(frame);
                return Ok(if fits {
                    Progress::NoRoom
                } else {
                    Progress::LimitReached
                });
            }
            self.bytes.extend_from_slice(&frame);
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        if let Some(rest) = self.rest.take() {
            return Ok(Some(rest));
        }
        loop {
            let polled = match self.deadline {
                Some(deadline) => timeout_at(deadline, frame_of(&mut self.body))
                    .await
                    .map_err(|_| ReadError::TooSlow)?,
                None => frame_of(&mut self.body).await,
            };
            match polled {
                None => return Ok(None),
                Some(Err(_)) => return Err(ReadError::Broken),
                // Trailers are not part of the body.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn reserve(&mut self, bytes: usize, room: &Arc<Semaphore>) -> bool {
        let Ok(bytes) = u32::try_from(bytes) else {
            return false;
        };
        match (
            Arc::clone(room).try_acquire_many_owned(bytes),
            &mut self.room,
        ) {
            (Err(_), _) => false,
            (Ok(more), Some(held)) => {
                held.merge(more);
                true
            }
            (Ok(first), none) => {
                *none = Some(first);
                true
            }
        }
    }

    /// What was read, and the room that it takes until the permit is dropped.
    pub(super) fn finish(self) -> (Bytes, Option<OwnedSemaphorePermit>) {
        (self.bytes.into(), self.room)
    }
}

/// The next frame of a body, `None` at its end.
pub(super) async fn frame_of(body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(bytes))
    }

    #[tokio::test]
    async fn announced_length_above_the_limit_reads_nothing() {
        let mut reader = BodyReader::new(Body::from(vec![7; 100]), None);
        let pool = room(1_000);
        assert_eq!(reader.read(99, &pool).await, Ok(Progress::LimitReached));
        assert_eq!(pool.available_permits(), 1_000);
        assert_eq!(reader.read(100, &pool).await, Ok(Progress::Complete));
        assert_eq!(pool.available_permits(), 900);
        let (bytes, held) = reader.finish();
        assert_eq!(bytes.len(), 100);
        drop(held);
        assert_eq!(pool.available_permits(), 1_000);
    }

    #[tokio::test]
    async fn bytes_move_into_the_room_of_the_next_step() {
        let (small, large) = (room(10), room(1_000));
        let mut reader = BodyReader::new(Body::from(vec![7; 100]), None);
        assert_eq!(reader.read(200, &small).await, Ok(Progress::NoRoom));
        assert_eq!(reader.read(200, &large).await, Ok(Progress::Complete));
        assert_eq!(
            (small.available_permits(), large.available_permits()),
            (10, 900)
        );
        assert_eq!(reader.finish().0.len(), 100);
    }

    #[tokio::test]
    async fn body_that_never_comes_ends_at_the_deadline() {
        struct Never;
        impl axum::body::HttpBody for Never {
            type Data = Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
                std::task::Poll::Pending
            }
        }
        let mut reader = BodyReader::new(Body::new(Never), Some(Duration::from_millis(1)));
        assert_eq!(reader.read(10, &room(10)).await, Err(ReadError::TooSlow));
    }
}
