//! Who may call: says it at the start, and keeps the keys in memory up to date.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{StartError, until};
use crate::config::Config;
use crate::facilitator::{Access, Keys};
use crate::ledger::Ledger;
use crate::payment::AccessMode;
use crate::protocol::assets::is_test_network;
use crate::settlement::{Supervisor, Task};
use crate::telemetry::causes;

/// How often the keys of callers are read. A revocation holds everywhere within seconds.
const KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// Who may have payments settled, with the keys as the ledger has them now.
pub(super) async fn access(config: &Config, ledger: &Ledger) -> Result<Access, StartError> {
    let keys = Keys::default();
    keys.read(ledger).await?;
    let mainnets = config.networks.iter().map(|network| network.policy.network);
    let mainnets = mainnets.filter(|network| !is_test_network(*network));
    match config.access {
        AccessMode::Keys => tracing::info!(
            "callers: only holders of a key may settle; `x402d keys create` makes one"
        ),
        AccessMode::Open => {
            tracing::info!("callers: everybody may settle");
            for network in mainnets {
                tracing::warn!(%network, "callers: everybody may settle to the configured payees on a mainnet; each payment costs you its gas");
            }
        }
    }
    Ok(Access {
        settle: config.access,
        keys,
        clock: ledger.clock(),
    })
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
