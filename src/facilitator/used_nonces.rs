//! Nonces that the chain has used up for nothing that counts here: remembered, so that presenting them again costs no call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::payment::Candidate;
use crate::protocol::Network;

/// Nonces remembered at most; the oldest are forgotten first.
const KEPT_MAX: usize = 20_000;
/// How long one is remembered whose use was found, unless a reorg comes; it is beyond any number of confirmations by then.
const FOUND_FOR: Duration = Duration::from_mins(30);
/// The same where it was not: nodes show logs later than state.
const NOT_FOUND_FOR: Duration = Duration::from_secs(5);

/// How long a caller waits for the look of another one.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// Where a nonce is used up, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    network: Network,
    domain: Address,
    payer: Address,
    nonce: B256,
}

impl Key {
    fn of(candidate: &Candidate) -> Self {
        let signed = candidate.signed();
        Self {
            network: candidate.requirements.network,
            domain: signed.method.nonce_domain(signed.asset),
            payer: signed.terms.from,
            nonce: signed.terms.nonce,
        }
    }
}

/// By what a nonce was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsedBy {
    /// By a transaction of somebody else: whatever else is signed under this nonce cannot be ours either.
    Foreign,
    /// By a transaction of a signer of ours, for another authorization.
    Ours,
    /// Not found yet.
    NotFound,
}

#[derive(Debug, Clone, Copy)]
struct Used {
    digest: B256,
    by: UsedBy,
    reorganisations: u64,
    until: Instant,
}

/// The memory. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct UsedNonces {
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    used: HashMap<Key, Used>,
    oldest_first: VecDeque<Key>,
    looks: HashMap<Key, Arc<tokio::sync::Mutex<()>>>,
}

/// A look at the chain that nobody else takes meanwhile.
#[derive(Debug)]
pub(super) struct Look {
    nonces: UsedNonces,
    key: Key,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Look {
    fn drop(&mut self) {
        self.turn = None;
        self.nonces.with(|memory| {
            // Whoever waits has a share of it.
            if memory
                .looks
                .get(&self.key)
                .is_some_and(|look| Arc::strong_count(look) == 1)
            {
                memory.looks.remove(&self.key);
            }
        });
    }
}

impl UsedNonces {
    fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a candidate's nonce is known to be used for nothing that counts here, after so many reorganisations.
    pub(super) fn holds(&self, candidate: &Candidate, reorganisations: u64) -> bool {
        let key = Key::of(candidate);
        self.with(|memory| {
            memory.used.get(&key).is_some_and(|used| {
                (used.digest == candidate.digest || used.by == UsedBy::Foreign)
                    && used.reorganisations == reorganisations
                    && used.until > Instant::now()
            })
        })
    }

    /// Remembers it.
    pub(super) fn remember(&self, candidate: &Candidate, by: UsedBy, reorganisations: u64) {
        let (key, digest) = (Key::of(candidate), candidate.digest);
        let kept = if by == UsedBy::NotFound {
            NOT_FOUND_FOR
        } else {
            FOUND_FOR
        };
        let used = Used {
            digest,
            by,
            reorganisations,
            until: Instant::now() + kept,
        };
        self.with(|memory| {
            if memory.used.insert(key, used).is_none() {
                memory.oldest_first.push_back(key);
            }
            if memory.oldest_first.len() > KEPT_MAX
                && let Some(oldest) = memory.oldest_first.pop_front()
            {
                memory.used.remove(&oldest);
            }
        });
    }

    /// Waits until nobody else looks at the chain for this nonce; `None` when that takes too long.
    pub(super) async fn look(&self, candidate: &Candidate) -> Option<Look> {
        let key = Key::of(candidate);
        let turn = self.with(|memory| {
            if memory.looks.len() >= KEPT_MAX {
                memory.looks.retain(|_, look| Arc::strong_count(look) > 1);
            }
            Arc::clone(memory.looks.entry(key).or_default())
        });
        let turn = tokio::time::timeout(TURN_LIMIT, turn.lock_owned()).await;
        Some(Look {
            nonces: self.clone(),
            key,
            turn: Some(turn.ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Purpose;
    use crate::payment::specimen::{candidate_of, permit2_body};
    use crate::protocol::Scheme;

    #[tokio::test]
    async fn what_was_used_is_remembered_until_a_reorg_or_its_time() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        assert!(!nonces.holds(&candidate, 0));
        nonces.remember(&candidate, UsedBy::Ours, 0);
        assert!(nonces.holds(&candidate, 0));
        assert!(
            !nonces.holds(&candidate, 1),
            "a reorg may have undone the use"
        );
        let mut other = candidate.clone();
        other.digest = B256::ZERO;
        assert!(!nonces.holds(&other, 0), "ours may have moved this one");
        nonces.remember(&candidate, UsedBy::Foreign, 0);
        assert!(nonces.holds(&other, 0));
    }

    #[tokio::test]
    async fn one_looks_at_a_time_and_nothing_is_left_behind() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        let first = nonces.look(&candidate).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(20), nonces.look(&candidate));
        assert!(second.await.is_err(), "the second waits");
        drop(first);
        drop(nonces.look(&candidate).await);
        assert!(nonces.with(|memory| memory.looks.is_empty()));
    }
}
