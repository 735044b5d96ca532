//! The memory of nonces that are used on the chain for something that does not count here, so that presenting them again costs no RPC call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::ledger::AuthorizationKey;
use crate::payment::Candidate;

/// Nonces remembered at most; the oldest are forgotten first.
const KEPT_MAX: usize = 20_000;
/// How long a nonce is remembered whose use was found, unless a reorg happens; by then the use has any number of confirmations.
const FOUND_FOR: Duration = Duration::from_mins(30);
/// The same where the use was not found: nodes show logs later than state.
const NOT_FOUND_FOR: Duration = Duration::from_secs(5);

/// How long a request waits for another one that looks at the chain for the same nonce.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// The transaction that used a nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsedBy {
    /// A foreign transaction: nothing else that is signed under this nonce can be settled here either.
    Foreign,
    /// A transaction of a signer of this ledger, for another authorization.
    OwnSigner,
    /// Not found yet.
    NotFound,
}

#[derive(Debug, Clone, Copy)]
struct Used {
    digest: B256,
    by: UsedBy,
    reorganisations: u64,
    until: Instant,
    /// Its place in `oldest_first`.
    number: u64,
}

/// The remembered nonces. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct UsedNonces {
    memory: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    used: HashMap<AuthorizationKey, Used>,
    /// A nonce that was remembered again has two places, of which the later one counts.
    oldest_first: VecDeque<(AuthorizationKey, u64)>,
    next_number: u64,
    turns: HashMap<AuthorizationKey, Arc<tokio::sync::Mutex<()>>>,
}

/// The right to look at the chain for one nonce, held by one request at a time.
#[derive(Debug)]
pub(super) struct Turn {
    nonces: UsedNonces,
    key: AuthorizationKey,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        self.nonces.with(|memory| {
            // A waiting request has a reference of its own.
            if memory
                .turns
                .get(&self.key)
                .is_some_and(|turn| Arc::strong_count(turn) == 1)
            {
                memory.turns.remove(&self.key);
            }
        });
    }
}

impl UsedNonces {
    fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a candidate's nonce is remembered as used for something that does not count here. `reorganisations` is the number seen so
    /// far: a use from before the last one is not trusted.
    pub(super) fn contains(&self, candidate: &Candidate, reorganisations: u64) -> bool {
        let key = AuthorizationKey::from(&candidate.terms);
        self.with(|memory| {
            memory.used.get(&key).is_some_and(|used| {
                (used.digest == candidate.terms.digest || used.by == UsedBy::Foreign)
                    && used.reorganisations == reorganisations
                    && used.until > Instant::now()
            })
        })
    }

    pub(super) fn remember(&self, candidate: &Candidate, by: UsedBy, reorganisations: u64) {
        let (key, digest) = (
            AuthorizationKey::from(&candidate.terms),
            candidate.terms.digest,
        );
        let kept = if by == UsedBy::NotFound {
            NOT_FOUND_FOR
        } else {
            FOUND_FOR
        };
        self.with(|memory| {
            let number = memory.next_number;
            memory.next_number += 1;
            let used = Used {
                digest,
                by,
                reorganisations,
                until: Instant::now() + kept,
                number,
            };
            memory.used.insert(key, used);
            memory.oldest_first.push_back((key, number));
            if memory.oldest_first.len() > KEPT_MAX
                && let Some((oldest, number)) = memory.oldest_first.pop_front()
                && memory
                    .used
                    .get(&oldest)
                    .is_some_and(|used| used.number == number)
            {
                memory.used.remove(&oldest);
            }
        });
    }

    /// Waits until no other request looks at the chain for this nonce; `None` when that takes too long.
    pub(super) async fn turn(&self, candidate: &Candidate) -> Option<Turn> {
        let key = AuthorizationKey::from(&candidate.terms);
        let turn = self.with(|memory| {
            if memory.turns.len() >= KEPT_MAX {
                memory.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            }
            Arc::clone(memory.turns.entry(key).or_default())
        });
        let turn = tokio::time::timeout(TURN_LIMIT, turn.lock_owned()).await;
        Some(Turn {
            nonces: self.clone(),
            key,
            guard: Some(turn.ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Purpose;
    use crate::payment::fixture::{candidate_of, permit2_body};
    use crate::protocol::Scheme;

    #[tokio::test]
    async fn used_nonce_is_remembered_until_reorg_or_expiry() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        assert!(!nonces.contains(&candidate, 0));
        nonces.remember(&candidate, UsedBy::OwnSigner, 0);
        assert!(nonces.contains(&candidate, 0));
        assert!(
            !nonces.contains(&candidate, 1),
            "a reorg may have undone the use"
        );
        let mut other = candidate.clone();
        other.terms.digest = B256::ZERO;
        assert!(
            !nonces.contains(&other, 0),
            "an own transaction may have settled this one"
        );
        nonces.remember(&candidate, UsedBy::Foreign, 0);
        assert!(nonces.contains(&other, 0));
    }

    #[test]
    fn oldest_nonces_are_forgotten_first() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        let numbered = |number: usize| {
            let mut candidate = candidate.clone();
            candidate.terms.nonce = B256::left_padding_from(&number.to_be_bytes());
            candidate
        };
        let (again, oldest) = (numbered(0), numbered(1));
        for candidate in [&again, &oldest, &again] {
            nonces.remember(candidate, UsedBy::Foreign, 0);
        }
        for number in 2..=KEPT_MAX {
            nonces.remember(&numbered(number), UsedBy::Foreign, 0);
        }
        assert!(nonces.contains(&again, 0), "remembered again");
        assert!(!nonces.contains(&oldest, 0));
        let kept = nonces.with(|memory| (memory.used.len(), memory.oldest_first.len()));
        assert_eq!(kept, (KEPT_MAX, KEPT_MAX));
    }

    #[tokio::test]
    async fn turns_exclude_each_other_and_are_removed_after_use() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        let first = nonces.turn(&candidate).await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(20), nonces.turn(&candidate));
        assert!(second.await.is_err(), "the second waits");
        drop(first);
        drop(nonces.turn(&candidate).await);
        assert!(nonces.with(|memory| memory.turns.is_empty()));
    }
}
