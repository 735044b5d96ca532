//! The memory of nonces that are used on the chain for something that does not count here, so that presenting them again costs no RPC call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use tokio::time::Instant;

use crate::facilitator::turns::{Turn, Turns};
use crate::ledger::AuthorizationKey;
use crate::payment::Candidate;

/// Nonces remembered at most; the oldest are forgotten first.
const KEPT_MAX: usize = 20_000;
/// How long a nonce is remembered whose use was found, unless a reorg happens; by then the use has any number of confirmations.
const FOUND_FOR: Duration = Duration::from_mins(30);
/// The same where the use was not found, as nodes show logs later than state, or where the watch may not notice that it is undone.
const UNCERTAIN_FOR: Duration = Duration::from_secs(5);

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

/// What was known of the chain when a use was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// The number of reorgs before the chain was asked.
    pub(super) reorganisations: u64,
    /// Whether the watch had the block by which the use was read. If not, it may never see that block, and no reorg when it goes.
    pub(super) followed: bool,
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
    turns: Turns<AuthorizationKey>,
}

#[derive(Debug, Default)]
struct Memory {
    used: HashMap<AuthorizationKey, Used>,
    /// A nonce that was remembered again has two places, of which the later one counts.
    oldest_first: VecDeque<(AuthorizationKey, u64)>,
    next_number: u64,
}

impl UsedNonces {
    fn with<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a candidate's nonce is remembered as used for something that does not count here. `reorganisations` is the number seen so
    /// far: a use from before the last one is not trusted.
    pub(super) fn contains(&self, candidate: &Candidate, reorganisations: u64) -> bool {
        self.contains_at(candidate, reorganisations, Instant::now())
    }

    fn contains_at(&self, candidate: &Candidate, reorganisations: u64, now: Instant) -> bool {
        let key = AuthorizationKey::from(&candidate.terms);
        self.with(|memory| {
            memory.used.get(&key).is_some_and(|used| {
                (used.digest == candidate.terms.digest || used.by == UsedBy::Foreign)
                    && used.reorganisations == reorganisations
                    && used.until > now
            })
        })
    }

    pub(super) fn remember(&self, candidate: &Candidate, by: UsedBy, seen: Seen) {
        let (key, digest) = (
            AuthorizationKey::from(&candidate.terms),
            candidate.terms.digest,
        );
        let kept = if by == UsedBy::NotFound || !seen.followed {
            UNCERTAIN_FOR
        } else {
            FOUND_FOR
        };
        self.with(|memory| {
            let number = memory.next_number;
            memory.next_number += 1;
            let used = Used {
                digest,
                by,
                reorganisations: seen.reorganisations,
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
    pub(super) async fn turn(&self, candidate: &Candidate) -> Option<Turn<AuthorizationKey>> {
        self.turns
            .take(AuthorizationKey::from(&candidate.terms))
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payment::Purpose;
    use crate::payment::fixture::{candidate_of, permit2_body};
    use crate::protocol::Scheme;

    const SEEN: Seen = Seen {
        reorganisations: 0,
        followed: true,
    };

    #[tokio::test]
    async fn use_in_a_block_that_the_watch_may_never_see_is_remembered_for_seconds() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        let unfollowed = Seen {
            followed: false,
            ..SEEN
        };
        nonces.remember(&candidate, UsedBy::Foreign, unfollowed);
        let later = || Instant::now() + UNCERTAIN_FOR;
        assert!(nonces.contains(&candidate, 0));
        assert!(!nonces.contains_at(&candidate, 0, later()));
        nonces.remember(&candidate, UsedBy::Foreign, SEEN);
        assert!(nonces.contains_at(&candidate, 0, later()));
    }

    #[tokio::test]
    async fn used_nonce_is_remembered_until_reorg_or_expiry() {
        let nonces = UsedNonces::default();
        let candidate = candidate_of(&permit2_body(Scheme::Exact), Purpose::Verify);
        assert!(!nonces.contains(&candidate, 0));
        nonces.remember(&candidate, UsedBy::OwnSigner, SEEN);
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
        nonces.remember(&candidate, UsedBy::Foreign, SEEN);
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
            nonces.remember(candidate, UsedBy::Foreign, SEEN);
        }
        for number in 2..=KEPT_MAX {
            nonces.remember(&numbered(number), UsedBy::Foreign, SEEN);
        }
        assert!(nonces.contains(&again, 0), "remembered again");
        assert!(!nonces.contains(&oldest, 0));
        let kept = nonces.with(|memory| (memory.used.len(), memory.oldest_first.len()));
        assert_eq!(kept, (KEPT_MAX, KEPT_MAX));
    }
}
