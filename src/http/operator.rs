//! Recognises the operator: a caller on the loopback address, or one with the bearer token. Once a token is set, it is always required.

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use crate::http::connection::Connection;
use crate::http::{AppState, Problem};

/// Headers that a proxy on this machine adds: behind one, every caller seems to come from the loopback address.
const PROXY_HEADERS: [&str; 4] = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];

/// Proof that the caller is the operator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator;

impl FromRequestParts<AppState> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        if let Some(token) = &state.admin_token {
            let given = parts
                .headers
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok());
            // The scheme's name may be written in any case.
            let given = given
                .and_then(|value| value.split_once(' '))
                .filter(|(scheme, token)| {
                    scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()
                })
                .map(|(_, token)| token.as_bytes());
            let is_valid =
                given.is_some_and(|given| given.ct_eq(token.expose_secret().as_bytes()).into());
            return if is_valid {
                Ok(Self)
            } else {
                Err(Problem::operator_only(
                    "expected Authorization: Bearer with the token of X402D_ADMIN_TOKEN",
                ))
            };
        }
        let local = ConnectInfo::<Connection>::from_request_parts(parts, state)
            .await
            .is_ok_and(|ConnectInfo(connection)| connection.peer.ip().to_canonical().is_loopback());
        let proxied = PROXY_HEADERS
            .iter()
            .any(|name| parts.headers.contains_key(*name));
        if local && !proxied {
            return Ok(Self);
        }
        Err(Problem::operator_only(
            "this is open to callers on the loopback address, or to a token: set X402D_ADMIN_TOKEN and send it as Authorization: Bearer",
        ))
    }
}
