//! Who makes a request, and from where.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use crate::ledger::GrantRequest;
use crate::payment::{Key, Who};
use crate::protocol::{PaymentRequirements, Rejection};

/// The caller of one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose rights and limits count. A payment belongs to one of them.
    pub who: Who,
    /// The key of the request. The operator has none, whatever the request carries.
    pub key: Option<Arc<Key>>,
    /// The address of the client, behind proxies that are trusted.
    pub client: IpAddr,
    /// The id of the request in the log.
    pub request_id: String,
    /// The id that the caller gave the request in `X-Request-Id`, or `request_id`. Until a grant is answered to it nobody else knows it.
    pub asked_as: String,
}

impl Caller {
    /// Rejects payments that the caller's key is not for.
    pub(super) fn check_payee(&self, required: &PaymentRequirements) -> Result<(), Rejection> {
        match &self.key {
            Some(key) => key.check_payee(required.network, required.pay_to),
            None => Ok(()),
        }
    }

    /// What a grant records of the request that takes it.
    pub(super) fn grant_request(&self) -> GrantRequest {
        GrantRequest {
            request_id: self.request_id.clone(),
            asked_as: self.asked_as.clone(),
            caller: self.client.to_string(),
        }
    }
}

/// Bits of the prefix by which IPv6 clients are counted: providers give a /56 to one customer.
const COUNTED_PREFIX: u8 = 56;

/// The network by which connections, sessions and rates of a client are counted: its IPv4 address, or its /56 of IPv6.
pub fn counted_as(client: IpAddr) -> IpNet {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address).into(),
        IpAddr::V6(address) => Ipv6Net::new(address, COUNTED_PREFIX)
            .map_or_else(|_| IpAddr::V6(address).into(), |net| net.trunc().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_client_is_counted_by_its_network() {
        let name = |text: &str| counted_as(text.parse().unwrap()).to_string();
        assert_eq!(name("10.1.2.3"), "10.1.2.3/32");
        assert_eq!(name("::ffff:10.1.2.3"), "10.1.2.3/32");
        assert_eq!(name("2001:db8:1:2ff:3:4:5:6"), "2001:db8:1:200::/56");
        assert_eq!(name("2001:db8:1:200::9"), "2001:db8:1:200::/56");
    }
}
