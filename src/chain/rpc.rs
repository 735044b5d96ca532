//! JSON-RPC over HTTP: several endpoints a network, a time limit on every call, and errors that give nothing away.

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
use crate::chain::belief::doubted;
use crate::chain::budget::Budget;
use crate::chain::endpoint::{Chain, Endpoint};
use crate::chain::heads::Block;
use crate::chain::past_logs::LogRange;
use crate::chain::trouble::Trouble;
use crate::protocol::Network;

/// Reads are small; a node that needs longer is as good as gone, and another endpoint is asked.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(5);
/// A node may hold a transaction back while it looks at it.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Calls for callers' questions that are under way at most: a flood of them takes neither connections nor the provider's patience from the engine.
const CALLERS_MAX: usize = 64;

/// How often endpoints are compared with each other, where there are several.
const COMPARE_INTERVAL: Duration = Duration::from_secs(3);

/// The endpoints of one network. Cheap to clone.
#[derive(Clone)]
pub struct Rpc {
    pub(super) network: Network,
    pub(super) endpoints: Arc<[Endpoint]>,
    /// These take transactions and are asked nothing.
    senders: Arc<[RpcClient]>,
    budget: Option<Arc<Budget>>,
    preferred: Arc<AtomicUsize>,
    pub(super) agreement: Arc<Agreement>,
    pub(super) log_range: Arc<LogRange>,
    /// Set where callers ask: their questions come behind the engine's, and so many of them are under way at most.
    callers: Option<Arc<Semaphore>>,
}

/// Where a network is reached.
#[derive(Debug, Clone, Copy)]
pub struct Endpoints<'a> {
    /// They are read from and take transactions; at least one.
    pub urls: &'a [String],
    /// They take transactions and nothing else: a sequencer, a private relay.
    pub send_urls: &'a [String],
    /// Calls a second over all of them, where the operator has set a limit.
    pub calls_per_second: Option<u32>,
    /// Endpoints that must show the same receipt in the same block before anything is concluded from it.
    pub confirm_with: usize,
}

/// Why a call has no result. Holds no URL, because URLs hold keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// No answer in time: for a send, it may have arrived.
    #[error("the RPC did not answer in time")]
    Timeout,
    /// No connection, or it broke.
    #[error("the RPC cannot be reached")]
    Unreachable,
    /// An HTTP status instead of an answer.
    #[error("the RPC answered with HTTP status {0}")]
    Status(u16),
    /// The node refused the call.
    #[error("the RPC refused the call with code {code}")]
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// The node's text: for classification, not for show.
        message: String,
        /// Revert data of a failed call.
        data: Option<Bytes>,
    },
    /// An answer of another shape than expected.
    #[error("the RPC's answer to {0} cannot be read")]
    Malformed(&'static str),
    /// The operator's limit on calls leaves none for this one in time.
    #[error("the budget of RPC calls is used up")]
    OverBudget,
    /// Too few endpoints say the same.
    #[error("too few RPC endpoints give the same answer to {0}")]
    Unconfirmed(&'static str),
    /// What was looked for may be further back than the endpoints let anybody look.
    #[error(
        "the RPC allows too few blocks in a question about logs to search the latest hour, and does not keep the state of its blocks"
    )]
    SearchCutShort,
    /// Endpoints say different things; one of them is behind, perhaps.
    #[error("the RPC endpoints give different answers to {0}")]
    Disagreement(&'static str),
    /// Nobody carries out state overrides.
    #[error(
        "no RPC endpoint carries out state overrides (the third parameter of eth_call); use a node that does, such as geth, reth, Nethermind or Erigon"
    )]
    NoOverrides,
    /// The endpoint serves another chain.
    #[error(
        "RPC URL number {number} serves chain {found}, configured is chain {configured}; correct the URL or the network"
    )]
    WrongChain {
        /// Which of the configured URLs, from 1.
        number: usize,
        /// From the configuration.
        configured: u64,
        /// From the endpoint.
        found: u64,
    },
}

impl RpcError {
    /// Whether the called contract refused, rather than the endpoint.
    pub fn is_revert(&self) -> bool {
        matches!(self, Self::Refused { code, data, message } if *code == 3 || data.is_some() || message.contains("revert"))
    }
}

impl Rpc {
    /// A pool over endpoints.
    ///
    /// # Errors
    /// When a URL cannot be read; the error does not repeat it.
    pub fn new(network: Network, reached: Endpoints<'_>) -> Result<Self, RpcError> {
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
        let endpoints = clients(reached.urls)?.into_iter().map(Endpoint::new);
        let budget = reached.calls_per_second.map(Budget::per_second);
        Ok(Self {
            network,
            endpoints: endpoints.collect(),
            senders: clients(reached.send_urls)?.into(),
            budget: budget.map(Arc::new),
            preferred: Arc::default(),
            agreement: Arc::new(Agreement::of(reached.confirm_with)),
            log_range: Arc::default(),
            callers: None,
        })
    }

    /// Which network these endpoints serve.
    pub const fn network(&self) -> Network {
        self.network
    }

    /// The same endpoints for what callers ask, behind the calls of the engine.
    #[must_use]
    pub fn for_callers(&self) -> Self {
        Self {
            callers: Some(Arc::new(Semaphore::new(CALLERS_MAX))),
            ..self.clone()
        }
    }

