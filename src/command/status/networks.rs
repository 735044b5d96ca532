//! One network and its signers.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde::Serialize;

use super::Known;
use crate::chain::{Head, RpcError};
use crate::command::CommandError;
use crate::command::probe::{self, Endpoint, Runway, native};
use crate::command::shown::{count, length, moment, network_name};
use crate::config::NetworkConfig;
use crate::ledger::{GasSubject, LaneView, Ledger};
use crate::protocol::response::checksummed;
use crate::server::network_rpc;
use crate::settlement::PAYMENTS_LOW;

/// A queued payment that waits longer is late.
const QUEUED_LATE: Duration = Duration::from_mins(1);
/// The part of a budget from which it is low, in percent.
const BUDGET_LOW_PERCENT: u64 = 80;

/// A network, as `--json` has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkStatus {
    pub(super) network: String,
    #[serde(skip)]
    pub(super) name: String,
    /// Whether a new payment can be settled.
    pub(super) can_sell: bool,
    pub(super) endpoints: Vec<EndpointStatus>,
    pub(super) head_age_seconds: Option<u64>,
    pub(super) queued: u64,
    pub(super) oldest_queued_seconds: Option<u64>,
    pub(super) inflight: u64,
    pub(super) quarantined: u64,
    /// Of the network's gas budget, in percent; absent without a limit.
    pub(super) budget_used_percent: Option<u64>,
}

/// An endpoint by its number.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointStatus {
    pub(super) number: usize,
    /// Absent when it does not answer.
    pub(super) latency_ms: Option<u64>,
}

/// A signer, as `--json` has it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SignerStatus {
    pub(super) network: String,
    #[serde(skip)]
    pub(super) name: String,
    pub(super) signer: String,
    /// `working`, `draining`, `paused`, `stopped`, or `unowned`.
    pub(super) state: &'static str,
    /// Of the network's own currency.
    pub(super) balance_wei: Option<String>,
    #[serde(skip)]
    pub(super) balance: Option<String>,
    pub(super) payments_left: Option<u64>,
    pub(super) transactions_in_flight: u64,
    pub(super) paused_at: Option<String>,
    pub(super) stopped_reason: Option<String>,
}

/// What was found.
pub(super) struct Read {
    pub(super) network: NetworkStatus,
    pub(super) signers: Vec<SignerStatus>,
    pub(super) problems: Vec<String>,
}

/// What the network's transactions have cost and may cost in 24 hours, and the limit, if there is one.
pub(super) async fn budget(
    ledger: &Ledger,
    config: &NetworkConfig,
) -> Result<Option<(U256, U256)>, CommandError> {
    let Some(limit) = config.policy.budget.wei_per_day else {
        return Ok(None);
    };
    let subject = [GasSubject::Network];
    let hours = ledger.gas_hours(config.policy.network, &subject).await?;
    let used = hours.into_iter().flatten().fold(U256::ZERO, |sum, hour| {
        sum.saturating_add(hour.spent_wei)
            .saturating_add(hour.reserved_wei)
    });
    Ok(Some((used, limit)))
}

pub(super) async fn read(
    config: &NetworkConfig,
    known: &Known,
    budget: Option<(U256, U256)>,
) -> Read {
    let network = config.policy.network;
    let name = network_name(network);
    let mut problems = Vec::new();
    let endpoints = probe::endpoints(config).await;
    let head = newest(&endpoints);
    let age = head.map(|head| probe::age(&head, known.now).unwrap_or_default());
    note_endpoints(&endpoints, &name, &mut problems);
    if let Some(age) = age.filter(|age| *age > probe::late_after(network)) {
        let age = length(age);
        problems.push(format!("{name}: its newest block is {age} old"));
    }
    let serves = |process: &crate::ledger::RunningProcess| process.serves.contains(&network);
    let served = known.processes.iter().any(serves);
    if !served && !known.processes.is_empty() {
        problems.push(format!("{name}: no running process reaches it"));
    }
    let fee = match head {
        Some(head) => fee(config, &head, &name, &mut problems).await,
        None => None,
    };
    let mut signers = Vec::new();
    for key in &config.signers {
        let signer = key.address();
        signers.push(read_signer(config, known, (signer, fee), &mut problems).await);
    }
    let can_send = signers.iter().any(|(_, can_send)| *can_send);
    let waiting = known
        .backlog
        .iter()
        .find(|waiting| waiting.network == network);
    let quarantined = waiting.map_or(0, |waiting| waiting.quarantined);
    if quarantined > 0 {
        let quarantined = count(quarantined, "payment");
        problems.push(format!(
            "{name}: {quarantined} in quarantine: look at `x402d payments list --quarantined`"
        ));
    }
    let oldest = waiting.and_then(|waiting| waiting.oldest);
    if let Some(oldest) = oldest.filter(|oldest| *oldest > QUEUED_LATE) {
        let oldest = length(oldest);
        problems.push(format!(
            "{name}: a payment has waited in the queue for {oldest}"
        ));
    }
    let used = budget.map(|budget| percent(budget, &name, &mut problems));
    let spent = used.is_some_and(|percent| percent >= 100);
    Read {
        network: NetworkStatus {
            network: network.to_string(),
            can_sell: served && can_send && head.is_some() && fee.is_some() && !spent,
            endpoints: endpoints.iter().map(endpoint_status).collect(),
            head_age_seconds: age.map(|age| age.as_secs()),
            queued: waiting.map_or(0, |waiting| waiting.queued),
            oldest_queued_seconds: oldest.map(|oldest| oldest.as_secs()),
            inflight: waiting.map_or(0, |waiting| waiting.inflight),
            quarantined,
            budget_used_percent: used,
            name,
        },
        signers: signers.into_iter().map(|(signer, _)| signer).collect(),
        problems,
    }
}

