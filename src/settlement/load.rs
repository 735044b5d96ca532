//! Which payments ride together: pure.

use crate::chain::authorization::{batch_call, settlement_call};
use crate::payment::{ChainFacts, Payment, Signed, SignedBy};
use crate::settlement::gas::GasRule;
use alloy::primitives::{Address, Bytes};

/// Bytes of calldata in one transaction at most: 128 KiB is what pools take, and some sequencers take 95,000.
const BYTES_MAX: usize = 95_000;
/// Bytes that a payment's call takes in a batch besides its own calldata.
const CALL_BYTES: usize = 192;
/// Gas that a transaction costs before its first instruction.
const BASE_GAS: u64 = 21_000;
/// Gas for what a simulation finds warm and a transaction finds cold, and for a payee who never held the token.
const COLD_GAS: u64 = 45_000;
/// Gas per byte of calldata, were none of them zero.
const BYTE_GAS: u64 = 16;
/// Gas of a batch besides its payments, and what its last call must leave behind (63/64 rule).
const BATCH_GAS: u64 = 350_000;

/// A payment whose simulation went through.
#[derive(Debug, Clone)]
pub(super) struct Simulated {
    pub(super) payment: Payment,
    pub(super) facts: ChainFacts,
    /// A rehearsal has left it out of a batch: it goes by itself, or not at all.
    pub(super) alone: bool,
}

impl Simulated {
    /// Whether foreign code runs when it is settled, which could burn the gas of everybody who rides along; or whether it wants to be
    /// called by its signer, and not by Multicall3.
    fn rides_alone(&self) -> bool {
        self.alone
            || self.facts.payer_has_code
            || self.payment.wallet.is_some()
            || self.payment.signer().is_some()
            || self.is_young()
    }

    /// Whether it was not valid yet by the time of the block that was looked at: a batch is simulated there as a whole.
    fn is_young(&self) -> bool {
        self.payment.signed().is_early_for(&self.facts)
    }

    /// What the payer signed. A payer without code has signed with its key, or its payment would not be here.
    pub(super) fn signed(&self) -> Signed<'_> {
        let signed = self.payment.signed();
        Signed {
            signed_by: (!self.facts.payer_has_code).then_some(SignedBy::Payer),
            ..signed
        }
    }

    /// Whether two payments could not be told apart in the logs of one transaction: Permit2 does not say which nonce it used.
    fn looks_like(&self, other: &Self) -> bool {
        let of = |row: &Self| {
            let terms = &row.payment.authorization;
            (row.payment.asset, terms.from, terms.to, terms.value)
        };
        let by_permit2 = |row: &Self| row.payment.method.permit2().is_some();
        by_permit2(self) && by_permit2(other) && of(self) == of(other)
    }

    fn gas_in_batch(&self, rule: &GasRule) -> u64 {
        self.facts.gas_used.saturating_add(8_000).max(rule.row)
    }
}

/// What payments take of a transaction.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    gas: u64,
    bytes: usize,
}

impl Size {
    fn of(row: &Simulated, rule: &GasRule) -> Self {
        let (_, data) = settlement_call(row.signed());
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

/// What rides in one transaction; never empty.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) rows: Vec<Simulated>,
}

impl Load {
    /// Groups payments into transactions: those of one payee beside each other, and of one payer within, because what a call finds warm is
    /// cheaper.
    pub(super) fn plan(mut simulated: Vec<Simulated>, rule: &GasRule) -> Vec<Self> {
        simulated.sort_by_key(|row| {
            let terms = &row.payment.authorization;
            (
                row.rides_alone(),
                row.payment.asset,
                terms.to,
                terms.from,
                row.payment.id,
            )
        });
        let mut loads: Vec<(Self, Size)> = Vec::new();
        for row in simulated {
            let size = Size::of(&row, rule);
            // The newest load but for what looks like something in it, which goes to one before.
            let room = loads
                .iter_mut()
                .rev()
                .find(|(load, filled)| load.has_room(&row, *filled + size, rule));
            match room {
                Some((load, filled)) => {
                    *filled = *filled + size;
                    load.rows.push(row);
                }
                None => loads.push((Self { rows: vec![row] }, size)),
            }
        }
        loads.into_iter().map(|(load, _)| load).collect()
    }

    fn has_room(&self, row: &Simulated, filled: Size, rule: &GasRule) -> bool {
        self.rows.len() < rule.rows_max
            && filled.gas.saturating_add(BATCH_GAS) <= rule.gas_max
            && filled.bytes <= BYTES_MAX
            && !row.rides_alone()
            && !self
                .rows
                .iter()
                .any(|other| other.rides_alone() || other.looks_like(row))
    }

    pub(super) fn is_batch(&self) -> bool {
        self.rows.len() > 1
    }

    /// Whom to call, with what.
    pub(super) fn call(&self) -> (Address, Bytes) {
        match self.rows.as_slice() {
            [only] => settlement_call(only.signed()),
            rows => batch_call(rows.iter().map(Simulated::signed)),
        }
    }

