//! One request at a time asks the chain for the same thing; the others wait, and find its answer in memory.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

/// How long a request waits for its turn.
const TURN_LIMIT: Duration = Duration::from_secs(10);

type OfKeys<K> = Arc<Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>>;

/// Who may ask, for each key. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Turns<K>(OfKeys<K>);

/// The right to ask; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<K: Copy + Eq + Hash> {
    turns: Turns<K>,
    key: K,
    guard: Option<OwnedMutexGuard<()>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Copy + Eq + Hash> Turns<K> {
    /// Waits until no other request asks for `key`; `None` when that takes too long.
    pub(super) async fn take(&self, key: K) -> Option<Turn<K>> {
        let turn = Arc::clone(self.of_keys().entry(key).or_default());
        let mut taken = Turn {
            turns: self.clone(),
            key,
            guard: None,
        };
        let guard = tokio::time::timeout(TURN_LIMIT, turn.lock_owned()).await;
        taken.guard = Some(guard.ok()?);
        Some(taken)
    }

    fn of_keys(&self) -> MutexGuard<'_, HashMap<K, Arc<tokio::sync::Mutex<()>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Copy + Eq + Hash> Drop for Turn<K> {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.turns.of_keys();
        // A waiting request has a reference of its own.
        let is_last = turns.get(&self.key).map(Arc::strong_count) == Some(1);
        if is_last {
            turns.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_exclude_each_other_and_are_removed_after_use() {
        let turns = Turns::default();
        let first = turns.take("a").await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(20), turns.take("a"));
        assert!(second.await.is_err(), "the second waits");
        assert!(turns.take("b").await.is_some());
        drop(first);
        drop(turns.take("a").await);
        assert!(turns.of_keys().is_empty());
    }
}
