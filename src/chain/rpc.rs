//! JSON-RPC over HTTP: several endpoints per network, a time limit on every call, and errors without secrets.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{RpcError as AlloyRpcError, RpcRecv, RpcSend};
use alloy::transports::TransportErrorKind;
use alloy::transports::http::reqwest;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::chain::agreement::Agreement;
use crate::chain::budget::Budget;
use crate::chain::endpoint::{Chain, Endpoint};
use crate::chain::error_kind::ErrorKind;
use crate::chain::heads::Block;
use crate::chain::outliers::outliers;
use crate::chain::past_logs::LogRange;
use crate::protocol::Network;

/// Time limit of a read. Reads are small: a node that needs longer counts as failed, and another endpoint is tried.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// Time limit of a send. A node may delay its reply while it validates the transaction.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Most RPC calls in flight on behalf of callers, so that a flood of requests leaves connections and rate limit to the engine.
const CALLERS_MAX: usize = 64;

/// How often the endpoints of a network are compared with each other.
const COMPARE_INTERVAL: Duration = Duration::from_secs(3);

/// The endpoints of one network. Cheap to clone.
#[derive(Clone)]
pub struct Rpc {
    pub(super) network: Network,
    pub(super) endpoints: Arc<[Endpoint]>,
    /// Endpoints that only receive transactions.
    send_only: Arc<[RpcClient]>,
    budget: Option<Arc<Budget>>,
    preferred: Arc<AtomicUsize>,
    pub(super) agreement: Arc<Agreement>,
    pub(super) log_range: Arc<LogRange>,
    /// Set on the handle that serves callers: limits their calls in flight, and lets the engine's calls go first.
    callers: Option<Arc<Semaphore>>,
}

/// The configured endpoints of a network.
#[derive(Debug, Clone, Copy)]
pub struct Endpoints<'a> {
    /// URLs for reads and transactions; at least one.
    pub urls: &'a [String],
    /// URLs for transactions only, such as a sequencer or a private relay.
    pub send_urls: &'a [String],
    /// Calls per second over all endpoints, if the operator has set a limit.
    pub calls_per_second: Option<u32>,
    /// How many endpoints must return the same receipt in the same block before it is acted upon.
    pub confirm_with: usize,
}

/// Why a call has no result. Contains no URL, because URLs contain API keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// No response in time. A send may have arrived all the same.
    #[error("the RPC did not answer in time")]
    Timeout,
    /// No connection, or the connection broke.
    #[error("the RPC cannot be reached")]
    Unreachable,
    /// An HTTP error status instead of a JSON-RPC response.
    #[error("the RPC answered with HTTP status {0}")]
    Status(u16),
    /// The node returned a JSON-RPC error.
    #[error("the RPC refused the call with code {code}")]
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// The node's text. Used for classification only, never shown.
        message: String,
        /// Revert data of a failed call.
        data: Option<Bytes>,
    },
    /// A response of an unexpected shape.
    #[error("the RPC's response to {0} is not of the expected form")]
    Malformed(&'static str),
    /// No turn in time for this call: the operator's limit per second, or too many calls of callers in flight.
    #[error(
        "no RPC call was free in time (rpc_calls_per_second, or too many calls in flight); the call was not made"
    )]
    OverBudget,
    /// Fewer endpoints than required gave the same answer.
    #[error("too few RPC endpoints give the same answer to {0}")]
    NoAgreement(&'static str),
    /// The endpoints' limits ended a search of logs early: the log may exist further back.
    #[error(
        "the RPC allows too few blocks per eth_getLogs call to search the latest hour, and does not keep the state of old blocks; use an endpoint that allows more"
    )]
    SearchIncomplete,
    /// Endpoints gave different answers, perhaps because one of them is behind.
    #[error("the RPC endpoints give different answers to {0}")]
    Disagreement(&'static str),
    /// No endpoint supports state overrides.
    #[error(
        "no RPC endpoint supports state overrides (the third parameter of eth_call); use a node that does, such as geth, reth, Nethermind or Erigon"
    )]
    NoOverrides,
    /// The endpoint serves another chain.
    #[error(
        "RPC URL number {number} serves chain {found}, configured is chain {configured}; correct the URL or the network"
    )]
    WrongChain {
        /// Position of the configured URL, from 1.
        number: usize,
        /// Configured chain id.
        configured: u64,
        /// Chain id that the endpoint returned.
        found: u64,
    },
}

