//! The other half of a lane: what became of the transactions that it sent.

use std::time::Duration;

use alloy::primitives::{B256, Bytes, U256};
use tokio::time::Instant;
use uuid::Uuid;

use super::{ASK_AFTER, Lane, Lost, Open, Owned, TEND_INTERVAL};
use crate::chain::authorization::transfer_log;
use crate::chain::signer::Order;
use crate::chain::{Head, Receipt, RpcError};
use crate::ledger::{BlockRef, MinedTransaction, MovedRow, Unmined};
use crate::payment::Payment;
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::{Step, reach};
use crate::telemetry::causes;

/// Bytes are sent again after this long without being mined, and every time it passes again.
const RESEND_AFTER: Duration = Duration::from_secs(4);

/// What nodes know of a transaction.
#[derive(Debug)]
enum Sighting {
    /// One of its attempts is in a canonical block.
    Mined(Box<Receipt>),
    /// None is: a node has said so of each.
    Nowhere,
    /// Not all could be asked about.
    Unknown,
}

impl Lane {
    /// The chain moved: read results, or everything anew after a reorganisation.
    pub(super) async fn follow(&self, owned: &mut Owned, now: Moved) -> Result<(), Lost> {
        let before = std::mem::replace(&mut owned.seen, now);
        if before.reorganisations != now.reorganisations
            && before.head.is_some()
            && self.reload(owned).await.is_err()
        {
            return Err(Lost);
        }
        let Some(head) = now.head else { return Ok(()) };
        owned.purse.block_came();
        self.conclude_seen(owned, &head).await;
        if before.gaps != now.gaps {
            self.ask(owned, &head).await?;
        }
        Ok(())
    }

