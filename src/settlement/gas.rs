//! How much gas transactions are given, and how many payments ride in one: from measurements, and from what nodes and blocks have shown.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Gas of one payment in a batch at least, with its calldata and a payee who never held the token.
const ROW_GAS: u64 = 76_000;

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
    /// Payments in one transaction, as far as nodes have taken so many.
    rows: AtomicUsize,
    /// Moving averages of the gas that one payment used, by itself and in company.
    alone: AtomicU64,
    row: AtomicU64,
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
    pub(super) const fn new(limits: BatchLimits, gas_cap: u64) -> Self {
        Self {
            limits,
            gas_cap,
            rows: AtomicUsize::new(limits.rows_max),
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
            rows_max: self.rows.load(Ordering::Relaxed),
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
        if !short && rows > 1 {
            // As many again as were too many before, one by one.
            let more = |rows: usize| (rows < self.limits.rows_max).then_some(rows + 1);
            let _ = self
                .rows
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    /// Nodes did not take so many payments at once: half as many from now on.
    pub(super) fn too_many(&self, rows: usize) {
        self.rows.fetch_min((rows / 2).max(1), Ordering::Relaxed);
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
    fn what_nodes_do_not_take_is_halved_and_grows_again_slowly() {
        let book = GasBook::new(LIMITS, 500_000);
        book.too_many(190);
        assert_eq!(book.rule().rows_max, 95);
        book.too_many(1);
        assert_eq!(book.rule().rows_max, 1);
        book.mined(1, 80_000, 120_000);
        assert_eq!(book.rule().rows_max, 1, "one by itself says nothing");
        book.rows.store(189, Ordering::Relaxed);
        for _ in 0..3 {
            book.mined(2, 140_000, 500_000);
        }
        assert_eq!(book.rule().rows_max, 190);
    }
}
