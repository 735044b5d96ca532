//! The facilitator's account that settles metered payments. A buyer binds its payment to this account, so that no other account can settle
//! it. The facilitator names one per network in `/supported`, which is requested once, and again for a network without one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy::primitives::Address;
use serde_json::Value;

use crate::protocol::{Network, PaymentMethod, SupportedKind, X402Version, field};
use crate::seller::{FacilitatorClient, FacilitatorError};

/// The cached addresses per network. Concurrent requests share one call of `/supported`.
#[derive(Debug, Default)]
pub(super) struct FacilitatorAddresses {
    cache: Mutex<Cache>,
    calling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Cache {
    /// How many calls of `/supported` have ended.
    calls: u64,
    addresses: HashMap<Network, Address>,
}

/// The facilitator names no account for a network, so no metered offer can be made there.
#[derive(Debug, thiserror::Error)]
#[error("the facilitator names no account that settles scheme upto on {network}")]
pub(super) struct NoFacilitatorAddress {
    network: Network,
    /// The error of the call, if it failed.
    #[source]
    source: Option<FacilitatorError>,
}

impl FacilitatorAddresses {
    /// The account for `network`, from the cache or from `/supported`.
    pub(super) async fn get(
        &self,
        network: Network,
        facilitator: &FacilitatorClient,
    ) -> Result<Address, NoFacilitatorAddress> {
        let (address, calls_before) = self.look_up(network);
        if let Some(address) = address {
            return Ok(address);
        }
        let _guard = self.calling.lock().await;
        let (address, calls) = self.look_up(network);
        let none = |source| NoFacilitatorAddress { network, source };
        // A call that ended while this request waited for the lock has filled the cache, or found no address.
        if address.is_some() || calls != calls_before {
            return address.ok_or_else(|| none(None));
        }
        let answer = facilitator.supported().await;
        let mut cache = self.cache();
        cache.calls = cache.calls.wrapping_add(1);
        let kinds = answer.map_err(|error| none(Some(error)))?.kinds;
        cache.addresses.extend(kinds.iter().filter_map(address_of));
        cache
            .addresses
            .get(&network)
            .copied()
            .ok_or_else(|| none(None))
    }

    /// Removes an address that is no longer valid: the next request calls `/supported` again.
    pub(super) fn forget(&self, network: Network) {
        self.cache().addresses.remove(&network);
    }

    fn look_up(&self, network: Network) -> (Option<Address>, u64) {
        let cache = self.cache();
        (cache.addresses.get(&network).copied(), cache.calls)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network and account of a kind of scheme `upto` in v2.
fn address_of(kind: &SupportedKind) -> Option<(Network, Address)> {
    let metered = kind.scheme == PaymentMethod::Metered.scheme().name()
        && kind.x402_version == X402Version::V2;
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
    async fn concurrent_requests_share_one_supported_call() {
        let (calls, permits) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counted, gate) = (Arc::clone(&calls), Arc::clone(&permits));
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
        let addresses = FacilitatorAddresses::default();
        let call = || addresses.get(BASE, &facilitator);
        let answer = async { permits.add_permits(1) };
        let (first, second, third, ()) = tokio::join!(call(), call(), call(), answer);
        for none in [first, second, third] {
            none.unwrap_err();
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        permits.add_permits(1);
        call().await.unwrap_err();
        assert_eq!(
            calls.load(Ordering::SeqCst),
            2,
            "a later request calls again"
        );
    }
}
