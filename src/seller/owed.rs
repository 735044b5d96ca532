//! Purchases that are not finished: asked to be settled, or settled and not delivered. The same payment gets its resource without a second
//! settlement.
//!
//! A purchase belongs to one payment, however its header is spelled, and to one request: method, URL and body. It is recorded before
//! `/settle` is called and removed once the response was sent completely, at the latest an hour after its payment has expired. With a file
//! it survives a restart; without one, a restart leaves a buyer with a transaction hash and no resource.

mod body_place;
mod claim;
mod file;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::{B256, FixedBytes};
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SystemClock};
use crate::protocol::{Amount, SettleResponse};
use crate::seller::copies::AnswerCopy;
use crate::seller::identity::PaymentIdentity;
use crate::seller::owed::file::OwedFile;

pub(super) use body_place::BodyPlace;
pub(super) use claim::ClaimedPurchase;
pub use file::OwedFileError;

/// The limit of purchases in memory. Beyond it one is dropped: rather one that may not be settled than one that is.
const OWED_MAX: usize = 10_000;
/// How long after its payment's expiry a purchase is kept, in seconds: a buyer may come back late with what was settled in time.
const KEPT_S: i64 = 3600;
/// The longest validity that counts, in seconds, so that no payment keeps its purchase for ever.
const VALIDITY_S_MAX: i64 = 24 * 3600;
/// How often a purchase whose answer broke off is served again.
const BROKEN_MAX: u32 = 3;
/// How often the handler of a settled purchase may fail.
const FAILED_MAX: u32 = 30;

/// A payment and the request that it was presented with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct PurchaseKey {
    /// [`PaymentIdentity::key`].
    payment: B256,
    /// The hash over method, URL and body.
    request: B256,
}

/// The state of a purchase that is not finished. The names are part of the file format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// `/settle` was called and its result is unknown here: the process ended, or the response was lost.
    Settling {
        /// What a metered payment was to be charged.
        charge: Option<Amount>,
    },
    /// The payment is settled.
    Owed {
        /// The facilitator's response.
        outcome: Box<SettleResponse>,
        /// How many of its answers broke off.
        broken: u32,
        /// How often its handler failed.
        failed: u32,
    },
}

/// A purchase that is not finished, as the file stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Purchase {
    /// The beginning of the request ids of all its `/settle` calls. The facilitator repeats the id that it granted success to.
    id: FixedBytes<16>,
    /// Unix seconds after which it is forgotten.
    until: i64,
    stage: Stage,
}

#[derive(Debug, Default)]
struct OpenPurchases {
    open: BTreeMap<PurchaseKey, Purchase>,
    /// Answers that broke off, for purchases in `open`.
    copies: HashMap<PurchaseKey, Arc<AnswerCopy>>,
    /// The payments that are being served. One request at a time, because its handler may run before the payment is settled.
    claimed: HashSet<B256>,
    /// The payments of which a long body is held.
    with_body: HashSet<B256>,
}

/// All purchases of a paywall that are not finished. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Purchases {
    state: Arc<Mutex<OpenPurchases>>,
    file: Option<Arc<OwedFile>>,
    clock: Arc<dyn Clock>,
}

/// Why a purchase cannot be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimError {
    /// Another request with the same payment is being served.
    AlreadyClaimed,
    /// Another long body of this payment is being read.
    BodyHeld,
    /// The payment has bought another request's resource, which is still owed.
    OtherRequest,
    /// The system provides no randomness for the id of the purchase.
    NoRandomness,
}

impl Default for Purchases {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            file: None,
            clock: Arc::new(SystemClock),
        }
    }
}

