//! Connections that know whether an answer was written.
//!
//! The end of a response's body proves nothing: the bytes may still be in a buffer when the caller goes away. So the accepted
//! stream is wrapped. The body hands its grant over when it gives its last bytes to hyper, and hyper flushes the stream only
//! after it has written all that it holds: the first successful flush after that closes the grant as answered. A stream that is
//! dropped before leaves the grant void.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::facilitator::Grant;

/// How long to wait when the system has no file descriptor for a further connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How clients of HTTP/2 begin when they assume that the server speaks it.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The answer: an empty SETTINGS frame, then GOAWAY with the code `HTTP_1_1_REQUIRED` (RFC 9113, sections 6.8 and 7).
const HTTP2_REFUSAL: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, // GOAWAY
];
/// How long a client has to hear that, before the connection is closed.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);

/// A connection on which nothing was read or written for so long is closed: far longer than any request waits, and nobody keeps a
/// place by saying nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(75);

/// Grants whose answers hyper has taken but not yet flushed.
#[derive(Debug, Clone, Default)]
struct Unflushed(Arc<Mutex<Vec<Grant>>>);

impl Unflushed {
    fn add(&self, grant: Grant) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(grant);
    }

    fn take(&self) -> Vec<Grant> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Accepts at most so many connections at a time.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl BoundedListener {
    /// A listener that keeps at most `connections_max` connections; further ones wait in the system's backlog.
    pub fn new(listener: TcpListener, connections_max: usize) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(connections_max)),
        }
    }
}

impl Listener for BoundedListener {
    type Io = TrackedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TrackedStream, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                continue;
            };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    stream.set_nodelay(true).ok();
                    return (TrackedStream::new(stream, place), peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a client speaks, as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// So many bytes came, and all are those of the preface of HTTP/2.
    Unknown(usize),
    Http1,
    /// It was told that this is not spoken here; what it still sends is not read.
    Http2,
}

/// A TCP stream that closes grants when it is flushed.
#[derive(Debug)]
pub struct TrackedStream {
    stream: TcpStream,
    unflushed: Unflushed,
    speaks: Version,
    idle: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl TrackedStream {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            unflushed: Unflushed::default(),
            speaks: Version::Unknown(0),
            idle: Box::pin(tokio::time::sleep(IDLE_LIMIT)),
            _place: place,
        }
    }

    /// Learns from the first bytes what the client speaks; one of HTTP/2 is told at once that it is not spoken here.
    fn listen(&mut self, came: &[u8]) -> Version {
        if let Version::Unknown(matched) = self.speaks {
            let expected = HTTP2_PREFACE.get(matched..).unwrap_or_default();
            let length = came.len().min(expected.len());
            self.speaks = if came.get(..length) != expected.get(..length) {
                Version::Http1
            } else if length < expected.len() {
                Version::Unknown(matched + length)
            } else {
                // Nothing was written before, so there is room for a few bytes.
                self.stream.try_write(HTTP2_REFUSAL).ok();
                self.idle.as_mut().reset(Instant::now() + REFUSAL_LIMIT);
                Version::Http2
            };
        }
        self.speaks
    }

    /// Throws away what a refused client sends, until it goes: closed at once, its system could drop the refusal unread.
    fn poll_refused(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
        earlier: usize,
    ) -> Poll<io::Result<()>> {
        loop {
            let came = buffer.filled().len() > earlier;
            buffer.set_filled(earlier);
            if !came || self.idle.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_read(context, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn touched(&mut self) {
        self.idle.as_mut().reset(Instant::now() + IDLE_LIMIT);
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
            let came = buffer.filled().get(earlier..).unwrap_or_default();
            if self.listen(came) == Version::Http2 {
                return self.poll_refused(context, buffer, earlier);
            }
            self.touched();
        } else if self.idle.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
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
        self.touched();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.touched();
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.unflushed.take().into_iter().for_each(Grant::answered);
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Drop for TrackedStream {
    fn drop(&mut self) {
        // Handlers hold copies of the list; what was never flushed must not wait for them.
        drop(self.unflushed.take());
    }
}

/// What a handler knows of its connection.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Who called.
    pub peer: SocketAddr,
    unflushed: Unflushed,
}

impl Connected<IncomingStream<'_, BoundedListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        Self {
            peer: *stream.remote_addr(),
            unflushed: stream.io().unflushed.clone(),
        }
    }
}

impl Connection {
    /// A body of `json` that closes `grant` by what becomes of the answer.
    pub fn granting(&self, json: Bytes, grant: Grant) -> Body {
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
