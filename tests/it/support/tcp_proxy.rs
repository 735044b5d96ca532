//! A TCP proxy whose connections a test can break.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Target of a proxy.
#[derive(Clone)]
enum Server {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// State of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// The server's answers are read and dropped.
    Swallowing,
    /// No connection is accepted.
    Down,
}

/// The state, the number of times connections were cut, and the number of times they were stalled.
#[derive(Debug, Clone, Copy)]
struct Now(State, u32, u32);

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

/// A TCP proxy. It can cut all connections, drop the server's answers, stall open connections, or refuse new ones.
pub(crate) struct TcpProxy {
    address: SocketAddr,
    state: watch::Sender<Now>,
    /// Target of new connections.
    server: watch::Sender<Server>,
    _server: AbortOnDropHandle<()>,
}

impl TcpProxy {
    /// To an HTTP server.
    pub(crate) async fn to(url: &str) -> Self {
        let server = url.trim_start_matches("http://").parse().unwrap();
        Self::between(Server::Tcp(server)).await
    }

    /// To a database server on this machine: by its port, or by the path of its socket.
    pub(crate) async fn to_database(port: u16, socket: Option<PathBuf>) -> Self {
        let here = SocketAddr::from(([127, 0, 0, 1], port));
        Self::between(socket.map_or(Server::Tcp(here), Server::Unix)).await
    }

    async fn between(server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(Now(State::Good, 0, 0));
        let (server, leads_to) = watch::channel(server);
        let lines = TaskTracker::new().spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = leads_to.borrow().clone();
                open.spawn(carry(client, server, seen.clone()));
            }
        });
        Self {
            address,
            state,
            server,
            _server: AbortOnDropHandle::new(lines),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Drops the server's answers, or forwards them again.
    pub(crate) fn swallow(&self, answers: bool) {
        let state = if answers {
            State::Swallowing
        } else {
            State::Good
        };
        self.state.send_modify(|now| now.0 = state);
    }

    /// Breaks every connection; new ones are accepted.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|now| now.1 += 1);
    }

    /// Breaks every connection and accepts no new one while down.
    pub(crate) fn down(&self, down: bool) {
        let state = if down { State::Down } else { State::Good };
        self.state
            .send_modify(|now| *now = Now(state, now.1 + 1, now.2));
    }

    /// Open connections stay open but carry nothing any more; new ones are forwarded.
    pub(crate) fn stall(&self) {
        self.state.send_modify(|now| now.2 += 1);
    }

    /// New connections go to this local port.
    pub(crate) fn redirect_to(&self, port: u16) {
        let here = SocketAddr::from(([127, 0, 0, 1], port));
        self.server.send_replace(Server::Tcp(here));
    }
}

async fn carry(mut client: TcpStream, server: Server, mut state: watch::Receiver<Now>) {
    let Now(at_first, cuts, mutes) = *state.borrow_and_update();
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
    let (mut silence, mut end) = (state.clone(), state.clone());
    let answers = async {
        let mut piece = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = says.read(&mut piece).await {
            let lost = look.borrow().0 == State::Swallowing;
            if lost || hears.write_all(&piece[..length]).await.is_err() {
                return;
            }
        }
    };
    let is_mute = tokio::select! {
        () = answers => false,
        _ = tokio::io::copy(&mut asks, &mut listens) => false,
        _ = state.wait_for(|now| now.1 != cuts) => false,
        () = async { drop(silence.wait_for(|now| now.2 != mutes).await) } => true,
    };
    if is_mute {
        drop(end.wait_for(|now| now.1 != cuts).await);
    }
}
