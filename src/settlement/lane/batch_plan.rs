//! Which payments share a transaction. Pure.

use crate::chain::authorization::{batch_call, settlement_call};
use crate::ledger::{GasShare, TransactionKind};
use crate::payment::{ChainFacts, Payment};
use crate::settlement::gas::GasRule;
use crate::settlement::turns::Turn;
use crate::settlement::{Budgets, GasParties};
use alloy::primitives::{Address, Bytes};
use std::sync::Arc;

/// Most bytes of calldata in one transaction: pools accept 128 KiB, some sequencers 95,000 bytes.
const CALLDATA_BYTES_MAX: usize = 95_000;
/// Bytes that Multicall3 needs per call besides the call's own calldata.
const CALL_BYTES: usize = 192;
/// Gas that a transaction costs before its first instruction.
const BASE_GAS: u64 = 21_000;
/// Gas for storage that is warm in a simulation and cold in a transaction, and for a payee that never held the token.
const COLD_GAS: u64 = 45_000;
/// Gas per byte of calldata, all bytes taken as non-zero.
const BYTE_GAS: u64 = 16;
/// Gas of a batch besides its payments, and the part that its last call must leave behind (63/64 rule, EIP-150).
const BATCH_GAS: u64 = 350_000;

/// Batches that are planned in vain this often are halved from then on: what spoils them may come again and again.
pub(super) const SETBACKS_WHOLE: u8 = 3;

/// A payment whose simulation succeeded.
#[derive(Debug, Clone)]
pub(super) struct SimulatedPayment {
    pub(super) payment: Payment,
    pub(super) facts: ChainFacts,
    /// It was left out of a batch, so it gets its own transaction or none.
    pub(super) alone: bool,
    /// How often its batch was planned or mined in vain, by the fault of others.
    pub(super) setbacks: u8,
    /// Its turn, for a payer with code.
    pub(super) turn: Option<Arc<Turn>>,
}

impl SimulatedPayment {
    /// Whether the payment must not share a transaction: settling it runs foreign code, which could burn the gas of the other payments, it
    /// has to be called by its signer instead of Multicall3, or no budget limits it.
    fn needs_own_transaction(&self) -> bool {
        self.alone
            || self.payment.told
            || self.facts.payer_has_code
            || self.payment.terms.wallet.is_some()
            || self.payment.terms.settling_signer().is_some()
            || self.is_early()
    }

    /// Whether it was not valid yet at the time of the block used for the simulation. A batch is simulated at that block as a whole.
    fn is_early(&self) -> bool {
        self.payment.terms.is_not_yet_valid_at(&self.facts)
    }

    /// Whether the logs of one transaction could not tell the two payments apart: the Permit2 proxy's event does not contain the nonce.
    fn looks_like(&self, other: &Self) -> bool {
        let of = |row: &Self| {
            let terms = &row.payment.terms;
            (terms.asset, terms.from, terms.to, terms.value)
        };
        let by_permit2 = |row: &Self| row.payment.terms.method.permit2().is_some();
        by_permit2(self) && by_permit2(other) && of(self) == of(other)
    }

    /// Most payments of a batch with this one.
    fn batch_rows_max(&self, rule: &GasRule) -> usize {
        let halvings = u32::from(self.setbacks.saturating_sub(SETBACKS_WHOLE - 1));
        rule.rows_max.checked_shr(halvings).unwrap_or(0).max(1)
    }

    fn gas_in_batch(&self, rule: &GasRule) -> u64 {
        self.facts.gas_used.saturating_add(8_000).max(rule.row_min)
    }
}

/// The share of a transaction that a payment needs.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    gas: u64,
    bytes: usize,
}

impl Size {
    fn of(row: &SimulatedPayment, rule: &GasRule) -> Self {
        let (_, data) = settlement_call(&row.payment.terms);
        Self {
            gas: row.gas_in_batch(rule),
            bytes: data.len() + CALL_BYTES,
        }
    }
}

impl std::ops::Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            gas: self.gas.saturating_add(other.gas),
            bytes: self.bytes + other.bytes,
        }
    }
}

/// The payments of one transaction; never empty.
#[derive(Debug)]
pub(super) struct BatchPlan {
    pub(super) rows: Vec<SimulatedPayment>,
}