    /// Computed, not estimated. For one payment: the simulated call, a third more for the 63/64 rule of nested calls, and what only a
    /// transaction pays; never less than such payments have used, and never more than the cap.
    pub(super) fn gas_limit(&self, data: &Bytes, rule: &GasRule) -> u64 {
        match self.rows.as_slice() {
            // The simulation measures the transfer alone. The factory's part is not known, but it went through within the cap.
            [only] if only.payment.wallet.is_some() => rule.gas_cap,
            [only] => {
                let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                let used = only.facts.gas_used;
                let execution = used.saturating_add(used / 3);
                execution
                    .saturating_add(BASE_GAS + COLD_GAS)
                    .saturating_add(bytes.saturating_mul(BYTE_GAS))
                    .max(rule.alone)
                    .min(rule.gas_cap)
            }
            rows => {
                let rows: u64 = rows.iter().map(|row| row.gas_in_batch(rule)).sum();
                rows.saturating_add(BATCH_GAS)
            }
        }
    }
}

/// What one payment's transaction costs at least.
pub(super) fn least_gas(facts: &ChainFacts) -> u64 {
    facts.gas_used.saturating_add(BASE_GAS)
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use uuid::Uuid;

    use super::*;
    use crate::payment::specimen::{candidate_of, facts, payment, permit2_body};
    use crate::payment::{Method, PaymentId, PaymentState, Purpose};
    use crate::protocol::Scheme;

    fn row(number: u128, payee: u8) -> Simulated {
        let mut payment = payment(PaymentState::Queued);
        payment.id = PaymentId(Uuid::from_u128(number));
        payment.authorization.to = Address::repeat_byte(payee);
        payment.authorization.nonce = B256::from(alloy::primitives::U256::from(number));
        Simulated {
            payment,
            facts: facts(),
            alone: false,
        }
    }

    const RULE: GasRule = GasRule {
        rows_max: 190,
        gas_max: 15_000_000,
        gas_cap: 500_000,
        alone: 0,
        row: 76_000,
    };

    #[test]
    fn a_few_payments_ride_in_one_transaction_grouped_by_payee() {
        let rows = (0..6).map(|number| row(number, if number % 2 == 0 { 9 } else { 3 }));
        let loads = Load::plan(rows.collect(), &RULE);
        assert_eq!(loads.len(), 1);
        let payees: Vec<_> = loads[0]
            .rows
            .iter()
            .map(|row| row.payment.authorization.to)
            .collect();
        assert!(payees.is_sorted());
    }

    #[test]
    fn payments_by_permit2_that_look_alike_never_ride_together_and_metered_ones_ride_alone() {
        let by_permit2 = |number, scheme| {
            let candidate = candidate_of(&permit2_body(scheme), Purpose::Settle);
            let mut row = row(number, 9);
            row.payment.method = candidate.method;
            row
        };
        let mut rows: Vec<_> = (0..3)
            .map(|number| by_permit2(number, Scheme::Exact))
            .collect();
        rows.extend((3..6).map(|number| row(number, 9)));
        rows.extend((6..8).map(|number| by_permit2(number, Scheme::Upto)));
        let loads = Load::plan(rows, &RULE);
        let mut sizes: Vec<_> = loads.iter().map(|load| load.rows.len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, 1, 1, 1, 4], "{loads:?}");
        for load in loads {
            let twins = load
                .rows
                .iter()
                .filter(|row| row.payment.method != Method::Eip3009);
            assert!(twins.count() <= 1);
        }
    }

    #[test]
    fn payers_with_code_and_what_was_left_out_ride_alone() {
        let mut rows: Vec<_> = (0..5).map(|number| row(number, 9)).collect();
        rows[1].facts.payer_has_code = true;
        rows[3].alone = true;
        let sizes: Vec<_> = Load::plan(rows, &RULE)
            .iter()
            .map(|load| load.rows.len())
            .collect();
        assert_eq!(sizes, [3, 1, 1]);
    }

    #[test]
    fn a_transaction_stays_within_what_pools_and_blocks_take() {
        let loads = Load::plan((0..1_000).map(|number| row(number, 9)).collect(), &RULE);
        let rows: usize = loads.iter().map(|load| load.rows.len()).sum();
        assert_eq!(rows, 1_000);
        for load in &loads {
            let (_, data) = load.call();
            assert!(load.rows.len() <= 190 && data.len() <= 96_000);
            assert!(load.gas_limit(&data, &RULE) <= 1 << 24);
        }
        assert!(loads.len() <= 1_000 / 180 + 1, "{}", loads.len());
    }

    #[test]
    fn little_money_makes_small_transactions() {
        let rule = GasRule {
            gas_max: 2_000_000,
            ..RULE
        };
        let loads = Load::plan((0..100).map(|number| row(number, 9)).collect(), &rule);
        for load in &loads {
            assert!(load.gas_limit(&load.call().1, &rule) <= 2_000_000);
        }
        assert!(loads.len() <= 5, "{}", loads.len());
    }
}
