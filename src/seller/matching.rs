//! Matches the payment of a request to an offer.

use alloy::primitives::Address;
use axum::http::request::Parts;
use serde_json::Value;

use crate::protocol::header::{PAYMENT_SIGNATURE, X_PAYMENT};
use crate::protocol::{
    PaymentRequirements, PresentedPayment, Reason, Scheme, SettleResponse, X402Version, field,
};
use crate::seller::answer::Quote;
use crate::seller::identity::PaymentIdentity;
use crate::seller::{Flow, Payment};

/// A presented payment and the offer that it matches.
pub(super) struct MatchedPayment<'a> {
    pub(super) presented: PresentedPayment,
    pub(super) offer: &'a PaymentRequirements,
    /// The same offer as JSON, as it is sent to the facilitator.
    pub(super) offer_json: &'a Value,
    pub(super) identity: PaymentIdentity,
    /// The details that the handler gets.
    pub(super) details: Payment,
}

/// The x402 version of a request's payment header; v2 when both headers or none are present.
pub(super) fn version_of(request: &Parts) -> X402Version {
    let v1 =
        request.headers.contains_key(X_PAYMENT) && !request.headers.contains_key(PAYMENT_SIGNATURE);
    if v1 { X402Version::V1 } else { X402Version::V2 }
}

impl<'a> MatchedPayment<'a> {
    /// Reads the payment of a request. The `Err` is the error for the challenge, `None` without a payment header.
    pub(super) fn from_request(request: &Parts, quote: &'a Quote) -> Result<Self, Option<String>> {
        let version = version_of(request);
        let name = match version {
            X402Version::V1 => X_PAYMENT,
            X402Version::V2 => PAYMENT_SIGNATURE,
        };
        let refuse = |why: &str| Some(why.to_owned());
        let value = request.headers.get(name).ok_or(None)?;
        let presented = value
            .to_str()
            .ok()
            .and_then(|text| PresentedPayment::read(version, text).ok())
            .ok_or_else(|| refuse("the payment header is not base64 of a JSON object"))?;
        let (offer, offer_json) = find_offer(&presented, quote)
            .ok_or_else(|| refuse("No matching payment requirements"))?;
        let identity = presented
            .raw()
            .get("payload")
            .and_then(|payload| PaymentIdentity::of(payload, offer))
            .ok_or_else(|| refuse(Reason::InvalidPayload.code()))?;
        // A session proof names no payer; the facilitator's response does.
        let payer = identity.payer.unwrap_or(Address::ZERO);
        Ok(Self {
            offer,
            offer_json,
            identity,
            details: Payment {
                id: None,
                payment_id: None,
                payer,
                amount: offer.amount,
                network: offer.network,
                asset: offer.asset,
                session_id: None,
            },
            presented,
        })
    }

    /// The flow that the offer announces.
    pub(super) fn flow(&self) -> Flow {
        match self.offer.payment_flow() {
            Some("upfront") => Flow::Upfront,
            _ => Flow::AfterHandler,
        }
    }

    /// Adds the details that are known after settlement.
    pub(super) fn apply(&mut self, outcome: &SettleResponse) {
        let details = &mut self.details;
        details.payment_id = Some(outcome.transaction.clone()).filter(|hash| !hash.is_empty());
        let extra = |member: &str| {
            let text = outcome.extra.as_ref()?.get(member)?.as_str()?;
            Some(text.to_owned())
        };
        details.id = extra("paymentId");
        details.session_id = extra("sessionId");
        let payer = outcome.payer.as_deref();
        if let Some(payer) = payer.and_then(|payer| field::parse_address(payer).ok()) {
            details.payer = payer;
        }
        if let Some(charged) = outcome.amount.filter(|_| self.offer.scheme == Scheme::Upto) {
            details.amount = charged;
        }
    }
}

/// The offer that a payment accepts. A v1 payment names only scheme and network, so an offer with the signed amount and payee is preferred,
/// then one with the amount.
fn find_offer<'a>(
    payment: &PresentedPayment,
    quote: &'a Quote,
) -> Option<(&'a PaymentRequirements, &'a Value)> {
    let accepted = || {
        quote
            .offers(payment.version)
            .filter(|(offer, _)| payment.accepts(offer))
    };
    let signed = |member: &str| payment.raw().pointer(member).and_then(Value::as_str);
    let value = signed("/payload/authorization/value");
    let payee = signed("/payload/authorization/to").and_then(|to| field::parse_address(to).ok());
    let same_amount = |(offer, _): &(&PaymentRequirements, &Value)| {
        value == Some(offer.amount.to_string().as_str())
    };
    accepted()
        .find(|offer| same_amount(offer) && payee == Some(offer.0.pay_to))
        .or_else(|| accepted().find(same_amount))
        .or_else(|| accepted().next())
}
