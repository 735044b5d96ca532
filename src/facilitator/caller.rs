//! Who makes a request, and from where.

use std::net::IpAddr;

use crate::ledger::GrantRequest;
use crate::payment::Who;

/// The caller of one request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whose rights and limits count. A payment belongs to one of them.
    pub who: Who,
    /// The address of the client, behind proxies that are trusted.
    pub client: IpAddr,
    /// The id of the request in the log.
    pub request_id: String,
    /// The id that the caller gave the request in `X-Request-Id`, or `request_id`. Until a grant is answered to it nobody else knows it.
    pub asked_as: String,
}

impl Caller {
    /// The name by which clients are counted: an IPv6 client has a whole /64 of addresses.
    pub fn client_name(&self) -> String {
        match self.client.to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_client_is_counted_by_its_network() {
        let name = |client: &str| {
            let caller = Caller {
                who: Who::Anonymous,
                client: client.parse().unwrap(),
                request_id: String::new(),
                asked_as: String::new(),
            };
            caller.client_name()
        };
        assert_eq!(name("10.1.2.3"), "10.1.2.3");
        assert_eq!(name("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(name("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(name("2001:db8:1:2::9"), "2001:db8:1:2::/64");
    }
}
