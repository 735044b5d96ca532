//! One endpoint of a network: a call with a time limit, its health, and whether its newest block is credible beside those of the others.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{RpcError as AlloyRpcError, RpcRecv, RpcSend};
use alloy::transports::TransportErrorKind;
use tokio::time::{Instant, timeout};

use crate::chain::rpc::answers::Head;
use crate::chain::rpc::error::{ErrorKind, RpcError, RpcResult};
use crate::clock::{Clock as _, SystemClock};
use crate::telemetry::metrics::{EndpointMetrics, RpcOutcome};

/// Time limit of a call. Reads are small: a node that needs longer counts as failed, and another endpoint is tried. A node may delay its
/// reply to a send while it validates the transaction.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Failures in a row after which an endpoint is avoided and its chain must be checked again before it is used.
const FAILURES_MAX: u32 = 3;
/// How long an endpoint is avoided after it was late or failed too often.
const AVOID_FOR: Duration = Duration::from_secs(5);
/// How long the reported newest block of an endpoint is used for comparison.
const REPORT_VALID_FOR: Duration = Duration::from_secs(15);
/// How long an endpoint is avoided after it has reported a rate limit.
const RATE_LIMITED_FOR: Duration = Duration::from_secs(1);
/// How many blocks behind the best head an endpoint may be without a lower rank.
const BEHIND_MAX: u64 = 2;
/// Lower and upper bound of the wait before a read is sent to a second endpoint as well.
const HEDGE_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A read is sent to a second endpoint after this many times the usual latency.
const HEDGE_FACTOR: u32 = 4;
/// By how many blocks and seconds the newest blocks of honest endpoints may differ.
const NEAR_BLOCKS: u64 = 64;
const NEAR_SECONDS: u64 = 15 * 60;
/// A newest block whose time differs from the clock by more than this is not current.
const PRESENT_SECONDS: u64 = 10 * 60;

#[derive(Debug)]
pub(in crate::chain) struct Endpoint {
    client: RpcClient,
    /// The host of its URL, of which nothing else may be shown.
    host: String,
    /// Where its calls are timed, in the service.
    pub(super) metrics: OnceLock<EndpointMetrics>,
    health: Mutex<Health>,
}

/// Recent observations of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain) struct Health {
    failures: u32,
    avoided_until: Option<Instant>,
    /// The last reported newest block, and when it was reported.
    head: Option<(Head, Instant)>,
    pub(in crate::chain) chain: Chain,
    /// Whether it supports state overrides; true until the opposite is known.
    pub(in crate::chain) has_overrides: bool,
    /// Moving average of the time of successful calls.
    latency: Duration,
}

/// The chain that an endpoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain) enum Chain {
    /// The configured chain, when it was last checked.
    Configured,
    /// It has failed since the last check and may serve another chain when it returns.
    Unknown,
    /// Another chain: never used.
    Other,
}

/// The preference of an endpoint for reads; the first is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Good,
    /// Its newest block is old.
    Behind,
    /// It recently failed, was late or reported a rate limit.
    Avoided,
    /// Its newest block is far from those of the other endpoints.
    Outlier,
    /// It may serve another chain: not read from.
    Excluded,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            failures: 0,
            avoided_until: None,
            head: None,
            chain: Chain::Configured,
            has_overrides: true,
            latency: Duration::from_millis(50),
        }
    }
}

impl Health {
    pub(super) fn rank(&self, best_head: u64, outlier: bool, now: Instant) -> Rank {
        if self.chain != Chain::Configured {
            Rank::Excluded
        } else if outlier {
            Rank::Outlier
        } else if self.avoided_until.is_some_and(|until| until > now) {
            Rank::Avoided
        } else if self.height().saturating_add(BEHIND_MAX) < best_head {
            Rank::Behind
        } else {
            Rank::Good
        }
    }

    /// Height of the last reported newest block; 0 without one.
    pub(super) fn height(&self) -> u64 {
        self.head.map_or(0, |(head, _)| head.number)
    }

