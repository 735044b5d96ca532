//! Gas limits and batch sizes, learned from mined transactions and from what nodes accept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::U256;
use tokio::time::Instant;

use crate::chain::FeePolicy;
use crate::timing::Timing;

/// Least gas of one payment in a batch, with its calldata and a payee that never held the token.
const ROW_GAS: u64 = 76_000;
/// After this long without a rejection, twice as many payments are tried in one transaction.
const DOUBLE_AFTER: Duration = Duration::from_mins(1);
/// Longest such time, where a node has rejected each larger batch again.
const DOUBLE_AFTER_MAX: Duration = Duration::from_hours(1);

/// Gas of a payment with its own transaction, used to express balances in payments.
pub(super) const PAYMENT_GAS: u64 = 100_000;
/// Below the gas of this many payments no new transaction is written: those in flight may need a fee bump.
pub const GAS_RESERVE_PAYMENTS: u64 = 30;
/// Fewer payments than the log warns from.
pub const PAYMENTS_LOW: u64 = 300;

/// Most that a payment with its own transaction costs, in wei.
pub fn payment_cost(wei_per_gas: u128) -> U256 {
    U256::from(wei_per_gas).saturating_mul(U256::from(PAYMENT_GAS))
}

/// The operator's limits of one transaction.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    pub rows_max: usize,
    /// Most gas of a transaction with several payments.
    pub gas_max: u64,
}

/// Gas estimates of one network.
#[derive(Debug)]
pub(super) struct GasEstimates {
    limits: BatchLimits,
    gas_cap: u64,
    wallet_gas_cap: u64,
    size: Mutex<BatchSize>,
    /// Fee that a rollup charges for the data of one payment, in wei, as last seen.
    data_fee_wei: Mutex<u128>,
    /// Moving averages of the gas that one payment used: with its own transaction, and in a batch.
    single_gas: AtomicU64,
    row_gas: AtomicU64,
}

/// How many payments nodes accept in one transaction. Every learned limit expires.
#[derive(Debug)]
struct BatchSize {
    /// Batch size learned from a rejection (half of the rejected size), and when.
    limit: Option<(usize, Instant)>,
    double_after: Duration,
    /// When payments are sent one by one, and for how long.
    one_by_one: (Duration, Duration),
    /// Since when every batch simulation has failed.
    failing_since: Option<Instant>,
    one_by_one_until: Option<Instant>,
    /// Multicall3 is not deployed.
    no_multicall: bool,
}

impl BatchSize {
    fn new(timing: &Timing) -> Self {
        Self {
            limit: None,
            double_after: DOUBLE_AFTER,
            one_by_one: (timing.one_by_one_after, timing.one_by_one_for),
            failing_since: None,
            one_by_one_until: None,
            no_multicall: false,
        }
    }

    fn rows_max(&mut self, max: usize, now: Instant) -> usize {
        if self.no_multicall || self.one_by_one_until.is_some_and(|until| now < until) {
            return 1;
        }
        self.one_by_one_until = None;
        let Some((rows, since)) = self.limit else {
            return max;
        };
        let periods = now.saturating_duration_since(since).as_secs() / self.double_after.as_secs();
        let doublings = u32::try_from(periods).unwrap_or(u32::MAX);
        let grown = rows.saturating_mul(2_usize.saturating_pow(doublings));
        grown.min(max)
    }

    fn batch_too_large(&mut self, rows: usize, max: usize, now: Instant) {
        let allowed = self.rows_max(max, now);
        if rows > allowed {
            // Planned before the limit was learned.
            return;
        }
        let again = self.limit.is_some_and(|(limit, _)| limit < allowed);
        if again {
            self.double_after = (self.double_after * 2).min(DOUBLE_AFTER_MAX);
        }
        self.limit = Some(((rows / 2).max(1), now));
    }

    fn note_failed_simulation(&mut self, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.one_by_one.0 {
            self.one_by_one_until = Some(now + self.one_by_one.1);
        }
    }
}

