//! `supported`: the payment kinds of this facilitator. Fast, complete and stable: sellers read it once, when they start.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy::primitives::Address;
use serde_json::{Map, Value};

use crate::facilitator::Facilitator;
use crate::payment::{Asset, Proxies};
use crate::protocol::assets::TransferMethod;
use crate::protocol::challenge::supported_kinds;
use crate::protocol::response::checksummed;
use crate::protocol::{Scheme, Supported, SupportedKind, X402Version, gas_sponsoring, session};
use crate::settlement::ServedNetwork;

impl Facilitator {
    /// Every scheme on every configured network, in both versions; also while a network's RPC is down, because sellers that do not find
    /// their network refuse to start.
    pub fn supported(&self) -> Supported {
        let kinds = self
            .served_networks
            .iter()
            .flat_map(|served| kinds_on(served));
        let by_permit2 = self
            .served_networks
            .iter()
            .any(|served| served.proxies() != Proxies::default());
        let approves = |served: &Arc<ServedNetwork>| {
            served.policy.approvals.is_some() && served.proxies() != Proxies::default()
        };
        let sponsoring = [
            (by_permit2, gas_sponsoring::EIP2612),
            (
                self.served_networks.iter().any(approves),
                gas_sponsoring::ERC20_APPROVAL,
            ),
        ];
        let sponsoring = sponsoring
            .into_iter()
            .filter(|(served, _)| *served)
            .map(|(_, name)| name.to_owned());
        let mut signers: Vec<String> = Vec::new();
        for address in self.signers.iter().flat_map(|(_, signers)| signers) {
            let checksummed = checksummed(*address);
            if !signers.contains(&checksummed) {
                signers.push(checksummed);
            }
        }
        Supported {
            kinds: kinds.collect(),
            extensions: [session::EXTENSION.to_owned()]
                .into_iter()
                .chain(sponsoring)
                .collect(),
            signers: BTreeMap::from([("eip155:*".to_owned(), signers)]),
        }
    }
}

/// `exact` in each version that has a name for the network, by either payment method; `upto` in v2, where its proxy is deployed and a
/// signer can send.
fn kinds_on(served: &ServedNetwork) -> impl Iterator<Item = SupportedKind> {
    let network = served.policy.network;
    let limits = limits_of(served);
    let exact_limits = limits.clone();
    // A network on which no token has EIP-3009 needs the Permit2 proxy.
    let by_token = |asset: &Asset| asset.method == TransferMethod::Eip3009;
    let has_exact = served.policy.assets.iter().any(by_token) || served.proxies().exact;
    let exact = supported_kinds(Scheme::Exact, network).map(move |(version, scheme, network)| {
        SupportedKind {
            x402_version: version,
            scheme: scheme.to_owned(),
            network,
            extra: Some(exact_limits.clone()),
        }
    });
    let facilitator = served
        .first_usable_signer()
        .filter(|_| served.proxies().upto);
    let upto = facilitator.map(|facilitator| SupportedKind {
        x402_version: X402Version::V2,
        scheme: Scheme::Upto.name().to_owned(),
        network: network.to_string(),
        extra: Some(with_facilitator(limits.clone(), facilitator)),
    });
    exact.filter(move |_| has_exact).chain(upto)
}

/// What sellers have to keep to: the longest validity of a payment, which they choose, and the smallest amount of each token in its
/// smallest unit.
fn limits_of(served: &ServedNetwork) -> Map<String, Value> {
    let longest = served.policy.validity_max.whole_seconds();
    let smallest = |asset: &Asset| {
        let minimum = asset.minimum.to_string();
        (checksummed(asset.address), Value::from(minimum))
    };
    let minimums: Map<String, Value> = served.policy.assets.iter().map(smallest).collect();
    Map::from_iter([
        ("maxTimeoutSeconds".to_owned(), longest.into()),
        ("minimumAmounts".to_owned(), minimums.into()),
    ])
}

fn with_facilitator(mut limits: Map<String, Value>, facilitator: Address) -> Map<String, Value> {
    let address = checksummed(facilitator).into();
    limits.insert("facilitatorAddress".to_owned(), address);
    limits
}
