//! Which hosts a URL that a seller names may lead to. A seller must not make this machine send requests into its own network.
//!
//! The check stands where the connection is made: the HTTP client gets its addresses from [`PublicOnly`], and connects to nothing else. So a
//! name that is public when it is looked at, and private when it is connected to, gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::Host;

/// The name has no address that may be reached.
#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct NoPublicAddress;

/// The system's resolver.
struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Addrs = Box::new(found.collect::<Vec<_>>().into_iter());
            Ok(found)
        })
    }
}

/// Resolves names to their public addresses alone.
pub(crate) struct PublicOnly(Arc<dyn Resolve>);

impl PublicOnly {
    /// With the system's resolver.
    pub(crate) fn new() -> Self {
        Self(Arc::new(SystemResolver))
    }
}

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = Arc::clone(&self.0);
        Box::pin(async move {
            let found = resolver.resolve(name).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(NoPublicAddress.into());
            }
            let public: Addrs = Box::new(public.into_iter());
            Ok(public)
        })
    }
}

/// Whether the host of a URL is a name, or an address that may be reached. A client does not resolve addresses, so [`PublicOnly`] never sees
/// them.
pub(crate) fn may_be_public(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_public(address.into()),
        Some(Host::Ipv6(address)) => is_public(address.into()),
        Some(Host::Domain(_)) => true,
        None => false,
    }
}

/// Whether the host of a URL is this machine, by its address or by the name `localhost`.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// Whether an address is reached over the internet: none of this machine, of a local network, or reserved (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let reserved = match address.octets() {
        // This network, and multicast and beyond; carrier-grade NAT; protocol assignments; 6to4 relays; benchmarks.
        [0 | 224..=255, ..]
        | [100, 64..=127, ..]
        | [192, 0, 0, _]
        | [192, 88, 99, _]
        | [198, 18..=19, ..] => true,
        _ => false,
    };
    !(reserved
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // NAT64 leads to an IPv4 address.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [first, second] = high.to_be_bytes();
            let [third, fourth] = low.to_be_bytes();
            is_public_v4(Ipv4Addr::new(first, second, third, fourth))
        }
        // Protocol assignments with Teredo; documentation; 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Everything else that is public begins with the bits 001.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn is_public(text: &str) -> bool {
        super::is_public(text.parse().unwrap())
    }

    #[test]
    fn private_local_and_reserved_addresses_are_not_public() {
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fec0::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
        ] {
            assert!(!is_public(address), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.63.255.255",
            "172.32.0.1",
            "193.168.1.1",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(address), "{address}");
        }
    }

    /// Answers each look-up with the next list.
    struct Rebinding(Mutex<Vec<Vec<SocketAddr>>>);

    impl Resolve for Rebinding {
        fn resolve(&self, _: Name) -> Resolving {
            let found = self.0.lock().unwrap().remove(0);
            let found: Addrs = Box::new(found.into_iter());
            Box::pin(std::future::ready(Ok(found)))
        }
    }

    #[tokio::test]
    async fn name_that_is_rebound_to_a_private_address_is_not_reached() {
        let of = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let answers = vec![
            vec![of("1.1.1.1"), of("10.0.0.1")],
            vec![of("127.0.0.1")],
            vec![of("169.254.169.254"), of("::1")],
        ];
        let resolver = PublicOnly(Arc::new(Rebinding(Mutex::new(answers))));
        let resolve = || resolver.resolve("pay.example".parse().unwrap());
        let first: Vec<_> = resolve().await.unwrap().collect();
        assert_eq!(first, [of("1.1.1.1")], "the private one is left out");
        for _ in 0..2 {
            assert!(resolve().await.is_err());
        }
    }

    #[tokio::test]
    async fn client_connects_to_no_other_address_than_the_checked_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let rebinding = || Arc::new(Rebinding(Mutex::new(vec![vec![here]])));
        let url = format!("http://pay.example:{}/", here.port());
        let client = |resolver: Arc<dyn Resolve>| {
            let client = reqwest::Client::builder().no_proxy();
            client.dns_resolver(resolver).build().unwrap()
        };
        let guarded = client(Arc::new(PublicOnly(rebinding())));
        let error = guarded.get(&url).send().await.unwrap_err();
        assert!(error.is_connect(), "{error:?}");
        // Without the guard the same name leads here.
        let unguarded = client(rebinding());
        let (sent, accepted) = tokio::join!(unguarded.get(&url).send(), async {
            let (stream, _) = listener.accept().await.unwrap();
            drop(stream);
        });
        assert!(sent.is_err());
        let () = accepted;
    }
}
