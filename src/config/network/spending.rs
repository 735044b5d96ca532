//! What may be spent on a network: approvals, gas budgets, and the smallest payment that is worth its gas.

use alloy::primitives::U256;
use alloy::primitives::utils::parse_units;

use super::Reader;
use crate::config::file::{ApprovalsFile, BudgetFile, NetworkFile, WeiFile};
use crate::payment::{ApprovalLimits, GasBudget};
use crate::protocol::{Amount, Network};

impl Reader<'_> {
    pub(super) fn approvals(&mut self, entry: Option<&ApprovalsFile>) -> Option<ApprovalLimits> {
        let limits = entry.map(|entry| ApprovalLimits {
            wei_per_payer: entry.wei_per_payer,
            wei_per_day: entry.wei_per_day,
        });
        self.needs(
            limits.is_none_or(|limits| limits.wei_per_payer <= limits.wei_per_day),
            "approvals.wei_per_payer",
            "at most approvals.wei_per_day",
        );
        limits
    }

    pub(super) fn budget(&mut self, entry: &BudgetFile) -> GasBudget {
        let mut limit = |key: &str, given: Option<&WeiFile>| {
            let wei = given.map(wei_of)?;
            self.needs(
                wei.is_some_and(|wei| !wei.is_zero()),
                &format!("budget.{key}"),
                "more than 0 wei, as a whole number or as text such as \"0.01eth\" or \"5000gwei\"",
            );
            wei
        };
        GasBudget {
            wei_per_day: limit("wei_per_day", entry.in_all.as_ref()),
            wei_per_day_per_payee: limit("wei_per_day_per_payee", entry.per_payee.as_ref()),
            wei_per_day_per_payer: limit("wei_per_day_per_payer", entry.per_payer.as_ref()),
        }
    }

    /// The smallest payment in dollars: about what its gas costs, as long as gas is cheap.
    pub(super) fn minimum_dollars(&mut self, network: Network, entry: &NetworkFile) -> String {
        let default = match network.chain_id() {
            _ if network.is_test() => "0",
            1 => "0.10",
            _ => "0.001",
        };
        let dollars = entry.minimum_dollars.as_deref().unwrap_or(default);
        self.needs(
            Amount::from_dollars(dollars, 18).is_ok(),
            "minimum_dollars",
            "dollars such as \"0.001\"",
        );
        dollars.to_owned()
    }
}

/// An amount in wei: a whole number, or one with a unit. Every native currency has the 18 decimals of ETH.
fn wei_of(given: &WeiFile) -> Option<U256> {
    let text = match given {
        WeiFile::Wei(wei) => return Some(U256::from(*wei)),
        WeiFile::Text(text) => text.trim().to_lowercase(),
    };
    let units = [("gwei", "gwei"), ("wei", "wei"), ("eth", "ether")];
    let (number, unit) = units
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?.trim(), *unit)))
        .unwrap_or((&text, "wei"));
    let is_number = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let parsed = parse_units(number, unit).ok().filter(|_| is_number)?;
    Some(parsed.get_absolute())
}
