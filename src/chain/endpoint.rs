//! One endpoint of a network and its health.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alloy::rpc::client::RpcClient;
use tokio::time::Instant;

use crate::chain::outliers::ReportedHead;

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

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) client: RpcClient,
    health: Mutex<Health>,
}

/// Recent observations of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    failures: u32,
    avoided_until: Option<Instant>,
    head: Option<(ReportedHead, Instant)>,
    chain: Chain,
    /// Whether it is known not to support state overrides.
    without_overrides: bool,
    /// Moving average of the time of successful calls.
    latency: Duration,
}

/// The chain that an endpoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
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
            without_overrides: false,
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
        } else if self.head().saturating_add(BEHIND_MAX) < best_head {
            Rank::Behind
        } else {
            Rank::Good
        }
    }

    /// Height of the last reported newest block; 0 without one.
    pub(super) fn head(&self) -> u64 {
        self.head.map_or(0, |(head, _)| head.number)
    }

    /// The reported newest block, unless the report is too old.
    pub(super) fn reported_head(&self, now: Instant) -> Option<ReportedHead> {
        let lately = |(_, at): &(ReportedHead, Instant)| now.duration_since(*at) < REPORT_VALID_FOR;
        self.head.filter(lately).map(|(head, _)| head)
    }

    /// How long to wait for an answer before a second endpoint is asked as well.
    pub(super) fn hedge_delay(&self) -> Duration {
        (self.latency * HEDGE_FACTOR).clamp(HEDGE_AFTER.0, HEDGE_AFTER.1)
    }

    /// Whether it supports state overrides; true until the opposite is known.
    pub(super) const fn has_overrides(&self) -> bool {
        !self.without_overrides
    }

    fn record_success(&mut self, took: Duration) {
        (self.failures, self.avoided_until) = (0, None);
        self.latency = (self.latency * 7 + took) / 8;
    }

    fn record_failure(&mut self, now: Instant, has_others: bool) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.avoid(now);
            // A single endpoint stays in use, because there is no alternative.
            if has_others {
                self.chain = Chain::Unknown;
            }
        }
    }

    fn avoid(&mut self, now: Instant) {
        self.avoided_until = Some(now + AVOID_FOR);
    }
}

impl Endpoint {
    pub(super) fn new(client: RpcClient) -> Self {
        Self {
            client,
            health: Mutex::default(),
        }
    }

    pub(super) fn health(&self) -> Health {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reported newest block, unless the report is too old.
    pub(super) fn reported_head(&self) -> Option<ReportedHead> {
        self.health().reported_head(Instant::now())
    }

    fn update(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn record_success(&self, took: Duration) {
        self.update(|health| health.record_success(took));
    }

    /// `has_others`: whether the network has other endpoints.
    pub(super) fn record_failure(&self, has_others: bool) {
        self.update(|health| health.record_failure(Instant::now(), has_others));
    }

    /// Another endpoint answered before this one.
    pub(super) fn record_late(&self) {
        self.update(|health| health.avoid(Instant::now()));
    }

    /// It reported a rate limit. Others are preferred for a while; this does not count as a failure.
    pub(super) fn record_rate_limit(&self) {
        self.update(|health| health.avoided_until = Some(Instant::now() + RATE_LIMITED_FOR));
    }

    /// Records whether it supports state overrides; returns the previous value.
    pub(super) fn set_overrides(&self, has: bool) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut health.without_overrides, !has)
    }

    pub(super) fn record_head(&self, head: ReportedHead) {
        self.update(|health| health.head = Some((head, Instant::now())));
    }

    /// Records the chain that it serves; returns the previous value.
    pub(super) fn set_chain(&self, chain: Chain) -> Chain {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut health.chain, chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_follows_chain_then_failures_then_age_of_the_head() {
        let now = Instant::now();
        let good = Health {
            head: Some((
                ReportedHead {
                    number: 98,
                    time: 0,
                },
                now,
            )),
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
