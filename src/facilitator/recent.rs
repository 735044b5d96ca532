//! What was found a short while ago: in memory, bounded in time and number.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A set whose members are forgotten after a time; if there are too many, the oldest first.
#[derive(Debug)]
pub(super) struct Recent<K> {
    kept_for: Duration,
    kept_max: usize,
    memory: Mutex<Memory<K>>,
}

#[derive(Debug)]
struct Memory<K> {
    since: HashMap<K, Instant>,
    /// A member that was remembered again has two places, of which the later one counts.
    oldest_first: VecDeque<(K, Instant)>,
}

impl<K: Copy + Eq + Hash + Debug> Recent<K> {
    pub(super) fn new(kept_for: Duration, kept_max: usize) -> Self {
        Self {
            kept_for,
            kept_max,
            memory: Mutex::new(Memory {
                since: HashMap::new(),
                oldest_first: VecDeque::new(),
            }),
        }
    }

    /// When a member was remembered last.
    pub(super) fn since(&self, key: K, now: Instant) -> Option<Instant> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let since = memory.since.get(&key).copied();
        since.filter(|since| now.duration_since(*since) < self.kept_for)
    }

    /// Forgets a member. `false`: it was none.
    pub(super) fn forget(&self, key: K, now: Instant) -> bool {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let since = memory.since.remove(&key);
        since.is_some_and(|since| now.duration_since(since) < self.kept_for)
    }

    pub(super) fn remember(&self, key: K, now: Instant) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.since.insert(key, now);
        memory.oldest_first.push_back((key, now));
        while let Some((key, since)) = memory.oldest_first.front().copied()
            && (memory.oldest_first.len() > self.kept_max
                || now.duration_since(since) >= self.kept_for)
        {
            memory.oldest_first.pop_front();
            if memory.since.get(&key) == Some(&since) {
                memory.since.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_forgotten_by_age_and_number() {
        let recent = Recent::new(Duration::from_secs(10), 3);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        recent.remember("a", at(0));
        assert_eq!(recent.since("a", at(0)), Some(at(0)));
        assert_eq!(recent.since("b", at(0)), None);
        recent.remember("a", at(6));
        recent.remember("b", at(12));
        assert_eq!(recent.since("a", at(12)), Some(at(6)), "remembered again");
        assert_eq!(recent.since("a", at(17)), None);
        for other in ["c", "d", "e"] {
            recent.remember(other, at(13));
        }
        assert_eq!(recent.since("b", at(13)), None, "too many");
        assert_eq!(recent.since("c", at(13)), Some(at(13)));
        assert!(!recent.forget("b", at(13)) && recent.forget("c", at(13)));
        assert_eq!(recent.since("c", at(13)), None);
        recent.remember("c", at(14));
        let memory = recent.memory.lock().unwrap();
        assert_eq!((memory.since.len(), memory.oldest_first.len()), (3, 3));
    }
}