impl RpcError {
    /// Whether the called contract reverted, as opposed to an error of the endpoint.
    pub fn is_revert(&self) -> bool {
        matches!(self, Self::Refused { code, data, message } if *code == 3 || data.is_some() || message.contains("revert"))
    }
}

impl Rpc {
    /// Fails when a URL cannot be parsed; the error does not repeat the URL.
    pub fn new(network: Network, configured_urls: Endpoints<'_>) -> Result<Self, RpcError> {
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .timeout(READ_LIMIT.max(SEND_LIMIT))
            .build()
            .map_err(|_| RpcError::Unreachable)?;
        let clients = |urls: &[String]| -> Result<Vec<RpcClient>, RpcError> {
            let client = |url: &String| {
                let url = url.parse().map_err(|_| RpcError::Malformed("url"))?;
                Ok(RpcClient::new_http_with_client(client.clone(), url))
            };
            urls.iter().map(client).collect()
        };
        let endpoints = clients(configured_urls.urls)?
            .into_iter()
            .map(Endpoint::new);
        let budget = configured_urls.calls_per_second.map(Budget::per_second);
        Ok(Self {
            network,
            endpoints: endpoints.collect(),
            send_only: clients(configured_urls.send_urls)?.into(),
            budget: budget.map(Arc::new),
            preferred: Arc::default(),
            agreement: Arc::new(Agreement::of(configured_urls.confirm_with)),
            log_range: Arc::default(),
            callers: None,
        })
    }

    pub const fn network(&self) -> Network {
        self.network
    }

    /// A handle to the same endpoints for requests of callers. Its calls wait for those of the engine.
    #[must_use]
    pub fn for_callers(&self) -> Self {
        Self {
            callers: Some(Arc::new(Semaphore::new(CALLERS_MAX))),
            ..self.clone()
        }
    }

    pub(super) async fn request<R: RpcRecv>(
        &self,
        index: usize,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> Result<R, RpcError> {
        let endpoint = self.endpoints.get(index).ok_or(RpcError::Unreachable)?;
        let _place = self.wait_for_turn().await?;
        let started_at = Instant::now();
        let answer = call(&endpoint.client, READ_LIMIT, method, parameters).await;
        let kind = answer.as_ref().err().map(RpcError::kind);
        match kind {
            None | Some(ErrorKind::Revert | ErrorKind::InvalidCall) => {
                endpoint.record_success(started_at.elapsed());
                self.preferred.store(index, Ordering::Relaxed);
            }
            Some(ErrorKind::RateLimited) => endpoint.record_rate_limit(),
            Some(ErrorKind::ConnectionLost | ErrorKind::Other) => {
                endpoint.record_failure(self.endpoints.len() > 1);
            }
            Some(
                ErrorKind::MissingBlock
                | ErrorKind::MissingState
                | ErrorKind::RangeTooWide
                | ErrorKind::Unsupported,
            ) => {}
        }
        answer
    }

    /// Waits until a call may be made. The returned permit must be held while the call is in flight.
    async fn wait_for_turn(&self) -> Result<Option<SemaphorePermit<'_>>, RpcError> {
        let over_budget = RpcError::OverBudget;
        let Some(callers) = &self.callers else {
            if let Some(budget) = &self.budget {
                let turn = budget.wait(READ_LIMIT).await;
                turn.map_err(|_| over_budget)?;
            }
            return Ok(None);
        };
        let Ok(Ok(place)) = tokio::time::timeout(READ_LIMIT, callers.acquire()).await else {
            return Err(over_budget);
        };
        if let Some(budget) = &self.budget {
            let turn = budget.wait_for_caller(READ_LIMIT).await;
            turn.map_err(|_| over_budget)?;
        }
        Ok(Some(place))
    }