    /// The reported newest block, unless the report is too old.
    pub(in crate::chain) fn reported_head(&self, now: Instant) -> Option<Head> {
        let lately = |(_, at): &(Head, Instant)| now.duration_since(*at) < REPORT_VALID_FOR;
        self.head.filter(lately).map(|(head, _)| head)
    }

    /// How long to wait for an answer before a second endpoint is asked as well.
    pub(super) fn hedge_delay(&self) -> Duration {
        (self.latency * HEDGE_FACTOR).clamp(HEDGE_AFTER.0, HEDGE_AFTER.1)
    }

    pub(super) fn record_success(&mut self, took: Duration) {
        (self.failures, self.avoided_until) = (0, None);
        self.latency = (self.latency * 7 + took) / 8;
    }

    /// `has_others`: whether the network has other endpoints.
    pub(in crate::chain) fn record_failure(&mut self, now: Instant, has_others: bool) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.record_late(now);
            // A single endpoint stays in use, because there is no alternative.
            if has_others {
                self.chain = Chain::Unknown;
            }
        }
    }

    /// Another endpoint answered before this one.
    pub(super) fn record_late(&mut self, now: Instant) {
        self.avoided_until = Some(now + AVOID_FOR);
    }

    /// It reported a rate limit. Others are preferred for a while; this does not count as a failure.
    pub(super) fn record_rate_limit(&mut self, now: Instant) {
        self.avoided_until = Some(now + RATE_LIMITED_FOR);
    }

    pub(in crate::chain) fn record_head(&mut self, now: Instant, head: Head) {
        self.head = Some((head, now));
    }
}

impl Endpoint {
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn new(client: RpcClient, host: String) -> Self {
        Self {
            client,
            host,
            metrics: OnceLock::new(),
            health: Mutex::default(),
        }
    }

    pub(in crate::chain) fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that takes no longer than [`CALL_LIMIT`].
    pub(super) async fn call<R: RpcRecv>(
        &self,
        method: &'static str,
        parameters: impl RpcSend,
    ) -> RpcResult<R> {
        let began = Instant::now();
        let answer = match timeout(CALL_LIMIT, self.client.request(method, parameters)).await {
            Err(_) => Err(RpcError::Timeout),
            Ok(answer) => answer.map_err(|error| redact(error, method)),
        };
        if let Some(metrics) = self.metrics.get() {
            metrics.called(method, outcome_of(answer.as_ref().err()), began.elapsed());
        }
        answer
    }
}

