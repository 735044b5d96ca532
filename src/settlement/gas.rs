//! How much gas transactions are given, and how many payments ride in one: from measurements, and from what nodes and blocks have shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::U256;
use tokio::time::Instant;

/// Gas of one payment in a batch at least, with its calldata and a payee who never held the token.
const ROW_GAS: u64 = 76_000;
/// After this long without a refusal twice as many payments are tried in one transaction.
const DOUBLE_AFTER: Duration = Duration::from_mins(1);
/// The same where a node has refused each larger batch again.
const DOUBLE_AFTER_MAX: Duration = Duration::from_hours(1);
/// Batch simulations that have failed for this long, whatever the reason, make the payments go one by one...
const APART_AFTER: Duration = Duration::from_secs(5);
/// ...for this long; then a batch is simulated again.
const APART_FOR: Duration = Duration::from_secs(10);

/// Gas of one payment by itself, as a measure of what is left.
pub(super) const PAYMENT_GAS: u64 = 100_000;
/// Below so many payments' gas nothing new is written: what was sent may need a fee bump.
pub const EMPTY_PAYMENTS: u64 = 30;

/// What a payment by itself costs at most.
pub fn payment_cost(wei_per_gas: u128) -> U256 {
    U256::from(wei_per_gas).saturating_mul(U256::from(PAYMENT_GAS))
}

/// What the operator allows in one transaction.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Payments at most.
    pub rows_max: usize,
    /// Gas at most, where there are several.
    pub gas_max: u64,
}

/// What is known of a network's gas by now.
#[derive(Debug)]
pub(super) struct GasBook {
    limits: BatchLimits,
    gas_cap: u64,
    size: Mutex<BatchSize>,
    /// Wei that a rollup takes for the data of one payment, as it was last seen.
    data_fee_wei: Mutex<u128>,
    /// Moving averages of the gas that one payment used, by itself and in company.
    alone: AtomicU64,
    row: AtomicU64,
}

/// How many payments nodes take in one transaction, as far as they have said. Every limit that was learned ends with time.
#[derive(Debug)]
struct BatchSize {
    /// What a node took the size of a batch for, and when.
    limit: Option<(usize, Instant)>,
    double_after: Duration,
    /// Since when every simulation of a batch has failed.
    failing_since: Option<Instant>,
    apart_until: Option<Instant>,
    /// Nothing is there that could make several calls.
    single: bool,
}

impl BatchSize {
    fn rows_max(&mut self, most: usize, now: Instant) -> usize {
        if self.single || self.apart_until.is_some_and(|until| now < until) {
            return 1;
        }
        self.apart_until = None;
        let Some((rows, since)) = self.limit else {
            return most;
        };
        let periods = now.saturating_duration_since(since).as_secs() / self.double_after.as_secs();
        let doublings = u32::try_from(periods).unwrap_or(u32::MAX);
        let grown = rows.saturating_mul(2_usize.saturating_pow(doublings));
        grown.min(most)
    }

    fn too_many(&mut self, rows: usize, most: usize, now: Instant) {
        let allowed = self.rows_max(most, now);
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

    fn not_simulated(&mut self, now: Instant) {
        let since = *self.failing_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= APART_AFTER {
            self.apart_until = Some(now + APART_FOR);
        }
    }
}

impl Default for BatchSize {
    fn default() -> Self {
        Self {
            limit: None,
            double_after: DOUBLE_AFTER,
            failing_since: None,
            apart_until: None,
            single: false,
        }
    }
}

/// By which a transaction is filled and given gas.
#[derive(Debug, Clone, Copy)]
pub(super) struct GasRule {
    /// Payments at most.
    pub(super) rows_max: usize,
    /// Gas of a batch at most.
    pub(super) gas_max: u64,
    /// Gas of one payment by itself at most.
    pub(super) gas_cap: u64,
    /// Gas of one payment by itself at least.
    pub(super) alone: u64,
    /// Gas of one payment in a batch at least.
    pub(super) row: u64,
}

impl GasBook {
    pub(super) fn new(limits: BatchLimits, gas_cap: u64) -> Self {
        Self {
            limits,
            gas_cap,
            size: Mutex::default(),
            data_fee_wei: Mutex::default(),
            alone: AtomicU64::new(0),
            row: AtomicU64::new(0),
        }
    }

    /// The rule now. What was learned comes with a margin, and is never below what was measured.
    pub(super) fn rule(&self) -> GasRule {
        let learned = |average: &AtomicU64| {
            let used = average.load(Ordering::Relaxed);
            used.saturating_add(used / 6)
        };
        GasRule {
            rows_max: self.size().rows_max(self.limits.rows_max, Instant::now()),
            gas_max: self.limits.gas_max,
            gas_cap: self.gas_cap,
            alone: learned(&self.alone).min(self.gas_cap),
            row: learned(&self.row).max(ROW_GAS).min(self.limits.gas_max / 8),
        }
    }

    /// A transaction of so many payments was mined. One that used up all it was given needed more.
    pub(super) fn mined(&self, rows: usize, gas_used: u64, gas_limit: u64) {
        let average = if rows > 1 { &self.row } else { &self.alone };
        let Some(each) = u64::try_from(rows)
            .ok()
            .and_then(|rows| gas_used.checked_div(rows))
        else {
            return;
        };
        let short = gas_used >= gas_limit - gas_limit / 64;
        let before = average.load(Ordering::Relaxed);
        let after = if short {
            before.max(each.saturating_add(each / 2))
        } else if before == 0 {
            each
        } else {
            (before / 8).saturating_mul(7).saturating_add(each / 8)
        };
        average.store(after, Ordering::Relaxed);
    }

