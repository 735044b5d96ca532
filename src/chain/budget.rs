//! The limit on RPC calls per second of a network (`rpc_calls_per_second`), and the priority of sends, engine and callers within it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// How long unused calls can still be used.
const BURST: Duration = Duration::from_secs(1);
/// The part of [`BURST`] that is reserved for the engine.
const RESERVE: Duration = Duration::from_millis(500);

/// Evenly spaced turns. A send takes its turn without waiting, because a delayed send delays settlement. The engine's calls reserve a
/// turn and wait for it. Calls of callers only get turns that sends and the engine leave unused.
#[derive(Debug)]
pub(super) struct Budget {
    interval: Duration,
    next: Mutex<Option<Instant>>,
    /// Calls of callers, first come first served.
    queue: Semaphore,
}

/// There is no turn before the time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

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
    pub(super) async fn wait(&self, max_wait: Duration) -> Result<(), Exhausted> {
        let turn = self.reserve(Instant::now(), Some(max_wait))?;
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    /// Waits for a turn that the engine leaves unused, if that takes no longer than `max_wait`. No turn is reserved while waiting.
    pub(super) async fn wait_for_caller(&self, max_wait: Duration) -> Result<(), Exhausted> {
        let deadline = Instant::now() + max_wait;
        let first = timeout_at(deadline, self.queue.acquire()).await;
        let _first = first.map_err(|_| Exhausted)?.map_err(|_| Exhausted)?;
        while let Some(due) = self.try_take_spare(Instant::now()) {
            if due > deadline {
                return Err(Exhausted);
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

    fn reserve(&self, now: Instant, max_wait: Option<Duration>) -> Result<Instant, Exhausted> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        if max_wait.is_some_and(|max_wait| turn > now + max_wait) {
            return Err(Exhausted);
        }
        *next = Some(turn + self.interval);
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
