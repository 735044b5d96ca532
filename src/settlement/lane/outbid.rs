//! Transactions that blocks leave out: their nonce gets better paid bytes, with the same content while that can still do something.

use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::Instant;

use crate::chain::signer::Order;
use crate::chain::{FeePolicy, Head, SignerKey};
use crate::ledger::Attempt;
use crate::settlement::prepare::NotPrepared;
use crate::telemetry::causes;

use super::{Lane, Lost, Open, Owned};

/// Blocks that a transaction may miss before it is looked at.
const PATIENCE_BLOCKS: u64 = 3;
/// Blocks, for each attempt so far, after which it is outbid although its fee covers the base fee: producers may want more for themselves.
const AGE_BLOCKS: u64 = 8;
/// And how old the newest bytes must be for that: where blocks come fast they say little.
const AGE: Duration = Duration::from_secs(12);

impl Open {
    /// Whether the newest bytes have waited so many blocks.
    fn has_waited(&mut self, head: &Head, blocks: u64) -> bool {
        let since = *self.since_block.get_or_insert(head.number);
        head.number >= since.saturating_add(blocks)
    }

    /// Begins to wait anew.
    fn renew(&mut self, head: &Head) {
        self.written_at = Instant::now();
        (self.since_block, self.failed_at) = (Some(head.number), None);
        (self.too_cheap, self.unfit) = (false, false);
    }

    /// Whether nothing that rides in it can move money any more.
    fn is_void(&self, head: &Head) -> bool {
        let now = head.time.unix_timestamp();
        let over = |end: i64| end < now;
        // What carries no payments is worth as much as ever.
        let payments = &self.transaction.payments;
        !payments.is_empty()
            && payments.iter().all(|payment| {
                let end = i64::try_from(payment.authorization.valid_before.atomic());
                end.is_ok_and(over)
            })
    }

    /// What should take the place of the newest bytes now: better paid, or nothing instead of what can do nothing, or what no node takes.
    fn successor(&mut self, head: &Head, fees: &FeePolicy, signer: Address) -> Option<Order> {
        if self
            .failed_at
            .is_some_and(|at| head.number < at + PATIENCE_BLOCKS)
        {
            return None;
        }
        let order = self.order()?;
        let attempts = u64::try_from(self.transaction.attempts.len()).unwrap_or(u64::MAX);
        let old = self.has_waited(head, AGE_BLOCKS.saturating_mul(attempts))
            && self.written_at.elapsed() >= AGE;
        let waited = self.has_waited(head, PATIENCE_BLOCKS);
        if !order.is_empty() && (self.unfit || self.is_void(head)) {
            return Some(order.emptied(signer));
        }
        let low = waited && !fees.suffices(order.fees, head);
        (old || low || self.too_cheap).then_some(order)
    }
}

impl Lane {
    /// Outbids every open transaction that has to be.
    pub(super) async fn outbid(&self, owned: &mut Owned, head: &Head) -> Result<(), Lost> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let fees = self.site.fees();
        for index in 0..owned.open.len() {
            let Some(open) = owned.open.get_mut(index) else {
                break;
            };
            let Some(order) = open.successor(head, &fees, self.id.signer) else {
                continue;
            };
            match self.write_better(owned, (index, key), order, head).await {
                Ok(true) => drop(self.send(owned, index, None)),
                Ok(false) => return Err(Lost),
                Err(NotPrepared::Ledger(error)) => {
                    // The commit may have happened: read the lane anew.
                    tracing::warn!(error = causes(&error), "cannot write better paid bytes");
                    return Err(Lost);
                }
                Err(error) => {
                    if let Some(open) = owned.open.get_mut(index) {
                        // Said again when as many blocks have gone by.
                        open.failed_at = Some(head.number);
                        tracing::warn!(network = %self.id.network, signer = %self.id.signer, nonce = open.transaction.nonce, error = causes(&error), "a transaction waits, and cannot be outbid now; its bytes stay in use");
                    }
                }
            }
        }
        Ok(())
    }

    /// Commits the bytes. `false`: the lane is not ours any more.
    async fn write_better(
        &self,
        owned: &mut Owned,
        (index, key): (usize, &SignerKey),
        order: Order,
        head: &Head,
    ) -> Result<bool, NotPrepared> {
        let Some(open) = owned.open.get_mut(index) else {
            return Ok(true);
        };
        let fees = self.site.fees().outbid(order.fees, head)?;
        let order = Order { fees, ..order };
        let (gas_limit, empty, cost) = (order.gas_limit, order.is_empty(), order.cost());
        let (raw, hash) = key.sign(order)?;
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
            empty,
        };
        let lane = (self.id, owned.lease.epoch);
        let ledger = &self.site.ledger;
        if !ledger
            .record_attempt(lane, open.transaction.id, &attempt)
            .await?
        {
            return Ok(false);
        }
        let what = if empty {
            "the content of a transaction can do nothing any more, or no node takes it; its nonce is used for nothing"
        } else {
            "blocks ask for more than a transaction offered; it was outbid under its nonce"
        };
        tracing::info!(network = %self.id.network, signer = %self.id.signer, nonce = open.transaction.nonce, transaction = %hash, attempt = open.transaction.attempts.len() + 1, "{what}");
        open.transaction.attempts.push((hash, raw));
        open.cost = cost;
        open.renew(head);
        Ok(true)
    }
}
