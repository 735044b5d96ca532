//! The endpoints of a network: which one is asked, who waits for whom, what is asked again, and when answers agree.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{RpcRecv, RpcSend};
use alloy::transports::http::reqwest;
use alloy::transports::http::reqwest::Url;
use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use crate::chain::rpc::budget::{Budget, LogRange};
use crate::chain::rpc::endpoint::{CALL_LIMIT, Endpoint, Health, Rank, outliers};
use crate::chain::rpc::error::{ErrorKind, RetryPauses, RpcError, RpcResult};
use crate::protocol::Network;
use crate::telemetry::metrics::{Limit, Metrics, reached};

/// Most RPC calls in flight on behalf of callers, so that a flood of requests leaves connections and rate limit to the engine.
const CALLERS_MAX: usize = 64;

/// The endpoints of one network. Cheap to clone.
#[derive(Clone)]
pub struct Rpc {
    pub(in crate::chain) network: Network,
    pub(in crate::chain) endpoints: Arc<[Endpoint]>,
    /// Endpoints that only receive transactions.
    send_only: Arc<[Endpoint]>,
    budget: Option<Arc<Budget>>,
    /// The endpoint that answered last.
    preferred: Arc<AtomicUsize>,
    /// How many endpoints must show the same block and receipt (`confirm_with`).
    pub(in crate::chain) confirm_with: usize,
    /// The highest block that so many endpoints have shown.
    pub(in crate::chain) highest_agreed: Arc<AtomicU64>,
    pub(in crate::chain) log_range: Arc<LogRange>,
    /// How many blocks the chain makes in an hour; 0 until measured.
    pub(in crate::chain) blocks_per_hour: Arc<AtomicU64>,
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

impl Rpc {
    /// Fails when a URL cannot be parsed; the error does not repeat the URL.
    pub fn new(network: Network, configured: Endpoints<'_>) -> RpcResult<Self> {
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(2))
            .timeout(CALL_LIMIT)
            .build()
            .map_err(|_| RpcError::Unreachable)?;
        let endpoints = |urls: &[String]| -> RpcResult<Arc<[Endpoint]>> {
            let endpoint = |url: &String| {
                let url: Url = url.parse().map_err(|_| RpcError::Malformed("url"))?;
                let host = url.host_str().unwrap_or_default().to_owned();
                let client = RpcClient::new_http_with_client(client.clone(), url);
                Ok(Endpoint::new(client, host))
            };
            urls.iter().map(endpoint).collect()
        };
        let budget = configured.calls_per_second.map(Budget::per_second);
        Ok(Self {
            network,
            endpoints: endpoints(configured.urls)?,
            send_only: endpoints(configured.send_urls)?,
            budget: budget.map(Arc::new),
            preferred: Arc::default(),
            confirm_with: configured.confirm_with,
            highest_agreed: Arc::default(),
            log_range: Arc::default(),
            blocks_per_hour: Arc::default(),
            callers: None,
        })
    }