impl BatchPlan {
    /// Groups payments into transactions. Payments of one payee are adjacent, and within them those of one payer: warm storage makes calls
    /// cheaper.
    pub(super) fn group(mut simulated: Vec<SimulatedPayment>, rule: &GasRule) -> Vec<Self> {
        simulated.sort_by_key(|row| {
            let terms = &row.payment.terms;
            (
                row.needs_own_transaction(),
                terms.asset,
                terms.to,
                terms.from,
                row.payment.id,
            )
        });
        let mut plans: Vec<(Self, Size)> = Vec::new();
        for row in simulated {
            let size = Size::of(&row, rule);
            // The newest plan with room. A payment that looks like one in that plan goes to an earlier plan.
            let room = plans
                .iter_mut()
                .rev()
                .find(|(plan, filled)| plan.has_room(&row, *filled + size, rule));
            match room {
                Some((plan, filled)) => {
                    *filled = *filled + size;
                    plan.rows.push(row);
                }
                None => plans.push((Self { rows: vec![row] }, size)),
            }
        }
        plans.into_iter().map(|(plan, _)| plan).collect()
    }

    fn has_room(&self, row: &SimulatedPayment, filled: Size, rule: &GasRule) -> bool {
        let rows_max = |row: &SimulatedPayment| row.batch_rows_max(rule);
        self.rows.len()
            < self
                .rows
                .iter()
                .map(rows_max)
                .fold(rows_max(row), usize::min)
            && filled.gas.saturating_add(BATCH_GAS) <= rule.gas_max
            && filled.bytes <= CALLDATA_BYTES_MAX
            && !row.needs_own_transaction()
            && !self
                .rows
                .iter()
                .any(|other| other.needs_own_transaction() || other.looks_like(row))
    }

    pub(super) fn is_batch(&self) -> bool {
        self.rows.len() > 1
    }

    pub(super) fn kind(&self) -> TransactionKind {
        if self.is_batch() {
            TransactionKind::Batch
        } else {
            TransactionKind::Direct
        }
    }

    /// Target and calldata of the transaction.
    pub(super) fn call(&self) -> (Address, Bytes) {
        match self.rows.as_slice() {
            [only] => settlement_call(&only.payment.terms),
            rows => batch_call(rows.iter().map(|row| &row.payment.terms)),
        }
    }

    /// The budgets that the transaction counts in. A payment whose success was told is counted, and no limit refuses it.
    pub(super) fn shares(&self, budgets: &Budgets, rule: &GasRule) -> Vec<GasShare> {
        let rows = self.rows.iter();
        let rows = rows.map(|row| (GasParties::of(&row.payment), row.gas_in_batch(rule)));
        let mut shares = budgets.shares(rows);
        if self.rows.iter().any(|row| row.payment.told) {
            for share in &mut shares {
                share.limit_wei = None;
            }
        }
        shares
    }

    /// Gas limit, computed and not estimated. For a single payment: the simulated call, a third more for the 63/64 rule of nested calls,
    /// and the costs that only a transaction has; at least what such payments have used, at most the cap.
    pub(super) fn gas_limit(&self, data: &Bytes, rule: &GasRule) -> u64 {
        match self.rows.as_slice() {
            // The simulation measures the transfer alone. The gas of the factory is unknown, but simulation and factory together stayed
            // within the cap.
            [only] if only.payment.terms.wallet.is_some() => rule.gas_cap,
            [only] => {
                let cap = if only.facts.payer_has_code {
                    rule.wallet_gas_cap
                } else {
                    rule.gas_cap
                };
                let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                let used = only.facts.gas_used;
                let execution = used.saturating_add(used / 3);
                execution
                    .saturating_add(BASE_GAS + COLD_GAS)
                    .saturating_add(bytes.saturating_mul(BYTE_GAS))
                    .max(rule.single_min)
                    .min(cap)
            }
            rows => {
                let rows: u64 = rows.iter().map(|row| row.gas_in_batch(rule)).sum();
                rows.saturating_add(BATCH_GAS)
            }
        }
    }
}

