//! The payment of a request, as its handler gets it.

use alloy::primitives::Address;
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::protocol::{Amount, Network};

/// The payment of the request. Handlers of priced routes get it as an axum extractor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Payment {
    /// The facilitator's payment id, unique per payment; `None` before settlement, and with facilitators that send none.
    pub id: Option<String>,
    /// The transaction hash; `None` before settlement ([`crate::seller::Flow::AfterHandler`]), and for a metered payment with a charge of
    /// zero.
    pub payment_id: Option<String>,
    /// The account that pays.
    pub payer: Address,
    /// The amount in atomic units of `asset`. At a metered price it is the maximum before settlement, and the charge after it.
    pub amount: Amount,
    /// The network of the payment.
    pub network: Network,
    /// The token contract.
    pub asset: Address,
    /// The id of the payment session that the payment belongs to, if any.
    pub session_id: Option<String>,
}

/// The rejection of the [`Payment`] extractor on a route without a paywall. It answers 500: the server is misconfigured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("handler extracts a Payment on a route without a price: add the route to the paywall")]
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
