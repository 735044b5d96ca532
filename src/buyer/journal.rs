//! What was signed and may still land, written down before it leaves.
//!
//! One open payment for each purchase. It closes when its resource was got, or when it is proven that it moved nothing; until
//! then a further call for the same purchase finds it here and presents it again. In memory it ends with the process; in a
//! file it outlives `kill -9`, because each line is on the disk before the payment leaves.

mod file;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use alloy::hex;
use alloy::primitives::{Address, U256};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::buyer::Handed;
use crate::protocol::X402Version;
use crate::protocol::session::TransferSubmission;
use file::JournalFile;

/// The record of a buyer's purchases. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub struct Journal(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// One call at a time for each purchase.
    turns: Mutex<HashMap<PurchaseKey, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    open: HashMap<PurchaseKey, OpenPayment>,
    file: Option<JournalFile>,
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file system.
    #[error("{}: {doing} failed", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("{} is used by another process", .0.display())]
    InUse(PathBuf),
    /// A line in its middle cannot be read: what stands there may be a payment that can still land.
    #[error("{}: line {line} cannot be read; nothing is signed before somebody has looked", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The caller's purchase id stands for a request to another place.
    #[error("this purchase id was used for another URL, and its payment is still open")]
    OtherRequest,
}

/// By what a purchase is known again. A hash, because URLs hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct PurchaseKey(String);

impl PurchaseKey {
    /// The caller's own name for the purchase, or method, URL and SHA-256 of the body; each payer's purchases are apart.
    pub(super) fn new(payer: Address, id: Option<&str>, request: (&str, &Url, &[u8])) -> Self {
        let (method, url, body) = request;
        let mut hash = Sha256::new();
        hash.update(payer);
        if let Some(id) = id {
            hash.update([&[1], id.as_bytes()].concat());
        } else {
            let asked = [method.as_bytes(), url.as_str().as_bytes()].join(&0);
            hash.update([&[2], asked.as_slice(), &[0]].concat());
            hash.update(Sha256::digest(body));
        }
        Self(hex::encode(hash.finalize()))
    }
}

/// A payment that may still land.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenPayment {
    /// What the caller asked for.
    pub(super) asked: Url,
    /// Where the payment is presented.
    pub(super) presented_to: Url,
    pub(super) version: X402Version,
    /// The value of the payment header.
    pub(super) header: String,
    pub(super) handed: Handed,
    /// The session that it pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<OpenSession>,
    /// The hash that somebody named for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transaction: Option<String>,
}

/// Chains lag behind clocks: so long after its end a payment still counts as able to land.
const EXPIRY_MARGIN_S: i64 = 60;

impl OpenPayment {
    /// Whether it may still move money. A transaction that the payer signed has no end.
    pub(super) fn may_land(&self, now: i64) -> bool {
        let end = self.handed.valid_before;
        end.is_none_or(|end| now <= end.saturating_add(EXPIRY_MARGIN_S))
    }
}

/// Where a payment's session is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenSession {
    pub(super) id: String,
    pub(super) facilitator: Url,
    /// What the facilitator is asked to send before the header is presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) submission: Option<TransferSubmission>,
}

impl fmt::Debug for OpenPayment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The header is money, and the URL may hold the caller's secrets.
        formatter
            .debug_struct("OpenPayment")
            .field("handed", &self.handed)
            .finish_non_exhaustive()
    }
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Line {
    Opened {
        key: PurchaseKey,
        payment: Box<OpenPayment>,
    },
    Named {
        key: PurchaseKey,
        transaction: String,
    },
    Closed {
        key: PurchaseKey,
    },
}

impl Journal {
    /// A journal that ends with the process.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// The journal in a file, made when it is not there, readable for its owner alone. The file is locked while this value or a
    /// clone lives. A last line that a killed process left unfinished is dropped: its payment has not left.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let (file, open) = JournalFile::open(path)?;
        let state = State {
            open,
            file: Some(file),
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            turns: Mutex::default(),
        })))
    }

    /// What was signed and may still land, or is not known to have bought anything.
    pub fn unresolved(&self) -> Vec<Handed> {
        self.state()
            .open
            .values()
            .map(|payment| payment.handed)
            .collect()
    }

    /// The sum of what a payer has signed and may still land.
    pub(super) fn committed(&self, payer: Address) -> U256 {
        let state = self.state();
        let open = state
            .open
            .values()
            .filter(|payment| payment.handed.payer == payer);
        open.fold(U256::ZERO, |sum, payment| {
            sum.saturating_add(payment.handed.amount.atomic())
        })
    }

    /// Waits for the purchase's turn: two calls for the same purchase come one after the other.
    pub(super) async fn turn(&self, key: &PurchaseKey) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(key.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// The purchase's open payment.
    pub(super) fn find(&self, key: &PurchaseKey) -> Option<OpenPayment> {
        self.state().open.get(key).cloned()
    }

    /// An open payment of another purchase from the same seller that pays the same payee as much in the same token, that may still land at
    /// `now`, and that no call is presenting: either this is that purchase in other words, or the caller knows better.
    pub(super) fn alike(
        &self,
        key: &PurchaseKey,
        proposed: &Handed,
        place: &Url,
        now: i64,
    ) -> Option<OpenPayment> {
        let terms = |handed: &Handed| {
            let Handed { network, asset, .. } = *handed;
            (network, asset, handed.payer, handed.pay_to, handed.amount)
        };
        let state = self.state();
        let mut others = state.open.iter().filter(|(other, open)| {
            *other != key
                && terms(&open.handed) == terms(proposed)
                && open.presented_to.origin() == place.origin()
                && open.may_land(now)
                && !self.is_being_presented(other)
        });
        others.next().map(|(_, open)| open.clone())
    }

    /// Whether a call for a purchase is under way in this process.
    fn is_being_presented(&self, key: &PurchaseKey) -> bool {
        let turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.get(key).is_some_and(|turn| turn.strong_count() > 0)
    }

    /// Writes a payment down, on the disk when there is a file, before it may leave.
    pub(super) fn begin(
        &self,
        key: &PurchaseKey,
        payment: &OpenPayment,
    ) -> Result<(), JournalError> {
        let mut state = self.state();
        state.write(&Line::Opened {
            key: key.clone(),
            payment: Box::new(payment.clone()),
        })?;
        state.open.insert(key.clone(), payment.clone());
        Ok(())
    }

    /// Remembers the first hash that was named for a payment. That it was named keeps a second payment from being signed.
    pub(super) fn name(&self, key: &PurchaseKey, transaction: &str) -> Result<(), JournalError> {
        let mut state = self.state();
        let Some(open) = state.open.get_mut(key) else {
            return Ok(());
        };
        if open.transaction.is_some() {
            return Ok(());
        }
        open.transaction = Some(transaction.to_owned());
        state.write(&Line::Named {
            key: key.clone(),
            transaction: transaction.to_owned(),
        })
    }

    /// The purchase has its resource, or its payment moved nothing.
    pub(super) fn close(&self, key: &PurchaseKey) -> Result<(), JournalError> {
        let mut state = self.state();
        if state.open.remove(key).is_none() {
            return Ok(());
        }
        state.write(&Line::Closed { key: key.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, line: &Line) -> Result<(), JournalError> {
        self.file.as_mut().map_or(Ok(()), |file| file.append(line))
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.state().open.len();
        formatter
            .debug_struct("Journal")
            .field("open", &open)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
