//! `supported`: what sellers may ask for here. Fast, complete and stable: sellers read it once, when they start.

use std::collections::BTreeMap;

use crate::facilitator::Facilitator;
use crate::protocol::challenge::kinds_of;
use crate::protocol::response::spelled;
use crate::protocol::session;
use crate::protocol::{Scheme, Supported, SupportedKind};

impl Facilitator {
    /// Every scheme on every configured network, in both dialects; also while a network's RPC is down, because sellers that do not
    /// find their network refuse to start.
    pub fn supported(&self) -> Supported {
        let networks = self.sites.iter().map(|site| site.policy.network);
        let kinds = networks
            .flat_map(|network| kinds_of(Scheme::Exact, network))
            .map(|(version, scheme, network)| SupportedKind {
                x402_version: version,
                scheme: scheme.to_owned(),
                network,
                extra: None,
            });
        let mut signers: Vec<String> = Vec::new();
        for address in self.signers.iter().flat_map(|(_, signers)| signers) {
            let spelled = spelled(*address);
            if !signers.contains(&spelled) {
                signers.push(spelled);
            }
        }
        Supported {
            kinds: kinds.collect(),
            extensions: vec![session::EXTENSION.to_owned()],
            signers: BTreeMap::from([("eip155:*".to_owned(), signers)]),
        }
    }
}