    /// The hosts of the endpoints that are read from, for the operator.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(Endpoint::host)
    }

    pub const fn network(&self) -> Network {
        self.network
    }

    /// Has the calls of all endpoints timed from now on, those of handles made before too.
    pub fn time_calls(&self, metrics: &Metrics) {
        let network = self.network.to_string();
        for endpoint in self.endpoints.iter().chain(self.send_only.iter()) {
            let of_endpoint = || metrics.of_endpoint(&network, endpoint.host());
            endpoint.metrics.get_or_init(of_endpoint);
        }
    }

    /// A handle to the same endpoints for requests of callers. Its calls wait for those of the engine.
    #[must_use]
    pub fn for_callers(&self) -> Self {
        Self {
            callers: Some(Arc::new(Semaphore::new(CALLERS_MAX))),
            ..self.clone()
        }
    }

    /// Whether the answer of one endpoint is enough.
    pub(in crate::chain) const fn one_is_enough(&self) -> bool {
        self.confirm_with < 2
    }

    /// The height from which confirmations are counted: `height`, but no higher than the highest agreed block.
    pub fn agreed_height(&self, height: u64) -> u64 {
        if self.one_is_enough() {
            return height;
        }
        height.min(self.highest_agreed.load(Relaxed))
    }

    /// A call of one endpoint, which records how it did.
    pub(super) async fn request<R: RpcRecv>(
        &self,
        index: usize,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> RpcResult<R> {
        let endpoint = self.endpoints.get(index).ok_or(RpcError::Unreachable)?;
        let _place = self.wait_for_turn().await?;
        let started_at = Instant::now();
        let answer = endpoint.call(method, parameters).await;
        let now = Instant::now();
        match answer.as_ref().err().map(RpcError::kind) {
            None
            | Some(ErrorKind::Revert | ErrorKind::InvalidCall | ErrorKind::InsufficientFunds) => {
                endpoint.health().record_success(now - started_at);
                self.preferred.store(index, Relaxed);
            }
            Some(ErrorKind::RateLimited) => endpoint.health().record_rate_limit(now),
            Some(ErrorKind::ConnectionLost | ErrorKind::Other) => {
                let has_others = self.endpoints.len() > 1;
                endpoint.health().record_failure(now, has_others);
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
    async fn wait_for_turn(&self) -> RpcResult<Option<SemaphorePermit<'_>>> {
        let turn = self.turn().await;
        if turn.is_err() {
            reached(Limit::RpcCalls);
        }
        turn
    }

    async fn turn(&self) -> RpcResult<Option<SemaphorePermit<'_>>> {
        let place = match &self.callers {
            None => None,
            Some(callers) => match timeout(CALL_LIMIT, callers.acquire()).await {
                Ok(Ok(place)) => Some(place),
                Ok(Err(_)) | Err(_) => return Err(RpcError::OverBudget),
            },
        };
        match &self.budget {
            None => {}
            Some(budget) if place.is_some() => budget.wait_for_caller(CALL_LIMIT).await?,
            Some(budget) => budget.wait(CALL_LIMIT).await?,
        }
        Ok(place)
    }

    /// Indices of the usable endpoints, the best first; among equals, the one that answered last.
    pub(super) fn ranked(&self) -> Vec<usize> {
        let (now, preferred) = (Instant::now(), self.preferred.load(Relaxed));
        let endpoints = self.endpoints.iter();
        let healths: Vec<Health> = endpoints.map(|endpoint| *endpoint.health()).collect();
        let reported = healths.iter().map(|health| health.reported_head(now));
        let outliers = outliers(&reported.collect::<Vec<_>>());
        let rated = || healths.iter().zip(&outliers);
        let counting = rated().filter(|(_, outlier)| !**outlier);
        let best = counting.map(|(health, _)| health.height()).max();
        let best = best.unwrap_or_default();
        let ranks = rated().map(|(health, outlier)| health.rank(best, *outlier, now));
        let usable = ranks
            .enumerate()
            .filter(|(_, rank)| *rank != Rank::Excluded);
        let mut order: Vec<_> = usable.collect();
        order.sort_by_key(|(index, rank)| (*rank, *index != preferred, *index));
        order.into_iter().map(|(index, _)| index).collect()
    }

    /// Endpoints for calls with state overrides: those not known to lack them, or all, if all are known to lack them.
    pub(super) fn ranked_with_overrides(&self) -> Vec<usize> {
        let order = self.ranked();
        let supports = |index: &usize| {
            let endpoint = self.endpoints.get(*index);
            endpoint.is_some_and(|endpoint| endpoint.health().has_overrides)
        };
        let supporting: Vec<usize> = order.iter().copied().filter(supports).collect();
        if supporting.is_empty() {
            order
        } else {
            supporting
        }
    }

    pub(in crate::chain) fn record_overrides(&self, index: usize, has: bool) {
        let Some(endpoint) = self.endpoints.get(index) else {
            return;
        };
        let (network, number) = (self.network, index + 1);
        if std::mem::replace(&mut endpoint.health().has_overrides, has) == has {
            return;
        }
        if has {
            tracing::info!(%network, endpoint = number, "endpoint supports state overrides now; used to simulate payments");
        } else {
            tracing::warn!(%network, endpoint = number, "endpoint without state overrides: not used to simulate payments; use a node that takes the third parameter of eth_call");
        }
    }

    /// A read from the best endpoint. When it is late, a second one is asked as well; when it fails, the next one is asked.
    ///
    /// A revert is the same on every endpoint and ends the read. Other errors (a rate limit, an unsupported method) may be specific to an
    /// endpoint. Transient ones (a rate limit, a node that is a block behind, a broken connection) are retried.
    ///
    /// # Errors
    /// Of the errors of the last round, a transient one if there is one.
    pub(super) async fn read<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> RpcResult<R> {
        let check = |_: usize, answer| answer;
        retry_rounds(|| self.read_round(self.ranked(), method, &parameters, &check)).await
    }

    /// Asks one endpoint after the other until one gives a final answer. `check` turns an answer of the endpoint with this index into the
    /// result, or rejects it.
    pub(super) async fn read_round<R: RpcRecv, T>(
        &self,
        order: Vec<usize>,
        method: &'static str,
        parameters: &impl RpcSend,
        check: &impl Fn(usize, RpcResult<R>) -> RpcResult<T>,
    ) -> Result<T, Errors> {
        let mut last = RpcError::Unreachable;
        let mut order = order.into_iter();
        let request = async |index| {
            let answer = self.request(index, method, parameters.clone()).await;
            check(index, answer)
        };
        while let Some(first) = order.next() {
            let Some(endpoint) = self.endpoints.get(first) else {
                continue;
            };
            let pending = request(first);
            tokio::pin!(pending);
            let delay = endpoint.health().hedge_delay();
            let answer = match timeout(delay, &mut pending).await {
                Ok(answer) => answer,
                Err(_) => match order.next() {
                    None => pending.await,
                    Some(second) => hedge((endpoint, pending), request(second)).await,
                },
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_final() => return Err(vec![error]),
                // A transient error is kept in preference to a later one, because it makes the caller retry.
                Err(error) => {
                    if !last.is_transient() || last == RpcError::Unreachable {
                        last = error;
                    }
                }
            }
        }
        Err(vec![last])
    }

    /// Sends a request to every usable endpoint. The answers come with the endpoint's index, in the order in which they arrive.
    pub(super) fn ask_all<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> impl Stream<Item = (usize, RpcResult<R>)> + Unpin {
        let ask = |index| {
            let answer = self.request(index, method, parameters.clone());
            answer.map(move |answer| (index, answer))
        };
        self.ranked()
            .into_iter()
            .map(ask)
            .collect::<FuturesUnordered<_>>()
    }

    /// The answer that `confirm_with` endpoints give alike. Transient errors (a rate limit, a node that is a block behind, a broken
    /// connection) are retried.
    ///
    /// # Errors
    /// [`RpcError::NoAgreement`] when too few answer, [`RpcError::Disagreement`] when their answers differ; the last endpoint's error
    /// when none answers.
    pub(super) async fn agreed<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
        alike: impl Fn(&R, &R) -> bool,
    ) -> RpcResult<R> {
        retry_rounds(|| self.agreed_round(method, &parameters, &alike)).await
    }

    pub(super) async fn agreed_round<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: &impl RpcSend,
        alike: &impl Fn(&R, &R) -> bool,
    ) -> Result<R, Errors> {
        if self.one_is_enough() {
            let check = |_: usize, answer| answer;
            return self
                .read_round(self.ranked(), method, parameters, &check)
                .await;
        }
        let mut replies = self.ask_all::<R>(method, parameters.clone());
        let (mut answers, mut errors) = (Vec::<(R, usize)>::new(), Errors::new());
        while let Some((_, reply)) = replies.next().await {
            let answer = match reply {
                Ok(answer) => answer,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let known = answers.iter_mut().find(|(known, _)| alike(known, &answer));
            let times = known.map_or(1, |(_, times)| {
                *times += 1;
                *times
            });
            if times >= self.confirm_with {
                return Ok(answer);
            }
            if times == 1 {
                answers.push((answer, 1));
            }
        }
        match answers.as_slice() {
            [] => {}
            [_] => errors.push(RpcError::NoAgreement(method)),
            [_, _, ..] => errors.push(RpcError::Disagreement(method)),
        }
        Err(errors)
    }

    /// Sends a call to all endpoints at once, the send-only ones included, without waiting for a turn. The replies come in the order in
    /// which they arrive.
    pub(super) async fn send_to_all<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> Vec<RpcResult<R>> {
        let all = self.endpoints.iter().chain(self.send_only.iter());
        let replies = all.map(|endpoint| {
            if let Some(budget) = &self.budget {
                budget.take();
            }
            endpoint.call(method, parameters.clone())
        });
        replies.collect::<FuturesUnordered<_>>().collect().await
    }
}

