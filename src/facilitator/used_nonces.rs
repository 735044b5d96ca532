//! Authorizations whose nonce is used on the chain when they are presented. If their money was transferred, by a foreign transaction or by
//! one whose commit this facilitator's database lost, it is the payee's, so the payment counts once, like any other.
//!
//! Not every used authorization counts: one that another facilitator settled may have bought its resource there. Counted are payments that
//! this ledger accepted before, authorizations whose nonce belongs to a session of this ledger, and transactions sent by one of its
//! signers. Nonces that are used for something else are remembered, so that presenting them again costs no RPC call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use uuid::Uuid;

use crate::chain::AuthorizationUse;
use crate::facilitator::{Error, Facilitator, Unavailable};
use crate::ledger::{AlreadyTransferred, LaneKey, Lookup};
use crate::payment::{Candidate, Location, Payment, PaymentId, Signed, Who};
use crate::protocol::Network;
use crate::settlement::ServedNetwork;

/// Nonces remembered at most; the oldest are forgotten first.
const KEPT_MAX: usize = 20_000;
/// How long a nonce is remembered whose use was found, unless a reorg happens; by then the use has any number of confirmations.
const FOUND_FOR: Duration = Duration::from_mins(30);
/// The same where the use was not found: nodes show logs later than state.
const NOT_FOUND_FOR: Duration = Duration::from_secs(5);

/// How long a request waits for another one that looks at the chain for the same nonce.
const TURN_LIMIT: Duration = Duration::from_secs(10);

impl Facilitator {
    /// Looks on the chain whether the money of an authorization was transferred already, in a way that counts here: then a row records it.
    /// `used`: a check has found its nonce used, so an endpoint that says otherwise is behind.
    pub(super) async fn find_transferred(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
        (known, settler): (&Lookup, Option<Who>),
        used: bool,
    ) -> Result<Option<PaymentId>, Error> {
        if let Some(found) = &known.payment {
            let found = self.ledger.payment_with_grant(found.payment.id).await?;
            let transferred = self.settle_refused(served, &found.payment, used).await?;
            return Ok(transferred.then_some(found.payment.id));
        }
        // Read before the chain is asked: a reorg in between may undo the use that is found.
        let reorganisations = served.view.latest().reorganisations;
        let remember = |by| self.used_nonces.remember(candidate, by, reorganisations);
        let (location, sender, head) = match self.use_on_chain(served, candidate.signed()).await? {
            (AuthorizationUse::Transferred { location, sender }, head) => (location, sender, head),
            (AuthorizationUse::Consumed(by), _) => {
                remember(self.user_of(served, by).await?);
                return Ok(None);
            }
            (AuthorizationUse::Unused, _) if used => {
                return Err(Unavailable::NodeBehind(served.policy.network).into());
            }
            (AuthorizationUse::Unused, _) => return Ok(None),
        };
        if known.is_new() && !self.is_own_signer(served, sender).await? {
            remember(UsedBy::Foreign);
            return Ok(None);
        }
        let confirmations = served.policy.confirmations;
        let transfer = AlreadyTransferred {
            id: PaymentId(Uuid::now_v7()),
            candidate,
            confirmations,
            location: &location,
            confirmed: location.is_confirmed(head, confirmations),
            caller: settler,
        };
        if !self.ledger.accept_transferred(&transfer).await? {
            return Ok(Some(self.existing_payment(candidate).await?));
        }
        self.publish(served, transfer.id, &location, sender);
        Ok(Some(transfer.id))
    }

