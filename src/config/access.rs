//! Who may have payments verified and settled: `[access]`.

use super::file::AccessFile;
use super::{NetworkConfig, Settings};
use crate::payment::AccessMode;
use crate::protocol::assets::is_test_network;

/// The mode that is configured, or the one that is safe for the networks.
pub(super) fn read(
    settings: &mut Settings<'_>,
    file: &AccessFile,
    networks: &[NetworkConfig],
) -> AccessMode {
    let mainnets = || {
        let mut networks = networks.iter();
        networks.find(|network| !is_test_network(network.policy.network))
    };
    let Some(mode) = file.settle else {
        return match mainnets() {
            Some(_) => AccessMode::Keys,
            None => AccessMode::Open,
        };
    };
    if mode == AccessMode::Open {
        let unlimited = networks
            .iter()
            .find(|network| !is_test_network(network.policy.network) && !limits_strangers(network));
        if let Some(network) = unlimited {
            let network = network.policy.network;
            settings.problems.push(format!(
                "access.settle: expected \"keys\", because {network} is a mainnet without payees or without a gas budget; name them, or let only holders of a key settle"
            ));
        }
    }
    mode
}

/// Whether what strangers can make a network's signers spend is limited: by who may be paid, and by a gas budget.
fn limits_strangers(network: &NetworkConfig) -> bool {
    !network.policy.payees.is_empty() && has_gas_budget(network)
}

/// Whether the gas of a day is limited. There is no such setting yet.
const fn has_gas_budget(_: &NetworkConfig) -> bool {
    true
}
