//! Recognises who reads the history: the operator, or the holder of a key.
//!
//! The operator has a token or a key. As long as there is neither, a caller on the loopback address is the operator.

use std::net::Ipv4Addr;
use std::sync::Arc;

use alloy::primitives::Address;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header, uri};

use crate::facilitator::{Caller, check_scope};
use crate::http::caller::Refused;
use crate::http::connection::Connection;
use crate::http::{AppState, Problem};
use crate::ledger::HistoryFilter;
use crate::payment::{Key, Scope, Who};
use crate::protocol::response::checksummed;

/// Headers that proxies add, and how others of them begin: behind a proxy on this machine every caller seems to be local.
const PROXY_HEADERS: [&str; 3] = ["forwarded", "x-real-ip", "via"];
const PROXY_PREFIXES: [&str; 3] = ["x-forwarded-", "cf-", "x-envoy-"];

/// Proof that the caller is the operator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator;

impl FromRequestParts<AppState> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        if let Reader::Key(key) = recognise(parts, state).await? {
            check_scope(&key, Scope::Admin).map_err(Refused::from)?;
        }
        Ok(Self)
    }
}

/// Who reads the history.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    /// Reads everything.
    Operator,
    /// Reads the payments of its payees.
    Key(Arc<Key>),
}

impl Reader {
    /// Narrows a filter to what the reader may see.
    pub(super) fn narrow(&self, filter: &mut HistoryFilter) {
        let Self::Key(key) = self else { return };
        match key.payees.as_slice() {
            // The usual key has one payee: an index finds its rows in order.
            [only] if filter.payee.is_none() => filter.payee = Some(*only),
            payees => filter.payees = Some(payees.to_vec()),
        }
    }

    /// Whether the reader may see payments to `payee`, as the history writes it.
    pub(super) fn may_see(&self, payee: &str) -> bool {
        let is = |own: &Address| checksummed(*own) == payee;
        match self {
            Self::Operator => true,
            Self::Key(key) => key.payees.iter().any(is),
        }
    }
}

impl FromRequestParts<AppState> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let reader = recognise(parts, state).await?;
        if let Self::Key(key) = &reader {
            check_scope(key, Scope::History).map_err(Refused::from)?;
        }
        Ok(reader)
    }
}

/// The operator, or the holder of a key of any scope.
async fn recognise(parts: &mut Parts, state: &AppState) -> Result<Reader, Problem> {
    let caller = Caller::from_request_parts(parts, state).await?;
    match (caller.who, caller.key) {
        (Who::Operator, _) => return Ok(Reader::Operator),
        (_, Some(key)) => return Ok(Reader::Key(key)),
        (Who::Anonymous | Who::Key(_), None) => {}
    }
    if state.admin_token.is_some() {
        return Err(Problem::operator_only(
            "expected Authorization: Bearer with the token of X402D_ADMIN_TOKEN, or with a key that has the scope admin or history",
        ));
    }
    let access = &state.facilitator.access;
    if access.has_admin_key().map_err(Refused::from)? {
        return Err(Problem::operator_only(
            "expected Authorization: Bearer with a key that has the scope admin or history",
        ));
    }
    if is_local_operator(parts) {
        return Ok(Reader::Operator);
    }
    Err(Problem::operator_only(
        "this is open to direct callers on the loopback address, or to a key or token: create one with `x402d keys create NAME --scope admin`, or set X402D_ADMIN_TOKEN, and send it as Authorization: Bearer",
    ))
}

/// Whether a request was made on this machine, and neither passed on by a proxy nor made by a page of another origin.
fn is_local_operator(parts: &Parts) -> bool {
    let connection = parts.extensions.get::<ConnectInfo<Connection>>();
    let is_loopback = connection
        .is_some_and(|ConnectInfo(connection)| connection.peer.ip().to_canonical().is_loopback());
    is_loopback && is_direct(&parts.headers)
}

/// The same, as far as the headers say it. A name that an attacker has pointed at this machine stands in `Host`.
fn is_direct(headers: &HeaderMap) -> bool {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<uri::Authority>().ok());
    let is_local_name = host.is_some_and(|host| {
        let loopback = Ipv4Addr::LOCALHOST.to_string();
        ["localhost", loopback.as_str(), "[::1]"].contains(&host.host())
    });
    let is_proxied = headers.keys().map(header::HeaderName::as_str).any(|name| {
        PROXY_HEADERS.contains(&name)
            || PROXY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    let is_foreign_page = headers.contains_key(header::ORIGIN)
        || site.is_some_and(|site| site != b"none" && site != b"same-origin");
    is_local_name && !is_proxied && !is_foreign_page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_requests_to_local_names_are_the_operators() {
        let direct = |further: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::HOST,
                header::HeaderValue::from_static("127.0.0.1:4402"),
            );
            for (name, value) in further {
                headers.insert(*name, header::HeaderValue::from_static(value));
            }
            is_direct(&headers)
        };
        assert!(direct(&[]) && !is_direct(&HeaderMap::new()));
        for (name, value, expected) in [
            ("host", "localhost", true),
            ("host", "[::1]:4402", true),
            ("host", "evil.example", false),
            ("host", "localhost.evil.example:4402", false),
            ("origin", "https://evil.example", false),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "same-site", false),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "none", true),
            ("x-forwarded-for", "203.0.113.9", false),
            ("x-forwarded-proto", "https", false),
            ("forwarded", "for=203.0.113.9", false),
            ("via", "1.1 proxy", false),
            ("x-real-ip", "203.0.113.9", false),
            ("cf-ray", "1", false),
            ("x-envoy-internal", "true", false),
            ("accept", "application/json", true),
        ] {
            assert_eq!(direct(&[(name, value)]), expected, "{name}: {value}");
        }
    }
}
