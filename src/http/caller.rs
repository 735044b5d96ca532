//! Recognises the caller of a request.

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tower_http::request_id::RequestId;

use crate::facilitator::Caller;
use crate::http::AppState;
use crate::http::connection::Connection;
use crate::payment::Who;

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
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Response> {
        let request_id = parts.extensions.get::<RequestId>();
        let request_id = request_id.and_then(|id| id.header_value().to_str().ok());
        let request_id = request_id.unwrap_or_default().to_owned();
        let own = parts.extensions.get::<CallersId>();
        let asked_as = own.map_or_else(|| request_id.clone(), |CallersId(id)| id.clone());
        let connection = ConnectInfo::<Connection>::from_request_parts(parts, state).await;
        // Every connection that the listener accepts has one.
        let ConnectInfo(connection) =
            connection.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())?;
        Ok(Self {
            who: Who::Anonymous,
            client: connection.peer.ip(),
            request_id,
            asked_as,
        })
    }
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
}
