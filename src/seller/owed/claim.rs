//! A purchase that is claimed by one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alloy::primitives::FixedBytes;

use super::{BROKEN_MAX, FAILED_MAX, Purchase, PurchaseKey, Purchases, Stage};
use crate::protocol::{Amount, SettleResponse};
use crate::seller::OwedFileError;
use crate::seller::copies::AnswerCopy;

/// A claimed purchase. Dropping it releases the claim. If the answer of a settled purchase was begun and not finished, it counts as broken
/// off; otherwise the recorded state stays.
#[derive(Debug)]
pub(in crate::seller) struct ClaimedPurchase {
    purchases: Purchases,
    key: PurchaseKey,
    id: FixedBytes<16>,
    until: i64,
    /// The earlier settlement, when the purchase is owed.
    pub(in crate::seller) owed: Option<SettleResponse>,
    /// The answer that broke off, when there is a copy of it.
    pub(in crate::seller) copy: Option<Arc<AnswerCopy>>,
    /// An earlier call of `/settle` has no known result.
    pub(in crate::seller) was_settling: bool,
    /// What that call was to charge, at a metered price.
    pub(in crate::seller) earlier_charge: Option<Amount>,
    /// The answer of the settled purchase was begun, and is neither delivered nor failed.
    answering: AtomicBool,
}

impl ClaimedPurchase {
    /// `fresh` is the id and the end of a purchase that is not recorded yet.
    pub(super) fn new(
        purchases: Purchases,
        key: PurchaseKey,
        fresh: (FixedBytes<16>, i64),
        (recorded, copy): (Option<Purchase>, Option<Arc<AnswerCopy>>),
    ) -> Self {
        let (id, until) = recorded
            .as_ref()
            .map_or(fresh, |recorded| (recorded.id, recorded.until));
        let (owed, was_settling, earlier_charge) = match recorded.map(|recorded| recorded.stage) {
            Some(Stage::Owed { outcome, .. }) => (Some(*outcome), false, None),
            Some(Stage::Settling { charge }) => (None, true, charge),
            None => (None, false, None),
        };
        Self {
            purchases,
            key,
            id,
            until,
            owed,
            copy,
            was_settling,
            earlier_charge,
            answering: AtomicBool::new(false),
        }
    }

    /// The request id of every `/settle` call of this purchase. The facilitator tells the request first that had the payment accepted, so a
    /// call that is repeated comes before strangers who present the same payment to the same process.
    pub(in crate::seller) fn request_id(&self) -> String {
        format!("{:x}", self.id)
    }

    fn purchase(&self, stage: Stage) -> Purchase {
        Purchase {
            id: self.id,
            until: self.until,
            stage,
        }
    }

    /// Records, before `/settle` is called, that it will be. Only in the file: a record in memory would be lost with the process.
    pub(in crate::seller) async fn record_settling(
        &self,
        charge: Option<Amount>,
    ) -> Result<(), OwedFileError> {
        let purchase = self.purchase(Stage::Settling { charge });
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// Removes the record: the facilitator granted no success, so nothing is owed.
    pub(in crate::seller) async fn record_not_settled(&self) -> Result<(), OwedFileError> {
        self.purchases.state().remove(&self.key);
        self.purchases.write(self.key, None).await
    }

    /// Keeps the purchase as [`Stage::Settling`]: the facilitator's response was lost and may have been a success.
    pub(in crate::seller) fn keep_settling(&self, charge: Option<Amount>) {
        let (purchase, now) = (
            self.purchase(Stage::Settling { charge }),
            self.purchases.now(),
        );
        self.purchases.state().insert(self.key, purchase, now);
    }

    /// Records the settlement: the resource is owed from now on.
    pub(in crate::seller) async fn record_settled(
        &self,
        outcome: &SettleResponse,
    ) -> Result<(), OwedFileError> {
        let purchase = self.purchase(Stage::Owed {
            outcome: Box::new(outcome.clone()),
            broken: 0,
            failed: 0,
        });
        let now = self.purchases.now();
        self.purchases
            .state()
            .insert(self.key, purchase.clone(), now);
        self.purchases.write(self.key, Some(purchase)).await
    }

    /// The settled purchase is being answered: from now on a claim that is dropped has broken off.
    pub(in crate::seller) fn begin_answer(&self) {
        self.answering.store(true, Ordering::SeqCst);
    }

    /// Removes the purchase: the response was sent completely.
    pub(in crate::seller) fn record_delivered(&self) {
        self.answering.store(false, Ordering::SeqCst);
        self.purchases.state().remove(&self.key);
        self.purchases.write_unsynced(self.key, None);
    }

    /// Keeps the purchase owed: its handler failed.
    pub(in crate::seller) fn record_failed(&self) {
        self.answering.store(false, Ordering::SeqCst);
        self.count(false);
    }

    /// Keeps the answer for the next presentation.
    pub(in crate::seller) fn keep_copy(&self, copy: AnswerCopy) {
        let mut state = self.purchases.state();
        if state.open.contains_key(&self.key) {
            state.copies.insert(self.key, Arc::new(copy));
        }
    }

    /// Counts an answer that broke off, or a failed handler. Beyond the limit the purchase is closed.
    fn count(&self, was_broken: bool) {
        let mut state = self.purchases.state();
        let Some(purchase) = state.open.get_mut(&self.key) else {
            return;
        };
        let Stage::Owed { broken, failed, .. } = &mut purchase.stage else {
            return;
        };
        let (counter, limit) = if was_broken {
            (broken, BROKEN_MAX)
        } else {
            (failed, FAILED_MAX)
        };
        *counter = counter.saturating_add(1);
        let (times, is_over) = (*counter, *counter > limit);
        let counted = (!is_over).then(|| purchase.clone());
        if is_over {
            state.remove(&self.key);
            tracing::warn!(
                times,
                was_broken,
                "owed purchase given up: its answer broke off or its handler failed too often"
            );
        }
        drop(state);
        self.purchases.write_unsynced(self.key, counted.as_ref());
    }
}

impl Drop for ClaimedPurchase {
    fn drop(&mut self) {
        if self.answering.load(Ordering::SeqCst) {
            self.count(true);
        }
        self.purchases.state().claimed.remove(&self.key.payment);
    }
}
