//! The offers of a route: from prices to payment requirements.

use std::fmt;
use std::sync::Arc;

use alloy::primitives::Address;
use axum::http::request::Parts;

use crate::protocol::{Network, PaymentMethod, PaymentRequirements};
use crate::seller::{Flow, PaywallError, Price};

/// One way to pay for a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The network on which the payment is made.
    pub network: Network,
    /// The account that is paid.
    pub pay_to: Address,
    /// The price and its token.
    pub price: Price,
}

impl Terms {
    /// Terms with `price` on `network`, paid to `pay_to`.
    pub const fn new(network: Network, pay_to: Address, price: Price) -> Self {
        Self {
            network,
            pay_to,
            price,
        }
    }
}

/// Computes terms from a request.
pub(super) type Compute = Arc<dyn Fn(&Parts) -> Vec<Terms> + Send + Sync>;

/// The source of a route's terms.
#[derive(Clone)]
pub(super) enum Source {
    /// A fixed price on the paywall's network, paid to the paywall's payee.
    Price(Price),
    /// Computed from the request.
    Computed(Compute),
}

/// The settings that all offers of a route share.
#[derive(Debug, Clone)]
pub(super) struct OfferSettings {
    pub(super) flow: Flow,
    pub(super) timeout_s: u64,
    pub(super) resource_id: Option<String>,
}

/// The offers of a route, or how to compute them.
#[derive(Clone)]
pub(super) enum Offers {
    Fixed(Vec<PaymentRequirements>),
    Computed(Compute, OfferSettings),
}

impl Offers {
    /// The offers for a request, in the seller's order of preference.
    pub(super) fn of(&self, request: &Parts) -> Result<Vec<PaymentRequirements>, PaywallError> {
        match self {
            Self::Fixed(requirements) => Ok(requirements.clone()),
            Self::Computed(compute, settings) => {
                let terms = compute(request);
                if terms.is_empty() {
                    return Err(PaywallError::ZeroPrice(request.uri.path().to_owned()));
                }
                terms
                    .iter()
                    .map(|terms| settings.requirements(terms, request.uri.path()))
                    .collect()
            }
        }
    }
}

impl OfferSettings {
    /// The payment requirements of `terms`, for the route `spec`.
    pub(super) fn requirements(
        &self,
        terms: &Terms,
        spec: &str,
    ) -> Result<PaymentRequirements, PaywallError> {
        let (amount, token, method) = terms.price.resolve(terms.network, spec)?;
        if amount.is_zero() {
            return Err(PaywallError::ZeroPrice(spec.to_owned()));
        }
        // The charge of a metered payment is known only after the handler.
        let flow = match method {
            PaymentMethod::Metered => Flow::AfterHandler,
            PaymentMethod::Authorization | PaymentMethod::Permit2 => self.flow,
        };
        let mut extra = token.extra(method, flow);
        if let Some(id) = &self.resource_id {
            extra.insert("resourceId".to_owned(), id.clone().into());
        }
        Ok(PaymentRequirements {
            scheme: method.scheme(),
            network: terms.network,
            amount,
            asset: token.address,
            pay_to: terms.pay_to,
            max_timeout_seconds: self.timeout_s,
            extra: Some(extra),
        })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Price(price) => price.fmt(formatter),
            Self::Computed(_) => formatter.write_str("computed"),
        }
    }
}

impl fmt::Debug for Offers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(requirements) => requirements.fmt(formatter),
            Self::Computed(..) => formatter.write_str("computed"),
        }
    }
}