    pub(super) async fn ask<R: RpcRecv>(
        &self,
        index: usize,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> Result<R, RpcError> {
        let endpoint = self.endpoints.get(index).ok_or(RpcError::Unreachable)?;
        let _place = self.turn().await?;
        let asked_at = Instant::now();
        let answer = call(&endpoint.client, READ_LIMIT, method, parameters).await;
        let trouble = answer.as_ref().err().map(RpcError::trouble);
        match trouble {
            None | Some(Trouble::Revert | Trouble::Caller) => {
                endpoint.answered(asked_at.elapsed());
                self.preferred.store(index, Ordering::Relaxed);
            }
            Some(Trouble::SlowDown) => endpoint.slows_down(),
            Some(Trouble::Broken | Trouble::Outage) => {
                endpoint.failed(self.endpoints.len() > 1);
            }
            Some(
                Trouble::MissingBlock
                | Trouble::MissingState
                | Trouble::RangeTooWide
                | Trouble::Unsupported,
            ) => {}
        }
        answer
    }

    /// Waits for the turn of a call; what is returned is held while it is under way.
    async fn turn(&self) -> Result<Option<SemaphorePermit<'_>>, RpcError> {
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
            let turn = budget.wait_behind(READ_LIMIT).await;
            turn.map_err(|_| over_budget)?;
        }
        Ok(Some(place))
    }

    pub(super) fn patience(&self, index: usize) -> Duration {
        self.endpoints
            .get(index)
            .map_or(READ_LIMIT, |endpoint| endpoint.health().patience())
    }

    /// Whom to read from, the best first; among equals the one that answered last.
    pub(super) fn order(&self) -> Vec<usize> {
        let (now, preferred) = (Instant::now(), self.preferred.load(Ordering::Relaxed));
        let healths: Vec<_> = self.endpoints.iter().map(Endpoint::health).collect();
        let claims: Vec<_> = healths.iter().map(|health| health.claim(now)).collect();
        let doubted = doubted(&claims);
        let counting = healths
            .iter()
            .zip(&doubted)
            .filter(|(_, doubted)| !**doubted);
        let best = counting.map(|(health, _)| health.head()).max();
        let ranked = healths
            .iter()
            .zip(doubted)
            .map(|(health, doubted)| health.rank(best.unwrap_or_default(), doubted, now));
        let mut order: Vec<_> = ranked
            .enumerate()
            .filter(|(_, rank)| rank.is_usable())
            .collect();
        order.sort_by_key(|(index, rank)| (*rank, *index != preferred, *index));
        order.into_iter().map(|(index, _)| index).collect()
    }

    /// Compares the endpoints with each other for as long as it runs: who has old blocks is read from last, who serves another chain is
    /// not used. One endpoint alone has nothing to be compared with.
    pub async fn compare(self) {
        if self.endpoints.len() < 2 {
            std::future::pending::<()>().await;
        }
        let mut interval = tokio::time::interval(COMPARE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let mut looks = tokio::task::JoinSet::new();
            for index in 0..self.endpoints.len() {
                let rpc = self.clone();
                looks.spawn(async move { rpc.look_at(index).await });
            }
            looks.join_all().await;
        }
    }

    async fn look_at(&self, index: usize) {
        let Some(endpoint) = self.endpoints.get(index) else {
            return;
        };
        let chain = call::<U64>(&endpoint.client, READ_LIMIT, "eth_chainId", ()).await;
        let Ok(found) = chain else {
            endpoint.failed(true);
            return;
        };
        let (network, number) = (self.network, index + 1);
        if found.to::<u64>() != network.chain_id() {
            if endpoint.serves(Chain::Other) != Chain::Other {
                tracing::error!(%network, endpoint = number, chain = %found, "an endpoint serves another chain; it is not used");
            }
            return;
        }
        if endpoint.serves(Chain::Ours) != Chain::Ours {
            tracing::info!(%network, endpoint = number, "an endpoint is used again");
        }
        let newest = ("latest", false);
        let newest = call::<Block>(&endpoint.client, READ_LIMIT, "eth_getBlockByNumber", newest);
        match newest.await.ok().and_then(|block| block.head()) {
            Some(head) => endpoint.is_at(head.claim()),
            None => endpoint.failed(true),
        }
        if !endpoint.health().has_overrides() {
            // An answer that does not come changes nothing.
            self.try_overrides(index).await.ok();
        }
    }

    /// Hands signed bytes to every endpoint at once, also to those that are asked nothing else, and collects all replies.
    pub async fn send_everywhere(&self, raw: &Bytes) -> Vec<Result<B256, RpcError>> {
        let mut replies = tokio::task::JoinSet::new();
        let read_too = self.endpoints.iter().map(|endpoint| &endpoint.client);
        for client in read_too.chain(self.senders.iter()) {
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

    /// Makes sure that every endpoint that answers serves the configured chain.
    ///
    /// # Errors
    /// [`RpcError::WrongChain`] for one that does not; [`RpcError::Unreachable`] when none answers.
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
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn genesis(&self) -> Result<B256, RpcError> {
        let block: Value = self.read("eth_getBlockByNumber", ("0x0", false)).await?;
        let hash = block
            .get("hash")
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok());
        hash.ok_or(RpcError::Malformed("eth_getBlockByNumber"))
    }

    /// The account nonce of `signer` at `tag` (`latest` or `pending`).
    ///
    /// # Errors
    /// When no endpoint answers.
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
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn balance(&self, account: Address) -> Result<U256, RpcError> {
        self.read("eth_getBalance", (account, "latest")).await
    }

    /// Code at an address, empty for a plain account.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn code(&self, account: Address) -> Result<Bytes, RpcError> {
        self.read("eth_getCode", (account, "latest")).await
    }

    /// A read-only call at the newest block.
    ///
    /// # Errors
    /// When no endpoint answers, or the call reverts.
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
        Ok(Err(error)) => Err(discreet(error, method)),
    }
}

/// Keeps what can be acted upon and drops the rest: transport errors carry the URL in their text.
fn discreet(error: AlloyRpcError<TransportErrorKind>, method: &'static str) -> RpcError {
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
