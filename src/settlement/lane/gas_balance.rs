//! The signer's balance for gas.

use std::sync::Arc;

use alloy::primitives::U256;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Lane, OwnedLane};
use crate::settlement::gas::{GAS_RESERVE_PAYMENTS, payment_cost};
use crate::timing::Timing;

/// Below the gas of this many payments the operator is warned.
const LOW_BALANCE_PAYMENTS: u64 = 300;

/// The signer's balance as last read, less the cost of transactions mined since.
#[derive(Debug, Default)]
pub(super) struct GasBalance {
    reading: JoinSet<Option<U256>>,
    read_at: Option<Instant>,
    level: Level,
    balance: Option<U256>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Level {
    #[default]
    Enough,
    Low,
    Empty,
}

impl GasBalance {
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self.level, Level::Empty)
    }

    /// Reads the balance at the next tick: a node said that it is too low.
    pub(super) const fn read_soon(&mut self) {
        self.read_at = None;
    }

    /// Subtracts the cost of a mined transaction.
    pub(super) fn spent(&mut self, wei: U256) {
        self.balance = self.balance.map(|balance| balance.saturating_sub(wei));
    }

    /// Gas that the balance pays for at this price, besides `promised` (wei). Unlimited before the first reading: a node will reject the
    /// transaction then.
    pub(super) fn gas_for(&self, promised: U256, wei_per_gas: u128) -> u64 {
        let Some(balance) = self.balance.filter(|_| wei_per_gas > 0) else {
            return u64::MAX;
        };
        let gas = balance.saturating_sub(promised) / U256::from(wei_per_gas);
        u64::try_from(gas).unwrap_or(u64::MAX)
    }

    /// The next balance read; the inner `None` when the RPC failed. Cancel-safe. Returns `None` at once while no reading is in progress.
    pub(super) async fn next_reading(&mut self) -> Option<Option<U256>> {
        self.reading
            .join_next()
            .await
            .map(Result::ok)
            .map(Option::flatten)
    }

    /// A new block may contain the refill of a signer whose balance is too low.
    pub(super) const fn on_block(&mut self) {
        if self.is_empty() {
            self.read_soon();
        }
    }

    /// Whether to read it. While it is too low, more often, so that the lane goes on soon after a refill.
    fn is_due(&self, timing: &Timing) -> bool {
        let interval = if self.is_empty() {
            timing.low_balance
        } else {
            timing.balance
        };
        let due = self.read_at.is_none_or(|at| at.elapsed() >= interval);
        due && self.reading.is_empty()
    }
}

fn level(balance: U256, wei_per_gas: u128) -> Level {
    let payment = payment_cost(wei_per_gas);
    let enough_for = |payments: u64| balance >= payment.saturating_mul(U256::from(payments));
    if enough_for(LOW_BALANCE_PAYMENTS) {
        Level::Enough
    } else if enough_for(GAS_RESERVE_PAYMENTS) {
        Level::Low
    } else {
        Level::Empty
    }
}

impl Lane {
    /// Reads the signer's balance when it is due, beside the lane's other work.
    pub(super) fn read_balance_if_due(&self, owned: &mut OwnedLane) {
        if owned.gas_balance.is_due(&self.served.timing) && self.key.is_some() {
            owned.gas_balance.read_at = Some(Instant::now());
            let (served, signer) = (Arc::clone(&self.served), self.id.signer);
            owned
                .gas_balance
                .reading
                .spawn(async move { served.rpc.balance(signer).await.ok() });
        }
    }

    /// Records a balance and logs when its level changes.
    pub(super) fn note_balance(&self, owned: &mut OwnedLane, balance: Option<U256>) {
        let fees = owned.tick.head.map(|head| self.served.fees().quote(&head));
        let (Some(balance), Some(Ok(fees))) = (balance, fees) else {
            return;
        };
        owned.gas_balance.balance = Some(balance);
        self.served.senders.note_balance(self.id.signer, balance);
        let now = level(balance, self.served.gas.wei_per_gas(fees.max_fee_wei));
        let before = std::mem::replace(&mut owned.gas_balance.level, now);
        let has = self.served.native(balance);
        if before == Level::Empty && now != Level::Empty {
            tracing::info!(%has, "signer refilled: it takes payments again");
        }
        match now {
            _ if now == before => {}
            Level::Enough => {
                tracing::info!(%has, "signer balance sufficient again");
            }
            Level::Low => {
                tracing::warn!(%has, "signer balance low: gas for fewer than {LOW_BALANCE_PAYMENTS} payments; refill it");
            }
            Level::Empty => {
                let needs = payment_cost(self.served.gas.wei_per_gas(fees.max_fee_wei))
                    .saturating_mul(U256::from(GAS_RESERVE_PAYMENTS));
                let needs = self.served.native(needs);
                tracing::error!(%has, %needs, "signer balance too low: gas for fewer than {GAS_RESERVE_PAYMENTS} payments; it takes no payments until it is refilled");
                // Other signers may have enough.
                self.release(owned.waiting.drain(..));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gas_balance_level_counts_payments_at_the_current_fee() {
        let payment = payment_cost(7);
        let holds = |payments: u64| level(payment * U256::from(payments), 7);
        assert_eq!(holds(300), Level::Enough);
        assert_eq!(holds(299), Level::Low);
        assert_eq!(holds(30), Level::Low);
        assert_eq!(holds(29), Level::Empty);
        assert_eq!(level(U256::ZERO, 0), Level::Enough, "gas is free");
    }
}
