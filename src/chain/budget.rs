//! How many calls a second the endpoints of a network may be asked, where the operator pays for each, and who comes first.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// What was not used may be used within this long.
const BURST: Duration = Duration::from_secs(1);
/// As much of it as callers leave to the engine.
const RESERVE: Duration = Duration::from_millis(500);

/// Turns, evenly spaced. A send takes its turn without waiting for it: money is on its way. The engine's calls take theirs ahead; callers'
/// questions get what these leave.
#[derive(Debug)]
pub(super) struct Budget {
    gap: Duration,
    next: Mutex<Option<Instant>>,
    /// Callers' questions, first come first served.
    line: Semaphore,
}

/// The turn would come too late to be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Budget {
    /// So many calls a second; 0 is treated as 1.
    pub(super) fn per_second(calls: u32) -> Self {
        Self {
            gap: Duration::from_secs(1) / calls.max(1),
            next: Mutex::default(),
            line: Semaphore::new(1),
        }
    }

    /// Waits for a turn, if that takes no longer than `patience`.
    pub(super) async fn wait(&self, patience: Duration) -> Result<(), Exhausted> {
        let turn = self.reserve(Instant::now(), Some(patience))?;
        tokio::time::sleep_until(turn).await;
        Ok(())
    }

    /// Waits for a turn that the engine leaves, if that takes no longer than `patience`. No turn is held while waiting.
    pub(super) async fn wait_behind(&self, patience: Duration) -> Result<(), Exhausted> {
        let deadline = Instant::now() + patience;
        let first = timeout_at(deadline, self.line.acquire()).await;
        let _first = first.map_err(|_| Exhausted)?.map_err(|_| Exhausted)?;
        while let Some(due) = self.take_left(Instant::now()) {
            if due > deadline {
                return Err(Exhausted);
            }
            tokio::time::sleep_until(due).await;
        }
        Ok(())
    }

    /// Takes a turn that is left over; else tells when there may be one.
    fn take_left(&self, now: Instant) -> Option<Instant> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        let due = turn + RESERVE;
        if due > now {
            return Some(due);
        }
        *next = Some(turn + self.gap);
        None
    }

    /// Takes a turn at once.
    pub(super) fn take(&self) {
        let _ = self.reserve(Instant::now(), None);
    }

    fn reserve(&self, now: Instant, patience: Option<Duration>) -> Result<Instant, Exhausted> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.map_or(earliest, |next| next.max(earliest));
        if patience.is_some_and(|patience| turn > now + patience) {
            return Err(Exhausted);
        }
        *next = Some(turn + self.gap);
        Ok(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holds_its_calls_and_what_the_second_before_left_over() {
        let budget = Budget::per_second(10);
        let patience = Some(Duration::from_secs(5));
        let now = Instant::now();
        let turns: Vec<_> = (0..30)
            .map(|_| budget.reserve(now, patience).unwrap())
            .collect();
        let at_once = turns.iter().filter(|turn| **turn <= now).count();
        assert_eq!(at_once, 11, "a second's worth, and the first");
        assert_eq!(turns[20], now + Duration::from_secs(1));
        assert_eq!(turns[29], now + Duration::from_millis(1_900));
    }

    #[test]
    fn callers_take_what_the_engine_leaves() {
        let budget = Budget::per_second(10);
        let now = Instant::now() + Duration::from_secs(5);
        let left = std::iter::from_fn(|| budget.take_left(now).is_none().then_some(()));
        assert_eq!(left.take(100).count(), 6, "half of a burst");
        let at_once = |_: &i32| budget.reserve(now, Some(Duration::ZERO)).is_ok();
        assert_eq!(
            (0..100).filter(at_once).count(),
            5,
            "the other half is the engine's"
        );
        let due = budget.take_left(now).unwrap();
        assert!(
            due > now + RESERVE,
            "callers wait until the engine's calls are paid for"
        );
        assert_eq!(budget.take_left(due), None);
    }

    #[test]
    fn a_turn_that_comes_too_late_is_not_taken() {
        let budget = Budget::per_second(1);
        let (now, patience) = (Instant::now(), Some(Duration::from_secs(2)));
        let turns = std::iter::from_fn(|| budget.reserve(now, patience).ok());
        assert_eq!(turns.take(9).count(), 4);
        budget.take();
        let later = now + Duration::from_secs(2);
        assert!(
            budget.reserve(later, patience).is_ok(),
            "others are later only"
        );
    }
}