    /// Looks whether a foreign transaction has transferred the money of a payment that was accepted once and refused, and records it. Uses
    /// the terms in the ledger: an `upto` payment may be presented with another charge than the transferred one.
    pub(super) async fn settle_refused(
        &self,
        served: &ServedNetwork,
        payment: &Payment,
        used: bool,
    ) -> Result<bool, Unavailable> {
        let (location, sender, head) = match self.use_on_chain(served, payment.signed()).await? {
            (AuthorizationUse::Transferred { location, sender }, head) => (location, sender, head),
            // The nonce is used, but the endpoint does not show the transaction: the money may have been transferred.
            (AuthorizationUse::Consumed(None), _) => {
                return Err(Unavailable::NodeBehind(served.policy.network));
            }
            (AuthorizationUse::Unused, _) if used => {
                return Err(Unavailable::NodeBehind(served.policy.network));
            }
            (AuthorizationUse::Consumed(Some(_)) | AuthorizationUse::Unused, _) => {
                return Ok(false);
            }
        };
        let confirmed = location.is_confirmed(head, payment.confirmations);
        self.ledger
            .settle_by_foreign_transaction(payment.id, &location, confirmed)
            .await?;
        self.publish(served, payment.id, &location, sender);
        Ok(true)
    }

    /// Whether a recent look at the chain has shown that a candidate's nonce is used for something that does not count here.
    pub(super) fn is_known_to_be_used(
        &self,
        served: &ServedNetwork,
        candidate: &Candidate,
    ) -> bool {
        let reorganisations = served.view.latest().reorganisations;
        self.used_nonces.contains(candidate, reorganisations)
    }

    /// The use of an authorization on the chain, and the confirmed height at the block by which it was read.
    async fn use_on_chain(
        &self,
        served: &ServedNetwork,
        signed: Signed<'_>,
    ) -> Result<(AuthorizationUse, u64), Unavailable> {
        let head = served.caller_rpc.newest().await?.number;
        let tokens = served.policy.tokens();
        let used = served
            .caller_rpc
            .authorization_use(signed, head, &tokens)
            .await?;
        Ok((used, served.rpc.agreed_height(head)))
    }

    /// Who has sent the transaction that used a nonce, if that transaction is known.
    async fn user_of(
        &self,
        served: &ServedNetwork,
        transaction: Option<B256>,
    ) -> Result<UsedBy, Unavailable> {
        let receipt = match transaction {
            Some(transaction) => served.caller_rpc.receipt(transaction).await?,
            None => None,
        };
        Ok(match receipt {
            None => UsedBy::NotFound,
            Some(receipt) if self.is_own_signer(served, receipt.from).await? => UsedBy::OwnSigner,
            Some(_) => UsedBy::Foreign,
        })
    }

    async fn is_own_signer(
        &self,
        served: &ServedNetwork,
        sender: Address,
    ) -> Result<bool, Unavailable> {
        let lane = LaneKey {
            network: served.policy.network,
            signer: sender,
        };
        Ok(self.ledger.is_signer(lane).await?)
    }

    fn publish(&self, served: &ServedNetwork, id: PaymentId, location: &Location, sender: Address) {
        tracing::info!(payment.id = %id, network = %served.policy.network, transaction = %location.transaction, %sender, "payment settled by a transaction that is not in this ledger");
        served.note_unconfirmed();
        self.waiters.wake([id]);
    }
}

/// A payer's nonce on a network, with the contract (token or Permit2) that it belongs to.
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
    used: HashMap<Key, Used>,
    /// A nonce that was remembered again has two places, of which the later one counts.
    oldest_first: VecDeque<(Key, u64)>,
    next_number: u64,
    turns: HashMap<Key, Arc<tokio::sync::Mutex<()>>>,
}

/// The right to look at the chain for one nonce, held by one request at a time.
#[derive(Debug)]
pub(super) struct Turn {
    nonces: UsedNonces,
    key: Key,
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
        let key = Key::of(candidate);
        self.with(|memory| {
            memory.used.get(&key).is_some_and(|used| {
                (used.digest == candidate.digest || used.by == UsedBy::Foreign)
                    && used.reorganisations == reorganisations
                    && used.until > Instant::now()
            })
        })
    }

    pub(super) fn remember(&self, candidate: &Candidate, by: UsedBy, reorganisations: u64) {
        let (key, digest) = (Key::of(candidate), candidate.digest);
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
        let key = Key::of(candidate);
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
        other.digest = B256::ZERO;
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
            candidate.authorization.nonce = B256::left_padding_from(&number.to_be_bytes());
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
