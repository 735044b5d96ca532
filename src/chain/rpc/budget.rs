//! What a network's calls may cost: the limit on calls per second (`rpc_calls_per_second`), with the priority of sends, engine and callers
//! within it, and the providers' limit on blocks per `eth_getLogs` call.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::chain::rpc::error::{RpcError, RpcResult};

/// How long unused calls can still be used.
const BURST: Duration = Duration::from_secs(1);
/// The part of [`BURST`] that is reserved for the engine.
const RESERVE: Duration = Duration::from_millis(500);
/// Blocks per `eth_getLogs` call, until a provider rejects that as too many.
const RANGE: u64 = 1_000;
/// After this many accepted calls, a reduced range is doubled again.
const WIDEN_AFTER: u64 = 50;

/// Evenly spaced turns. A send takes its turn without waiting, because a delayed send delays settlement. The engine's calls reserve a
/// turn and wait for it. Calls of callers only get turns that sends and the engine leave unused.
/// Our own and not the crate `governor`, which has no call that goes ahead of its turn and delays the others.
#[derive(Debug)]
pub(super) struct Budget {
    interval: Duration,
    next: Mutex<Option<Instant>>,
    /// Calls of callers, first come first served.
    queue: Semaphore,
}

impl Budget {
    /// A budget of `calls` per second; 0 is treated as 1.
    pub(super) fn per_second(calls: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / calls.max(1),
            next: Mutex::default(),
            queue: Semaphore::new(1),
        }
    }

    /// Waits for a turn, if that takes no longer than `max_wait`.
    pub(super) async fn wait(&self, max_wait: Duration) -> RpcResult<()> {
        let turn = self.reserve(Instant::now(), Some(max_wait))?;
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    /// Waits for a turn that the engine leaves unused, if that takes no longer than `max_wait`. No turn is reserved while waiting.
    pub(super) async fn wait_for_caller(&self, max_wait: Duration) -> RpcResult<()> {
        let deadline = Instant::now() + max_wait;
        let first = timeout_at(deadline, self.queue.acquire()).await;
        let Ok(Ok(_first)) = first else {
            return Err(RpcError::OverBudget);
        };
        while let Some(due) = self.try_take_spare(Instant::now()) {
            if due > deadline {
                return Err(RpcError::OverBudget);
            }
            tokio::time::sleep_until(due).await;
        }
        Ok(())
    }

    /// Takes an unused turn and returns `None`; otherwise returns the time at which there may be one.
    fn try_take_spare(&self, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        let due = turn + RESERVE;
        if due > now {
            return Some(due);
        }
        *next = Some(turn + self.interval);
        None
    }

    /// Takes a turn without waiting for it.
    pub(super) fn take(&self) {
        let _ = self.reserve(Instant::now(), None);
    }

    fn reserve(&self, now: Instant, max_wait: Option<Duration>) -> RpcResult<Instant> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        if max_wait.is_some_and(|max_wait| turn > now + max_wait) {
            return Err(RpcError::OverBudget);
        }
        *next = Some(turn + self.interval);
        Ok(turn)
    }
}

/// The block range per `eth_getLogs` call that the network's providers accept, as learned so far.
#[derive(Debug)]
pub(in crate::chain) struct LogRange {
    /// Blocks per call.
    blocks: AtomicU64,
    /// Calls with that range that were accepted in a row.
    accepted: AtomicU64,
}

impl Default for LogRange {
    fn default() -> Self {
        Self {
            blocks: AtomicU64::new(RANGE),
            accepted: AtomicU64::new(0),
        }
    }
}

impl LogRange {
    pub(in crate::chain) fn blocks(&self) -> u64 {
        self.blocks.load(Relaxed)
    }

    pub(super) fn shrink(&self, width: u64) {
        self.accepted.store(0, Relaxed);
        self.blocks.fetch_min((width / 2).max(1), Relaxed);
    }

    pub(super) fn record_accepted(&self) {
        let blocks = self.blocks();
        if blocks >= RANGE || self.accepted.fetch_add(1, Relaxed) < WIDEN_AFTER {
            return;
        }
        self.accepted.store(0, Relaxed);
        let wider = blocks.saturating_mul(2).min(RANGE);
        self.blocks.store(wider, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_halved_when_rejected_and_doubled_after_many_accepted_calls() {
        let range = LogRange::default();
        let mut rejected = 0;
        while range.blocks() > 5 {
            range.shrink(range.blocks());
            rejected += 1;
        }
        assert_eq!((range.blocks(), rejected), (3, 8));
        for _ in 0..=WIDEN_AFTER {
            range.record_accepted();
        }
        assert_eq!(range.blocks(), 6);
        range.shrink(1);
        assert_eq!(range.blocks(), 1, "at least one block");
    }

    #[test]
    fn burst_has_the_calls_of_one_second_and_unused_ones_before() {
        let budget = Budget::per_second(10);
        let max_wait = Some(Duration::from_secs(5));
        let now = Instant::now();
        let turns: Vec<_> = (0..30)
            .map(|_| budget.reserve(now, max_wait).unwrap())
            .collect();
        let at_once = turns.iter().filter(|turn| **turn <= now).count();
        assert_eq!(at_once, 11, "a second's worth, and the first");
        assert_eq!(turns[20], now + Duration::from_secs(1));
        assert_eq!(turns[29], now + Duration::from_millis(1_900));
    }

    #[test]
    fn callers_get_only_turns_that_the_engine_leaves_unused() {
        let budget = Budget::per_second(10);
        let now = Instant::now() + Duration::from_secs(5);
        let left = std::iter::from_fn(|| budget.try_take_spare(now).is_none().then_some(()));
        assert_eq!(left.take(100).count(), 6, "half of a burst");
        let at_once = |_: &i32| budget.reserve(now, Some(Duration::ZERO)).is_ok();
        assert_eq!(
            (0..100).filter(at_once).count(),
            5,
            "the other half is the engine's"
        );
        let due = budget.try_take_spare(now).unwrap();
        assert!(
            due > now + RESERVE,
            "callers wait for the turns that the engine has taken"
        );
        assert_eq!(budget.try_take_spare(due), None);
    }

    #[test]
    fn turn_after_the_time_limit_is_not_reserved() {
        let budget = Budget::per_second(1);
        let (now, max_wait) = (Instant::now(), Some(Duration::from_secs(2)));
        let turns = std::iter::from_fn(|| budget.reserve(now, max_wait).ok());
        assert_eq!(turns.take(9).count(), 4);
        budget.take();
        let later = now + Duration::from_secs(2);
        assert!(
            budget.reserve(later, max_wait).is_ok(),
            "a taken turn only delays the others"
        );
    }
}
