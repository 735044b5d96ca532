//! The client of a request: by its address connections, sessions and rates are counted.
//!
//! Usually it is the peer of the connection. If that is a trusted proxy, the client is what the proxies say in `X-Forwarded-For` or
//! `Forwarded`: read from the right, where the nearest proxy writes, up to the first address that is no trusted proxy. What stands further
//! left was written by the client and is not believed.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use axum::http::header::FORWARDED;
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";

/// Whether an address is one of the trusted proxies.
pub(super) fn is_proxy(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The client of a request with these headers, from `peer`.
///
/// A proxy that writes only one of the two headers lets the other one of the client pass. So where they name different clients, neither is
/// believed, and the proxy is the client.
pub(super) fn client_of(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_proxy(trusted, peer) {
        return peer;
    }
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        texts.collect()
    };
    let (x_forwarded, forwarded) = (texts(X_FORWARDED_FOR), texts(FORWARDED.as_str()));
    let x_forwarded = x_forwarded.iter().rev().flat_map(|text| text.rsplit(','));
    let x_forwarded = first_untrusted(peer, x_forwarded.map(address), trusted);
    let elements = forwarded.iter().flat_map(|text| split(text, ','));
    let elements: Vec<&str> = elements.collect();
    let forwarded = first_untrusted(
        peer,
        elements.iter().rev().map(|element| forwarded_for(element)),
        trusted,
    );
    match (x_forwarded, forwarded) {
        (Some(client), None) | (None, Some(client)) => client,
        (Some(client), Some(other)) if client == other => client,
        (Some(_), Some(_)) | (None, None) => peer,
    }
}

/// The first of `hops`, nearest first, that is no trusted proxy. Where a hop has no address, the proxy that wrote it is the client; `None`
/// without hops.
fn first_untrusted(
    peer: IpAddr,
    hops: impl Iterator<Item = Option<IpAddr>>,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    let mut hops = hops.peekable();
    hops.peek()?;
    let mut client = peer;
    for hop in hops {
        let Some(hop) = hop else { break };
        client = hop;
        if !is_proxy(trusted, hop) {
            break;
        }
    }
    Some(client)
}

/// An address as proxies write it: alone, or with a port, and IPv6 then in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse().ok();
    let with_port = || text.parse().ok().map(|socket: SocketAddr| socket.ip());
    Some(address.or_else(with_port)?.to_canonical())
}

/// The address of `for` in an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut pairs = split(element, ';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    address(value.trim().trim_matches('"'))
}

/// The parts between separators outside of quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    text.split(move |letter: char| {
        is_quoted ^= letter == '"';
        letter == separator && !is_quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.1.1.1";

    fn client(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        client_of(&map, peer.parse().unwrap(), &trusted).to_string()
    }

    #[test]
    fn strangers_say_nothing_about_themselves() {
        let headers = [
            ("x-forwarded-for", "192.0.2.9"),
            ("forwarded", "for=192.0.2.9"),
        ];
        assert_eq!(client("198.51.100.1", &headers), "198.51.100.1");
        assert_eq!(client("::ffff:198.51.100.1", &headers), "198.51.100.1");
        assert_eq!(client(PROXY, &[]), PROXY);
    }

    #[test]
    fn client_is_the_last_address_that_is_no_proxy() {
        for (value, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("1.2.3.4, 192.0.2.1", "192.0.2.1"),
            ("1.2.3.4,192.0.2.1, 10.9.9.9 ,10.8.8.8", "192.0.2.1"),
            ("192.0.2.1:55555", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1, fd00::7", "192.0.2.1"),
            // What is no address ends the way back: its writer is the client.
            ("192.0.2.1, unknown", PROXY),
            ("192.0.2.1, unknown, 10.9.9.9", "10.9.9.9"),
            ("192.0.2.1,", PROXY),
            ("", PROXY),
            // All are proxies: the farthest one asks for itself.
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ] {
            let found = client(PROXY, &[("x-forwarded-for", value)]);
            assert_eq!(found, expected, "{value}");
        }
        let twice = [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2, 10.2.2.2"),
        ];
        assert_eq!(client(PROXY, &twice), "192.0.2.2");
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        for (value, expected) in [
            ("for=192.0.2.1", "192.0.2.1"),
            (
                "For=\"192.0.2.1:4711\";proto=https;by=10.1.1.1",
                "192.0.2.1",
            ),
            (
                "for=1.2.3.4, proto=http; for=\"[2001:db8:cafe::17]:4711\"",
                "2001:db8:cafe::17",
            ),
            (
                "for=192.0.2.1, for=10.2.2.2;host=\"a,b;for=9.9.9.9\"",
                "192.0.2.1",
            ),
            ("for=192.0.2.1, for=_hidden", PROXY),
            ("for=192.0.2.1, proto=https", PROXY),
        ] {
            let found = client(PROXY, &[("forwarded", value)]);
            assert_eq!(found, expected, "{value}");
        }
    }

    /// A proxy writes one of the headers, the client the other one.
    #[test]
    fn contradicting_headers_are_not_believed() {
        let both = |forwarded: &str| {
            let headers = [("x-forwarded-for", "192.0.2.1"), ("forwarded", forwarded)];
            client(PROXY, &headers)
        };
        assert_eq!(both("for=198.51.100.66"), PROXY);
        assert_eq!(both("for=192.0.2.1"), "192.0.2.1");
    }
}
