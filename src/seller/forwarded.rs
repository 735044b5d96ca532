//! Compares a proxy's forwarding headers with the advertised resource URL. The headers are not trusted, because any client can send them;
//! a difference only causes a warning, as the seller may have forgotten [`crate::seller::Paywall::public_url`].

use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use url::Url;

/// The limit of warnings, because a client can send any origin.
const WARNINGS_MAX: usize = 5;

/// The origins that were warned about already.
#[derive(Debug, Default)]
pub(super) struct ForwardedCheck(Mutex<Vec<String>>);

impl ForwardedCheck {
    /// Warns once per origin, when the headers name another scheme or host than the advertised URL.
    pub(super) fn compare(&self, headers: &HeaderMap, advertised: &str) {
        let Some(forwarded) = forwarded_origin(headers, advertised) else {
            return;
        };
        {
            let mut warned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if warned.len() >= WARNINGS_MAX || warned.contains(&forwarded) {
                return;
            }
            warned.push(forwarded.clone());
        }
        let advertised = Url::parse(advertised).map_or_else(
            |_| String::new(),
            |advertised| advertised.origin().ascii_serialization(),
        );
        tracing::warn!(
            advertised,
            forwarded,
            "advertised resource URLs differ from the proxy's forwarding headers: if the headers are right, buyers and the facilitator's history get a wrong URL; call .public_url(…) on the paywall with the outer URL"
        );
    }
}

/// The origin in the proxy's headers, when it differs from the one of `advertised`.
fn forwarded_origin(headers: &HeaderMap, advertised: &str) -> Option<String> {
    let advertised = Url::parse(advertised).ok()?;
    let scheme = first(headers, "x-forwarded-proto").or_else(|| parameter(headers, "proto"));
    let host = first(headers, "x-forwarded-host").or_else(|| parameter(headers, "host"));
    if scheme.is_none() && host.is_none() {
        return None;
    }
    let scheme = scheme.unwrap_or_else(|| advertised.scheme().to_owned());
    let own_host = advertised.origin().ascii_serialization();
    let own_host = own_host.split_once("://").map(|(_, host)| host.to_owned());
    let host = host.or(own_host)?;
    let forwarded = Url::parse(&format!("{scheme}://{host}")).ok()?;
    (forwarded.origin() != advertised.origin()).then(|| forwarded.origin().ascii_serialization())
}

/// The first value of a header, which the outermost proxy wrote.
fn first(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    plain(value.split(',').next()?)
}

/// A parameter of the first element of `Forwarded` (RFC 7239).
fn parameter(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get("forwarded")?.to_str().ok()?;
    let mut parts = value.split(',').next()?.split(';');
    parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        let named = key.trim().eq_ignore_ascii_case(name);
        named.then(|| plain(value.trim().trim_matches('"')))?
    })
}

fn plain(value: &str) -> Option<String> {
    let value = value.trim().to_ascii_lowercase();
    (!value.is_empty() && value.len() <= 200).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn forwarded_origin_is_found_only_when_scheme_or_host_differ() {
        let advertised = "http://127.0.0.1:3000/report?day=7";
        for (pairs, expected) in [
            (vec![], None),
            (vec![("x-forwarded-for", "10.0.0.1")], None),
            (vec![("x-forwarded-proto", "http")], None),
            (
                vec![
                    ("x-forwarded-proto", "http"),
                    ("x-forwarded-host", "127.0.0.1:3000"),
                ],
                None,
            ),
            (
                vec![("x-forwarded-proto", "https")],
                Some("https://127.0.0.1:3000"),
            ),
            (
                vec![
                    ("x-forwarded-proto", "https, http"),
                    ("x-forwarded-host", "Shop.example, inner"),
                ],
                Some("https://shop.example"),
            ),
            (
                vec![(
                    "forwarded",
                    "for=1.2.3.4;proto=https;host=\"shop.example\", for=10.0.0.1",
                )],
                Some("https://shop.example"),
            ),
            (vec![("x-forwarded-proto", "not a scheme")], None),
        ] {
            let found = forwarded_origin(&headers(&pairs), advertised);
            assert_eq!(found.as_deref(), expected, "{pairs:?}");
        }
    }
}