    pub(super) fn hedge_delay(&self, index: usize) -> Duration {
        self.endpoints
            .get(index)
            .map_or(READ_LIMIT, |endpoint| endpoint.health().hedge_delay())
    }

    /// Indices of the usable endpoints, the best first; among equals, the one that answered last.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let (now, preferred) = (Instant::now(), self.preferred.load(Ordering::Relaxed));
        let healths: Vec<_> = self.endpoints.iter().map(Endpoint::health).collect();
        let reported: Vec<_> = healths
            .iter()
            .map(|health| health.reported_head(now))
            .collect();
        let outliers = outliers(&reported);
        let counting = healths
            .iter()
            .zip(&outliers)
            .filter(|(_, outlier)| !**outlier);
        let best = counting.map(|(health, _)| health.head()).max();
        let ranked = healths
            .iter()
            .zip(outliers)
            .map(|(health, outlier)| health.rank(best.unwrap_or_default(), outlier, now));
        let mut order: Vec<_> = ranked
            .enumerate()
            .filter(|(_, rank)| rank.is_usable())
            .collect();
        order.sort_by_key(|(index, rank)| (*rank, *index != preferred, *index));
        order.into_iter().map(|(index, _)| index).collect()
    }

    /// Compares the endpoints with each other until it is dropped: an endpoint with old blocks is read from last, one that serves another
    /// chain is not used. With a single endpoint there is nothing to compare.
    pub async fn compare(self) {
        if self.endpoints.len() < 2 {
            std::future::pending::<()>().await;
        }
        let mut interval = tokio::time::interval(COMPARE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let mut checks = tokio::task::JoinSet::new();
            for index in 0..self.endpoints.len() {
                let rpc = self.clone();
                checks.spawn(async move { rpc.check_endpoint(index).await });
            }
            checks.join_all().await;
        }
    }

    async fn check_endpoint(&self, index: usize) {
        let Some(endpoint) = self.endpoints.get(index) else {
            return;
        };
        let chain = call::<U64>(&endpoint.client, READ_LIMIT, "eth_chainId", ()).await;
        let Ok(found) = chain else {
            endpoint.record_failure(true);
            return;
        };
        let (network, number) = (self.network, index + 1);
        if found.to::<u64>() != network.chain_id() {
            if endpoint.set_chain(Chain::Other) != Chain::Other {
                tracing::error!(%network, endpoint = number, chain = %found, "endpoint excluded: it serves another chain");
            }
            return;
        }
        if endpoint.set_chain(Chain::Configured) != Chain::Configured {
            tracing::info!(%network, endpoint = number, "endpoint used again: it serves the configured chain");
        }
        let newest = ("latest", false);
        let newest = call::<Block>(&endpoint.client, READ_LIMIT, "eth_getBlockByNumber", newest);
        match newest.await.ok().and_then(|block| block.head()) {
            Some(head) => endpoint.record_head(head.reported_head()),
            None => endpoint.record_failure(true),
        }
        if !endpoint.health().has_overrides() {
            // Without a response the endpoint keeps its current state.
            self.probe_overrides(index).await.ok();
        }
    }

    /// Sends signed bytes to all endpoints at once, the send-only ones included, and collects all replies.
    pub async fn send_everywhere(&self, raw: &Bytes) -> Vec<Result<B256, RpcError>> {
        let mut replies = tokio::task::JoinSet::new();
        let readable = self.endpoints.iter().map(|endpoint| &endpoint.client);
        for client in readable.chain(self.send_only.iter()) {
            if let Some(budget) = &self.budget {
                budget.take();
            }
            let (endpoint, raw) = (client.clone(), raw.clone());
            replies.spawn(async move {
                call(&endpoint, SEND_LIMIT, "eth_sendRawTransaction", (raw,)).await
            });
        }
        replies.join_all().await
    }

    /// Checks that every endpoint that answers serves the configured chain.
    ///
    /// # Errors
    /// [`RpcError::WrongChain`] for the first that does not; [`RpcError::Unreachable`] when none answers.
    pub async fn check_chain(&self) -> Result<(), RpcError> {
        let mut answered = false;
        for (number, endpoint) in (1..).zip(self.endpoints.iter()) {
            if let Ok(found) = call::<U64>(&endpoint.client, READ_LIMIT, "eth_chainId", ()).await {
                answered = true;
                if found.to::<u64>() != self.network.chain_id() {
                    return Err(RpcError::WrongChain {
                        number,
                        configured: self.network.chain_id(),
                        found: found.to(),
                    });
                }
            }
        }
        if answered {
            Ok(())
        } else {
            Err(RpcError::Unreachable)
        }
    }

    /// Hash of block 0.
    pub async fn genesis(&self) -> Result<B256, RpcError> {
        let block: Value = self.read("eth_getBlockByNumber", ("0x0", false)).await?;
        let hash = block
            .get("hash")
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok());
        hash.ok_or(RpcError::Malformed("eth_getBlockByNumber"))
    }

    /// The account nonce of `signer` at `tag` (`latest` or `pending`).
    pub async fn transaction_count(
        &self,
        signer: Address,
        tag: &'static str,
    ) -> Result<u64, RpcError> {
        self.read::<U64>("eth_getTransactionCount", (signer, tag))
            .await
            .map(|count| count.to())
    }

    /// Native balance in wei.
    pub async fn balance(&self, account: Address) -> Result<U256, RpcError> {
        self.read("eth_getBalance", (account, "latest")).await
    }

    /// Code at an address; empty for an account without code.
    pub async fn code(&self, account: Address) -> Result<Bytes, RpcError> {
        self.read("eth_getCode", (account, "latest")).await
    }

    /// A read-only call at the newest block. A revert is an error, see [`RpcError::is_revert`].
    pub async fn view(&self, to: Address, data: Bytes) -> Result<Bytes, RpcError> {
        self.read("eth_call", (json!({"to": to, "data": data}), "latest"))
            .await
    }
}

