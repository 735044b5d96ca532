//! What a handler learns about the payment that opened its door.

use alloy::primitives::Address;
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::protocol::{Amount, Network};

/// The payment of the request, for handlers of priced routes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Payment {
    /// The id in the facilitator's ledger, unique per payment; `None` before settlement, and with facilitators that have none.
    pub id: Option<String>,
    /// The hash of the transaction; `None` in [`crate::seller::Flow::AfterHandler`], where nothing is settled yet, and for a metered
    /// payment that was charged nothing.
    pub payment_id: Option<String>,
    /// Who pays.
    pub payer: Address,
    /// How much, in atomic units of `asset`; at a metered price the most that can be charged, until it is settled.
    pub amount: Amount,
    /// Where.
    pub network: Network,
    /// In which token.
    pub asset: Address,
    /// The payment session that the payment belongs to, when there is one.
    pub session_id: Option<String>,
}

/// A handler asked for a [`Payment`] on a route that no paywall guards: a mistake of the server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the handler of an unpriced route asks for its payment")]
pub struct Unpaid;

impl IntoResponse for Unpaid {
    fn into_response(self) -> Response {
        tracing::error!("{self}");
        let body = json!({"error": "the server is misconfigured"});
        (StatusCode::INTERNAL_SERVER_ERROR, Json(body)).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Payment {
    type Rejection = Unpaid;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(Unpaid)
    }
}
