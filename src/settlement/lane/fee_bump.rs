//! Fee bumps: a transaction that blocks leave out is replaced under its nonce. The replacement has the same content, or is an empty
//! self-transfer where the content is expired or rejected for good.

use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::Instant;

use super::batch::PrepareError;
use crate::chain::signer::UnsignedTransaction;
use crate::chain::{FeePolicy, Head, SignerKey};
use crate::ledger::Attempt;
use crate::telemetry::causes;

use super::{Lane, LaneLost, OpenTransaction, OwnedLane};

/// Blocks that a transaction may miss before its fee is checked.
const PATIENCE_BLOCKS: u64 = 3;
/// Blocks per attempt after which the fee is bumped although it covers the base fee: block producers may want a higher priority fee.
const BUMP_AFTER_BLOCKS: u64 = 8;

impl OpenTransaction {
    /// Whether the newest bytes have waited this many blocks.
    fn has_waited(&mut self, head: &Head, blocks: u64) -> bool {
        let since = *self.since_block.get_or_insert(head.number);
        head.number >= since.saturating_add(blocks)
    }

    /// Restarts the wait for new bytes.
    fn restart_wait(&mut self, head: &Head) {
        self.written_at = Instant::now();
        (self.since_block, self.bump_failed_at) = (Some(head.number), None);
        (self.fee_too_low, self.rejected_for_good) = (false, false);
    }

    /// Whether every payment in it has expired.
    fn has_expired(&self, head: &Head) -> bool {
        let now = head.time.unix_timestamp();
        // A transaction without payments (funding, empty) does not expire.
        let payments = &self.transaction.payments;
        !payments.is_empty()
            && payments
                .iter()
                .all(|payment| payment.terms.valid_before.timestamp() < now)
    }

    /// The transaction that should replace the newest bytes now, if any: the same with a higher fee, or an empty self-transfer where every
    /// payment has expired or no node accepts the bytes.
    fn replacement(
        &mut self,
        head: &Head,
        fees: &FeePolicy,
        (signer, bump_after): (Address, Duration),
    ) -> Option<UnsignedTransaction> {
        if self
            .bump_failed_at
            .is_some_and(|at| head.number < at + PATIENCE_BLOCKS)
        {
            return None;
        }
        let unsigned = self.unsigned()?;
        let attempts = u64::try_from(self.transaction.attempts.len()).unwrap_or(u64::MAX);
        let old = self.has_waited(head, BUMP_AFTER_BLOCKS.saturating_mul(attempts))
            && self.written_at.elapsed() >= bump_after;
        let waited = self.has_waited(head, PATIENCE_BLOCKS);
        if !unsigned.is_empty() && (self.rejected_for_good || self.has_expired(head)) {
            return Some(unsigned.empty_replacement(signer));
        }
        let low = waited && !fees.suffices(unsigned.fees, head);
        (old || low || self.fee_too_low).then_some(unsigned)
    }
}

impl Lane {
    /// Replaces every open transaction that needs a higher fee.
    pub(super) async fn bump_fees(
        &self,
        owned: &mut OwnedLane,
        head: &Head,
    ) -> Result<(), LaneLost> {
        let Some(key) = &self.key else {
            return Ok(());
        };
        let (fees, bump_after) = (self.served.fees(), self.served.timing.bump_after);
        for index in 0..owned.open.len() {
            let Some(open) = owned.open.get_mut(index) else {
                break;
            };
            let Some(unsigned) = open.replacement(head, &fees, (self.id.signer, bump_after)) else {
                continue;
            };
            match self
                .write_replacement(owned, (index, key), unsigned, head)
                .await
            {
                Ok(true) => drop(self.send(owned, index, None)),
                Ok(false) => return Err(LaneLost),
                Err(PrepareError::Ledger(error)) => {
                    // The commit may have happened: read the lane again.
                    tracing::warn!(
                        error = causes(&error),
                        "fee bump not recorded: the lane is read again from the ledger"
                    );
                    return Err(LaneLost);
                }
                Err(error) => {
                    // Others would wait for the key too, and no receipt is read meanwhile.
                    let is_key_away = matches!(error, PrepareError::Signing(_));
                    if let Some(open) = owned.open.get_mut(index) {
                        // Tried and logged again after `PATIENCE_BLOCKS`.
                        open.bump_failed_at = Some(head.number);
                        tracing::warn!(
                            nonce = open.transaction.nonce,
                            error = causes(&error),
                            "fee bump failed: the bytes sent before stay in use"
                        );
                    }
                    if is_key_away {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Signs the replacement and commits it. `false`: another process owns the lane.
    async fn write_replacement(
        &self,
        owned: &mut OwnedLane,
        (index, key): (usize, &SignerKey),
        unsigned: UnsignedTransaction,
        head: &Head,
    ) -> Result<bool, PrepareError> {
        let Some(open) = owned.open.get_mut(index) else {
            return Ok(true);
        };
        let fees = self.served.fees().fee_bump(unsigned.fees, head)?;
        let unsigned = UnsignedTransaction { fees, ..unsigned };
        let (gas_limit, empty, cost_wei) =
            (unsigned.gas_limit, unsigned.is_empty(), unsigned.cost());
        let (value, payments) = (unsigned.value, open.transaction.payments.len());
        let (raw, hash) = key.sign(unsigned).await?;
        let attempt = Attempt {
            hash,
            raw: raw.clone(),
            gas_limit,
            max_fee_wei: fees.max_fee_wei,
            max_priority_fee_wei: fees.max_priority_fee_wei,
            cost_wei: value.saturating_add(self.served.cost(gas_limit, fees, payments)),
            empty,
        };
        let lane = (self.id, owned.lease.epoch);
        let ledger = &self.served.ledger;
        if !ledger
            .record_attempt(lane, open.transaction.id, &attempt)
            .await?
        {
            return Ok(false);
        }
        let what = if empty {
            "transaction replaced by an empty self-transfer: its payments expired or no node accepts it"
        } else {
            "fee bumped: replacement transaction sent"
        };
        tracing::info!(nonce = open.transaction.nonce, transaction = %hash, attempt = open.transaction.attempts.len() + 1, "{what}");
        open.transaction.attempts.push((hash, raw));
        open.cost_wei = cost_wei;
        open.restart_wait(head);
        Ok(true)
    }
}
