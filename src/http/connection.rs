//! Connections that observe whether a response was written.
//!
//! The end of a response's body does not prove that: the bytes may still be in a buffer when the caller disconnects. So the accepted stream
//! is wrapped. The body hands its grant to the stream together with its last bytes. hyper flushes the stream only after it has written
//! everything that it holds, so the first successful flush after that closes the grant as answered. A stream that is dropped before leaves
//! the grant void.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::facilitator::Grant;

/// How long to wait when the system has no file descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first bytes of an HTTP/2 client that assumes a server with HTTP/2 (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// The response: an empty SETTINGS frame, then GOAWAY with the code `HTTP_1_1_REQUIRED` (RFC 9113, sections 6.8 and 7).
const HTTP2_REFUSAL: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, // GOAWAY
];
/// How long a client has to read that before the connection is closed.
const REFUSAL_LIMIT: Duration = Duration::from_secs(2);

/// A connection on which nothing was read or written for so long is closed: it is far longer than any request waits, and an idle client
/// must not occupy a place for good.
const IDLE_LIMIT: Duration = Duration::from_secs(75);

/// Grants whose responses hyper has taken but not yet flushed.
#[derive(Debug, Clone, Default)]
struct Unflushed {
    grants: Arc<Mutex<Vec<Grant>>>,
    flushed: Arc<Notify>,
}

impl Unflushed {
    fn grants(&self) -> MutexGuard<'_, Vec<Grant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Grant> {
        let grants = std::mem::take(&mut *self.grants());
        if !grants.is_empty() {
            self.flushed.notify_waiters();
        }
        grants
    }

    /// Waits until no response with a grant is in hyper's buffer.
    async fn empty(&self) {
        loop {
            let flushed = self.flushed.notified();
            if self.grants().is_empty() {
                return;
            }
            flushed.await;
        }
    }
}

/// Accepts a bounded number of connections at a time.
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
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
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
pub struct TrackedStream {
    stream: TcpStream,
    unflushed: Unflushed,
    version: Version,
    idle: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl TrackedStream {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            unflushed: Unflushed::default(),
            version: Version::Unknown(0),
            idle: Box::pin(tokio::time::sleep(IDLE_LIMIT)),
            _place: place,
        }
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
                self.idle.as_mut().reset(Instant::now() + REFUSAL_LIMIT);
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
            if !received || self.idle.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.stream).poll_read(context, buffer) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn reset_idle(&mut self) {
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
            let received = buffer.filled().get(earlier..).unwrap_or_default();
            if self.detect_version(received) == Version::Http2 {
                return self.poll_refused(context, buffer, earlier);
            }
            self.reset_idle();
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
        self.reset_idle();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reset_idle();
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
        // Handlers hold clones of the list: the grants that were never flushed have to be voided now.
        drop(self.unflushed.take());
    }
}

/// The connection, as handlers see it.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The address of the caller.
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

/// Keeps a request that was pipelined behind a response with a grant until that one was flushed. With its own response behind it hyper's
/// buffer might never be flushed, although the caller has read the answer.
pub async fn behind_grants(request: Request, next: Next) -> Response {
    let connection = request.extensions().get::<ConnectInfo<Connection>>();
    if let Some(ConnectInfo(connection)) = connection.cloned() {
        connection.unflushed.empty().await;
    }
    next.run(request).await
}

impl Connection {
    /// A body of `json` that closes `grant` when it was flushed or has broken off.
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
            self.unflushed.grants().push(grant);
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