impl Purchases {
    /// Purchases in memory alone.
    pub(super) fn in_memory(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            ..Self::default()
        }
    }

    /// Keeps purchases in a file as well as in memory.
    pub(super) fn in_file(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OwedFileError> {
        let (file, open) = OwedFile::open(path, clock.now().unix_timestamp())?;
        let state = OpenPurchases {
            open: open.into_iter().collect(),
            ..OpenPurchases::default()
        };
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            file: Some(Arc::new(file)),
            clock,
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, OpenPurchases> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present time in Unix seconds.
    fn now(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }

    /// Whether a purchase of this payment is open, for any request.
    pub(super) fn knows(&self, payment: PaymentIdentity) -> bool {
        let (state, now) = (self.state(), self.now());
        state
            .of_payment(payment.key)
            .any(|(_, purchase)| purchase.until >= now)
    }

    /// Claims the purchase of a payment for one request. `timeout_s` is how long the seller's offers are valid.
    pub(super) fn claim(
        &self,
        payment: PaymentIdentity,
        request: B256,
        timeout_s: u64,
    ) -> Result<ClaimedPurchase, ClaimError> {
        let key = PurchaseKey {
            payment: payment.key,
            request,
        };
        let id = FixedBytes::try_random().map_err(|_| ClaimError::NoRandomness)?;
        let now = self.now();
        self.forget_expired(payment, now);
        let mut state = self.state();
        let owed_elsewhere = state
            .of_payment(payment.key)
            .any(|(other, purchase)| *other != key && matches!(purchase.stage, Stage::Owed { .. }));
        if owed_elsewhere {
            return Err(ClaimError::OtherRequest);
        }
        if !state.claimed.insert(payment.key) {
            return Err(ClaimError::AlreadyClaimed);
        }
        let recorded = state.open.get(&key).cloned();
        let copy = state.copies.get(&key).cloned();
        drop(state);
        let timeout = i64::try_from(timeout_s).unwrap_or(VALIDITY_S_MAX);
        // What was settled in time may be presented after its time.
        let end = payment
            .valid_before
            .unwrap_or_else(|| now.saturating_add(timeout))
            .clamp(now, now.saturating_add(VALIDITY_S_MAX));
        let fresh = (id, end.saturating_add(KEPT_S));
        Ok(ClaimedPurchase::new(
            self.clone(),
            key,
            fresh,
            (recorded, copy),
        ))
    }

    /// Removes the expired purchases of a payment.
    fn forget_expired(&self, payment: PaymentIdentity, now: i64) {
        let mut state = self.state();
        let expired: Vec<PurchaseKey> = state
            .of_payment(payment.key)
            .filter(|(_, purchase)| purchase.until < now)
            .map(|(key, _)| *key)
            .collect();
        for key in &expired {
            state.remove(key);
        }
        drop(state);
        for key in expired {
            self.write_unsynced(key, None);
        }
    }

    /// Writes a purchase's new state to the file; it is on disk on return.
    async fn write(
        &self,
        key: PurchaseKey,
        purchase: Option<Purchase>,
    ) -> Result<(), OwedFileError> {
        let Some(file) = self.file.clone() else {
            return Ok(());
        };
        // File writes block, so they must not run on a thread of the async runtime.
        let written =
            tokio::task::spawn_blocking(move || file.append(key, purchase.as_ref(), true));
        written.await.map_err(|_| OwedFileError::Interrupted)?
    }

    /// Writes a purchase's new state, which is not synced: if a crash loses this line, its buyer can get the resource once more.
    fn write_unsynced(&self, key: PurchaseKey, purchase: Option<&Purchase>) {
        if let Some(file) = &self.file
            && let Err(error) = file.append(key, purchase, false)
        {
            tracing::warn!(%error, "file of owed purchases not updated: a purchase stays in it as it was");
        }
    }
}

impl OpenPurchases {
    fn of_payment(&self, payment: B256) -> impl Iterator<Item = (&PurchaseKey, &Purchase)> {
        let from = |request| PurchaseKey { payment, request };
        self.open
            .range(from(B256::ZERO)..=from(B256::repeat_byte(0xff)))
    }

    fn remove(&mut self, key: &PurchaseKey) {
        self.open.remove(key);
        self.copies.remove(key);
    }

    fn insert(&mut self, key: PurchaseKey, purchase: Purchase, now: i64) {
        self.open.insert(key, purchase);
        if self.open.len() <= OWED_MAX {
            return;
        }
        let owed = |purchase: &Purchase| {
            purchase.until >= now && matches!(purchase.stage, Stage::Owed { .. })
        };
        let dropped = self
            .open
            .iter()
            .min_by_key(|(_, purchase)| (owed(purchase), purchase.until))
            .map(|(key, purchase)| (*key, owed(purchase)));
        if let Some((key, is_owed)) = dropped {
            self.remove(&key);
            if is_owed {
                tracing::error!(
                    owed = OWED_MAX,
                    "too many owed purchases: the oldest is dropped, its payment will get no resource"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