fn newest(endpoints: &[Endpoint]) -> Option<Head> {
    let heads = endpoints.iter().filter_map(|one| one.found.as_ref().ok());
    heads.map(|(head, _)| *head).max_by_key(|head| head.number)
}

fn note_endpoints(endpoints: &[Endpoint], name: &str, problems: &mut Vec<String>) {
    for endpoint in endpoints {
        if let Err(error) = &endpoint.found {
            // That one names the URL itself.
            let names_it = matches!(error, RpcError::WrongChain { .. });
            problems.push(if names_it {
                format!("{name}: {error}")
            } else {
                format!("{name}: RPC URL number {}: {error}", endpoint.number)
            });
        }
    }
}

fn endpoint_status(endpoint: &Endpoint) -> EndpointStatus {
    let took = endpoint.found.as_ref().ok().map(|(_, took)| took);
    EndpointStatus {
        number: endpoint.number,
        latency_ms: took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The fee that would be offered now, in wei per gas.
async fn fee(
    config: &NetworkConfig,
    head: &Head,
    name: &str,
    problems: &mut Vec<String>,
) -> Option<u128> {
    let rpc = network_rpc(config).ok()?;
    let quoted = match probe::fees(&rpc, config, head).await {
        Ok(fees) => fees.quote(head).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match quoted {
        Ok(fees) => Some(fees.max_fee_wei),
        Err(error) => {
            problems.push(format!("{name}: {error}"));
            None
        }
    }
}

/// The signer, and whether it can send.
async fn read_signer(
    config: &NetworkConfig,
    known: &Known,
    (signer, fee): (Address, Option<u128>),
    problems: &mut Vec<String>,
) -> (SignerStatus, bool) {
    let network = config.policy.network;
    let name = network_name(network);
    let lane = known.lanes.iter();
    let mut lane = lane.filter(|view| view.lane.signer == signer && view.lane.network == network);
    let lane = lane.next();
    let state = lane.map_or("unowned", |lane| lane.state(known.now));
    let address = checksummed(signer);
    match (state, lane.and_then(|lane| lane.stopped_reason.as_deref())) {
        ("working", _) => {}
        (_, Some(why)) => problems.push(format!("{address} on {name} is stopped: {why}")),
        // Without a process that is said once.
        ("unowned", _) if known.processes.is_empty() => {}
        ("unowned", _) => problems.push(format!("{address} on {name}: no process has its lane")),
        (held, _) => problems.push(format!("{address} on {name} is {held} by the operator")),
    }
    let balance = match network_rpc(config) {
        Ok(rpc) => rpc.balance(signer).await.ok(),
        Err(_) => None,
    };
    if balance.is_none() {
        problems.push(format!("{address} on {name}: its balance cannot be read"));
    }
    let runway = balance
        .zip(fee)
        .map(|(balance, fee)| Runway::new(balance, fee));
    let left = runway.and_then(Runway::payments_left);
    let empty = runway.and_then(|runway| runway.problem(network));
    match (&empty, left) {
        (Some(empty), _) => problems.push(format!("{address} on {name} {empty}")),
        (None, Some(left)) if left < PAYMENTS_LOW => {
            problems.push(format!(
                "{address} on {name} has gas for {left} payments: refill it"
            ));
        }
        (None, _) => {}
    }
    let status = SignerStatus {
        network: network.to_string(),
        name,
        signer: address,
        state,
        balance_wei: balance.map(|balance| balance.to_string()),
        balance: balance.map(|balance| native(network, balance)),
        payments_left: left,
        transactions_in_flight: lane.map_or(0, |lane| lane.open),
        paused_at: lane.and_then(paused_at),
        stopped_reason: lane.and_then(|lane| lane.stopped_reason.clone()),
    };
    // A balance that cannot be read says nothing about the signer.
    let can_send = state == "working" && empty.is_none();
    (status, can_send)
}

fn paused_at(lane: &LaneView) -> Option<String> {
    lane.pause.map(|pause| moment(pause.at))
}

/// How much of a budget is used.
fn percent((used, limit): (U256, U256), name: &str, problems: &mut Vec<String>) -> u64 {
    let percent = used.saturating_mul(U256::from(100)).checked_div(limit);
    let percent = percent.map_or(100, |percent| u64::try_from(percent).unwrap_or(u64::MAX));
    if percent >= 100 {
        problems.push(format!(
            "{name}: the gas budget of 24 hours is spent, and new payments are refused until its oldest hours are over; `budget.wei_per_day` raises it"
        ));
    } else if percent >= BUDGET_LOW_PERCENT {
        problems.push(format!(
            "{name}: {percent} % of the gas budget of 24 hours is used"
        ));
    }
    percent
}
