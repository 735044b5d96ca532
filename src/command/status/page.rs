//! The status for people.

use std::time::Duration;

use super::networks::{NetworkStatus, SignerStatus};
use super::{Level, Status};
use crate::command::shown::{aligned, count, length, row};

pub(super) fn page(status: &Status) -> String {
    let running = match status.processes {
        Some(1) => ": 1 process".to_owned(),
        Some(several) => format!(": {several} processes"),
        None => String::new(),
    };
    let level = match status.level() {
        Level::Ok => "ok",
        Level::Degraded => "degraded",
        Level::Down => "down",
    };
    let mut parts = vec![format!("{level}{running}")];
    let problems = status.problems.iter();
    let problems: Vec<_> = problems
        .map(|problem| format!("  {}", problem.says))
        .collect();
    if !problems.is_empty() {
        parts.push(problems.join("\n"));
    }
    if !status.networks.is_empty() {
        let mut rows = vec![row([
            "NETWORK",
            "HEAD",
            "RPC",
            "QUEUED",
            "IN FLIGHT",
            "QUARANTINED",
            "GAS BUDGET",
        ])];
        rows.extend(status.networks.iter().map(network));
        parts.push(aligned(&rows));
    }
    if !status.signers.is_empty() {
        let mut rows = vec![row([
            "SIGNER",
            "NETWORK",
            "STATE",
            "BALANCE",
            "PAYMENTS LEFT",
            "UNDER WAY",
        ])];
        rows.extend(status.signers.iter().map(signer));
        parts.push(aligned(&rows));
    }
    parts.join("\n\n")
}

fn network(network: &NetworkStatus) -> Vec<String> {
    let age = network.head_age_seconds.map(Duration::from_secs);
    let endpoints = network.endpoints.iter().map(|endpoint| {
        let latency = endpoint.latency_ms;
        latency.map_or_else(|| "no answer".to_owned(), |latency| format!("{latency} ms"))
    });
    let oldest = network.oldest_queued_seconds.map(Duration::from_secs);
    let oldest = oldest.map(|oldest| format!(" ({})", length(oldest)));
    let used = network.budget_used_percent;
    vec![
        network.name.clone(),
        age.map_or_else(|| "-".to_owned(), |age| format!("{} ago", length(age))),
        endpoints.collect::<Vec<_>>().join(", "),
        format!("{}{}", network.queued, oldest.unwrap_or_default()),
        network.inflight.to_string(),
        network.quarantined.to_string(),
        used.map_or_else(|| "no limit".to_owned(), |used| format!("{used} % used")),
    ]
}

fn signer(signer: &SignerStatus) -> Vec<String> {
    let unknown = || "-".to_owned();
    vec![
        signer.signer.clone(),
        signer.name.clone(),
        signer.state.to_owned(),
        signer.balance.clone().unwrap_or_else(unknown),
        signer
            .payments_left
            .map_or_else(unknown, |left| left.to_string()),
        count(signer.transactions_in_flight, "transaction"),
    ]
}