/// Least gas that a transaction with this payment alone needs.
pub(super) fn min_gas(facts: &ChainFacts) -> u64 {
    facts.gas_used.saturating_add(BASE_GAS)
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{B256, U256};
    use uuid::Uuid;

    use super::*;
    use crate::payment::fixture::{candidate_of, facts, payment, permit2_body};
    use crate::payment::{GasBudget, Method, PaymentId, PaymentState, Purpose};
    use crate::protocol::Scheme;

    fn row(number: u128, payee: u8) -> SimulatedPayment {
        let mut payment = payment(PaymentState::Queued);
        payment.id = PaymentId(Uuid::from_u128(number));
        payment.terms.to = Address::repeat_byte(payee);
        payment.terms.nonce = B256::from(alloy::primitives::U256::from(number));
        SimulatedPayment {
            payment,
            facts: facts(),
            alone: false,
            setbacks: 0,
            turn: None,
        }
    }

    const RULE: GasRule = GasRule {
        rows_max: 190,
        gas_max: 15_000_000,
        gas_cap: 500_000,
        wallet_gas_cap: 200_000,
        single_min: 0,
        row_min: 76_000,
    };

    #[test]
    fn few_payments_share_one_transaction_grouped_by_payee() {
        let rows = (0..6).map(|number| row(number, if number % 2 == 0 { 9 } else { 3 }));
        let plans = BatchPlan::group(rows.collect(), &RULE);
        assert_eq!(plans.len(), 1);
        let payees: Vec<_> = plans[0]
            .rows
            .iter()
            .map(|row| row.payment.terms.to)
            .collect();
        assert!(payees.is_sorted());
    }

    #[test]
    fn payments_by_permit2_that_look_alike_never_ride_together_and_metered_ones_ride_alone() {
        let by_permit2 = |number, scheme| {
            let candidate = candidate_of(&permit2_body(scheme), Purpose::Settle);
            let mut row = row(number, 9);
            row.payment.terms.method = candidate.terms.method;
            row
        };
        let mut rows: Vec<_> = (0..3)
            .map(|number| by_permit2(number, Scheme::Exact))
            .collect();
        rows.extend((3..6).map(|number| row(number, 9)));
        rows.extend((6..8).map(|number| by_permit2(number, Scheme::Upto)));
        let plans = BatchPlan::group(rows, &RULE);
        let mut sizes: Vec<_> = plans.iter().map(|plan| plan.rows.len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 1, 1, 4], "{plans:?}");
        for plan in plans {
            let twins = plan
                .rows
                .iter()
                .filter(|row| row.payment.terms.method != Method::Eip3009);
            assert!(twins.count() <= 1);
        }
    }

    #[test]
    fn payers_with_code_and_left_out_payments_get_own_transactions() {
        let mut rows: Vec<_> = (0..5).map(|number| row(number, 9)).collect();
        rows[1].facts.payer_has_code = true;
        rows[3].alone = true;
        let sizes: Vec<_> = BatchPlan::group(rows, &RULE)
            .iter()
            .map(|plan| plan.rows.len())
            .collect();
        assert_eq!(sizes, [3, 1, 1]);
    }

    #[test]
    fn told_payment_rides_alone_and_is_counted_without_a_limit() {
        let limit = Some(U256::from(1_000));
        let budgets = Budgets::new(GasBudget {
            wei_per_day: limit,
            wei_per_day_per_payee: limit,
            wei_per_day_per_payer: None,
        });
        let mut rows: Vec<_> = (0..3).map(|number| row(number, 9)).collect();
        rows[1].payment.told = true;
        let plans = BatchPlan::group(rows, &RULE);
        let limits = plans.iter().map(|plan| {
            let shares = plan.shares(&budgets, &RULE);
            let limits: Vec<_> = shares.iter().map(|share| share.limit_wei).collect();
            (plan.rows.len(), limits)
        });
        let expected = [(2, vec![limit; 2]), (1, vec![None; 2])];
        assert_eq!(limits.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn batches_that_were_planned_in_vain_are_halved_from_the_third_time_on() {
        let sizes = |setbacks| {
            let rows = (0..64).map(|number| SimulatedPayment {
                setbacks,
                ..row(number, 9)
            });
            let rule = GasRule {
                rows_max: 64,
                ..RULE
            };
            let plans = BatchPlan::group(rows.collect(), &rule);
            plans.iter().map(|plan| plan.rows.len()).max().unwrap()
        };
        assert_eq!([0, 2, 3, 4, 8, 200].map(sizes), [64, 64, 32, 16, 1, 1]);
    }

    #[test]
    fn transactions_stay_within_pool_and_block_limits() {
        let plans = BatchPlan::group((0..1_000).map(|number| row(number, 9)).collect(), &RULE);
        let rows: usize = plans.iter().map(|plan| plan.rows.len()).sum();
        assert_eq!(rows, 1_000);
        for plan in &plans {
            let (_, data) = plan.call();
            assert!(plan.rows.len() <= 190 && data.len() <= 96_000);
            assert!(plan.gas_limit(&data, &RULE) <= 1 << 24);
        }
        assert!(plans.len() <= 1_000 / 180 + 1, "{}", plans.len());
    }

    #[test]
    fn low_gas_balance_makes_small_transactions() {
        let rule = GasRule {
            gas_max: 2_000_000,
            ..RULE
        };
        let plans = BatchPlan::group((0..100).map(|number| row(number, 9)).collect(), &rule);
        for plan in &plans {
            assert!(plan.gas_limit(&plan.call().1, &rule) <= 2_000_000);
        }
        assert!(plans.len() <= 5, "{}", plans.len());
    }
}