fn outcome_of(error: Option<&RpcError>) -> RpcOutcome {
    match error {
        None => RpcOutcome::Ok,
        Some(error) if error.kind() == ErrorKind::RateLimited => RpcOutcome::Limited,
        Some(RpcError::Refused { .. }) => RpcOutcome::Error,
        Some(_) => RpcOutcome::Failed,
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

/// Whether two newest blocks can come from the same chain at the same time.
pub(in crate::chain) fn is_near(one: &Head, other: &Head) -> bool {
    let seconds = |head: &Head| head.time.unix_timestamp();
    one.number.abs_diff(other.number) <= NEAR_BLOCKS
        && seconds(one).abs_diff(seconds(other)) <= NEAR_SECONDS
}

fn is_current(head: &Head, now: i64) -> bool {
    head.time.unix_timestamp().abs_diff(now) <= PRESENT_SECONDS
}

/// Which endpoints have reported a newest block that is not credible. An endpoint without a report is no outlier.
///
/// A block is credible if another endpoint reports one near it, or if it is the only one. If all contradict each other, only the lowest
/// of the current ones is credible (of all, if none is current): it is behind only according to single, unsupported reports.
pub(in crate::chain) fn outliers(reported: &[Option<Head>]) -> Vec<bool> {
    outliers_at(SystemClock.now().unix_timestamp(), reported)
}

fn outliers_at(now: i64, reported: &[Option<Head>]) -> Vec<bool> {
    let heads = || reported.iter().flatten();
    // Each block is near itself, so support takes a second one.
    let supported = |head: &Head| heads().filter(|other| is_near(head, other)).count() > 1;
    let any_support = heads().any(supported);
    let current = heads().filter(|head| is_current(head, now));
    let lowest = current
        .min_by_key(|head| head.number)
        .or_else(|| heads().min_by_key(|head| head.number));
    let is_credible = |head: &Head| {
        if any_support {
            supported(head)
        } else {
            lowest == Some(head)
        }
    };
    reported
        .iter()
        .map(|head| head.as_ref().is_some_and(|head| !is_credible(head)))
        .collect()
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn head(number: u64, time: i64) -> Head {
        let time = OffsetDateTime::from_unix_timestamp(time).unwrap();
        Head {
            number,
            time,
            ..Head::default()
        }
    }

    fn credible_of<const N: usize>(heads: [Head; N]) -> Vec<bool> {
        let outliers = outliers_at(NOW, &heads.map(Some));
        outliers.into_iter().map(|outlier| !outlier).collect()
    }

    #[test]
    fn head_far_ahead_is_credible_only_with_another_endpoint_near_it() {
        let (honest, ahead) = (head(100, NOW), head(1_000_100, NOW));
        assert_eq!(credible_of([honest, ahead]), [true, false]);
        assert_eq!(credible_of([ahead, honest]), [false, true]);
        assert_eq!(
            outliers_at(NOW, &[Some(ahead), None]),
            [false, false],
            "no other endpoint answers"
        );
        let near = head(164, NOW);
        assert_eq!(credible_of([honest, near, ahead]), [true, true, false]);
        let also_ahead = head(1_000_099, NOW);
        assert_eq!(
            credible_of([honest, ahead, also_ahead]),
            [false, true, true],
            "one stopped endpoint and two current ones"
        );
    }

    #[test]
    fn of_two_contradicting_heads_the_current_one_is_credible() {
        let (stopped, current) = (head(100, NOW - 7_200), head(3_700, NOW));
        assert_eq!(credible_of([stopped, current]), [false, true]);
        let (honest, future) = (head(100, NOW), head(101, NOW + 7_200));
        assert_eq!(credible_of([honest, future]), [true, false]);
        let past = head(99, NOW - 86_400);
        assert_eq!(credible_of([past, honest]), [false, true]);
    }

    #[test]
    fn chain_time_far_from_the_clock_is_credible_without_contradiction() {
        let future = head(100, NOW + 86_400);
        assert_eq!(credible_of([future]), [true]);
        assert_eq!(credible_of([future, head(101, NOW + 86_402)]), [true, true]);
        assert_eq!(outliers_at(NOW, &[None, None]), [false, false]);
    }

    #[test]
    fn rank_follows_chain_then_failures_then_age_of_the_head() {
        let now = Instant::now();
        let good = Health {
            head: Some((head(98, 0), now)),
            ..Health::default()
        };
        assert_eq!(good.rank(100, false, now), Rank::Good);
        assert_eq!(good.rank(101, false, now), Rank::Behind);
        assert_eq!(good.rank(100, true, now), Rank::Outlier);
        let mut failing = good;
        failing.record_failure(now, true);
        failing.record_failure(now, true);
        assert_eq!(
            failing.rank(100, false, now),
            Rank::Good,
            "two failures are tolerated"
        );
        failing.record_failure(now, true);
        assert_eq!(failing.rank(100, false, now), Rank::Excluded);
        let mut alone = good;
        for _ in 0..3 {
            alone.record_failure(now, false);
        }
        assert_eq!(
            alone.rank(100, false, now),
            Rank::Avoided,
            "a single endpoint stays in use"
        );
        assert_eq!(alone.rank(100, false, now + AVOID_FOR), Rank::Good);
        alone.record_success(Duration::from_millis(10));
        assert_eq!(alone.rank(100, false, now), Rank::Good);
    }

    #[test]
    fn hedge_delay_follows_the_usual_latency() {
        let mut health = Health::default();
        for _ in 0..50 {
            health.record_success(Duration::from_millis(1));
        }
        assert_eq!(health.hedge_delay(), HEDGE_AFTER.0);
        for _ in 0..50 {
            health.record_success(Duration::from_millis(200));
        }
        assert!(health.hedge_delay() > Duration::from_millis(700));
        for _ in 0..50 {
            health.record_success(Duration::from_secs(4));
        }
        assert_eq!(health.hedge_delay(), HEDGE_AFTER.1);
    }
}