/// Limits by which a transaction is filled and given gas.
#[derive(Debug, Clone, Copy)]
pub(super) struct GasRule {
    /// Most payments.
    pub(super) rows_max: usize,
    /// Most gas of a batch.
    pub(super) gas_max: u64,
    /// Most gas of a payment with its own transaction.
    pub(super) gas_cap: u64,
    /// The same for a payer with code.
    pub(super) wallet_gas_cap: u64,
    /// Least gas of a payment with its own transaction.
    pub(super) single_min: u64,
    /// Least gas of a payment in a batch.
    pub(super) row_min: u64,
}

impl GasEstimates {
    pub(super) fn new(limits: BatchLimits, fees: FeePolicy, timing: &Timing) -> Self {
        Self {
            limits,
            gas_cap: fees.gas_cap,
            wallet_gas_cap: fees.wallet_gas_cap,
            size: Mutex::new(BatchSize::new(timing)),
            data_fee_wei: Mutex::default(),
            single_gas: AtomicU64::new(0),
            row_gas: AtomicU64::new(0),
        }
    }

    /// The current limits. Learned values get a margin; the value per row is never below the measured `ROW_GAS`.
    pub(super) fn rule(&self) -> GasRule {
        let learned = |average: &AtomicU64| {
            let used = average.load(Ordering::Relaxed);
            used.saturating_add(used / 6)
        };
        GasRule {
            rows_max: self.size().rows_max(self.limits.rows_max, Instant::now()),
            gas_max: self.limits.gas_max,
            gas_cap: self.gas_cap,
            wallet_gas_cap: self.wallet_gas_cap,
            single_min: learned(&self.single_gas).min(self.gas_cap),
            row_min: learned(&self.row_gas)
                .max(ROW_GAS)
                .min(self.limits.gas_max / 8),
        }
    }

    /// Records the gas that a transaction used. If it used its whole limit, it needed more.
    pub(super) fn note_gas_used(&self, rows: usize, gas_used: u64, gas_limit: u64) {
        let average = if rows > 1 {
            &self.row_gas
        } else {
            &self.single_gas
        };
        let Some(each) = u64::try_from(rows)
            .ok()
            .and_then(|rows| gas_used.checked_div(rows))
        else {
            return;
        };
        let ran_out = gas_used >= gas_limit - gas_limit / 64;
        let before = average.load(Ordering::Relaxed);
        let after = if ran_out {
            before.max(each.saturating_add(each / 2))
        } else if before == 0 {
            each
        } else {
            (before / 8).saturating_mul(7).saturating_add(each / 8)
        };
        average.store(after, Ordering::Relaxed);
    }

    /// A node rejected a batch of `rows` payments as too large: half as many from now on, more again with time. A rejection of a single
    /// payment says nothing about batches.
    pub(super) fn batch_too_large(&self, rows: usize) {
        if rows > 1 {
            let max = self.limits.rows_max;
            self.size().batch_too_large(rows, max, Instant::now());
        }
    }

    /// Records the fee that a rollup charges for the data of one payment.
    pub(super) fn note_data_fee(&self, wei: u128) {
        let mut fee = self.data_fee();
        *fee = wei.max(*fee / 8 * 7);
    }

    /// The fee that a rollup charges for the data of this many payments.
    pub(super) fn data_fee_of(&self, payments: usize) -> U256 {
        U256::from(*self.data_fee()).saturating_mul(U256::from(payments.max(1)))
    }

    /// Most that a payment costs per gas, in wei, with a rollup's data fee included: both come from the signer's balance.
    pub(super) fn wei_per_gas(&self, max_fee_wei: u128) -> u128 {
        max_fee_wei.saturating_add(self.data_fee().div_ceil(u128::from(ROW_GAS)))
    }

    fn data_fee(&self) -> MutexGuard<'_, u128> {
        self.data_fee_wei
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Records whether Multicall3 is deployed.
    pub(super) fn note_multicall(&self, is_there: bool) {
        self.size().no_multicall = !is_there;
    }

    /// A batch simulation gave an answer, whatever it said about the payments.
    pub(super) fn batch_simulated(&self) {
        self.size().failing_since = None;
    }

    /// A batch simulation failed for a reason other than size. If that lasts, payments are sent one by one for a while: a provider may
    /// serve all calls but this one.
    pub(super) fn batch_not_simulated(&self) {
        self.size().note_failed_simulation(Instant::now());
    }

