//! Results of the transactions that a lane has sent.

use alloy::primitives::{B256, Bytes, U256};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Lane, LaneLost, OpenTransaction, OwnedLane, TICK_INTERVAL};
use crate::chain::authorization::transfer_log;
use crate::chain::signer::UnsignedTransaction;
use crate::chain::{Head, Receipt, RpcError};
use crate::ledger::{BlockRef, MinedTransaction, PendingTransaction, TransferredPayment};
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::{ChainTick, Named};
use crate::telemetry::metrics::GasPurpose;
use crate::telemetry::{causes, metrics};

/// Result of the search for a transaction's receipt.
#[derive(Debug)]
enum ReceiptSearch {
    /// One of its attempts is in a canonical block.
    Found(Box<Receipt>),
    /// Nodes answered for each attempt and have no receipt.
    Absent,
    /// Some attempts could not be checked.
    Unknown,
}

impl Lane {
    /// Handles a new head: records results, or reads the lane again from the ledger after a reorg.
    pub(super) async fn on_chain_tick(
        &self,
        owned: &mut OwnedLane,
        now: ChainTick,
    ) -> Result<(), LaneLost> {
        let before = std::mem::replace(&mut owned.tick, now);
        if before.reorganisations != now.reorganisations
            && before.head.is_some()
            && self.reload(owned).await.is_err()
        {
            return Err(LaneLost);
        }
        let Some(head) = now.head else { return Ok(()) };
        owned.gas_balance.on_block();
        self.record_seen_receipts(owned, &head).await;
        if before.gaps != now.gaps {
            self.poll_receipts(owned, &head).await?;
        }
        Ok(())
    }

