//! Transactions that blocks leave out: their nonce gets better paid bytes, with the same content while that can still do something.

use crate::chain::Head;
use crate::chain::signer::Order;
use crate::ledger::Attempt;
use crate::settlement::prepare::NotPrepared;
use crate::telemetry::causes;

use super::{Lane, Lost, Open, Owned};

/// Blocks that a transaction may miss before it is looked at.
const PATIENCE_BLOCKS: u64 = 3;

impl Open {
    /// Whether the newest bytes have waited long enough for somebody to ask whether they pay enough.
    fn has_waited(&mut self, head: &Head) -> bool {
        let since = *self.since_block.get_or_insert(head.number);
        self.too_cheap || head.number >= since.saturating_add(PATIENCE_BLOCKS)
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
}

impl Lane {
    /// Outbids every open transaction that offers less than blocks ask for.
    pub(super) async fn outbid(&self, owned: &mut Owned, head: &Head) -> Result<(), Lost> {
        for index in 0..owned.open.len() {
            let Some(open) = owned.open.get_mut(index) else {
                break;
            };
            let newest = open.transaction.attempts.last();
            let order = newest.and_then(|(_, raw)| Order::of_raw(self.id.network, raw));
            let Some(order) = order.filter(|_| open.has_waited(head)) else {
                continue;
            };
            if order.fees.suffice(head) && !open.too_cheap {
                continue;
            }
            let order = if open.is_void(head) {
                order.emptied(self.id.signer)
            } else {
                order
            };
            match self.write_better(owned, index, order, head).await {
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
                        (open.since_block, open.too_cheap) = (Some(head.number), false);
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
        index: usize,
        order: Order,
        head: &Head,
    ) -> Result<bool, NotPrepared> {
        let Some(open) = owned.open.get_mut(index) else {
            return Ok(true);
        };
        let fees = self.site.fees.outbid(order.fees, head)?;
        let (gas_limit, void) = (order.gas_limit, order.data.is_empty());
        let (raw, hash) = self.key.sign(Order { fees, ..order })?;
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
        };
        let lane = (self.id, owned.lease.epoch);
        let ledger = &self.site.ledger;
        if !ledger
            .record_attempt(lane, open.transaction.id, &attempt)
            .await?
        {
            return Ok(false);
        }
        tracing::info!(network = %self.id.network, signer = %self.id.signer, nonce = open.transaction.nonce, transaction = %hash, attempt = open.transaction.attempts.len() + 1, void, "blocks ask for more than a transaction offered; it was outbid under its nonce");
        open.transaction.attempts.push((hash, raw));
        (open.since_block, open.too_cheap) = (Some(head.number), false);
        Ok(true)
    }
}
