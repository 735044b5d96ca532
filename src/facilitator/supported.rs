//! `supported`: the payment kinds of this facilitator. Fast, complete and stable: sellers read it once, when they start.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

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
    // Sellers choose the validity of a payment; beyond this it is refused.
    let longest = served.policy.validity_max.whole_seconds();
    // A network on which no token has EIP-3009 needs the Permit2 proxy.
    let by_token = |asset: &Asset| asset.method == TransferMethod::Eip3009;
    let has_exact = served.policy.assets.iter().any(by_token) || served.proxies().exact;
    let exact = supported_kinds(Scheme::Exact, network).map(move |(version, scheme, network)| {
        SupportedKind {
            x402_version: version,
            scheme: scheme.to_owned(),
            network,
            extra: json!({ "maxTimeoutSeconds": longest }).as_object().cloned(),
        }
    });
    let facilitator = served
        .first_usable_signer()
        .filter(|_| served.proxies().upto);
    let upto = facilitator.map(|facilitator| SupportedKind {
        x402_version: X402Version::V2,
        scheme: Scheme::Upto.name().to_owned(),
        network: network.to_string(),
        extra:
            json!({ "facilitatorAddress": checksummed(facilitator), "maxTimeoutSeconds": longest })
                .as_object()
                .cloned(),
    });
    exact.filter(move |_| has_exact).chain(upto)
}