pub(super) async fn call<R: RpcRecv>(
    endpoint: &RpcClient,
    limit: Duration,
    method: &'static str,
    parameters: impl RpcSend,
) -> Result<R, RpcError> {
    match tokio::time::timeout(limit, endpoint.request(method, parameters)).await {
        Err(_) => Err(RpcError::Timeout),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(redact(error, method)),
    }
}

/// Keeps the code, text and revert data of an error and drops the rest: transport errors contain the URL in their text.
fn redact(error: AlloyRpcError<TransportErrorKind>, method: &'static str) -> RpcError {
    match error {
        AlloyRpcError::ErrorResp(payload) => RpcError::Refused {
            code: payload.code,
            data: payload.as_revert_data(),
            message: payload.message.chars().take(300).collect(),
        },
        AlloyRpcError::Transport(
            TransportErrorKind::HttpError(error)
            | TransportErrorKind::HttpErrorWithRetryAfter { error, .. },
        ) => RpcError::Status(error.status),
        AlloyRpcError::Transport(_)
        | AlloyRpcError::LocalUsageError(_)
        | AlloyRpcError::UnsupportedFeature(_) => RpcError::Unreachable,
        AlloyRpcError::NullResp | AlloyRpcError::SerError(_) | AlloyRpcError::DeserError { .. } => {
            RpcError::Malformed(method)
        }
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Rpc");
        shown
            .field("network", &self.network)
            .field("endpoints", &self.endpoints.len())
            .finish_non_exhaustive()
    }
}
