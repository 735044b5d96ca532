//! Copies of answers that broke off: the next presentation gets the same answer, and the handler does not run again.

use std::fmt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The limit of one copy, in bytes.
const COPY_BYTES_MAX: usize = 1024 * 1024;
/// The limit of all copies, in bytes. Without room the handler runs again.
const COPIES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The room of all copies.
#[derive(Debug, Clone)]
pub(super) struct Copies(Arc<Semaphore>);

impl Default for Copies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(COPIES_BYTES_MAX)))
    }
}

/// A complete answer, without its receipt.
pub(super) struct AnswerCopy {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Copies an answer while it is sent.
pub(super) struct Copying {
    status: StatusCode,
    headers: HeaderMap,
    frames: Vec<Bytes>,
    length: usize,
    room: OwnedSemaphorePermit,
    copies: Copies,
}

impl Copies {
    /// Begins a copy. `None` when there is no room.
    pub(super) fn begin(&self, response: &Response) -> Option<Copying> {
        let headers = response.headers();
        let length = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        Some(Copying {
            status: response.status(),
            headers: headers.clone(),
            frames: Vec::new(),
            length,
            room: self.reserve(length)?,
            copies: self.clone(),
        })
    }

    fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()
    }
}

impl Copying {
    /// Adds a part of the body. `None` when the copy gets too long or there is no room.
    pub(super) fn with(mut self, frame: &Bytes) -> Option<Self> {
        self.length = self.length.saturating_add(frame.len());
        if self.length > COPY_BYTES_MAX {
            return None;
        }
        self.room.merge(self.copies.reserve(frame.len())?);
        self.frames.push(frame.clone());
        Some(self)
    }

    /// The copy, once the body has ended.
    pub(super) fn finish(self) -> AnswerCopy {
        AnswerCopy {
            status: self.status,
            headers: self.headers,
            body: self.frames.concat().into(),
            _room: self.room,
        }
    }
}

impl AnswerCopy {
    /// The answer once more.
    pub(super) fn response(&self) -> Response {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        response.headers_mut().clone_from(&self.headers);
        response
    }
}

impl fmt::Debug for AnswerCopy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AnswerCopy")
            .field("status", &self.status)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_bounded_each_and_together() {
        let copies = Copies::default();
        let megabyte = Bytes::from(vec![7; COPY_BYTES_MAX]);
        let begin = || copies.begin(&Response::new(Body::empty())).unwrap();
        let mut kept = Vec::new();
        while let Some(copying) = begin().with(&megabyte) {
            kept.push(copying.finish());
        }
        assert_eq!(kept.len(), COPIES_BYTES_MAX / COPY_BYTES_MAX);
        kept.pop();
        let copying = begin().with(&megabyte).unwrap();
        assert!(
            copying.with(&Bytes::from_static(b"x")).is_none(),
            "too long"
        );
        assert!(begin().with(&megabyte).is_some(), "its room is free again");
    }
}
