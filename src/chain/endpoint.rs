//! One endpoint of a network, and how it is doing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alloy::rpc::client::RpcClient;
use tokio::time::Instant;

use crate::chain::belief::Claim;

/// Failures in a row after which an endpoint rests, and comes back only once it has shown its chain again.
const FAILURES_MAX: u32 = 3;
/// How long an endpoint rests that kept silent, or failed too often.
const REST: Duration = Duration::from_secs(5);
/// How long the newest block that an endpoint has shown tells where it is.
const CLAIM_KEPT: Duration = Duration::from_secs(15);
/// How long others are asked first after an endpoint has said that it gets too many calls.
const SLOWED: Duration = Duration::from_secs(1);
/// Blocks behind the best head that are normal between nodes.
const BEHIND_MAX: u64 = 2;
/// The least and the most that a read waits before another endpoint is asked as well.
const HEDGE_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// An answer that takes this many times as long as usual is late.
const LATE: u32 = 4;

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) client: RpcClient,
    health: Mutex<Health>,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Health {
    failures: u32,
    rests_until: Option<Instant>,
    head: Option<(Claim, Instant)>,
    chain: Chain,
    /// Whether it is known to lack state overrides.
    without_overrides: bool,
    /// Moving average of good answers.
    latency: Duration,
}

/// Which chain an endpoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chain {
    /// The configured one, when it was last asked.
    Ours,
    /// It was away since: another chain may have come back.
    Unknown,
    /// Another one: never used.
    Other,
}

/// How willingly an endpoint is read from; the first is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Good,
    /// Its newest block is old.
    Behind,
    /// It failed or kept silent just now.
    Resting,
    /// The newest block that it shows is far from everybody else's.
    Doubted,
    /// What it serves may be another chain: not read from.
    Barred,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            failures: 0,
            rests_until: None,
            head: None,
            chain: Chain::Ours,
            without_overrides: false,
            latency: Duration::from_millis(50),
        }
    }
}

impl Health {
    pub(super) fn rank(&self, best_head: u64, doubted: bool, now: Instant) -> Rank {
        if self.chain != Chain::Ours {
            Rank::Barred
        } else if doubted {
            Rank::Doubted
        } else if self.rests_until.is_some_and(|until| until > now) {
            Rank::Resting
        } else if self.head().saturating_add(BEHIND_MAX) < best_head {
            Rank::Behind
        } else {
            Rank::Good
        }
    }

    /// Height of the newest block that it has shown.
    pub(super) fn head(&self) -> u64 {
        self.head.map_or(0, |(claim, _)| claim.number)
    }

    /// The newest block that it has lately shown.
    pub(super) fn claim(&self, now: Instant) -> Option<Claim> {
        let lately = |(_, at): &(Claim, Instant)| now.duration_since(*at) < CLAIM_KEPT;
        self.head.filter(lately).map(|(claim, _)| claim)
    }

    /// How long to wait for an answer before another endpoint is asked as well.
    pub(super) fn patience(&self) -> Duration {
        (self.latency * LATE).clamp(HEDGE_AFTER.0, HEDGE_AFTER.1)
    }

    /// Whether it carries out state overrides, as far as is known.
    pub(super) const fn has_overrides(&self) -> bool {
        !self.without_overrides
    }

    fn answered(&mut self, took: Duration) {
        (self.failures, self.rests_until) = (0, None);
        self.latency = (self.latency * 7 + took) / 8;
    }

    fn failed(&mut self, now: Instant, others: bool) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.rest(now);
            // The only endpoint is used all the same: nobody else could be.
            if others {
                self.chain = Chain::Unknown;
            }
        }
    }

    fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + REST);
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

    /// The newest block that it has lately shown.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.health().claim(Instant::now())
    }

    fn note(&self, change: impl FnOnce(&mut Health)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// It gave an answer that counts.
    pub(super) fn answered(&self, took: Duration) {
        self.note(|health| health.answered(took));
    }

    /// It failed; `others` exist.
    pub(super) fn failed(&self, others: bool) {
        self.note(|health| health.failed(Instant::now(), others));
    }

    /// Another endpoint answered while this one kept silent.
    pub(super) fn was_late(&self) {
        self.note(|health| health.rest(Instant::now()));
    }

    /// It gets more calls than it takes: others are asked first for a while. No mark against it.
    pub(super) fn slows_down(&self) {
        self.note(|health| health.rests_until = Some(Instant::now() + SLOWED));
    }

    /// Whether it carries out state overrides; returns what was thought before.
    pub(super) fn overrides(&self, has: bool) -> bool {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::replace(&mut health.without_overrides, !has)
    }

    /// Its newest block.
    pub(super) fn is_at(&self, head: Claim) {
        self.note(|health| health.head = Some((head, Instant::now())));
    }

    /// Which chain it serves; returns which it was thought to serve.
    pub(super) fn serves(&self, chain: Chain) -> Chain {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut health.chain, chain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_rank_by_chain_then_rest_then_age_of_their_head() {
        let now = Instant::now();
        let good = Health {
            head: Some((
                Claim {
                    number: 98,
                    time: 0,
                },
                now,
            )),
            ..Health::default()
        };
        assert_eq!(good.rank(100, false, now), Rank::Good);
        assert_eq!(good.rank(101, false, now), Rank::Behind);
        assert_eq!(good.rank(100, true, now), Rank::Doubted);
        let mut failing = good;
        failing.failed(now, true);
        failing.failed(now, true);
        assert_eq!(
            failing.rank(100, false, now),
            Rank::Good,
            "twice may happen"
        );
        failing.failed(now, true);
        assert_eq!(failing.rank(100, false, now), Rank::Barred);
        let mut alone = good;
        for _ in 0..3 {
            alone.failed(now, false);
        }
        assert_eq!(
            alone.rank(100, false, now),
            Rank::Resting,
            "the only one is used"
        );
        assert_eq!(alone.rank(100, false, now + REST), Rank::Good);
        alone.answered(Duration::from_millis(10));
        assert_eq!(alone.rank(100, false, now), Rank::Good);
    }

    #[test]
    fn patience_follows_what_answers_usually_take() {
        let mut health = Health::default();
        for _ in 0..50 {
            health.answered(Duration::from_millis(1));
        }
        assert_eq!(health.patience(), HEDGE_AFTER.0);
        for _ in 0..50 {
            health.answered(Duration::from_millis(200));
        }
        assert!(health.patience() > Duration::from_millis(700));
        for _ in 0..50 {
            health.answered(Duration::from_secs(4));
        }
        assert_eq!(health.patience(), HEDGE_AFTER.1);
    }
}
