//! The payment that a request carries.

use alloy::primitives::{Address, B256};
use axum::http::request::Parts;
use serde_json::Value;

use crate::protocol::header::{PAYMENT_SIGNATURE, X_PAYMENT};
use crate::protocol::session::requirements_hash;
use crate::protocol::{
    PaymentRequirements, PresentedPayment, Reason, Scheme, SettleResponse, X402Version, field,
};
use crate::seller::answer::Quote;
use crate::seller::{Flow, Payment};

/// A payment that fits an offer, on its way to the facilitator.
pub(super) struct Tendered<'a> {
    pub(super) payment: PresentedPayment,
    /// What it pays, understood and as the facilitator is told.
    pub(super) terms: &'a PaymentRequirements,
    pub(super) requirements: &'a Value,
    pub(super) facts: Payment,
}

/// v2's header wins where both are there.
pub(super) fn dialect(request: &Parts) -> X402Version {
    let v1 =
        request.headers.contains_key(X_PAYMENT) && !request.headers.contains_key(PAYMENT_SIGNATURE);
    if v1 { X402Version::V1 } else { X402Version::V2 }
}

impl<'a> Tendered<'a> {
    /// The payment of the request. The `Err` asks for one, saying what was wrong with the one that came.
    pub(super) fn of(request: &Parts, quote: &'a Quote) -> Result<Self, Option<String>> {
        let version = dialect(request);
        let name = match version {
            X402Version::V1 => X_PAYMENT,
            X402Version::V2 => PAYMENT_SIGNATURE,
        };
        let refuse = |why: &str| Some(why.to_owned());
        let value = request.headers.get(name).ok_or(None)?;
        let payment = value
            .to_str()
            .ok()
            .and_then(|text| PresentedPayment::read(version, text).ok())
            .ok_or_else(|| refuse("the payment header is not base64 of a JSON object"))?;
        let (offered, requirements) =
            fitting(&payment, quote).ok_or_else(|| refuse("No matching payment requirements"))?;
        // A proof of a session names no payer: the facilitator will.
        let payer = payment.payer().unwrap_or(Address::ZERO);
        if payer.is_zero() && !is_proof(&payment) {
            return Err(refuse(Reason::InvalidPayload.code()));
        }
        Ok(Self {
            terms: offered,
            requirements,
            facts: Payment {
                id: None,
                payment_id: None,
                payer,
                amount: offered.amount,
                network: offered.network,
                asset: offered.asset,
                session_id: None,
            },
            payment,
        })
    }

    /// When it is settled, as its offer says.
    pub(super) fn flow(&self) -> Flow {
        match self.terms.payment_flow() {
            Some("upfront") => Flow::Upfront,
            _ => Flow::AfterHandler,
        }
    }

    /// What only a settlement tells.
    pub(super) fn learn(&mut self, outcome: &SettleResponse) {
        let facts = &mut self.facts;
        facts.payment_id = Some(outcome.transaction.clone()).filter(|hash| !hash.is_empty());
        let extra = |member: &str| {
            let text = outcome.extra.as_ref()?.get(member)?.as_str()?;
            Some(text.to_owned())
        };
        facts.id = extra("paymentId");
        facts.session_id = extra("sessionId");
        let payer = outcome.payer.as_deref();
        if let Some(payer) = payer.and_then(|payer| field::parse_address(payer).ok()) {
            facts.payer = payer;
        }
        if let Some(charged) = outcome.amount.filter(|_| self.terms.scheme == Scheme::Upto) {
            facts.amount = charged;
        }
    }

    /// What the payment is known by, however its header is spelled.
    pub(super) fn key(&self) -> Option<B256> {
        requirements_hash(self.payment.raw().get("payload")?).ok()
    }
}

fn is_proof(payment: &PresentedPayment) -> bool {
    payment
        .raw()
        .pointer("/payload/sessionId")
        .is_some_and(Value::is_string)
}

/// The offer that a payment is for. v1 names the network alone: there the amount and the payee of the authorization tell which.
fn fitting<'a>(
    payment: &PresentedPayment,
    quote: &'a Quote,
) -> Option<(&'a PaymentRequirements, &'a Value)> {
    let fits = || {
        quote
            .offers(payment.version)
            .filter(|(offered, _)| payment.accepts(offered))
    };
    let signed = |member: &str| payment.raw().pointer(member).and_then(Value::as_str);
    let value = signed("/payload/authorization/value");
    let exact = |(offered, _): &(&PaymentRequirements, &Value)| {
        value == Some(offered.amount.to_string().as_str())
    };
    fits().find(exact).or_else(|| fits().next())
}
