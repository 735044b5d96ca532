//! Tells when a signer's balance gets low, a network cannot be reached, or a gas budget is nearly spent: as an event for a change, however
//! many processes see it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio::time::Instant;

use crate::ledger::{Ledger, LedgerError};
use crate::protocol::Network;
use crate::protocol::response::checksummed;
use crate::settlement::gas::{GAS_RESERVE_PAYMENTS, PAYMENTS_LOW};
use crate::settlement::served_network::ServedNetwork;
use crate::telemetry::causes;

const INTERVAL: Duration = Duration::from_secs(3);
/// Measurements after which a network's level is noted again: another process may have called it down while this one's lease was late.
const NOTED_FOR: u64 = 20;
/// A network is down when no process has reached it for so long: a process that starts needs a moment.
const DOWN_AFTER: Duration = Duration::from_secs(15);

/// How long a budget that was spent is not told to be merely low.
const EXHAUSTED_FOR: Duration = Duration::from_hours(1);

/// What a level is of: topic, network, and subject.
type Measured = (&'static str, Network, String);

/// The task that keeps the levels of a ledger current.
#[derive(Debug)]
pub struct Levels {
    ledger: Ledger,
    served_networks: Vec<Arc<ServedNetwork>>,
    /// What this process has noted, so that it writes changes alone.
    noted: HashMap<Measured, &'static str>,
    /// When each network was last reached by a process; at first, when this task began.
    reached_at: HashMap<Network, Instant>,
    spent: SpentBudgets,
}

impl Levels {
    pub fn new(ledger: Ledger, served_networks: Vec<Arc<ServedNetwork>>) -> Self {
        let now = Instant::now();
        let networks = served_networks.iter().map(|served| served.policy.network);
        Self {
            ledger,
            reached_at: networks.map(|network| (network, now)).collect(),
            served_networks,
            noted: HashMap::new(),
            spent: SpentBudgets::default(),
        }
    }

    pub async fn run(mut self) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 1_u64.. {
            interval.tick().await;
            if round.is_multiple_of(NOTED_FOR) {
                self.noted.retain(|(topic, ..), _| *topic != "network");
            }
            for served in self.served_networks.clone() {
                if let Err(error) = self.measure(&served).await {
                    tracing::debug!(error = causes(&error), "levels not noted");
                }
            }
        }
    }

    async fn measure(&mut self, served: &ServedNetwork) -> Result<(), LedgerError> {
        self.measure_network(served).await?;
        if !served.is_open() {
            return Ok(());
        }
        for signer in served.signers() {
            self.measure_signer(served, *signer).await?;
        }
        for (subject, level) in served.budgets.levels(self.ledger.clock().now()) {
            let budget = ("budget", served.policy.network, subject.to_string());
            let level = self.spent.lasting(&budget, level, Instant::now());
            self.note(budget, level).await?;
        }
        Ok(())
    }

    async fn measure_network(&mut self, served: &ServedNetwork) -> Result<(), LedgerError> {
        let network = served.policy.network;
        let measured = ("network", network, String::new());
        if served.is_open() && !served.is_disconnected() {
            self.reached_at.insert(network, Instant::now());
            return self.note(measured, "up").await;
        }
        // Another process may note a change meanwhile, so this one must not take its own note for the ledger's.
        self.noted.remove(&measured);
        if self.ledger.is_served(network).await? {
            self.reached_at.insert(network, Instant::now());
            return Ok(());
        }
        let reached = self.reached_at.get(&network);
        if reached.is_some_and(|at| at.elapsed() < DOWN_AFTER) {
            return Ok(());
        }
        self.note(measured, "down").await
    }

    async fn measure_signer(
        &mut self,
        served: &ServedNetwork,
        signer: Address,
    ) -> Result<(), LedgerError> {
        let Some(left) = served.payments_left_of(signer) else {
            return Ok(());
        };
        let measured = ("signer", served.policy.network, checksummed(signer));
        let level = signer_level(left, self.noted.get(&measured).copied());
        self.note(measured, level).await
    }

    async fn note(&mut self, of: Measured, level: &'static str) -> Result<(), LedgerError> {
        if self.noted.get(&of) == Some(&level) {
            return Ok(());
        }
        self.ledger.note_level((of.0, of.1, &of.2), level).await?;
        self.noted.insert(of, level);
        Ok(())
    }
}

/// When each budget was last seen spent.
#[derive(Debug, Default)]
struct SpentBudgets(HashMap<Measured, Instant>);

impl SpentBudgets {
    /// A spent budget is tried again every minute; it is told as such until it has had room for an hour.
    fn lasting(&mut self, budget: &Measured, level: &'static str, now: Instant) -> &'static str {
        match level {
            "exhausted" => {
                self.0.insert(budget.clone(), now);
            }
            "low" => {
                let at = self.0.get(budget);
                if at.is_some_and(|at| now.duration_since(*at) < EXHAUSTED_FOR) {
                    return "exhausted";
                }
            }
            _ => {
                self.0.remove(budget);
            }
        }
        level
    }
}

/// The level of a balance for so many payments. It gets better only well above a limit: the price of gas moves all the time.
fn signer_level(left: u64, before: Option<&str>) -> &'static str {
    let margin = |level: &str| if before == Some(level) { 2 } else { 1 };
    if left < GAS_RESERVE_PAYMENTS * margin("empty") {
        "empty"
    } else if left < PAYMENTS_LOW * margin("low") {
        "low"
    } else {
        "good"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spent_budget_is_not_told_to_be_low_again_and_again() {
        let mut spent = SpentBudgets::default();
        let network = Network::from_chain_id(8453);
        let budget = ("budget", network, "the network".to_owned());
        let begin = Instant::now();
        for (minutes, level, expected) in [
            (0, "low", "low"),
            (1, "exhausted", "exhausted"),
            (2, "low", "exhausted"),
            (3, "exhausted", "exhausted"),
            (62, "low", "exhausted"),
            (63, "low", "low"),
            (64, "exhausted", "exhausted"),
            (65, "good", "good"),
            (66, "low", "low"),
        ] {
            let at = begin + Duration::from_mins(minutes);
            assert_eq!(spent.lasting(&budget, level, at), expected, "{minutes}");
        }
    }

    #[test]
    fn balance_gets_better_well_above_a_limit() {
        for (left, before, expected) in [
            (1_000, None, "good"),
            (300, Some("good"), "good"),
            (299, Some("good"), "low"),
            (599, Some("low"), "low"),
            (600, Some("low"), "good"),
            (29, Some("low"), "empty"),
            (59, Some("empty"), "empty"),
            (60, Some("empty"), "low"),
        ] {
            assert_eq!(signer_level(left, before), expected, "{left} {before:?}");
        }
    }
}
