//! A JSON-RPC proxy before the chain, with faults on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::provider::{self, Substitute, blank};
use super::{eventually, forger};

/// Part of the URL, like the API key of a hosted RPC: it must appear in no log and no answer.
pub(crate) const SECRET: &str = "rpc-key-0a1b2c3d4e5f";

/// What the proxy does with the calls of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Forwards them.
    None,
    /// HTTP 503, not forwarded.
    Unavailable,
    /// Forwarded, but the answer is kept back for ever.
    AnswerLost,
    /// Not forwarded, and never answered.
    RequestLost,
    /// Waits until the fault changes, then applies the new one.
    Hold,
    /// Forwarded after this many milliseconds.
    Slow(u64),
    /// A JSON-RPC error with this text, not forwarded.
    Error(&'static str),
    /// HTTP 200 with something that is not JSON, not forwarded.
    NotJson,
    /// This result, not forwarded: JSON, or else a string.
    Answer(&'static str),
    /// The node's head stays at this height.
    StoppedAt(u64),
    /// A send is answered with its hash, but not forwarded.
    AcceptAndDrop,
    /// Log queries over more blocks than this are rejected.
    LogRangeLimit(u64),
    /// Calls to this contract (lower case) are rejected with this text.
    RejectTo(&'static str, &'static str),
    /// Heads, account nonces and receipts are forged, and no transaction is forwarded; see [`forger`].
    Forges,
    /// One read in ten finds no block, one call in ten gets 429, and one in fifty is dropped.
    Flaky,
    /// Calls with state overrides are rejected.
    OverridesRefused,
    /// State overrides are ignored.
    OverridesIgnored,
    /// Calls are answered with the state of this many blocks ago; newer blocks are not found.
    Lags(u64),
    /// Every member with this name is null.
    Null(&'static str),
    /// Every member with this name is removed.
    Without(&'static str),
    /// The state of blocks more than this far below the head is missing.
    PrunedState(u64),
    /// The gas of a call is capped at this.
    CallGasCap(u64),
    /// Calls for the state at a height are rejected with this text.
    RejectAtHeights(&'static str),
    /// A chain before EIP-1559: no base fee and no typed transactions.
    Legacy,
    /// Receipts contain this rollup data fee, in wei.
    DataFee(u64),
    /// Calls with block overrides are rejected, as by a node that does not know them.
    BlockOverridesRefused,
    /// Block overrides are ignored.
    BlockOverridesIgnored,
}

/// The proxy; it ends when dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _server: AbortOnDropHandle<()>,
}

struct Shared {
    chain: String,
    http: Client,
    faults: watch::Sender<Faults>,
    calls: Mutex<HashMap<String, usize>>,
    /// Hashes of the transactions sent, in order of arrival.
    sent: Mutex<Vec<B256>>,
    /// Calls rejected by [`Fault::RejectTo`].
    refused: AtomicUsize,
    /// The bytes of those transactions.
    raw: Mutex<Vec<alloy::primitives::Bytes>>,
}

#[derive(Default, Clone)]
struct Faults {
    all: Option<Fault>,
    of: HashMap<String, Fault>,
}

impl Proxy {
    pub(crate) async fn before(chain: &str) -> Self {
        let shared = Arc::new(Shared {
            chain: chain.to_owned(),
            http: Client::builder().no_proxy().build().unwrap(),
            faults: watch::Sender::default(),
            calls: Mutex::default(),
            sent: Mutex::default(),
            refused: AtomicUsize::new(0),
            raw: Mutex::default(),
        });
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
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

    /// The RPC URL for x402d.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v2/{SECRET}", self.address)
    }

    /// The port: like the URL, it must not be shown.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the fault of all methods that have none of their own.
    pub(crate) fn all(&self, fault: Fault) {
        self.shared
            .faults
            .send_modify(|faults| faults.all = Some(fault));
    }

    /// Sets the fault of one method.
    pub(crate) fn on(&self, method: &str, fault: Fault) {
        self.shared.faults.send_modify(|faults| {
            faults.of.insert(method.to_owned(), fault);
        });
    }

    /// The transactions sent so far, with repetitions.
    pub(crate) fn sent(&self) -> Vec<B256> {
        self.shared.sent.lock().unwrap().clone()
    }

    /// Calls rejected by [`Fault::RejectTo`].
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Calls of one method.
    pub(crate) fn calls(&self, method: &str) -> usize {
        let calls = self.shared.calls.lock().unwrap();
        calls.get(method).copied().unwrap_or_default()
    }

    /// Calls of all methods.
    pub(crate) fn all_calls(&self) -> usize {
        self.shared.calls.lock().unwrap().values().sum()
    }

    /// Waits until a method was called more than `before` times.
    pub(crate) async fn called(&self, method: &str, before: usize) {
        let what = format!("a call of {method}");
        eventually(&what, Duration::from_secs(20), async || {
            (self.calls(method) > before).then_some(())
        })
        .await;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let calls = request
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![request.clone()]);
    let methods: Vec<String> = calls
        .iter()
        .filter_map(|call| call["method"].as_str().map(str::to_owned))
        .collect();
    for method in &methods {
        *shared
            .calls
            .lock()
            .unwrap()
            .entry(method.clone())
            .or_default() += 1;
    }
    if request["method"] == "eth_sendRawTransaction" {
        let raw = raw_of(&request);
        shared.sent.lock().unwrap().push(keccak256(&raw));
        shared.raw.lock().unwrap().push(raw);
    }
    let mut faults = shared.faults.subscribe();
    let fault = loop {
        let fault = faults.borrow_and_update().of_call(&methods);
        if fault != Fault::Hold || faults.changed().await.is_err() {
            break fault;
        }
    };
    with(fault, &shared, (&request, &calls), body).await
}

fn raw_of(request: &Value) -> alloy::primitives::Bytes {
    serde_json::from_value(request["params"][0].clone()).unwrap()
}

/// Answers calls that meet a fault.
async fn with(
    fault: Fault,
    shared: &Shared,
    (request, calls): (&Value, &[Value]),
    body: Bytes,
) -> Response {
    match fault {
        Fault::None => forward(shared, body).await,
        Fault::Slow(milliseconds) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            forward(shared, body).await
        }
        Fault::Unavailable => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Fault::AnswerLost => {
            forward(shared, body).await;
            std::future::pending().await
        }
        Fault::RequestLost | Fault::Hold => std::future::pending().await,
        Fault::Error(message) => error(calls, message),
        Fault::NotJson => "<html>not found</html>".into_response(),
        Fault::Answer(result) => {
            let result = serde_json::from_str(result).unwrap_or_else(|_| result.into());
            result_of(request, &result)
        }
        Fault::Forges => {
            if request["method"] == "eth_sendRawTransaction" {
                result_of(request, &json!(keccak256(raw_of(request))))
            } else {
                forge(shared, request, body).await
            }
        }
        Fault::StoppedAt(height) => stopped_at(height, shared, request, &body).await,
        Fault::AcceptAndDrop => result_of(request, &json!(keccak256(raw_of(request)))),
        Fault::RejectTo(contract, message) => {
            let to = request["params"][0]["to"].as_str().unwrap_or_default();
            if to.to_lowercase() != contract {
                return forward(shared, body).await;
            }
            shared.refused.fetch_add(1, Ordering::Relaxed);
            error(calls, message)
        }
        Fault::LogRangeLimit(most) => {
            let bound = |name: &str| request["params"][0][name].as_str().and_then(number);
            // A range that ends at the head has no fixed length, so it is rejected.
            match (bound("fromBlock"), bound("toBlock")) {
                (Some(from), Some(to)) if to < from + most => forward(shared, body).await,
                _ => error(calls, "query exceeds the range of blocks that is allowed"),
            }
        }
        Fault::Flaky
        | Fault::OverridesRefused
        | Fault::OverridesIgnored
        | Fault::BlockOverridesRefused
        | Fault::BlockOverridesIgnored => match provider::substitute(fault, request) {
            Substitute::Answer(answer) => answer,
            Substitute::Call(call) => forward(shared, call.to_string().into()).await,
            Substitute::Nothing => forward(shared, body).await,
        },
        Fault::Lags(by) => lagging(by, shared, request, &body).await,
        Fault::PrunedState(kept) => pruned(kept, shared, request, body).await,
        Fault::CallGasCap(most) => {
            let mut call = request.clone();
            call["params"][0]["gas"] = format!("0x{most:x}").into();
            forward(shared, call.to_string().into()).await
        }
        Fault::RejectAtHeights(message) => match request["params"][1].as_str().and_then(number) {
            Some(_) => error(calls, message),
            None => forward(shared, body).await,
        },
        Fault::Null(name) => changed(shared, body, |result| blank(result, name, false)).await,
        Fault::Without(name) => changed(shared, body, |result| blank(result, name, true)).await,
        Fault::Legacy => legacy(shared, request, body).await,
        Fault::DataFee(wei) => changed(shared, body, |result| provider::charge(result, wei)).await,
    }
}

/// Answers of a node that has no block above this height.
async fn stopped_at(height: u64, shared: &Shared, request: &Value, body: &Bytes) -> Response {
    let asked = request["params"][0].as_str().and_then(number);
    if request["method"] == "eth_getBlockByNumber" && asked.is_some_and(|asked| asked > height) {
        return result_of(request, &Value::Null);
    }
    let height = format!("0x{height:x}");
    if request["method"] == "eth_blockNumber" {
        return result_of(request, &height.into());
    }
    let text = String::from_utf8_lossy(body);
    let then = text.replace("\"latest\"", &format!("\"{height}\""));
    forward(shared, then.into()).await
}

/// Answers of a node that forges; see [`forger`].
async fn forge(shared: &Shared, request: &Value, body: Bytes) -> Response {
    let truth = ask(shared, body.clone()).await;
    let latest = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": ["latest", false]});
    let newest = ask(shared, latest.to_string().into()).await;
    let raw = shared.raw.lock().unwrap().clone();
    match forger::forged_answer(&truth["result"], request, &raw, &newest["result"]) {
        Some(forged) => result_of(request, &forged),
        None => forward(shared, body).await,
    }
}

async fn ask(shared: &Shared, body: Bytes) -> Value {
    let sent = shared
        .http
        .post(&shared.chain)
        .header("content-type", "application/json")
        .body(body)
        .send();
    match sent.await {
        Ok(answer) => answer.json().await.unwrap_or_default(),
        Err(_) => Value::Null,
    }
}

/// Answers of a node that has not seen the latest blocks yet.
async fn lagging(by: u64, shared: &Shared, request: &Value, body: &Bytes) -> Response {
    let height = height(shared).await.saturating_sub(by);
    let block = request["params"][1].as_str().and_then(number);
    if block.is_some_and(|block| block > height) {
        return provider::refusal(request, -32000, "header not found");
    }
    let text = String::from_utf8_lossy(body);
    let then = text.replace("\"latest\"", &format!("\"0x{height:x}\""));
    forward(shared, then.into()).await
}

/// Answers of a node that keeps only the state of its latest blocks.
async fn pruned(kept: u64, shared: &Shared, request: &Value, body: Bytes) -> Response {
    let block = request["params"][1].as_str().and_then(number);
    let oldest = height(shared).await.saturating_sub(kept);
    if block.is_some_and(|block| block < oldest) {
        return provider::refusal(
            request,
            -32000,
            "missing trie node 3c0e (path ) state is not available",
        );
    }
    forward(shared, body).await
}

async fn height(shared: &Shared) -> u64 {
    let question = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []});
    let sent = shared.http.post(&shared.chain).json(&question).send();
    let answer: Value = sent.await.unwrap().json().await.unwrap();
    answer["result"].as_str().and_then(number).unwrap()
}

