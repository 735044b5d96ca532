//! Recognises who reads the history: the operator, or the holder of a key.
//!
//! The operator has a token or a key. As long as there is neither, a program on this machine is the operator.

use std::sync::Arc;

use alloy::primitives::Address;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderName, Version, header};

use crate::facilitator::{Access, Caller, check_scope};
use crate::http::caller::{Refused, admin_key};
use crate::http::connection::Connection;
use crate::http::{AppState, Problem};
use crate::ledger::HistoryFilter;
use crate::payment::{Key, PresentedKey, Scope, Who};
use crate::protocol::response::checksummed;

/// Headers that proxies add, and beginnings of their names.
const PROXY_HEADERS: [&str; 3] = ["forwarded", "via", "x-real-ip"];
const PROXY_PREFIXES: [&str; 3] = ["x-forwarded-", "cf-", "x-envoy-"];
/// The names by which programs on this machine call it.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Says from where a browser makes a request (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

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
    Operator(OperatorBy),
    /// Reads the payments of its payees.
    Key(Arc<Key>),
}

/// What makes a caller the operator.
#[derive(Debug, Clone, Copy)]
pub(super) enum OperatorBy {
    /// The token of the configuration.
    Token,
    /// A key of scope `admin`, with the secret that was sent.
    Key(PresentedKey),
    /// Being a program on this machine, as long as there is neither.
    Loopback,
}