    /// A node said that a batch of so many payments is too large: half as many from now on, and more again with time. What was refused for
    /// one payment says nothing about batches.
    pub(super) fn too_many(&self, rows: usize) {
        if rows > 1 {
            let most = self.limits.rows_max;
            self.size().too_many(rows, most, Instant::now());
        }
    }

    /// Takes note of what a rollup takes for the data of one payment.
    pub(super) fn expect_data_fee(&self, wei: u128) {
        let mut fee = self.data_fee();
        *fee = wei.max(*fee / 8 * 7);
    }

    /// What a rollup takes for the data of so many payments.
    pub(super) fn data_fee_of(&self, payments: usize) -> U256 {
        U256::from(*self.data_fee()).saturating_mul(U256::from(payments.max(1)))
    }

    /// What a payment may cost per gas, data included: as a rollup takes it from the same account.
    pub(super) fn wei_per_gas(&self, max_fee_wei: u128) -> u128 {
        max_fee_wei.saturating_add(self.data_fee().div_ceil(u128::from(ROW_GAS)))
    }

    fn data_fee(&self) -> MutexGuard<'_, u128> {
        self.data_fee_wei
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether Multicall3 is there.
    pub(super) fn note_multicall(&self, is_there: bool) {
        self.size().single = !is_there;
    }

    /// A batch was simulated, whatever came of its payments.
    pub(super) fn batch_simulated(&self) {
        self.size().failing_since = None;
    }

    /// A batch could not be simulated, for a reason that has nothing to do with its size. Once that has lasted, payments go one by one for a
    /// while: somebody may serve all calls but this one.
    pub(super) fn batch_not_simulated(&self) {
        self.size().not_simulated(Instant::now());
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

    #[test]
    fn what_transactions_use_is_learned_and_never_lowers_the_floor() {
        let book = GasBook::new(LIMITS, 500_000);
        assert_eq!((book.rule().row, book.rule().alone), (ROW_GAS, 0));
        for _ in 0..50 {
            book.mined(100, 4_900_000, 8_000_000);
        }
        assert_eq!(book.rule().row, ROW_GAS, "cheaper than the floor");
        for _ in 0..50 {
            book.mined(100, 9_000_000, 11_000_000);
        }
        let learned = book.rule().row;
        assert!((100_000..110_000).contains(&learned), "{learned}");
        book.mined(1, 120_000, 120_000);
        assert_eq!(book.rule().alone, 210_000, "it ran out of gas");
        book.mined(1, 900_000, 900_000);
        assert_eq!(book.rule().alone, 500_000, "the cap holds");
    }

    #[test]
    fn batch_too_large_for_a_node_is_halved_and_grows_again_with_time() {
        let (mut size, mut now) = (BatchSize::default(), Instant::now());
        size.too_many(190, 190, now);
        size.too_many(190, 190, now);
        assert_eq!(size.rows_max(190, now), 95, "planned before it was known");
        size.too_many(95, 190, now);
        assert_eq!(size.rows_max(190, now), 47);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 94);
        now += DOUBLE_AFTER * 2;
        assert_eq!(size.rows_max(190, now), 190);
        // A node that keeps to its limit is tried less and less often.
        size.too_many(190, 190, now);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 95);
        now += DOUBLE_AFTER;
        assert_eq!(size.rows_max(190, now), 190);
        for _ in 0..20 {
            let rows = size.rows_max(190, now);
            size.too_many(rows, 190, now);
            now += DOUBLE_AFTER_MAX;
            assert!(size.rows_max(190, now) > 1, "a limit is never for good");
        }
    }

    #[test]
    fn data_fees_raise_the_price_of_gas_and_are_forgotten_slowly() {
        let book = GasBook::new(LIMITS, 500_000);
        assert_eq!(book.wei_per_gas(7), 7);
        book.expect_data_fee(80_000_000);
        assert_eq!(book.wei_per_gas(7), 7 + 1_053);
        assert_eq!(book.data_fee_of(3), U256::from(240_000_000));
        book.expect_data_fee(0);
        assert_eq!(book.data_fee_of(1), U256::from(70_000_000));
        book.expect_data_fee(90_000_000);
        assert_eq!(book.data_fee_of(0), U256::from(90_000_000));
    }

    #[test]
    fn one_payment_or_none_says_nothing_about_batches() {
        let book = GasBook::new(LIMITS, 500_000);
        for rows in [0, 1] {
            book.too_many(rows);
        }
        assert_eq!(book.rule().rows_max, 190);
    }

    #[test]
    fn batches_that_cannot_be_simulated_are_taken_apart_for_a_while() {
        let (mut size, mut now) = (BatchSize::default(), Instant::now());
        size.not_simulated(now);
        now += APART_AFTER / 2;
        size.not_simulated(now);
        assert_eq!(size.rows_max(190, now), 190, "a hiccup");
        size.failing_since = None;
        now += APART_AFTER;
        size.not_simulated(now);
        assert_eq!(size.rows_max(190, now), 190, "the next one");
        now += APART_AFTER;
        size.not_simulated(now);
        assert_eq!(size.rows_max(190, now), 1);
        now += APART_FOR;
        assert_eq!(size.rows_max(190, now), 190, "tried again");
        size.not_simulated(now);
        assert_eq!(size.rows_max(190, now), 1, "as before");
    }
}
