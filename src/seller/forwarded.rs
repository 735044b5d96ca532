//! What a proxy before this server says about the URL that buyers use. It is not believed, because anybody can say it; but where it says
//! something else than buyers are told, the seller has forgotten something.

use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use url::Url;

/// So many outer origins are told of; strangers can name any.
const TOLD_MAX: usize = 5;

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Forwarded(Mutex<Vec<String>>);

impl Forwarded {
    /// Warns once for each origin of a request that seems to have come by another scheme or host than the URL that its buyer is told.
    pub(super) fn compare(&self, headers: &HeaderMap, told: &str) {
        let Some(outside) = outside(headers, told) else {
            return;
        };
        {
            let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if said.len() >= TOLD_MAX || said.contains(&outside) {
                return;
            }
            said.push(outside.clone());
        }
        let told = Url::parse(told).map_or_else(
            |_| String::new(),
            |told| told.origin().ascii_serialization(),
        );
        tracing::warn!(
            told,
            forwarded = outside,
            "resource URLs disagree with the proxy's headers: buyers and the facilitator's history are told another URL than the one in use, if the headers are true; call .public_url(…) on the paywall with the outer URL"
        );
    }
}

/// The outer origin that a proxy names, where that is not the one of `told`.
fn outside(headers: &HeaderMap, told: &str) -> Option<String> {
    let told = Url::parse(told).ok()?;
    let scheme = first(headers, "x-forwarded-proto").or_else(|| parameter(headers, "proto"));
    let host = first(headers, "x-forwarded-host").or_else(|| parameter(headers, "host"));
    if scheme.is_none() && host.is_none() {
        return None;
    }
    let scheme = scheme.unwrap_or_else(|| told.scheme().to_owned());
    let told_host = told.origin().ascii_serialization();
    let told_host = told_host.split_once("://").map(|(_, host)| host.to_owned());
    let host = host.or(told_host)?;
    let outside = Url::parse(&format!("{scheme}://{host}")).ok()?;
    (outside.origin() != told.origin()).then(|| outside.origin().ascii_serialization())
}

/// The value that the outermost proxy wrote.
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
    fn a_proxy_is_heard_where_it_names_another_scheme_or_host_and_nowhere_else() {
        let told = "http://127.0.0.1:3000/report?day=7";
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
            let found = outside(&headers(&pairs), told);
            assert_eq!(found.as_deref(), expected, "{pairs:?}");
        }
    }
}