    /// Records results from the receipts that the watch has read, once enough endpoints show them.
    async fn record_seen_receipts(&self, owned: &mut OwnedLane, head: &Head) {
        let seen = owned.open.iter().filter_map(|open| {
            let attempts = &open.transaction.attempts;
            let receipt = attempts
                .iter()
                .find_map(|(hash, _)| self.served.view.receipt(*hash))?;
            Some((open.transaction.id, receipt))
        });
        for (id, receipt) in seen.collect::<Vec<_>>() {
            let transaction = receipt.transaction_hash;
            match self.served.rpc.agreed_receipt(receipt).await {
                Ok(Some(receipt)) => self.record_result(owned, id, &receipt, head).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%transaction, %error, "receipt not confirmed by enough endpoints: retrying");
                }
            }
        }
    }

    /// Periodic work: broadcasts again, bumps fees, polls receipts, reads the balance.
    pub(super) async fn tick(&self, owned: &mut OwnedLane) -> Result<(), LaneLost> {
        let resend_after = self.served.timing.resend_after;
        let due = owned.open.iter().enumerate().filter(|(_, open)| {
            let since = open.sent_at.elapsed();
            since >= resend_after || (open.not_accepted && since >= TICK_INTERVAL)
        });
        let due: Vec<usize> = due.map(|(index, _)| index).collect();
        self.rebroadcast(owned, due);
        self.read_balance_if_due(owned);
        self.check_while_idle(owned);
        let Some(head) = owned.tick.head else {
            return Ok(());
        };
        self.record_seen_receipts(owned, &head).await;
        self.bump_fees(owned, &head).await?;
        self.poll_receipts(owned, &head).await
    }

    /// Asks for receipts by hash: after blocks whose receipts were not read, and periodically for old transactions.
    async fn poll_receipts(&self, owned: &mut OwnedLane, head: &Head) -> Result<(), LaneLost> {
        let now = Instant::now();
        let poll_after = self.served.timing.poll_receipt_after;
        let due = owned.open.iter_mut();
        let due = due.filter(|open| now.duration_since(open.polled_at) >= poll_after);
        let due = due.map(|open| {
            open.polled_at = now;
            (open.transaction.id, open.transaction.attempts.clone())
        });
        let mut missing = Vec::new();
        for (id, attempts) in due.collect::<Vec<_>>() {
            match self.find_receipt(&attempts).await {
                ReceiptSearch::Found(receipt) => {
                    self.record_result(owned, id, &receipt, head).await;
                }
                ReceiptSearch::Absent => missing.push(id),
                ReceiptSearch::Unknown => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.detect_foreign_use(owned, &missing, head).await
    }

    async fn find_receipt(&self, attempts: &[(B256, Bytes)]) -> ReceiptSearch {
        let mut unknown = false;
        for (hash, _) in attempts {
            match self.served.rpc.receipt(*hash).await {
                Ok(Some(receipt)) => return ReceiptSearch::Found(Box::new(receipt)),
                Ok(None) => {}
                Err(_) => unknown = true,
            }
        }
        if unknown {
            ReceiptSearch::Unknown
        } else {
            ReceiptSearch::Absent
        }
    }

    /// Records the result of a mined transaction and removes it from the open ones. Payments without a transfer in its logs are handled by
    /// the reconciliation task. On an error it is tried again at the next tick.
    async fn record_result(&self, owned: &mut OwnedLane, id: Uuid, receipt: &Receipt, head: &Head) {
        let of_id = |open: &OpenTransaction| open.transaction.id == id;
        let Some(index) = owned.open.iter().position(of_id) else {
            return;
        };
        let Some(open) = owned.open.get_mut(index) else {
            return;
        };
        open.foreign_since = None;
        reach(Step::Mined);
        let mined = match self
            .mined_transaction(&open.transaction, receipt, head)
            .await
        {
            Ok(mined) => mined,
            Err(error) => {
                tracing::warn!(transaction = %receipt.transaction_hash, %error, "mined transaction: block time not read, retrying");
                return;
            }
        };
        let transferred = match self.served.ledger.record_mined(&mined).await {
            Ok(transferred) => transferred,
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(transaction = %receipt.transaction_hash, error, "mined transaction: result not recorded, retrying");
                return;
            }
        };
        reach(Step::ResultRecorded);
        let Some(open) = owned.open.remove(index) else {
            return;
        };
        owned.open_count.set(owned.open.len());
        let gas = U256::from(mined.gas_used);
        let price = U256::from(mined.gas_price_wei);
        let further = U256::from(mined.further_fee_wei);
        let cost = gas.saturating_mul(price).saturating_add(further);
        owned.gas_balance.spent(cost);
        self.note_cost(&open, &mined, cost);
        self.note_data_fee(receipt, open.transaction.payments.len());
        self.learn_gas(&open, &mined);
        if transferred < open.transaction.payments.len() {
            tracing::warn!(transaction = %receipt.transaction_hash, transferred, payments = open.transaction.payments.len(), "transaction mined without a transfer for some of its payments");
            let turns = open.ran.turns.iter().cloned();
            for (payment, turn) in open.transaction.payments.iter().zip(turns) {
                self.served.suspensions.keep_turn(payment.id, turn);
            }
            self.served.wake_reconciler();
        }
        if mined.transferred.iter().any(|row| !row.confirmed) {
            self.served.note_unconfirmed();
        }
        // Fewer are recorded where a log belongs to another payment: those are decided, and told, one by one.
        if transferred == mined.transferred.len() {
            self.note_settled(&open, &mined);
        }
        let moved = mined.transferred.iter().map(|row| row.payment);
        self.served.waiters.wake(moved);
    }

    /// Counts and logs the payments that have all their confirmations with this block; the watch does it for the others.
    fn note_settled(&self, open: &OpenTransaction, mined: &MinedTransaction) {
        for row in mined.transferred.iter().filter(|row| row.confirmed) {
            let mut payments = open.transaction.payments.iter();
            let Some(payment) = payments.find(|payment| payment.id == row.payment) else {
                continue;
            };
            let named = Named::of(payment).by(Some(self.id.signer));
            let named = named.in_transaction(Some(mined.hash));
            self.served.note_step(named, metrics::Step::Settled);
        }
    }

    /// Counts what a transaction has cost. Each of its payments has the same part of it.
    fn note_cost(&self, open: &OpenTransaction, mined: &MinedTransaction, cost: U256) {
        let payments = open.transaction.payments.len();
        let metrics = &self.served.metrics;
        if payments == 0 {
            let unsigned = self.unsigned_of(&open.transaction, mined.hash);
            let given = unsigned.filter(|_| mined.succeeded);
            let given = given.map_or(U256::ZERO, |unsigned| unsigned.value);
            let cost = cost.saturating_add(given);
            metrics.spent(GasPurpose::Approvals, f64::from(cost));
            return;
        }
        let transferred = mined.transferred.len().min(payments);
        let settled = cost * U256::from(transferred) / U256::from(payments);
        metrics.spent(GasPurpose::Settle, f64::from(settled));
        metrics.spent(GasPurpose::Wasted, f64::from(cost - settled));
    }

    async fn mined_transaction(
        &self,
        transaction: &PendingTransaction,
        receipt: &Receipt,
        head: &Head,
    ) -> Result<MinedTransaction, RpcError> {
        let block_number: u64 = receipt.block_number.to();
        let height = self.served.rpc.agreed_height(head.number);
        // A block above the confirmed height is in the chain by this receipt alone: one confirmation.
        let confirmations = height.saturating_sub(block_number) + 1;
        let payments = transaction.payments.iter();
        let moved = payments
            .filter(|_| receipt.succeeded())
            .filter_map(|payment| {
                Some(TransferredPayment {
                    payment: payment.id,
                    log_index: transfer_log(&payment.terms, &receipt.logs)?,
                    confirmed: confirmations >= u64::from(payment.confirmations),
                })
            });
        let moved = moved.collect();
        let time = self.served.rpc.block_time(receipt.block_hash, head).await?;
        Ok(MinedTransaction {
            id: transaction.id,
            hash: receipt.transaction_hash,
            block: BlockRef {
                number: block_number,
                hash: receipt.block_hash,
                time,
            },
            succeeded: receipt.succeeded(),
            gas_used: receipt.gas_used.to(),
            gas_price_wei: receipt.effective_gas_price.to(),
            further_fee_wei: self.further_fee(transaction, receipt),
            transferred: moved,
        })
    }

    /// Fees besides gas used times price: a rollup's data fee, and the unused rest of the gas limit on chains that charge it.
    fn further_fee(&self, transaction: &PendingTransaction, receipt: &Receipt) -> u128 {
        let price: u128 = receipt.effective_gas_price.to();
        let unused = match self.unsigned_of(transaction, receipt.transaction_hash) {
            Some(unsigned) if self.id.network.charges_gas_limit() => {
                unsigned.gas_limit.saturating_sub(receipt.gas_used.to())
            }
            Some(_) | None => 0,
        };
        let unused = u128::from(unused).saturating_mul(price);
        receipt.data_fee_wei().saturating_add(unused)
    }

    /// Records the data fee per payment.
    fn note_data_fee(&self, receipt: &Receipt, payments: usize) {
        let payments = u128::try_from(payments.max(1)).unwrap_or(1);
        let fee = receipt.data_fee_wei();
        if fee > 0 {
            self.served.gas.note_data_fee(fee / payments);
        }
    }

    /// The attempt with this hash, decoded.
    fn unsigned_of(
        &self,
        transaction: &PendingTransaction,
        hash: B256,
    ) -> Option<UnsignedTransaction> {
        let mut attempts = transaction.attempts.iter();
        let (_, raw) = attempts.find(|(attempt, _)| *attempt == hash)?;
        UnsignedTransaction::from_signed_bytes(self.id.network, raw)
    }

    /// Records the gas that a transaction used. The gas of a wallet's code says nothing about other payments, and a batch in which one
    /// failed may have lost its gas to code that was not there when it was simulated.
    fn learn_gas(&self, open: &OpenTransaction, mined: &MinedTransaction) {
        let transaction = &open.transaction;
        let failed = mined.transferred.len() < transaction.payments.len();
        if !open.ran.plain || (transaction.batch && failed) {
            return;
        }
        if self.id.network.charges_gas_limit() {
            // Where the gas limit is charged, receipts do not show the gas that execution needed.
            return;
        }
        let unsigned = self.unsigned_of(transaction, mined.hash);
        let learnable = unsigned.filter(|unsigned| !unsigned.is_empty());
        if let Some(unsigned) = learnable {
            let rows = transaction.payments.len();
            self.served
                .gas
                .note_gas_used(rows, mined.gas_used, unsigned.gas_limit);
        }
    }
}