/// The first final answer of a late endpoint and a second one.
async fn hedge<T>(
    (late, mut pending): (&Endpoint, impl Future<Output = RpcResult<T>> + Unpin),
    other: impl Future<Output = RpcResult<T>>,
) -> RpcResult<T> {
    tokio::pin!(other);
    let counts = |answer: &RpcResult<T>| answer.as_ref().err().is_none_or(RpcError::is_final);
    tokio::select! {
        answer = &mut pending => if counts(&answer) { answer } else { other.await },
        answer = &mut other => {
            if !counts(&answer) {
                return pending.await;
            }
            late.health().record_late(Instant::now());
            answer
        }
    }
}

/// The errors of a round over all endpoints. The last one is reported to the caller.
pub(in crate::chain) type Errors = Vec<RpcError>;

/// Repeats a round over all endpoints while one of its errors is transient, for at most [`CALL_LIMIT`].
pub(in crate::chain) async fn retry_rounds<T, Round>(round: impl Fn() -> Round) -> RpcResult<T>
where
    Round: Future<Output = Result<T, Errors>>,
{
    let (mut pauses, give_up) = (RetryPauses::default(), Instant::now() + CALL_LIMIT);
    loop {
        let mut errors = match round().await {
            Ok(answer) => return Ok(answer),
            Err(errors) => errors,
        };
        let pause = errors.iter().find_map(|error| pauses.after(error));
        match pause.filter(|pause| Instant::now() + *pause < give_up) {
            Some(pause) => sleep(pause).await,
            None => return Err(errors.pop().unwrap_or(RpcError::Unreachable)),
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
