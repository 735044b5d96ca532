//! What a handler learns of the payment.

use alloy::primitives::Address;
use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::protocol::{Amount, Network, PaymentRequirements, SettleResponse, field};

/// The payment of a request, as an extractor for handlers of priced routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payment {
    /// The facilitator's own id of the payment, where it has one (x402d: the ledger's).
    pub id: Option<String>,
    /// The transaction hash; `None` when the payment is settled after the handler.
    pub payment_id: Option<String>,
    /// Who paid; the zero address when the facilitator did not say.
    pub payer: Address,
    /// How much, in atomic units.
    pub amount: Amount,
    /// Where.
    pub network: Network,
    /// In which token.
    pub asset: Address,
    /// The payment session, if there was one.
    pub session_id: Option<String>,
}

impl Payment {
    pub(super) fn settled(requirements: &PaymentRequirements, settlement: &SettleResponse) -> Self {
        let extra = |name: &str| {
            settlement
                .extra
                .as_ref()?
                .get(name)?
                .as_str()
                .map(str::to_owned)
        };
        Self {
            id: extra("paymentId"),
            payment_id: Some(settlement.transaction.clone()),
            amount: settlement.amount.unwrap_or(requirements.amount),
            session_id: extra("sessionId"),
            ..Self::verified(requirements, settlement.payer.as_deref())
        }
    }

    pub(super) fn verified(requirements: &PaymentRequirements, payer: Option<&str>) -> Self {
        Self {
            id: None,
            payment_id: None,
            payer: payer
                .and_then(|text| field::parse_address(text).ok())
                .unwrap_or_default(),
            amount: requirements.amount,
            network: requirements.network,
            asset: requirements.asset,
            session_id: None,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Payment {
    type Rejection = (StatusCode, &'static str);

    /// Refuses on routes that have no price: there is no payment to know of.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let missing = (
            StatusCode::INTERNAL_SERVER_ERROR,
            "this route has no price, so there is no payment",
        );
        parts.extensions.get::<Self>().cloned().ok_or(missing)
    }
}