    fn size(&self) -> MutexGuard<'_, BatchSize> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        rows_max: 190,
        gas_max: 15_000_000,
    };

    fn estimates() -> GasEstimates {
        let fees = FeePolicy {
            max_fee_cap_wei: 100,
            priority_fee_wei: 1,
            gas_cap: 500_000,
            wallet_gas_cap: 200_000,
            gas_price_wei: None,
        };
        GasEstimates::new(LIMITS, fees, &Timing::default())
    }

    #[test]
    fn gas_used_is_learned_and_never_lowers_the_floor() {
        let estimates = estimates();
        assert_eq!(
            (estimates.rule().row_min, estimates.rule().single_min),
            (ROW_GAS, 0)
        );
        for _ in 0..50 {
            estimates.note_gas_used(100, 4_900_000, 8_000_000);
        }
        assert_eq!(estimates.rule().row_min, ROW_GAS, "cheaper than the floor");
        for _ in 0..50 {
            estimates.note_gas_used(100, 9_000_000, 11_000_000);
        }
        let learned = estimates.rule().row_min;
        assert!((100_000..110_000).contains(&learned), "{learned}");
        estimates.note_gas_used(1, 120_000, 120_000);
        assert_eq!(estimates.rule().single_min, 210_000, "it ran out of gas");
        estimates.note_gas_used(1, 900_000, 900_000);
        assert_eq!(estimates.rule().single_min, 500_000, "the cap holds");
    }

    #[test]
    fn rejected_batch_size_is_halved_and_grows_again_with_time() {
        let (mut size, mut now) = (BatchSize::new(&Timing::default()), Instant::now());
        size.batch_too_large(190, 190, now);
        size.batch_too_large(190, 190, now);
        assert_eq!(size.rows_max(190, now), 95, "planned before it was known");
        size.batch_too_large(95, 190, now);
        assert_eq!(size.rows_max(190, now), 47);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 94);
        now += DOUBLE_AFTER * 2;
        assert_eq!(size.rows_max(190, now), 190);
        // A node that keeps to its limit is tried less and less often.
        size.batch_too_large(190, 190, now);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 95);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 190);
        for _ in 0..20 {
            let rows = size.rows_max(190, now);
            size.batch_too_large(rows, 190, now);
            now += DOUBLE_AFTER_MAX;
            assert!(size.rows_max(190, now) > 1, "a limit is never for good");
        }
    }

    #[test]
    fn data_fees_raise_the_gas_price_and_decay_slowly() {
        let estimates = estimates();
        assert_eq!(estimates.wei_per_gas(7), 7);
        estimates.note_data_fee(80_000_000);
        assert_eq!(estimates.wei_per_gas(7), 7 + 1_053);
        assert_eq!(estimates.data_fee_of(3), U256::from(240_000_000));
        estimates.note_data_fee(0);
        assert_eq!(estimates.data_fee_of(1), U256::from(70_000_000));
        estimates.note_data_fee(90_000_000);
        assert_eq!(estimates.data_fee_of(0), U256::from(90_000_000));
    }

    #[test]
    fn rejection_of_a_single_payment_limits_no_batches() {
        let estimates = estimates();
        for rows in [0, 1] {
            estimates.batch_too_large(rows);
        }
        assert_eq!(estimates.rule().rows_max, 190);
    }

    #[test]
    fn failing_batch_simulations_split_batches_for_a_while() {
        let timing = Timing::default();
        let (mut size, mut now) = (BatchSize::new(&timing), Instant::now());
        size.note_failed_simulation(now);
        now += timing.one_by_one_after / 2;
        size.note_failed_simulation(now);
        assert_eq!(size.rows_max(190, now), 190, "a hiccup");
        size.failing_since = None;
        now += timing.one_by_one_after;
        size.note_failed_simulation(now);
        assert_eq!(size.rows_max(190, now), 190, "the next one");
        now += timing.one_by_one_after;
        size.note_failed_simulation(now);
        assert_eq!(size.rows_max(190, now), 1);
        now += timing.one_by_one_for;
        assert_eq!(size.rows_max(190, now), 190, "tried again");
        size.note_failed_simulation(now);
        assert_eq!(size.rows_max(190, now), 1, "as before");
    }
}
