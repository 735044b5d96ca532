//! Recognises the caller of a request: by its key, by the operator's token, or not at all.

use std::net::{IpAddr, Ipv4Addr};

use axum::Json;
use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tower_http::request_id::RequestId;
use url::form_urlencoded;

use crate::facilitator::Caller;
use crate::http::connection::Connection;
use crate::http::{AppState, Problem};
use crate::payment::{KeyId, PresentedKey, Scope, Who};
use crate::protocol::{Reason, Rejection};

/// The header for keys of clients that cannot set `Authorization`.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// In place of an address.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Why a request is not served: its caller is not recognised, or may not make the call.
#[derive(Debug)]
pub struct Refused(Rejection);

impl From<Rejection> for Refused {
    fn from(rejection: Rejection) -> Self {
        Self(rejection)
    }
}

impl Refused {
    /// The response of the standard calls, in the shape of the call.
    pub(super) fn in_shape<T: Serialize>(self, shape: impl FnOnce(Rejection) -> T) -> Response {
        let status = refusal_status(self.0.reason.code());
        let mut response = (status, Json(shape(self.0))).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<Refused> for Problem {
    fn from(Refused(Rejection { reason, message }): Refused) -> Self {
        Self::new(refusal_status(reason.code()), reason.code(), message)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

/// The status of a refusal in the x402 shape. SDKs drop the reason of a payment's refusal unless it is 200; who calls is no matter of the
/// payment.
pub(super) fn refusal_status(code: &str) -> StatusCode {
    const STATUSES: [(Reason, StatusCode); 6] = [
        (Reason::KeyInUrl, StatusCode::BAD_REQUEST),
        (Reason::KeyRequired, StatusCode::UNAUTHORIZED),
        (Reason::KeyInvalid, StatusCode::UNAUTHORIZED),
        (Reason::ScopeMissing, StatusCode::FORBIDDEN),
        (Reason::PayeeNotAllowed, StatusCode::FORBIDDEN),
        (Reason::KeysUnavailable, StatusCode::SERVICE_UNAVAILABLE),
    ];
    let known = STATUSES.iter().find(|(reason, _)| reason.code() == code);
    known.map_or(StatusCode::OK, |(_, status)| *status)
}

/// The caller of a request that verifies or settles.
pub(super) fn settler(
    caller: Result<Caller, Refused>,
    state: &AppState,
) -> Result<Caller, Refused> {
    let caller = caller?;
    state.facilitator.access.check_settler(&caller)?;
    Ok(caller)
}

/// The longest id that a caller may give its request, in bytes.
const CALLERS_ID_BYTES_MAX: usize = 128;

/// The id that a caller has given its request. It stands in no log, because it is the caller's secret until the payment is granted to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallersId(String);

impl CallersId {
    /// The id, if it is visible ASCII and not too long.
    pub(super) fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        let is_well_formed = (1..=CALLERS_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_well_formed.then(|| Self(text.to_owned()))
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Refused;

    /// Costs neither a statement nor a call, so that guessing at keys slows nobody down.
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refused> {
        if parts.uri.query().is_some_and(has_key) {
            let why = "a key in the URL stands in logs: send it as Authorization: Bearer x402d_… or as X-API-Key, and rotate this one";
            return Err(Rejection::new(Reason::KeyInUrl, why).into());
        }
        let (who, key) = match credentials(&parts.headers)? {
            Some(token) if is_admin_token(state, token) => (Who::Operator, None),
            Some(token) if is_meant_as_key(&parts.headers, token) => {
                let key = state.facilitator.access.key(token)?;
                if key.has(Scope::Admin) {
                    (Who::Operator, None)
                } else {
                    (Who::Key(key.id), Some(key))
                }
            }
            // What a seller sends to every facilitator may be meant for another one.
            Some(_) | None => (Who::Anonymous, None),
        };
        tracing::Span::current().record("caller", who.as_str());
        let request_id = parts.extensions.get::<RequestId>();
        let request_id = request_id.and_then(|id| id.header_value().to_str().ok());
        let connection = parts.extensions.get::<ConnectInfo<Connection>>();
        let request_id = request_id.unwrap_or_default().to_owned();
        let own = parts.extensions.get::<CallersId>();
        Ok(Self {
            who,
            key,
            // The listener gives every connection its address.
            client: connection.map_or(UNKNOWN, |ConnectInfo(connection)| connection.client),
            asked_as: own.map_or_else(|| request_id.clone(), |CallersId(id)| id.clone()),
            request_id,
        })
    }
}

/// The key that makes the operator's request one; `None`: the token does.
pub(super) fn admin_key(headers: &HeaderMap, state: &AppState) -> Option<PresentedKey> {
    let presented = credentials(headers).ok()??;
    if is_admin_token(state, presented) {
        return None;
    }
    PresentedKey::parse(presented)
}

/// The key or token of a request. Several are not taken for anybody's: which one counts must not depend on their order.
fn credentials(headers: &HeaderMap) -> Result<Option<&str>, Rejection> {
    for name in [API_KEY, header::AUTHORIZATION] {
        if headers.get_all(&name).iter().count() > 1 {
            let why = format!("expected one header {name}, got several");
            return Err(Rejection::new(Reason::KeyInvalid, why));
        }
    }
    if let Some(key) = headers.get(API_KEY) {
        // One that is no text is no key, and is refused as such.
        return Ok(Some(key.to_str().unwrap_or_default().trim()));
    }
    Ok(bearer_token(headers))
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    // The scheme's name may be written in any case.
    let token = scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())?;
    (!token.is_empty()).then_some(token)
}

fn is_meant_as_key(headers: &HeaderMap, token: &str) -> bool {
    headers.contains_key(API_KEY) || token.starts_with(PresentedKey::PREFIX)
}

/// Whether a text is the operator's token.
pub(super) fn is_admin_token(state: &AppState, given: &str) -> bool {
    let token = state.admin_token.as_ref();
    // Hashes have one length: a comparison of the texts would tell the length of the token.
    token.is_some_and(|token| {
        let expected = Sha256::digest(token.expose_secret());
        Sha256::digest(given).ct_eq(&expected).into()
    })
}

/// Whether a query has a key in it, as a name or as a value.
fn has_key(query: &str) -> bool {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.any(|(name, value)| [name, value].iter().any(|text| contains_key(text)))
}

/// Whether a text has the beginning of a key in it: its prefix and an id.
pub(super) fn contains_key(text: &str) -> bool {
    let mut after = text.split(PresentedKey::PREFIX).skip(1);
    after.any(|rest| {
        let id = rest.split_once('_').map(|(id, _)| id);
        id.is_some_and(|id| id.parse::<KeyId>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_a_caller_is_visible_ascii_of_bounded_length() {
        let read = |text: &str| CallersId::read(&HeaderValue::from_bytes(text.as_bytes()).unwrap());
        let longest = "x".repeat(CALLERS_ID_BYTES_MAX);
        for good in [
            "a",
            "018f3c9e-7b1c-7def-8000-0123456789ab",
            "a/b:c~",
            &longest,
        ] {
            assert_eq!(read(good), Some(CallersId(good.to_owned())));
        }
        for bad in ["", "a b", "a\tb", "\u{e9}", &format!("{longest}x")] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn credentials_are_a_bearer_token_or_an_api_key() {
        let authorization = header::AUTHORIZATION;
        for (value, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer ", None),
            ("Basic abc", None),
            ("abc", None),
        ] {
            let headers = headers(&[(authorization.clone(), value)]);
            assert_eq!(credentials(&headers).unwrap(), expected, "{value}");
        }
        let both = headers(&[(authorization, "Bearer abc"), (API_KEY, "xyz")]);
        assert_eq!(credentials(&both).unwrap(), Some("xyz"));
        assert!(is_meant_as_key(&both, "xyz"));
        assert_eq!(credentials(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn several_credentials_of_one_kind_are_refused() {
        for name in [header::AUTHORIZATION, API_KEY] {
            let mut several = HeaderMap::new();
            several.append(name.clone(), HeaderValue::from_static("Bearer other"));
            several.append(
                name,
                HeaderValue::from_static("Bearer x402d_0123456789ab_00"),
            );
            let refused = credentials(&several).unwrap_err();
            assert_eq!(refused.reason, Reason::KeyInvalid);
        }
    }

    #[test]
    fn keys_are_found_in_queries() {
        let key = "x402d_0123456789ab_00";
        for query in [
            format!("key={key}"),
            key.to_owned(),
            "a=1&b=Bearer%20x402d%5F0123456789ab%5F00".to_owned(),
        ] {
            assert!(has_key(&query), "{query}");
        }
        for query in ["wait=3", "resource=https%3A%2F%2Fx402d_docs.example%2F", ""] {
            assert!(!has_key(query), "{query}");
        }
    }
}