impl Reader {
    /// Whether the reader still may read: for answers that take long.
    pub(super) fn may_still_read(&self, access: &Access) -> bool {
        match self {
            Self::Operator(OperatorBy::Token) => true,
            Self::Operator(OperatorBy::Key(key)) => access.is_still_opened_by(*key),
            Self::Operator(OperatorBy::Loopback) => {
                access.has_had_admin_key().is_ok_and(|had| !had)
            }
            Self::Key(key) => access.is_still_good(key.id),
        }
    }

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
            Self::Operator(_) => true,
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
pub(super) async fn recognise(parts: &mut Parts, state: &AppState) -> Result<Reader, Problem> {
    let caller = Caller::from_request_parts(parts, state).await?;
    match (caller.who, caller.key) {
        (Who::Operator, _) => {
            let key = admin_key(&parts.headers, state);
            return Ok(Reader::Operator(
                key.map_or(OperatorBy::Token, OperatorBy::Key),
            ));
        }
        (_, Some(key)) => return Ok(Reader::Key(key)),
        (Who::Anonymous | Who::Key(_), None) => {}
    }
    if state.admin_token.is_some() {
        return Err(Problem::operator_only(
            "expected Authorization: Bearer with the token of X402D_ADMIN_TOKEN, or with a key that has the scope admin or history",
        ));
    }
    let access = &state.facilitator.access;
    if access.has_had_admin_key().map_err(Refused::from)? {
        return Err(Problem::operator_only(
            "expected Authorization: Bearer with a key that has the scope admin or history; `x402d keys create NAME --scope admin` makes one",
        ));
    }
    if is_local_operator(parts) {
        return Ok(Reader::Operator(OperatorBy::Loopback));
    }
    Err(Problem::operator_only(
        "this is open to programs on the machine itself (as localhost, without a proxy), or to a key or token: create one with `x402d keys create NAME --scope admin`, or set X402D_ADMIN_TOKEN, and send it as Authorization: Bearer",
    ))
}

/// Whether a request comes from a program on this machine that means this service: not through a proxy, which makes every caller local, and
/// not from a page of another origin, which a browser on this machine shows. Only believed while there is no token and never was a key of
/// the operator.
fn is_local_operator(parts: &Parts) -> bool {
    let Some(ConnectInfo(connection)) = parts.extensions.get::<ConnectInfo<Connection>>() else {
        return false;
    };
    let has = |name: &HeaderName| parts.headers.contains_key(name);
    let is_proxied = parts.headers.keys().any(|name| {
        let name = name.as_str();
        let begins = |prefix: &&str| name.starts_with(prefix);
        PROXY_HEADERS.contains(&name) || PROXY_PREFIXES.iter().any(begins)
    });
    let site = parts.headers.get(FETCH_SITE);
    let is_foreign_page =
        has(&header::ORIGIN) || site.is_some_and(|site| site != "none" && site != "same-origin");
    connection.peer.is_loopback()
        && !connection.is_proxy
        // nginx speaks HTTP/1.0 to its upstreams unless told otherwise, and adds no header.
        && parts.version == Version::HTTP_11
        && is_called_locally(parts)
        && !is_proxied
        && !is_foreign_page
}

/// Whether the request names this machine, in any port. A page that reaches it by DNS rebinding names its own host.
fn is_called_locally(parts: &Parts) -> bool {
    let is_local = |authority: &Authority| {
        let host = authority.host();
        !authority.as_str().contains('@')
            && LOCAL_HOSTS
                .iter()
                .any(|local| host.eq_ignore_ascii_case(local))
    };
    let mut named = parts.headers.get_all(header::HOST).iter();
    let (Some(host), None) = (named.next(), named.next()) else {
        return false;
    };
    let host: Option<Authority> = host.to_str().ok().and_then(|host| host.parse().ok());
    host.as_ref().is_some_and(is_local) && parts.uri.authority().is_none_or(is_local)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn is_operator(peer: &str, version: Version, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get(uri).version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let connection = Connection::from_peer(peer.parse().unwrap());
        parts.extensions.insert(ConnectInfo(connection));
        is_local_operator(&parts)
    }

    fn is_local(headers: &[(&str, &str)]) -> bool {
        is_operator("127.0.0.1", Version::HTTP_11, "/payments", headers)
    }

    #[test]
    fn operator_names_this_machine() {
        for (host, expected) in [
            ("localhost", true),
            ("LocalHost:4402", true),
            ("127.0.0.1", true),
            ("127.0.0.1:4402", true),
            ("[::1]", true),
            ("[::1]:4402", true),
            ("evil.example", false),
            ("localhost.evil.example:4402", false),
            ("localhost@evil.example", false),
            ("evil.example@localhost", false),
            ("127.0.0.2", false),
            ("[::2]", false),
            ("127.1", false),
            ("2130706433", false),
            ("", false),
        ] {
            assert_eq!(is_local(&[("host", host)]), expected, "{host}");
        }
        assert!(!is_local(&[]));
        assert!(!is_local(&[("host", "localhost"), ("host", "localhost")]));
        let named = |uri| {
            let headers = [("host", "localhost")];
            is_operator("127.0.0.1", Version::HTTP_11, uri, &headers)
        };
        assert!(named("http://localhost:4402/payments"));
        assert!(!named("http://evil.example/payments"));
    }

    #[test]
    fn operator_comes_from_this_machine_and_speaks_http_1_1() {
        let headers = [("host", "localhost")];
        for (peer, version, expected) in [
            ("127.0.0.1", Version::HTTP_11, true),
            ("127.5.0.1", Version::HTTP_11, true),
            ("::1", Version::HTTP_11, true),
            ("127.0.0.1", Version::HTTP_10, false),
            ("192.0.2.1", Version::HTTP_11, false),
            ("10.0.0.1", Version::HTTP_11, false),
        ] {
            let is_operator = is_operator(peer, version, "/payments", &headers);
            assert_eq!(is_operator, expected, "{peer} {version:?}");
        }
    }

    #[test]
    fn operator_comes_neither_through_a_proxy_nor_from_a_page() {
        for (name, value, expected) in [
            ("user-agent", "curl", true),
            ("sec-fetch-site", "none", true),
            ("sec-fetch-site", "same-origin", true),
            ("sec-fetch-site", "cross-site", false),
            ("sec-fetch-site", "same-site", false),
            ("origin", "http://localhost:4402", false),
            ("origin", "null", false),
            ("forwarded", "for=192.0.2.1", false),
            ("via", "1.1 proxy", false),
            ("x-real-ip", "192.0.2.1", false),
            ("x-forwarded-for", "192.0.2.1", false),
            ("x-forwarded-proto", "https", false),
            ("x-forwarded-host", "localhost", false),
            ("cf-ray", "1", false),
            ("cf-connecting-ip", "192.0.2.1", false),
            ("x-envoy-external-address", "192.0.2.1", false),
        ] {
            let headers = [("host", "localhost"), (name, value)];
            assert_eq!(is_local(&headers), expected, "{name}: {value}");
        }
    }
}
