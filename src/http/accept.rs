//! Accepts connections and serves each in a task of its own: a bounded number in total and for each client, each with deadlines.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::ConnectInfo;
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::http::client::{client_of, is_proxy};
use crate::http::connection::{Connection, TrackedStream};
use crate::http::deadline::Deadline;
use crate::http::places::{NoPlace, Place, Places};
use crate::telemetry::metrics::{Limit, reached};

pub use crate::http::places::{ConnectionLimits, RESERVE};

/// How long to wait when the system has no file descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a head at most, and of an answer that is held while the caller does not receive it.
const BUFFER_MAX: usize = 32 * 1024;
/// Refused connections are logged once in this time.
const REFUSALS_LOGGED: Duration = Duration::from_mins(1);

/// Accepts connections.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    places: Places,
    trusted_proxies: Arc<[IpNet]>,
    router: Router,
    tasks: TaskTracker,
    stop: CancellationToken,
    refused: u64,
    refusals_logged: Option<Instant>,
}

impl Acceptor {
    /// `tasks` gets a task for each connection.
    pub fn new(
        listener: TcpListener,
        router: Router,
        limits: ConnectionLimits,
        trusted_proxies: &[IpNet],
        (tasks, stop): (TaskTracker, CancellationToken),
    ) -> Self {
        Self {
            listener,
            places: Places::new(limits),
            trusted_proxies: trusted_proxies.into(),
            router,
            tasks,
            stop,
            refused: 0,
            refusals_logged: None,
        }
    }

    /// Accepts until the service stops. Connections without a request are closed then, the others after their answer.
    pub async fn run(mut self) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        let address = peer.ip().to_canonical();
        let is_proxy = is_proxy(&self.trusted_proxies, address);
        let place = match self.places.take(address, is_proxy) {
            Ok(place) => place,
            Err(why) => return self.refuse(&stream, (address, is_proxy), why),
        };
        stream.set_nodelay(true).ok();
        let deadline = Deadline::of_new_connection();
        let stream = TrackedStream::new(stream, deadline.clone());
        let connection = Connection {
            peer: address,
            client: address,
            is_proxy,
            unflushed: stream.unflushed(),
        };
        let service = Service {
            router: self.router.clone(),
            connection,
            trusted_proxies: Arc::clone(&self.trusted_proxies),
            deadline,
        };
        self.tasks
            .spawn(service.serve(stream, place, self.stop.clone()));
    }

    /// Closes a connection that gets no place, and says so as far as that is possible without waiting.
    fn refuse(&mut self, stream: &TcpStream, (peer, is_proxy): (IpAddr, bool), why: NoPlace) {
        let as_proxy = is_proxy || peer.is_loopback();
        let (status, limit, error) = match why {
            NoPlace::Total => (
                "503 Service Unavailable",
                Limit::Connections,
                "too many connections are open; nothing was processed, try again",
            ),
            NoPlace::Client => (
                "429 Too Many Requests",
                if as_proxy {
                    Limit::ConnectionsPerProxy
                } else {
                    Limit::ConnectionsPerClient
                },
                "this client has too many connections open; nothing was processed, try again",
            ),
        };
        reached(limit);
        let body = format!("{{\"error\":\"{error}\"}}");
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.try_write(answer.as_bytes()).ok();
        self.refused += 1;
        let is_due = self
            .refusals_logged
            .is_none_or(|logged| logged.elapsed() >= REFUSALS_LOGGED);
        if is_due {
            tracing::warn!(%peer, limit = limit.name(), refused = self.refused, "connections refused: too many are open");
            (self.refused, self.refusals_logged) = (0, Some(Instant::now()));
        }
    }
}

/// What serves the requests of one connection.
#[derive(Debug)]
struct Service {
    router: Router,
    connection: Connection,
    trusted_proxies: Arc<[IpNet]>,
    deadline: Deadline,
}

impl Service {
    async fn serve(self, stream: TrackedStream, _place: Place, stop: CancellationToken) {
        let deadline = self.deadline.clone();
        let service = service_fn(|request| self.answer(request));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER_MAX);
        let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let (mut passed, mut stopped) = (pin!(deadline.passed()), pin!(stop.cancelled()));
        let mut is_stopping = false;
        loop {
            tokio::select! {
                // In this order: the connection may have moved its deadline.
                biased;
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection broke");
                    }
                    return;
                }
                () = passed.as_mut() => return,
                () = stopped.as_mut(), if !is_stopping => {
                    is_stopping = true;
                    serving.as_mut().graceful_shutdown();
                }
            }
        }
    }

    async fn answer(&self, mut request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        self.deadline.request_began();
        // A pipelined request: its answer must not hold up the flush that closes the grant of the one before.
        self.connection.granted_are_flushed().await;
        let peer = self.connection.peer;
        let connection = Connection {
            client: client_of(request.headers(), peer, &self.trusted_proxies),
            ..self.connection.clone()
        };
        request.extensions_mut().insert(ConnectInfo(connection));
        let response = self.router.clone().oneshot(request.map(Body::new)).await?;
        Ok(response.map(|body| Answer {
            body,
            _end: AnswerEnd(self.deadline.clone()),
        }))
    }
}

/// The body of an answer. hyper drops it when it has taken all of it.
struct Answer {
    body: Body,
    _end: AnswerEnd,
}

struct AnswerEnd(Deadline);

impl Drop for AnswerEnd {
    fn drop(&mut self) {
        self.0.answer_ended();
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
