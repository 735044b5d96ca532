//! Lines to servers, for tests that break them.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Where a line leads.
#[derive(Clone)]
enum Server {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// The server has said everything, and nobody hears it.
    Swallowing,
    /// Nobody gets through.
    Down,
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A line to a server that can be cut: every connection over it breaks at once. Or it swallows answers: the server has said everything, and
/// nobody heard it. Or it is down.
pub(crate) struct Line {
    address: SocketAddr,
    state: watch::Sender<(State, u32)>,
    _server: AbortOnDropHandle<()>,
}

impl Line {
    /// To an HTTP server.
    pub(crate) async fn to(url: &str) -> Self {
        let server = url.trim_start_matches("http://").parse().unwrap();
        Self::between(Server::Tcp(server)).await
    }

    /// To a server on this machine: by its port, or by the path of its socket.
    pub(crate) async fn to_database(port: u16, socket: Option<PathBuf>) -> Self {
        let here = SocketAddr::from(([127, 0, 0, 1], port));
        Self::between(socket.map_or(Server::Tcp(here), Server::Unix)).await
    }

    async fn between(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, seen) = watch::channel((State::Good, 0));
        let lines = TaskTracker::new().spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(carry(client, server.clone(), seen.clone()));
            }
        });
        Self {
            address,
            state,
            _server: AbortOnDropHandle::new(lines),
        }
    }

    /// Where it begins.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port at which it begins.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on answers are read and lost, or pass again.
    pub(crate) fn swallow(&self, answers: bool) {
        let state = if answers {
            State::Swallowing
        } else {
            State::Good
        };
        self.state.send_modify(|now| now.0 = state);
    }

    /// Breaks every connection; new ones pass.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|now| now.1 += 1);
    }

    /// Breaks every connection and lets no new one through, until it is up again.
    pub(crate) fn down(&self, down: bool) {
        let state = if down { State::Down } else { State::Good };
        self.state.send_modify(|now| *now = (state, now.1 + 1));
    }
}

async fn carry(mut client: TcpStream, server: Server, mut state: watch::Receiver<(State, u32)>) {
    let (at_first, cuts) = *state.borrow_and_update();
    if at_first == State::Down {
        return;
    }
    let server: Box<dyn Connection> = match server {
        Server::Tcp(address) => match TcpStream::connect(address).await {
            Ok(server) => Box::new(server),
            Err(_) => return,
        },
        Server::Unix(path) => match UnixStream::connect(path).await {
            Ok(server) => Box::new(server),
            Err(_) => return,
        },
    };
    let (mut asks, mut hears) = client.split();
    let (mut says, mut listens) = tokio::io::split(server);
    let look = state.clone();
    let answers = async {
        let mut piece = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = says.read(&mut piece).await {
            let lost = look.borrow().0 == State::Swallowing;
            if lost || hears.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut asks, &mut listens) => {}
        _ = state.wait_for(|now| now.1 != cuts) => {}
    }
}
