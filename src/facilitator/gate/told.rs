//! Payments that callers were told are valid. Their handlers run, and stock sellers do not repeat a settle that was refused for its rate.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::Instant;

use crate::facilitator::Caller;
use crate::facilitator::gate::rates::Counted;

/// Payments remembered, at most; the oldest are forgotten first.
const KEPT_MAX: usize = 50_000;

/// A payment, and the caller that was told.
type Key = (Counted, B256);

#[derive(Debug)]
pub(super) struct Told {
    kept_for: Duration,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    told: HashMap<Key, Instant>,
    /// A payment that was told again has two places, of which the later one counts.
    oldest_first: VecDeque<(Key, Instant)>,
}

impl Told {
    pub(super) fn new(kept_for: Duration) -> Self {
        Self {
            kept_for,
            memory: Mutex::default(),
        }
    }

    pub(super) fn contains(&self, caller: &Caller, digest: B256, now: Instant) -> bool {
        let Some(counted) = Counted::of(caller) else {
            return false;
        };
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let told = memory.told.get(&(counted, digest));
        told.is_some_and(|at| now.duration_since(*at) < self.kept_for)
    }

    pub(super) fn remember(&self, caller: &Caller, digest: B256, now: Instant) {
        let Some(counted) = Counted::of(caller) else {
            return;
        };
        let key = (counted, digest);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.told.insert(key, now);
        memory.oldest_first.push_back((key, now));
        while let Some((key, at)) = memory.oldest_first.front().copied()
            && (memory.oldest_first.len() > KEPT_MAX || now.duration_since(at) >= self.kept_for)
        {
            memory.oldest_first.pop_front();
            if memory.told.get(&key) == Some(&at) {
                memory.told.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Who;

    fn caller(last: u8) -> Caller {
        Caller {
            who: Who::Anonymous,
            key: None,
            client: [10, 0, 0, last].into(),
            request_id: String::new(),
            asked_as: String::new(),
        }
    }

    #[test]
    fn told_payment_is_remembered_for_its_caller_and_its_time() {
        let told = Told::new(Duration::from_secs(10));
        let payment = B256::repeat_byte(1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        told.remember(&caller(1), payment, at(0));
        assert!(told.contains(&caller(1), payment, at(0)));
        assert!(!told.contains(&caller(2), payment, at(0)));
        assert!(!told.contains(&caller(1), B256::ZERO, at(0)));
        told.remember(&caller(1), payment, at(6));
        told.remember(&caller(2), payment, at(12));
        assert!(told.contains(&caller(1), payment, at(12)), "told again");
        assert!(!told.contains(&caller(1), payment, at(17)));
        told.remember(&caller(2), payment, at(17));
        let memory = told.memory.lock().unwrap();
        assert_eq!((memory.told.len(), memory.oldest_first.len()), (1, 2));
    }
}
