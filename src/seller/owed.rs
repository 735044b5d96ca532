//! Purchases that were settled and not delivered yet: the same payment gets its resource without being settled again.
//!
//! A purchase is known by its payment's payload, however its header is spelled, and belongs to one request: method, URL and body. It is
//! written down before the handler runs and struck out when the answer went out whole. With a file it survives the process;
//! without one a restart leaves a buyer with a hash and no resource.

mod file;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use alloy::primitives::B256;
use serde::{Deserialize, Serialize};

use crate::protocol::SettleResponse;
use crate::seller::owed::file::OwedFile;

pub use file::OwedFileError;

/// Purchases that are remembered; beyond that the oldest is forgotten, with an error in the log.
const OWED_MAX: usize = 10_000;

/// What a purchase is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct PurchaseKey(pub(super) B256);

/// How far a purchase got that this server has not delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// The facilitator was asked, and what it said is not known here: this server died, or the answer was lost on its way.
    Settling,
    /// The money moved; the facilitator's answer.
    Owed(Box<SettleResponse>),
}

/// A purchase that this server has not delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Purchase {
    request: B256,
    stage: Stage,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<PurchaseKey, Purchase>,
    order: VecDeque<PurchaseKey>,
    in_hand: HashSet<PurchaseKey>,
}

/// All purchases of a shop that are not delivered. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Purchases {
    book: Arc<Mutex<Book>>,
    file: Option<Arc<OwedFile>>,
}

/// Why a payment is not taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A copy of it is being served right now.
    InHand,
    /// It was paid for another request.
    OtherRequest,
}

/// A payment that is being served; dropped, its purchase stays as it stands in the book, and the next copy may come.
#[derive(Debug)]
pub(super) struct Serving {
    purchases: Purchases,
    key: PurchaseKey,
    request: B256,
    /// What was settled before, when the purchase is owed.
    pub(super) owed: Option<SettleResponse>,
    /// What the facilitator said is not known: its word that the payment was granted already is about us.
    pub(super) was_settling: bool,
}

impl Purchases {
    /// Remembers purchases in a file as well.
    pub(super) fn in_file(path: &Path) -> Result<Self, OwedFileError> {
        let (file, open) = OwedFile::open(path)?;
        let order = open.keys().copied().collect();
        let book = Book {
            open,
            order,
            in_hand: HashSet::new(),
        };
        Ok(Self {
            book: Arc::new(Mutex::new(book)),
            file: Some(Arc::new(file)),
        })
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a payment in hand for one request.
    pub(super) fn take(&self, key: PurchaseKey, request: B256) -> Result<Serving, Refused> {
        let mut book = self.book();
        let known = book.open.get(&key).cloned();
        if known.as_ref().is_some_and(|known| known.request != request) {
            return Err(Refused::OtherRequest);
        }
        if !book.in_hand.insert(key) {
            return Err(Refused::InHand);
        }
        let (owed, was_settling) = match known.map(|known| known.stage) {
            Some(Stage::Owed(outcome)) => (Some(*outcome), false),
            Some(Stage::Settling) => (None, true),
            None => (None, false),
        };
        Ok(Serving {
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
        // Disks are slow, and the threads of the runtime are few.
        let written =
            tokio::task::spawn_blocking(move || file.append(key, purchase.as_ref(), true));
        written.await.map_err(|_| OwedFileError::Interrupted)?
    }
}

impl Serving {
    /// Says, before the facilitator is asked, that it will be. Nothing to do without a file: what dies with the process needs no record.
    pub(super) async fn settling(&self) -> Result<(), OwedFileError> {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Settling,
        };
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// The facilitator gave no success to this server: nothing is owed.
    pub(super) async fn not_settled(&self) -> Result<(), OwedFileError> {
        self.purchases.book().open.remove(&self.key);
        self.purchases.write(self.key, None).await
    }

    /// The facilitator's answer was lost, and may have been a success.
    pub(super) fn unheard(&self) {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Settling,
        };
        self.purchases.book().remember(self.key, purchase);
    }

    /// The money moved: the resource is owed from now on.
    pub(super) async fn settled(&self, outcome: &SettleResponse) -> Result<(), OwedFileError> {
        let purchase = Purchase {
            request: self.request,
            stage: Stage::Owed(Box::new(outcome.clone())),
        };
        self.purchases.book().remember(self.key, purchase.clone());
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// The answer went out whole.
    pub(super) fn delivered(&self) {
        let mut book = self.purchases.book();
        book.open.remove(&self.key);
        if book.order.len() > 2 * OWED_MAX {
            let Book { open, order, .. } = &mut *book;
            order.retain(|key| open.contains_key(key));
        }
        drop(book);
        // Not forced to the disk: a record that a crash swallows serves a buyer twice, not never.
        if let Some(file) = &self.purchases.file
            && let Err(error) = file.append(self.key, None, false)
        {
            tracing::warn!(%error, "a delivery could not be written down");
        }
    }
}

impl Book {
    fn remember(&mut self, key: PurchaseKey, purchase: Purchase) {
        self.open.insert(key, purchase);
        self.order.push_back(key);
        while self.open.len() > OWED_MAX {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if self.open.remove(&oldest).is_some() {
                tracing::error!(
                    owed = OWED_MAX,
                    "too many purchases are owed; the oldest is forgotten"
                );
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.purchases.book().in_hand.remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
