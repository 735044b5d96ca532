//! The other half of a lane: what became of the transactions that it sent.

use std::time::Duration;

use tokio::time::Instant;

use super::{ASK_AFTER, Lane, Lost, Open, Owned, TEND_INTERVAL};
use crate::chain::{Head, Receipt};
use crate::ledger::{BlockRef, MinedTransaction, RowOutcome, Unmined};
use crate::settlement::chain_view::Moved;
use crate::settlement::failpoint::{Step, reach};
use crate::settlement::outcome;
use crate::telemetry::causes;

/// Bytes are sent again after this long without being mined, and every time it passes again.
const RESEND_AFTER: Duration = Duration::from_secs(4);
/// How long a nonce may be called used without a receipt of ours: nodes show receipts later than account nonces.
const STRANGER_AFTER: Duration = Duration::from_secs(10);

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
        let mut index = 0;
        while let Some(open) = owned.open.get(index) {
            let receipt = open
                .transaction
                .attempts
                .iter()
                .find_map(|(hash, _)| self.site.view.receipt(*hash));
            index += match receipt {
                Some(receipt) => self.conclude(owned, index, &receipt, &head).await?,
                None => 1,
            };
        }
        if before.gaps != now.gaps {
            self.ask(owned, &head).await?;
        }
        Ok(())
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
        let Some(head) = owned.seen.head else {
            return Ok(());
        };
        self.outbid(owned, &head).await?;
        self.ask(owned, &head).await
    }

    /// Asks the node for transactions by hash: after a gap in what the watch has read, and as a second opinion on old ones.
    async fn ask(&self, owned: &mut Owned, head: &Head) -> Result<(), Lost> {
        let mut index = 0;
        while let Some(open) = owned.open.get_mut(index) {
            let due = open.asked_at.elapsed() >= ASK_AFTER;
            let mut receipt = None;
            if due {
                open.asked_at = Instant::now();
                let hashes: Vec<_> = open
                    .transaction
                    .attempts
                    .iter()
                    .map(|(hash, _)| *hash)
                    .collect();
                for hash in hashes {
                    receipt = receipt.or(self.site.rpc.receipt(hash).await.ok().flatten());
                }
            }
            index += match receipt {
                Some(receipt) => self.conclude(owned, index, &receipt, head).await?,
                None => 1,
            };
        }
        self.watch_for_strangers(owned, head).await
    }

    /// Somebody else who sends with this lane's key takes nonces that belong to committed bytes: only a person can say what happened, and
    /// until then no new nonce is written. What rode in a nonce that is lost for good goes on elsewhere.
    async fn watch_for_strangers(&self, owned: &mut Owned, head: &Head) -> Result<(), Lost> {
        let suspicious = |open: &Open| {
            open.used_since
                .is_some_and(|since| since.elapsed() >= STRANGER_AFTER)
        };
        let Some(index) = owned.open.iter().position(suspicious) else {
            return Ok(());
        };
        let Some(open) = owned.open.get(index) else {
            return Ok(());
        };
        let (nonce, id) = (open.transaction.nonce, open.transaction.id);
        let depth = u64::from(self.site.policy.confirmations);
        let deep = (head.number + 1).saturating_sub(depth);
        let chain = &self.site.rpc;
        let used = chain.transaction_count_at(self.id.signer, deep).await;
        if !used.is_ok_and(|used| used > nonce) {
            return Ok(());
        }
        if !owned.lease.stopped {
            let why = format!(
                "nonce {nonce} of this signer was used by a transaction that is not x402d's: the key is used elsewhere"
            );
            self.stop(&why).await.map_err(|_| Lost)?;
        }
        match self.site.ledger.lose_nonce(id).await {
            Ok(queued) => {
                tracing::warn!(network = %self.id.network, signer = %self.id.signer, nonce, payments = queued.len(), "a nonce is lost; what rode in it is queued again");
                self.site.waiters.wake(queued);
            }
            Err(error) => {
                tracing::warn!(error = causes(&error), "cannot give up a lost nonce");
            }
        }
        // Read anew: stopped, and without the lost one.
        Err(Lost)
    }

    /// Records what a mined transaction did. Returns by how much to go on: 0 when the transaction was taken off the list.
    async fn conclude(
        &self,
        owned: &mut Owned,
        index: usize,
        receipt: &Receipt,
        head: &Head,
    ) -> Result<usize, Lost> {
        let Some(open) = owned.open.get(index) else {
            return Ok(1);
        };
        reach(Step::Mined);
        match self.result(&open.transaction, receipt, head).await {
            Ok(mined) => {
                if let Err(error) = self.site.ledger.record_mined(&mined).await {
                    tracing::warn!(
                        error = causes(&error),
                        "cannot record a result; it will be read again"
                    );
                    return Ok(1);
                }
                reach(Step::Settled);
                owned.open.remove(index);
                self.site.count_open(1, 0);
                if mined.rows.iter().any(|(_, row)| {
                    matches!(
                        row,
                        RowOutcome::Transferred { deep: false, .. }
                            | RowOutcome::Elsewhere { deep: false, .. }
                    )
                }) {
                    self.site.note_shallow();
                }
                self.site
                    .waiters
                    .wake(mined.rows.iter().map(|(payment, _)| *payment));
                Ok(0)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot tell what a mined transaction did; it will be read again");
                Ok(1)
            }
        }
    }

    async fn result(
        &self,
        transaction: &Unmined,
        receipt: &Receipt,
        head: &Head,
    ) -> Result<MinedTransaction, outcome::NotNow> {
        let mut rows = Vec::with_capacity(transaction.payments.len());
        for payment in &transaction.payments {
            let row = outcome::of(&self.site, payment, (receipt, transaction.batch), head).await?;
            if let RowOutcome::WithoutEffect(next) = &row {
                tracing::warn!(payment.id = %payment.id, transaction = %receipt.transaction_hash, ?next, "a transaction was mined without moving this payment's money");
            }
            rows.push((payment.id, row));
        }
        let time = self.site.rpc.block_time(receipt.block_hash, head).await?;
        Ok(MinedTransaction {
            id: transaction.id,
            hash: receipt.transaction_hash,
            block: BlockRef {
                number: receipt.block_number.to(),
                hash: receipt.block_hash,
                time,
            },
            succeeded: receipt.succeeded(),
            gas_used: receipt.gas_used.to(),
            gas_price_wei: receipt.effective_gas_price.to(),
            rows,
        })
    }
}
