//! What a lane needs besides work: its lease, and money for gas.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::U256;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::timing::every;
use super::{Lane, Owned};
use crate::ledger::{LEASE_RENEWAL, LaneLease, Renewal};
use crate::settlement::gas::{EMPTY_PAYMENTS, payment_cost};
use crate::telemetry::causes;

/// How often the signer's balance is read.
const COUNT_INTERVAL: Duration = Duration::from_secs(15);
/// The same while there is too little, so that the lane goes on soon after it was refilled.
const COUNT_INTERVAL_EMPTY: Duration = Duration::from_secs(2);
/// Below so many the operator is told.
const LOW_PAYMENTS: u64 = 300;

/// The money for gas, as it was last counted.
#[derive(Debug, Default)]
pub(super) struct Purse {
    counting: JoinSet<Option<U256>>,
    counted_at: Option<Instant>,
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

/// A lease that is being renewed.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// The lane is not ours any more, or not what it was.
    pub(super) lost: CancellationToken,
    /// Transactions of the lane were opened again, by whatever process.
    pub(super) reopened: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Purse {
    pub(super) const fn is_empty(&self) -> bool {
        matches!(self.level, Level::Empty)
    }

    /// Counts at the next occasion: a node said that the money is not enough.
    pub(super) const fn count_soon(&mut self) {
        self.counted_at = None;
    }

    /// Counts what a mined transaction has cost.
    pub(super) fn spent(&mut self, wei: U256) {
        self.balance = self.balance.map(|balance| balance.saturating_sub(wei));
    }

    /// Gas that the balance pays for at that price, besides what is promised already. Where no balance was read yet, a node will tell.
    pub(super) fn gas_for(&self, promised: U256, wei_per_gas: u128) -> u64 {
        let Some(balance) = self.balance.filter(|_| wei_per_gas > 0) else {
            return u64::MAX;
        };
        let gas = balance.saturating_sub(promised) / U256::from(wei_per_gas);
        u64::try_from(gas).unwrap_or(u64::MAX)
    }

    /// A balance that has been read; `None` when the chain did not tell. Never ends while nothing is being counted.
    pub(super) async fn counted(&mut self) -> Option<Option<U256>> {
        self.counting
            .join_next()
            .await
            .map(Result::ok)
            .map(Option::flatten)
    }

    /// A block came: it may hold the refill of a signer that has too little.
    pub(super) const fn block_came(&mut self) {
        if self.is_empty() {
            self.count_soon();
        }
    }

    fn is_due(&self) -> bool {
        let interval = if self.is_empty() {
            COUNT_INTERVAL_EMPTY
        } else {
            COUNT_INTERVAL
        };
        let due = self.counted_at.is_none_or(|at| at.elapsed() >= interval);
        due && self.counting.is_empty()
    }
}

fn level(balance: U256, wei_per_gas: u128) -> Level {
    let payment = payment_cost(wei_per_gas);
    let enough_for = |payments: u64| balance >= payment.saturating_mul(U256::from(payments));
    if enough_for(LOW_PAYMENTS) {
        Level::Enough
    } else if enough_for(EMPTY_PAYMENTS) {
        Level::Low
    } else {
        Level::Empty
    }
}

impl Lane {
    /// Renews the lease until what is returned is dropped, whatever else the lane waits for. A process that hears nothing of the chain, or has more
    /// lanes than is fair, gives it up instead.
    pub(super) fn keep(&self, lease: LaneLease) -> Keeping {
        let keeping = Keeping::default();
        let (lost, reopened) = (keeping.lost.clone(), Arc::clone(&keeping.reopened));
        let (site, id) = (Arc::clone(&self.site), self.id);
        let (mut lease, shared) = (lease, self.shared_lanes());
        let renewing = async move {
            let mut renewal = every(LEASE_RENEWAL);
            loop {
                renewal.tick().await;
                let share = (shared, site.is_blind());
                match site.ledger.renew_lane(id, lease, share).await {
                    Ok(Renewal::Kept) => {}
                    Ok(Renewal::Reopened(times)) => {
                        lease.reopened = times;
                        reopened.notify_one();
                    }
                    Ok(Renewal::Surplus) => break,
                    Ok(Renewal::Changed) => {
                        tracing::warn!(network = %id.network, signer = %id.signer, "the lane is another process's now, or was stopped, or may go on");
                        lost.cancel();
                        return;
                    }
                    // Not renewed is not lost: the epoch guards every write, and the next renewal may succeed.
                    Err(error) => {
                        tracing::warn!(error = causes(&error), "cannot renew the lane");
                    }
                }
            }
            tracing::info!(network = %id.network, signer = %id.signer, "lane given up: another process has fewer, or sees the chain while this one does not");
            if let Err(error) = site.ledger.release_lane(id, lease).await {
                tracing::warn!(
                    error = causes(&error),
                    "cannot release the lane; its lease runs out"
                );
            }
            lost.cancel();
        };
        let mut task = JoinSet::new();
        task.spawn(renewing);
        Keeping {
            _task: task,
            ..keeping
        }
    }

    /// Reads the signer's balance when it is time to, beside everything else.
    pub(super) fn look_after_money(&self, owned: &mut Owned) {
        if owned.purse.is_due() && self.key.is_some() {
            owned.purse.counted_at = Some(Instant::now());
            let (site, signer) = (Arc::clone(&self.site), self.id.signer);
            owned
                .purse
                .counting
                .spawn(async move { site.rpc.balance(signer).await.ok() });
        }
    }

    /// Takes note of a balance.
    pub(super) fn count_money(&self, owned: &mut Owned, balance: Option<U256>) {
        let fees = owned.seen.head.map(|head| self.site.fees().quote(&head));
        let (Some(balance), Some(Ok(fees))) = (balance, fees) else {
            return;
        };
        owned.purse.balance = Some(balance);
        self.site.senders.note_balance(self.id.signer, balance);
        let now = level(balance, self.site.gas.wei_per_gas(fees.max_fee_wei));
        let before = std::mem::replace(&mut owned.purse.level, now);
        let (network, signer) = (self.id.network, self.id.signer);
        let has = self.site.native(balance);
        if before == Level::Empty && now != Level::Empty {
            tracing::info!(%network, %signer, %has, "the signer was refilled: it takes payments again");
        }
        match now {
            _ if now == before => {}
            Level::Enough => {
                tracing::info!(%network, %signer, %has, "the signer has enough for gas again");
            }
            Level::Low => {
                tracing::warn!(%network, %signer, %has, "the signer has gas for fewer than {LOW_PAYMENTS} payments; refill it");
            }
            Level::Empty => {
                let needs = payment_cost(self.site.gas.wei_per_gas(fees.max_fee_wei))
                    .saturating_mul(U256::from(EMPTY_PAYMENTS));
                let needs = self.site.native(needs);
                tracing::error!(%network, %signer, %has, %needs, "the signer has gas for fewer than {EMPTY_PAYMENTS} payments; it takes no more until it is refilled");
                // Others may have money.
                self.put_down(owned.waiting.drain(..));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purse_is_measured_in_payments_at_the_current_fee() {
        let payment = payment_cost(7);
        let holds = |payments: u64| level(payment * U256::from(payments), 7);
        assert_eq!(holds(300), Level::Enough);
        assert_eq!(holds(299), Level::Low);
        assert_eq!(holds(30), Level::Low);
        assert_eq!(holds(29), Level::Empty);
        assert_eq!(level(U256::ZERO, 0), Level::Enough, "gas is free");
    }
}