/// Answers of a node without EIP-1559.
async fn legacy(shared: &Shared, request: &Value, body: Bytes) -> Response {
    let typed = request["params"][0]
        .as_str()
        .is_some_and(|raw| raw.starts_with("0x02"));
    match request["method"].as_str() {
        Some("eth_sendRawTransaction") if typed => error(
            std::slice::from_ref(request),
            "transaction type not supported",
        ),
        Some("eth_maxPriorityFeePerGas") => error(
            std::slice::from_ref(request),
            "the method eth_maxPriorityFeePerGas does not exist",
        ),
        _ => {
            changed(shared, body, |result| {
                if let Some(block) = result.as_object_mut() {
                    block.remove("baseFeePerGas");
                }
            })
            .await
        }
    }
}

/// Forwards the call and changes the result.
async fn changed(shared: &Shared, body: Bytes, change: impl FnOnce(&mut Value)) -> Response {
    let sent = shared.http.post(&shared.chain);
    let sent = sent.header("content-type", "application/json").body(body);
    let mut answer: Value = sent.send().await.unwrap().json().await.unwrap();
    change(&mut answer["result"]);
    axum::Json(answer).into_response()
}

pub(super) fn number(hex: &str) -> Option<u64> {
    u64::from_str_radix(hex.strip_prefix("0x")?, 16).ok()
}

impl Faults {
    fn of_call(&self, methods: &[String]) -> Fault {
        let own = methods.iter().find_map(|method| self.of.get(method));
        own.copied().or(self.all).unwrap_or(Fault::None)
    }
}

async fn forward(shared: &Shared, body: Bytes) -> Response {
    let sent = shared
        .http
        .post(&shared.chain)
        .header("content-type", "application/json")
        .body(body)
        .send();
    match sent.await {
        Ok(answer) => match answer.bytes().await {
            Ok(bytes) => ([("content-type", "application/json")], bytes).into_response(),
            Err(_) => StatusCode::BAD_GATEWAY.into_response(),
        },
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn result_of(request: &Value, result: &Value) -> Response {
    axum::Json(json!({"jsonrpc": "2.0", "id": request["id"], "result": result})).into_response()
}

fn error(calls: &[Value], message: &str) -> Response {
    let mut answers: Vec<Value> = calls
        .iter()
        .map(|call| json!({"jsonrpc": "2.0", "id": call["id"], "error": {"code": -32000, "message": message}}))
        .collect();
    let body = if answers.len() == 1 {
        answers.remove(0)
    } else {
        Value::Array(answers)
    };
    axum::Json(body).into_response()
}