    /// Concludes from the receipts that the watch has read, once enough endpoints show them.
    async fn conclude_seen(&self, owned: &mut Owned, head: &Head) {
        let seen = owned.open.iter().filter_map(|open| {
            let attempts = &open.transaction.attempts;
            let receipt = attempts
                .iter()
                .find_map(|(hash, _)| self.site.view.receipt(*hash))?;
            Some((open.transaction.id, receipt))
        });
        for (id, receipt) in seen.collect::<Vec<_>>() {
            let transaction = receipt.transaction_hash;
            match self.site.rpc.confirmed(receipt).await {
                Ok(Some(receipt)) => self.conclude(owned, id, &receipt, head).await,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(network = %self.id.network, %transaction, %error, "receipt not confirmed by enough endpoints; asking again");
                }
            }
        }
    }

    /// Sends again what was not mined, and asks by hash for what should have been.
    pub(super) async fn tend(&self, owned: &mut Owned) -> Result<(), Lost> {
        let due = owned.open.iter().enumerate().filter(|(_, open)| {
            let since = open.sent_at.elapsed();
            since >= RESEND_AFTER || (open.doubtful && since >= TEND_INTERVAL)
        });
        let due: Vec<usize> = due.map(|(index, _)| index).collect();
        self.send_again(owned, due);
        self.look_after_money(owned);
        self.look_while_idle(owned);
        let Some(head) = owned.seen.head else {
            return Ok(());
        };
        self.conclude_seen(owned, &head).await;
        self.outbid(owned, &head).await?;
        self.ask(owned, &head).await
    }

    /// Asks the node for transactions by hash: after a gap in what the watch has read, and as a second opinion on old ones.
    async fn ask(&self, owned: &mut Owned, head: &Head) -> Result<(), Lost> {
        let now = Instant::now();
        let due = owned.open.iter_mut();
        let due = due.filter(|open| now.duration_since(open.asked_at) >= ASK_AFTER);
        let due = due.map(|open| {
            open.asked_at = now;
            (open.transaction.id, open.transaction.attempts.clone())
        });
        let mut missing = Vec::new();
        for (id, attempts) in due.collect::<Vec<_>>() {
            match self.sight(&attempts).await {
                Sighting::Mined(receipt) => self.conclude(owned, id, &receipt, head).await,
                Sighting::Nowhere => missing.push(id),
                Sighting::Unknown => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        self.watch_for_foreign_use(owned, &missing, head).await
    }

    async fn sight(&self, attempts: &[(B256, Bytes)]) -> Sighting {
        let mut unknown = false;
        for (hash, _) in attempts {
            match self.site.rpc.receipt(*hash).await {
                Ok(Some(receipt)) => return Sighting::Mined(Box::new(receipt)),
                Ok(None) => {}
                Err(_) => unknown = true,
            }
        }
        if unknown {
            Sighting::Unknown
        } else {
            Sighting::Nowhere
        }
    }

    /// Records what a mined transaction moved, and takes it off the list; what it did not move is decided elsewhere. When that cannot be done now,
    /// it will be tried again.
    async fn conclude(&self, owned: &mut Owned, id: Uuid, receipt: &Receipt, head: &Head) {
        let of_id = |open: &Open| open.transaction.id == id;
        let Some(index) = owned.open.iter().position(of_id) else {
            return;
        };
        let Some(open) = owned.open.get_mut(index) else {
            return;
        };
        open.strange_since = None;
        reach(Step::Mined);
        let mined = match self.result(&open.transaction, receipt, head).await {
            Ok(mined) => mined,
            Err(error) => {
                tracing::warn!(%error, "cannot tell when a transaction was mined; it will be read again");
                return;
            }
        };
        let moved = match self.site.ledger.record_mined(&mined).await {
            Ok(moved) => moved,
            Err(error) => {
                let error = causes(&error);
                tracing::warn!(error, "cannot record a result; it will be read again");
                return;
            }
        };
        reach(Step::Settled);
        let Some(open) = owned.open.remove(index) else {
            return;
        };
        owned.counted.set(owned.open.len());
        let gas = U256::from(mined.gas_used);
        let price = U256::from(mined.gas_price_wei);
        let further = U256::from(mined.further_fee_wei);
        owned
            .purse
            .spent(gas.saturating_mul(price).saturating_add(further));
        self.expect_data_fee(receipt, open.transaction.payments.len());
        self.learn(&open.transaction, &mined);
        if moved < open.transaction.payments.len() {
            tracing::warn!(transaction = %receipt.transaction_hash, moved, payments = open.transaction.payments.len(), "a transaction was mined without moving the money of each of its payments");
            self.site.undecided();
        }
        if mined.moved.iter().any(|row| !row.deep) {
            self.site.note_shallow();
        }
        let moved = mined.moved.iter().map(|row| row.payment);
        self.site.waiters.wake(moved);
    }

    async fn result(
        &self,
        transaction: &Unmined,
        receipt: &Receipt,
        head: &Head,
    ) -> Result<MinedTransaction, RpcError> {
        let block_number: u64 = receipt.block_number.to();
        let height = self.site.rpc.confirmed_height(head.number);
        // A block above what the endpoints have shown alike is in the chain by its receipt alone.
        let depth = height.saturating_sub(block_number) + 1;
        let payments = transaction.payments.iter();
        let moved = payments
            .filter(|_| receipt.succeeded())
            .filter_map(|payment| {
                Some(MovedRow {
                    payment: payment.id,
                    log_index: transfer_log(payment.signed(), &receipt.logs)?,
                    deep: depth >= u64::from(payment.confirmations),
                })
            });
        let moved = moved.collect();
        let time = self.site.rpc.block_time(receipt.block_hash, head).await?;
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
            moved,
        })
    }

    /// What a transaction has cost besides the gas that it used: what a rollup takes for its data, and the rest of its limit where that is paid.
    fn further_fee(&self, transaction: &Unmined, receipt: &Receipt) -> u128 {
        let price: u128 = receipt.effective_gas_price.to();
        let unused = match self.order_of(transaction, receipt.transaction_hash) {
            Some(order) if self.id.network.charges_gas_limit() => {
                order.gas_limit.saturating_sub(receipt.gas_used.to())
            }
            Some(_) | None => 0,
        };
        let unused = u128::from(unused).saturating_mul(price);
        receipt.data_fee_wei().saturating_add(unused)
    }

    /// Takes note of what a rollup took for the data of each payment.
    fn expect_data_fee(&self, receipt: &Receipt, payments: usize) {
        let payments = u128::try_from(payments.max(1)).unwrap_or(1);
        let fee = receipt.data_fee_wei();
        if fee > 0 {
            self.site.gas.expect_data_fee(fee / payments);
        }
    }

    /// What the attempt with this hash says.
    fn order_of(&self, transaction: &Unmined, hash: B256) -> Option<Order> {
        let mut attempts = transaction.attempts.iter();
        let (_, raw) = attempts.find(|(attempt, _)| *attempt == hash)?;
        Order::of_raw(self.id.network, raw)
    }

    /// Takes note of the gas that a transaction used. A wallet's own code says nothing about others.
    fn learn(&self, transaction: &Unmined, mined: &MinedTransaction) {
        let own_code = |payment: &Payment| payment.wallet.is_some();
        if self.id.network.charges_gas_limit() {
            // What it used is not told: what it was given is.
            return;
        }
        let order = self.order_of(transaction, mined.hash);
        let telling =
            order.filter(|order| !order.is_empty() && !transaction.payments.iter().any(own_code));
        if let Some(order) = telling {
            let rows = transaction.payments.len();
            self.site.gas.mined(rows, mined.gas_used, order.gas_limit);
        }
    }
}
