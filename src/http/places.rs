//! Places for connections: so many in total, and so many for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use crate::facilitator::counted_as;

/// Places that only callers on the loopback address get, so that a health check answers when all others are taken.
pub const RESERVE: usize = 16;

/// How many connections there may be at a time.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// In total, besides [`RESERVE`].
    pub total: usize,
    /// Of one client: an IPv4 address, or a /56 of IPv6.
    pub per_client: usize,
    /// Of one trusted proxy, and of one loopback address, from which a proxy on this machine comes.
    pub per_proxy: usize,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// All are taken.
    Total,
    /// The client has as many as it may have.
    Client,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_client: HashMap<IpNet, usize>,
}

/// The places of a listener.
#[derive(Debug, Clone)]
pub(super) struct Places {
    limits: ConnectionLimits,
    taken: Arc<Mutex<Taken>>,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    client: IpNet,
    taken: Arc<Mutex<Taken>>,
}

impl Places {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            taken: Arc::default(),
        }
    }

    /// A place for a connection from `peer`.
    pub(super) fn take(&self, peer: IpAddr, is_proxy: bool) -> Result<Place, NoPlace> {
        let is_local = peer.is_loopback();
        let total = self.limits.total + if is_local { RESERVE } else { 0 };
        let of_client = if is_local || is_proxy {
            self.limits.per_proxy
        } else {
            self.limits.per_client
        };
        let client = counted_as(peer);
        let mut taken = locked(&self.taken);
        if taken.total >= total {
            return Err(NoPlace::Total);
        }
        let count = taken.by_client.entry(client).or_default();
        if *count >= of_client {
            return Err(NoPlace::Client);
        }
        *count += 1;
        taken.total += 1;
        Ok(Place {
            client,
            taken: Arc::clone(&self.taken),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = locked(&self.taken);
        taken.total -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

fn locked(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(total: usize, per_client: usize, per_proxy: usize) -> Places {
        Places::new(ConnectionLimits {
            total,
            per_client,
            per_proxy,
        })
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn client_has_its_own_limit_and_gets_places_back() {
        let places = places(100, 2, 3);
        let take = |text, is_proxy| places.take(address(text), is_proxy);
        let (first, _second) = (take("192.0.2.1", false), take("192.0.2.1", false));
        assert_eq!(take("192.0.2.1", false).err(), Some(NoPlace::Client));
        assert!(take("192.0.2.2", false).is_ok());
        drop(first);
        assert!(take("192.0.2.1", false).is_ok());
        // A whole /56 is one client; a trusted proxy and a loopback address have more.
        let _held: Vec<_> = ["2001:db8::1", "2001:db8:0:ff::1"]
            .map(|text| take(text, false))
            .into();
        assert_eq!(take("2001:db8:0:7f::1", false).err(), Some(NoPlace::Client));
        assert!(take("2001:db8:0:100::1", false).is_ok());
        for (text, is_proxy) in [("10.0.0.1", true), ("127.0.0.1", false), ("::1", false)] {
            let _held: Vec<_> = (0..3).map(|_| take(text, is_proxy).unwrap()).collect();
            assert_eq!(take(text, is_proxy).err(), Some(NoPlace::Client), "{text}");
        }
    }

    #[test]
    fn loopback_has_a_reserve() {
        let places = places(2, 10, 100);
        let _held: Vec<_> = ["192.0.2.1", "192.0.2.2"]
            .map(|text| places.take(address(text), false).unwrap())
            .into();
        for text in ["192.0.2.3", "10.0.0.1"] {
            let refused = places.take(address(text), text.starts_with("10."));
            assert_eq!(refused.err(), Some(NoPlace::Total));
        }
        let local: Vec<_> = (0..RESERVE)
            .map(|_| places.take(address("127.0.0.1"), false).unwrap())
            .collect();
        assert_eq!(
            places.take(address("127.0.0.1"), false).err(),
            Some(NoPlace::Total)
        );
        drop(local);
        drop(places.take(address("127.0.0.1"), false).unwrap());
        assert_eq!(places.taken.lock().unwrap().by_client.len(), 2);
    }
}
