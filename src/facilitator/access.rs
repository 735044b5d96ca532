//! Who may have payments verified and settled, and for whom: the keys of callers, in memory.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use alloy::primitives::{Address, B256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::facilitator::Caller;
use crate::ledger::{Ledger, LedgerError, StoredKey};
use crate::payment::{AccessMode, Key, KeyId, PresentedKey, Scope, Who};
use crate::protocol::{Network, Reason, Rejection};

/// What was read longer ago is not used: a revocation holds everywhere within this time, whatever happens to a process's database.
const AGE_MAX: Duration = Duration::from_secs(5);

/// The operator's rule, and the keys.
#[derive(Debug, Clone)]
pub struct Access {
    /// Who may have payments verified and settled.
    pub settle: AccessMode,
    pub keys: Keys,
    pub clock: Arc<dyn Clock>,
}

/// The keys that are good, as the ledger had them a moment ago. A key of a request is looked up here alone: a guess costs no statement.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<RwLock<Arc<KeySet>>>);

#[derive(Debug, Default)]
struct KeySet {
    by_id: HashMap<KeyId, GoodKey>,
    /// There is or was a key of the operator.
    had_admin: bool,
    /// When the statement began that has read them.
    read_at: Option<Instant>,
}

#[derive(Debug)]
struct GoodKey {
    key: Arc<Key>,
    secret_hash: B256,
    earlier: Option<(B256, OffsetDateTime)>,
}

impl GoodKey {
    /// Whether this is the key's secret, in a time that does not depend on how much of it is right.
    fn is_opened_by(&self, hash: B256, now: OffsetDateTime) -> bool {
        let is_current = bool::from(self.secret_hash.ct_eq(hash.as_slice()));
        let is_earlier = self.earlier.is_some_and(|(earlier, until)| {
            bool::from(earlier.ct_eq(hash.as_slice())) && now < until
        });
        is_current || is_earlier
    }
}

impl Keys {
    /// Reads the keys anew.
    pub async fn read(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let read_at = Instant::now();
        let had_admin = ledger.has_had_admin_key().await?;
        self.replace(ledger.live_keys().await?, had_admin, read_at);
        Ok(())
    }

    fn replace(&self, keys: Vec<StoredKey>, had_admin: bool, read_at: Instant) {
        let keys = keys.into_iter().map(|stored| {
            let good = GoodKey {
                key: Arc::new(stored.key),
                secret_hash: stored.secret_hash,
                earlier: stored.earlier,
            };
            (good.key.id, good)
        });
        let set = Arc::new(KeySet {
            by_id: keys.collect(),
            had_admin,
            read_at: Some(read_at),
        });
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = set;
    }

    fn current(&self) -> Result<Arc<KeySet>, Rejection> {
        let set = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        if set.read_at.is_some_and(|at| at.elapsed() <= AGE_MAX) {
            return Ok(set);
        }
        let why = "the keys cannot be read from the ledger now; nothing was done, try again";
        Err(Rejection::new(Reason::KeysUnavailable, why))
    }
}

impl Access {
    /// The key that a request carries.
    ///
    /// # Errors
    /// [`Reason::KeyInvalid`], or [`Reason::KeysUnavailable`].
    pub fn key(&self, text: &str) -> Result<Arc<Key>, Rejection> {
        let invalid = || {
            let why = "expected a key of this facilitator that is neither revoked nor expired; ask its operator for one";
            Rejection::new(Reason::KeyInvalid, why)
        };
        let presented = PresentedKey::parse(text).ok_or_else(invalid)?;
        let (set, now) = (self.keys.current()?, self.clock.now());
        let good = set.by_id.get(&presented.id).ok_or_else(invalid)?;
        let is_good = good.is_opened_by(presented.secret_hash, now) && good.key.is_live(now);
        is_good.then(|| Arc::clone(&good.key)).ok_or_else(invalid)
    }

    /// Whether a key that was good before still is, for answers that take long. A key that cannot be looked up now is not.
    pub fn is_still_good(&self, id: KeyId) -> bool {
        let (now, set) = (self.clock.now(), self.keys.current());
        set.is_ok_and(|set| set.by_id.get(&id).is_some_and(|good| good.key.is_live(now)))
    }

    /// The same of a key with the secret that was sent: after a rotation the former one is good no longer.
    pub fn is_still_opened_by(&self, presented: PresentedKey) -> bool {
        let (now, set) = (self.clock.now(), self.keys.current());
        set.is_ok_and(|set| {
            set.by_id.get(&presented.id).is_some_and(|good| {
                good.is_opened_by(presented.secret_hash, now) && good.key.is_live(now)
            })
        })
    }

    /// Whether a key has made its holder the operator. From then on an address does not, also after the key was revoked or has expired.
    ///
    /// # Errors
    /// [`Reason::KeysUnavailable`].
    pub fn has_had_admin_key(&self) -> Result<bool, Rejection> {
        Ok(self.keys.current()?.had_admin)
    }

    /// Rejects callers that may not have payments verified and settled.
    pub fn check_settler(&self, caller: &Caller) -> Result<(), Rejection> {
        if let Some(key) = &caller.key {
            return check_scope(key, Scope::Settle);
        }
        match (self.settle, caller.who) {
            (AccessMode::Keys, Who::Anonymous) => {
                let why = "this facilitator serves holders of a key: send it as Authorization: Bearer x402d_… or as X-API-Key";
                Err(Rejection::new(Reason::KeyRequired, why))
            }
            _ => Ok(()),
        }
    }

    /// Rejects sessions for payees that the caller may not be paid for. Buyers open sessions, and have no key: where keys are needed to
    /// settle, the payee has to be one of some key.
    pub(super) fn check_session(
        &self,
        caller: &Caller,
        network: Network,
        payee: Address,
    ) -> Result<(), Rejection> {
        if let Some(key) = &caller.key {
            check_scope(key, Scope::Settle)?;
            return key.check_payee(network, payee);
        }
        if self.settle == AccessMode::Open || caller.who == Who::Operator {
            return Ok(());
        }
        let (set, now) = (self.keys.current()?, self.clock.now());
        let mut keys = set.by_id.values().map(|good| &good.key);
        let pays = |key: &Arc<Key>| {
            key.has(Scope::Settle) && key.covers(network, payee) && key.is_live(now)
        };
        if keys.any(pays) {
            return Ok(());
        }
        let why = format!("{payee} is paid by no key of this facilitator on {network}");
        Err(Rejection::new(Reason::PayeeNotAllowed, why))
    }
}

/// Rejects keys without a scope.
pub fn check_scope(key: &Key, scope: Scope) -> Result<(), Rejection> {
    if key.has(scope) {
        return Ok(());
    }
    let why = format!("key {} does not have the scope {scope}", key.id);
    Err(Rejection::new(Reason::ScopeMissing, why))
}

#[cfg(test)]
mod tests;
