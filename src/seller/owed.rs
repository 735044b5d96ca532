//! Owed purchases: settled, but not delivered. The same payment gets its resource without a second settlement.
//!
//! A purchase is identified by its payment's payload, for any encoding of the header, and belongs to one request: method, URL and body. It
//! is recorded before the handler runs and removed once the response was sent completely. With a file it survives a restart; without one,
//! a restart leaves a buyer with a transaction hash and no resource.

mod file;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::B256;
use serde::{Deserialize, Serialize};

use crate::protocol::SettleResponse;
use crate::seller::owed::file::OwedFile;

pub use file::OwedFileError;

/// The limit of purchases in memory. Beyond it the oldest is dropped, with an error in the log.
const OWED_MAX: usize = 10_000;

/// Identifies a purchase: the hash of its payment's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct PurchaseKey(pub(super) B256);

/// The state of a purchase that is not delivered. The names are part of the file format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// `/settle` was called and its result is unknown here: the process ended, or the response was lost.
    Settling,
    /// The payment is settled; holds the facilitator's response.
    Owed(Box<SettleResponse>),
}

/// A purchase that is not delivered, as the file stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Purchase {
    /// The hash of the request that the payment belongs to.
    request: B256,
    stage: Stage,
}

#[derive(Debug, Default)]
struct OpenPurchases {
    open: HashMap<PurchaseKey, Purchase>,
    /// Keys in the order of insertion; may contain keys that are no longer open.
    order: VecDeque<PurchaseKey>,
    claimed: HashSet<PurchaseKey>,
}

/// All purchases of a paywall that are not delivered. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Purchases {
    state: Arc<Mutex<OpenPurchases>>,
    file: Option<Arc<OwedFile>>,
}

/// Why a purchase cannot be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimError {
    /// Another request with the same payment is being served.
    AlreadyClaimed,
    /// The payment belongs to another request.
    OtherRequest,
}

/// A purchase that is claimed by one request. Dropping it releases the claim and leaves the recorded state unchanged.
#[derive(Debug)]
pub(super) struct ClaimedPurchase {
    purchases: Purchases,
    key: PurchaseKey,
    request: B256,
    /// The earlier settlement, when the purchase is owed.
    pub(super) owed: Option<SettleResponse>,
    /// An earlier result is unknown: if the facilitator reports that the payment was already granted, it was granted to this server.
    pub(super) was_settling: bool,
}

impl Purchases {
    /// Keeps purchases in a file as well as in memory.
    pub(super) fn in_file(path: &Path) -> Result<Self, OwedFileError> {
        let (file, open) = OwedFile::open(path)?;
        let order = open.keys().copied().collect();
        let state = OpenPurchases {
            open,
            order,
            claimed: HashSet::new(),
        };
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            file: Some(Arc::new(file)),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, OpenPurchases> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the purchase of a payment for one request.
    pub(super) fn claim(
        &self,
        key: PurchaseKey,
        request: B256,
    ) -> Result<ClaimedPurchase, ClaimError> {
        let mut state = self.state();
        let recorded = state.open.get(&key).cloned();
        let belongs_to_other = |recorded: &Purchase| recorded.request != request;
        if recorded.as_ref().is_some_and(belongs_to_other) {
            return Err(ClaimError::OtherRequest);
        }
        if !state.claimed.insert(key) {
            return Err(ClaimError::AlreadyClaimed);
        }
        let (owed, was_settling) = match recorded.map(|recorded| recorded.stage) {
            Some(Stage::Owed(outcome)) => (Some(*outcome), false),
            Some(Stage::Settling) => (None, true),
            None => (None, false),
        };
        Ok(ClaimedPurchase {
            purchases: self.clone(),
            key,
            request,
            owed,
            was_settling,
        })
    }

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
}

impl ClaimedPurchase {
    /// Records, before `/settle` is called, that it will be. Only in the file: a record in memory would be lost with the process.
    pub(super) async fn record_settling(&self) -> Result<(), OwedFileError> {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Settling,
        };
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// Removes the record: the facilitator granted no success, so nothing is owed.
    pub(super) async fn record_not_settled(&self) -> Result<(), OwedFileError> {
        self.purchases.state().open.remove(&self.key);
        self.purchases.write(self.key, None).await
    }

    /// Keeps the purchase as [`Stage::Settling`]: the facilitator's response was lost and may have been a success.
    pub(super) fn keep_settling(&self) {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Settling,
        };
        self.purchases.state().insert(self.key, purchase);
    }

    /// Records the settlement: the resource is owed from now on.
    pub(super) async fn record_settled(
        &self,
        outcome: &SettleResponse,
    ) -> Result<(), OwedFileError> {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Owed(Box::new(outcome.clone())),
        };
        self.purchases.state().insert(self.key, purchase.clone());
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// Removes the purchase: the response was sent completely.
    pub(super) fn record_delivered(&self) {
        let mut state = self.purchases.state();
        state.open.remove(&self.key);
        if state.order.len() > 2 * OWED_MAX {
            let OpenPurchases { open, order, .. } = &mut *state;
            order.retain(|key| open.contains_key(key));
        }
        drop(state);
        // Not synced to disk: if a crash loses this line, the buyer can get the resource a second time.
        if let Some(file) = &self.purchases.file
            && let Err(error) = file.append(self.key, None, false)
        {
            tracing::warn!(%error, "delivery could not be recorded: the purchase stays owed in the file");
        }
    }
}

impl OpenPurchases {
    fn insert(&mut self, key: PurchaseKey, purchase: Purchase) {
        self.open.insert(key, purchase);
        self.order.push_back(key);
        while self.open.len() > OWED_MAX {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if self.open.remove(&oldest).is_some() {
                tracing::error!(
                    owed = OWED_MAX,
                    "too many owed purchases: the oldest is dropped, its payment will get no resource"
                );
            }
        }
    }
}

impl Drop for ClaimedPurchase {
    fn drop(&mut self) {
        self.purchases.state().claimed.remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
