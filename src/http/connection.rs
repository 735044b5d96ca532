//! Connections that observe whether a response was written.
//!
//! The end of a response's body does not prove that: the bytes may still be in a buffer when the caller disconnects. So the accepted stream
//! is wrapped. The body hands its grant to the stream together with its last bytes. hyper flushes the stream only after it has written
//! everything that it holds, so the first successful flush after that closes the grant as answered. A stream that is dropped before leaves
//! the grant void.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::facilitator::Grant;
use crate::http::deadline::Deadline;

/// The first bytes of an HTTP/2 client that assumes a server with HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The response: an empty SETTINGS frame, then GOAWAY with the code `HTTP_1_1_REQUIRED` (RFC 9113, sections 6.8 and 7).
const HTTP2_REFUSAL: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, // GOAWAY
];

/// Grants whose responses hyper has taken but not yet flushed.
#[derive(Debug, Clone, Default)]
pub(super) struct Unflushed(Arc<UnflushedGrants>);

#[derive(Debug, Default)]
struct UnflushedGrants {
    grants: Mutex<Vec<Grant>>,
    flushed: Notify,
}

impl Unflushed {
    fn add(&self, grant: Grant) {
        self.grants(|grants| grants.push(grant));
    }

    fn take(&self) -> Vec<Grant> {
        self.grants(std::mem::take)
    }

    fn grants<T>(&self, act: impl FnOnce(&mut Vec<Grant>) -> T) -> T {
        let grants = self.0.grants.lock();
        act(&mut grants.unwrap_or_else(PoisonError::into_inner))
    }

    fn flushed(&self) {
        let grants = self.take();
        if !grants.is_empty() {
            grants.into_iter().for_each(Grant::answered);
            self.0.flushed.notify_waiters();
        }
    }
}

/// The HTTP version of a client, as its first bytes show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// So many bytes were received, and all match the preface of HTTP/2.
    Unknown(usize),
    Http1,
    /// The refusal was sent; further bytes of the client are discarded.
    Http2,
}

/// A TCP stream that closes grants when it is flushed.
#[derive(Debug)]
pub(super) struct TrackedStream {
    stream: TcpStream,
    unflushed: Unflushed,
    version: Version,
    deadline: Deadline,
}

impl TrackedStream {
    pub(super) fn new(stream: TcpStream, deadline: Deadline) -> Self {
        Self {
            stream,
            unflushed: Unflushed::default(),
            version: Version::Unknown(0),
            deadline,
        }
    }

    /// The list of the stream's grants, for [`Connection`].
    pub(super) fn unflushed(&self) -> Unflushed {
        self.unflushed.clone()
    }

    /// Detects the version from the first bytes, and refuses an HTTP/2 client at once.
    fn detect_version(&mut self, received: &[u8]) -> Version {
        if let Version::Unknown(matched) = self.version {
            let expected = HTTP2_PREFACE.get(matched..).unwrap_or_default();
            let length = received.len().min(expected.len());
            self.version = if received.get(..length) != expected.get(..length) {
                Version::Http1
            } else if length < expected.len() {
                Version::Unknown(matched + length)
            } else {
                // Nothing was written before, so the socket's buffer has room for these bytes.
                self.stream.try_write(HTTP2_REFUSAL).ok();
                self.deadline.refused();
                Version::Http2
            };
        }
        self.version
    }

    /// Discards the bytes of a refused client until it disconnects: if the server closed first, the client's system could drop the refusal
    /// unread.
    fn poll_refused(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        earlier: usize,
    ) -> Poll<io::Result<()>> {
        loop {
            let received = buffer.filled().len() > earlier;
            buffer.set_filled(earlier);
            if !received {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_read(context, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Tells the deadline what became of a write.
    fn note_written(&self, written: &Poll<io::Result<usize>>) {
        match written {
            Poll::Ready(Ok(bytes)) => self.deadline.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.deadline.blocked(),
        }
    }
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let earlier = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            let received = buffer.filled().get(earlier..).unwrap_or_default();
            if self.detect_version(received) == Version::Http2 {
                return self.poll_refused(context, buffer, earlier);
            }
            if buffer.filled().len() > earlier {
                self.deadline.received();
            }
        }
        read
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed.flushed();
            self.deadline.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for TrackedStream {
    fn drop(&mut self) {
        // Handlers hold clones of the list: the grants that were never flushed have to be voided now.
        drop(self.unflushed.take());
    }
}

/// The connection of a request, as handlers see it.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    /// The other end of the connection.
    pub(super) peer: IpAddr,
    /// Who makes the request: the peer, or the client of the trusted proxy that it is.
    pub(super) client: IpAddr,
    /// Whether the peer is a trusted proxy.
    pub(super) is_proxy: bool,
    pub(super) unflushed: Unflushed,
}

impl Connection {
    /// A connection without a stream.
    #[cfg(test)]
    pub(super) fn from_peer(peer: IpAddr) -> Self {
        Self {
            peer,
            client: peer,
            is_proxy: false,
            unflushed: Unflushed::default(),
        }
    }

    /// Returns when no grant waits for its flush any more. As long as hyper is given no later answer, that flush is the one of the grant's
    /// own bytes: otherwise a caller could have all of them, leave the rest of a pipelined answer unread, and void the grant by a reset.
    pub(super) async fn granted_are_flushed(&self) {
        loop {
            let flushed = self.unflushed.0.flushed.notified();
            if self.unflushed.grants(|grants| grants.is_empty()) {
                return;
            }
            flushed.await;
        }
    }

    /// A body of `json` that closes `grant` when it was flushed or has broken off.
    pub(super) fn granting(&self, json: Bytes, grant: Grant) -> Body {
        Body::new(GrantingBody {
            json: Some(json),
            grant: Some(grant),
            unflushed: self.unflushed.clone(),
        })
    }
}

struct GrantingBody {
    json: Option<Bytes>,
    grant: Option<Grant>,
    unflushed: Unflushed,
}

impl HttpBody for GrantingBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = self.json.take().map(|json| Ok(Frame::data(json)));
        if let (true, Some(grant)) = (frame.is_some(), self.grant.take()) {
            self.unflushed.add(grant);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.json.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(
            self.json
                .as_ref()
                .map_or(0, |json| u64::try_from(json.len()).unwrap_or(u64::MAX)),
        )
    }
}
