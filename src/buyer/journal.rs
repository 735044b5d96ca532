//! The journal of signed payments that may still settle, written before each payment is sent.
//!
//! A purchase has at most one open payment. It is closed when its resource was received, or when it is proven that it moved no money;
//! until then a further call for the same purchase finds it here and presents it again. A journal in memory ends with the process. A
//! journal in a file survives `kill -9`, because each line is on disk before the payment is sent.

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

use crate::buyer::SignedPayment;
use crate::protocol::X402Version;
use crate::protocol::session::TransferSubmission;
use file::JournalFile;

/// The record of a buyer's open payments. Clones share it.
#[derive(Clone, Default)]
pub struct Journal(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// One lock per purchase: calls for the same purchase run one after the other.
    locks: Mutex<HashMap<PurchaseKey, Weak<tokio::sync::Mutex<()>>>>,
}

#[derive(Default)]
struct State {
    open: HashMap<PurchaseKey, OpenPayment>,
    file: Option<JournalFile>,
}

/// Why a journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A file system error.
    #[error("{}: {doing} failed", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operation that failed.
        doing: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process has locked the file.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A line before the last one is not readable. It may hold a payment that can still settle, so nothing is signed.
    #[error("{}: line {line} is not readable and may hold an open payment; nothing is signed until the file is repaired", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The line number, from 1.
        line: usize,
    },
    /// The purchase id belongs to an open payment for another URL.
    #[error("this purchase id belongs to an open payment for another URL; use another id")]
    OtherRequest,
}

/// Identifies a purchase. A hash, because URLs may contain secrets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct PurchaseKey(String);

impl PurchaseKey {
    /// SHA-256 over payer and the caller's purchase id, or over payer, method, URL and the SHA-256 of the body.
    pub(super) fn new(payer: Address, id: Option<&str>, request: (&str, &Url, &[u8])) -> Self {
        let (method, url, body) = request;
        let mut hash = Sha256::new();
        hash.update(payer);
        if let Some(id) = id {
            hash.update([&[1], id.as_bytes()].concat());
        } else {
            let request = [method.as_bytes(), url.as_str().as_bytes()].join(&0);
            hash.update([&[2], request.as_slice(), &[0]].concat());
            hash.update(Sha256::digest(body));
        }
        Self(hex::encode(hash.finalize()))
    }
}

/// A signed payment that may still settle, as a line of the journal file holds it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenPayment {
    /// The URL of the caller's request.
    #[serde(rename = "asked")]
    pub(super) requested_url: Url,
    /// The URL that answered 402, to which the payment is sent.
    pub(super) presented_to: Url,
    pub(super) version: X402Version,
    /// The value of the payment header.
    pub(super) header: String,
    #[serde(rename = "handed")]
    pub(super) signed: SignedPayment,
    /// The payment session that it pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<OpenSession>,
    /// The transaction hash that the seller or the facilitator reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) transaction: Option<String>,
}

/// Block time lags behind the clock: a payment counts as able to settle until this long after its expiry.
const EXPIRY_MARGIN_S: i64 = 60;

impl OpenPayment {
    /// Whether it may still move money. A transaction signed by the payer never expires.
    pub(super) fn may_settle(&self, now: i64) -> bool {
        let end = self.signed.valid_before;
        end.is_none_or(|end| now <= end.saturating_add(EXPIRY_MARGIN_S))
    }
}

/// The payment session of an open payment.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OpenSession {
    pub(super) id: String,
    pub(super) facilitator: Url,
    /// The facilitator may be reached at addresses that are not public.
    #[serde(default)]
    pub(super) trusted: bool,
    /// What the facilitator is asked to submit before the payment header is presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) submission: Option<TransferSubmission>,
}

impl fmt::Debug for OpenPayment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The header is a bearer value, and the URL may contain the caller's secrets.
        formatter
            .debug_struct("OpenPayment")
            .field("signed", &self.signed)
            .finish_non_exhaustive()
    }
}

/// A line of the journal file.
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
    /// A journal in memory, which ends with the process.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Opens the journal file at `path`, or creates it with mode 0600. A file that others may read or write gets that mode, because its
    /// payments are bearer values; if its mode cannot be changed, it is refused. The file stays locked while this value or a clone lives. An
    /// incomplete last line, left by a killed process, is dropped: its payment was never sent.
    ///
    /// # Errors
    /// [`JournalError`]; the file is unchanged then.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let (file, open) = JournalFile::open(path)?;
        let state = State {
            open,
            file: Some(file),
        };
        Ok(Self(Arc::new(Shared {
            state: Mutex::new(state),
            locks: Mutex::default(),
        })))
    }

    /// All open payments: signed, and neither known to have bought their resource nor proven unpaid.
    pub fn unresolved(&self) -> Vec<SignedPayment> {
        self.state()
            .open
            .values()
            .map(|payment| payment.signed)
            .collect()
    }

    /// The sum of a payer's open payments, in atomic units.
    pub(super) fn committed(&self, payer: Address) -> U256 {
        let state = self.state();
        let open = state
            .open
            .values()
            .filter(|payment| payment.signed.payer == payer);
        open.fold(U256::ZERO, |sum, payment| {
            sum.saturating_add(payment.signed.amount.atomic())
        })
    }

    /// Locks a purchase, so that two calls for it run one after the other.
    pub(super) async fn lock_purchase(
        &self,
        key: &PurchaseKey,
    ) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let existing = locks.get(key).and_then(Weak::upgrade);
            existing.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(key.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// The purchase's open payment.
    pub(super) fn find(&self, key: &PurchaseKey) -> Option<OpenPayment> {
        self.state().open.get(key).cloned()
    }

    /// An open payment of another purchase that may be the same one with a different request: same seller, payee, token and amount, able to
    /// settle at `now`, and not being presented by another call.
    pub(super) fn find_similar(
        &self,
        key: &PurchaseKey,
        proposed: &SignedPayment,
        seller: &Url,
        now: i64,
    ) -> Option<OpenPayment> {
        let terms = |signed: &SignedPayment| {
            let SignedPayment { network, asset, .. } = *signed;
            (network, asset, signed.payer, signed.pay_to, signed.amount)
        };
        let state = self.state();
        let mut others = state.open.iter().filter(|(other, open)| {
            *other != key
                && terms(&open.signed) == terms(proposed)
                && open.presented_to.origin() == seller.origin()
                && open.may_settle(now)
                && !self.is_being_presented(other)
        });
        others.next().map(|(_, open)| open.clone())
    }

    /// Whether a call for this purchase is running in this process.
    fn is_being_presented(&self, key: &PurchaseKey) -> bool {
        let locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.get(key).is_some_and(|lock| lock.strong_count() > 0)
    }

    /// Records a payment before it is sent; on return it is on disk when the journal has a file.
    pub(super) fn record(
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

    /// Records the first transaction hash that was reported for a payment. A reported hash prevents that a second payment is signed after a
    /// refusal.
    pub(super) fn record_transaction(
        &self,
        key: &PurchaseKey,
        transaction: &str,
    ) -> Result<(), JournalError> {
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

    /// Closes a purchase: its resource was received, or its payment moved no money.
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
