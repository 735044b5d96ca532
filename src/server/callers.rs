//! Who may call and how often: says it at the start, keeps the keys in memory up to date, and records what is refused.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio_util::sync::CancellationToken;

use super::{StartError, until};
use crate::config::{Config, SessionsConfig};
use crate::facilitator::{
    Access, CallRates, Gate, GateRules, Keys, Refusals, SessionRules, Sponsorship,
};
use crate::ledger::{Ledger, OpenLimits};
use crate::payment::AccessMode;
use crate::protocol::Network;
use crate::protocol::assets::is_test_network;
use crate::settlement::{Supervisor, Task};
use crate::telemetry::causes;
use crate::telemetry::metrics::Metrics;

/// How often the keys of callers are read. A revocation holds everywhere within seconds.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// Who may have payments settled, with the keys as the ledger has them now.
pub(super) async fn access(config: &Config, ledger: &Ledger) -> Result<Access, StartError> {
    let keys = Keys::default();
    keys.read(ledger).await?;
    let policies = config.networks.iter().map(|network| &network.policy);
    let mainnets = policies.filter(|policy| !is_test_network(policy.network));
    match config.access {
        AccessMode::Keys => tracing::info!(
            "callers: only holders of a key may settle; `x402d keys create` makes one"
        ),
        AccessMode::Open => {
            tracing::info!("callers: everybody may settle");
            for policy in mainnets {
                let wei = policy.budget.wei_per_day.unwrap_or_default();
                tracing::warn!(network = %policy.network, wei_per_day = %wei, "callers: everybody may settle to the configured payees on a mainnet; their payments may cost so much gas in a day");
            }
        }
    }
    Ok(Access {
        settle: config.access,
        keys,
        clock: ledger.clock(),
    })
}

/// Reads the deny list again whenever it changes.
pub(super) fn follow_deny_list(supervisor: &Supervisor, stopped: &CancellationToken, gate: &Gate) {
    let (stop, gate) = (stopped.clone(), gate.clone());
    supervisor.keep_running(Task::of_process("deny list"), move || {
        Some(until(&stop, gate.clone().follow_deny_list()))
    });
}

/// Reads the keys again and again.
pub(super) fn keep_keys(
    supervisor: &Supervisor,
    stopped: &CancellationToken,
    (ledger, keys): (&Ledger, &Keys),
) {
    let (stop, ledger, keys) = (stopped.clone(), ledger.clone(), keys.clone());
    supervisor.keep_running(Task::of_process("keys"), move || {
        Some(until(&stop, read_keys(ledger.clone(), keys.clone())))
    });
}

/// Writes refusals into the ledger, and deletes old ones.
pub(super) fn keep_refusals(
    supervisor: &Supervisor,
    stopped: &CancellationToken,
    (ledger, metrics): (&Ledger, &Metrics),
) -> Refusals {
    let refusals = Refusals::new(ledger.clock(), metrics.clone());
    let (stop, ledger, writing) = (stopped.clone(), ledger.clone(), refusals.clone());
    supervisor.keep_running(Task::of_process("refusals"), move || {
        Some(writing.clone().write(ledger.clone(), stop.clone()))
    });
    refusals
}

pub(super) fn session_rules(config: &SessionsConfig) -> SessionRules {
    SessionRules {
        limits: OpenLimits {
            total: config.open_max,
            client: config.open_max_per_client,
            party: config.open_max_per_party,
        },
        sponsorship: config
            .sponsor_minimum
            .clone()
            .map(|least_dollars| Sponsorship { least_dollars }),
    }
}

/// The addresses of the signers, per network.
pub(super) fn signers(config: &Config) -> Arc<[(Network, Vec<Address>)]> {
    let networks = config.networks.iter();
    networks
        .map(|network| (network.policy.network, super::addresses(&network.signers)))
        .collect()
}

async fn read_keys(ledger: Ledger, keys: Keys) {
    let mut interval = tokio::time::interval(KEYS_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Err(error) = keys.read(&ledger).await {
            tracing::warn!(error = causes(&error), "keys not read");
        }
    }
}

/// What every payment has to pass.
pub(super) fn gate_rules(config: &Config) -> GateRules {
    let limits = &config.limits;
    GateRules {
        rates: CallRates {
            verify: limits.verify_per_second,
            settle: limits.settle_per_second,
            sessions: limits.sessions_per_second,
        },
        unattended_max: limits.unattended_per_caller,
        waits_max: limits.waits_per_caller,
        deny_list: limits.deny_list.clone(),
        policy_service: limits.policy_service.clone(),
        told_for: Duration::from_secs(config.verify_lease_s.into()),
    }
}
