//! `x402d pay` as a child process, and a proxy between it and its seller.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::eventually;
use super::interop_programs::example;

const LIMIT: Duration = Duration::from_secs(90);

/// A key and a data directory with which `x402d pay` buys.
pub(crate) struct BuyerProcess {
    key: String,
    rpc: Option<String>,
    pub(crate) folder: TempDir,
}

/// Output of one run.
#[derive(Debug)]
pub(crate) struct PayOutput {
    pub(crate) success: bool,
    /// The line of `--json`.
    pub(crate) json: Value,
    pub(crate) stderr: String,
}

impl BuyerProcess {
    pub(crate) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            rpc: None,
            folder: TempDir::with_prefix("x402d-it-pay-").unwrap(),
        }
    }

    /// With an RPC endpoint.
    pub(crate) fn with_chain(mut self, rpc: &str) -> Self {
        self.rpc = Some(rpc.to_owned());
        self
    }

    /// Runs an example that buys with the same key.
    pub(crate) async fn run_example(&self, name: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(example(name).await);
        command
            .args(arguments)
            .env_clear()
            .env("X402D_BUYER_KEY", &self.key)
            .current_dir(self.folder.path())
            .kill_on_drop(true);
        let output = timeout(LIMIT, command.output())
            .await
            .expect("it ends in time")
            .unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
        command
            .arg("pay")
            .args(arguments)
            .env_clear()
            .env("X402D_BUYER_KEY", &self.key)
            .env("X402D_DATA_DIR", self.folder.path());
        command.envs(self.rpc.as_ref().map(|rpc| ("X402D_BUYER_RPC_URL", rpc)));
        command
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts to buy `url` for at most one cent.
    pub(crate) fn begin(&self, url: &str) -> Child {
        self.command(&[url, "--max", "0.01", "--json"])
            .spawn()
            .unwrap()
    }

    /// Buys `url` for at most one cent, and returns what people are shown of it.
    pub(crate) async fn buy_in_words(&self, url: &str) -> String {
        let run = self.command(&[url, "--max", "0.01"]).output();
        let output = timeout(LIMIT, run).await.expect("it ends in time").unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    /// Buys `url`, for at most one cent unless `more` sets `--max`.
    pub(crate) async fn buy(&self, url: &str, more: &[&str]) -> PayOutput {
        let cent: &[&str] = if more.contains(&"--max") {
            &[]
        } else {
            &["--max", "0.01"]
        };
        let arguments = [&[url, "--json"], cent, more].concat();
        let run = self.command(&arguments).output();
        let output = timeout(LIMIT, run).await.expect("it ends in time").unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        PayOutput {
            success: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            stderr,
        }
    }
}

/// What the proxy does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interception {
    /// Forwards everything.
    Open,
    /// Keeps the unpaid request for ever.
    UnpaidHeld,
    /// Keeps the paid request for ever.
    PaidHeld,
    /// Forwards the paid request and keeps its answer for ever.
    AnswerHeld,
}

/// An HTTP proxy between buyer and seller.
pub(crate) struct SellerProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<()>,
}

struct Shared {
    seller: String,
    http: reqwest::Client,
    state: Mutex<Traffic>,
}

struct Traffic {
    interception: Interception,
    /// Requests and answers kept so far.
    held: usize,
    payments: Vec<String>,
}

impl SellerProxy {
    pub(crate) async fn before(seller: &str, interception: Interception) -> Self {
        let shared = Arc::new(Shared {
            seller: seller.to_owned(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            state: Mutex::new(Traffic {
                interception,
                held: 0,
                payments: Vec::new(),
            }),
        });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = TaskTracker::new().spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self {
            address,
            shared,
            _server: AbortOnDropHandle::new(server),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn set(&self, interception: Interception) {
        let mut state = self.shared.state.lock().unwrap();
        state.interception = interception;
        state.held = 0;
    }

    /// Waits until the proxy keeps a request or an answer.
    pub(crate) async fn wait_until_held(&self) {
        eventually("a kept request", LIMIT, async || {
            (self.shared.state.lock().unwrap().held > 0).then_some(())
        })
        .await;
    }

    /// The distinct payment headers that passed.
    pub(crate) fn payments(&self) -> HashSet<String> {
        let state = self.shared.state.lock().unwrap();
        state.payments.iter().cloned().collect()
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let payment = headers.get("payment-signature");
    let interception = {
        let mut state = shared.state.lock().unwrap();
        let payment = payment.map(|payment| payment.to_str().unwrap().to_owned());
        state.payments.extend(payment);
        state.interception
    };
    let hold = async || {
        shared.state.lock().unwrap().held += 1;
        std::future::pending().await
    };
    match (interception, payment.is_some()) {
        (Interception::UnpaidHeld, false) | (Interception::PaidHeld, true) => return hold().await,
        _ => {}
    }
    let mut request = shared
        .http
        .request(method, format!("{}{uri}", shared.seller));
    for name in ["payment-signature", "x-payment", "content-type", "accept"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let Ok(answer) = request.body(body).send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("transfer-encoding");
    let body = answer.bytes().await.unwrap_or_default();
    if (interception, payment.is_some()) == (Interception::AnswerHeld, true) {
        return hold().await;
    }
    (status, headers, body).into_response()
}
