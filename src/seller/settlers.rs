//! Which account settles metered payments: a buyer binds its payment to that account, so that nobody else can settle it. The
//! facilitator names one per network in `/supported`; it is asked once, and again where it named none.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use serde_json::Value;

use crate::protocol::{Means, Network, SupportedKind, X402Version, field};
use crate::seller::{FacilitatorClient, FacilitatorError};

/// What the facilitator has said. Requests that come while it is being asked share its answer.
#[derive(Debug, Default)]
pub(super) struct Settlers {
    said: Mutex<Said>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Said {
    /// How often it was asked.
    times: u64,
    known: HashMap<Network, Address>,
}

/// No metered payment can be settled on a network: nothing metered can be sold there.
#[derive(Debug, thiserror::Error)]
#[error("the facilitator names no account that settles scheme upto on {network}")]
pub(super) struct NoSettler {
    network: Network,
    /// Why it could not be asked, if that was it.
    #[source]
    source: Option<FacilitatorError>,
}

impl Settlers {
    /// The account for `network`.
    pub(super) async fn on(
        &self,
        network: Network,
        facilitator: &FacilitatorClient,
    ) -> Result<Address, NoSettler> {
        let (known, before) = self.look(network);
        if let Some(known) = known {
            return Ok(known);
        }
        let _turn = self.asking.lock().await;
        let (known, times) = self.look(network);
        let none = |source| NoSettler { network, source };
        // Who waited for another one's question has its answer.
        if known.is_some() || times != before {
            return known.ok_or_else(|| none(None));
        }
        let answer = facilitator.supported().await;
        let mut said = self.said();
        said.times = said.times.wrapping_add(1);
        let kinds = answer.map_err(|error| none(Some(error)))?.kinds;
        said.known.extend(kinds.iter().filter_map(named));
        said.known.get(&network).copied().ok_or_else(|| none(None))
    }

    /// The facilitator does not settle by the account that it named: the next request asks it anew.
    pub(super) fn forget(&self, network: Network) {
        self.said().known.remove(&network);
    }

    fn look(&self, network: Network) -> (Option<Address>, u64) {
        let said = self.said();
        (said.known.get(&network).copied(), said.times)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The account that a kind names, if it is one of scheme `upto`.
fn named(kind: &SupportedKind) -> Option<(Network, Address)> {
    let metered =
        kind.scheme == Means::Metered.scheme().name() && kind.x402_version == X402Version::V2;
    let network = kind.network.parse().ok().filter(|_| metered)?;
    let text = kind.extra.as_ref()?.get("facilitatorAddress");
    let address = field::parse_address(text.and_then(Value::as_str)?).ok()?;
    (!address.is_zero()).then_some((network, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;

    const BASE: Network = Network::from_chain_id(8453);

    #[tokio::test]
    async fn who_comes_while_the_facilitator_is_asked_shares_its_answer() {
        let (asked, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, gate) = (Arc::clone(&asked), Arc::clone(&open));
        let answer = async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            Json(json!({"kinds": []}))
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/supported", get(answer));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });

        let facilitator = FacilitatorClient::new(&url).unwrap();
        let settlers = Settlers::default();
        let ask = || settlers.on(BASE, &facilitator);
        let answer = async { open.add_permits(1) };
        let (first, second, third, ()) = tokio::join!(ask(), ask(), ask(), answer);
        for none in [first, second, third] {
            none.unwrap_err();
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        open.add_permits(1);
        ask().await.unwrap_err();
        assert_eq!(
            asked.load(Ordering::SeqCst),
            2,
            "a later request asks again"
        );
    }
}
