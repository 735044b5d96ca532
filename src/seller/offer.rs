//! The ways in which a route can be paid.

use std::fmt;
use std::sync::Arc;

use alloy::primitives::Address;
use axum::http::request::Parts;

use crate::protocol::{Means, Network, PaymentRequirements};
use crate::seller::{Flow, PaywallError, Price};

/// One way to pay: on which network, to whom, how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Where.
    pub network: Network,
    /// Who is paid.
    pub pay_to: Address,
    /// How much, in which token.
    pub price: Price,
}

impl Terms {
    /// `price` on `network`, to `pay_to`.
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

/// Where a route's terms come from.
#[derive(Clone)]
pub(super) enum Source {
    /// The price on the paywall's network, to the paywall's payee.
    Price(Price),
    /// From the request.
    Computed(Compute),
}

/// What all requirements of a route have in common.
#[derive(Debug, Clone)]
pub(super) struct Manner {
    pub(super) flow: Flow,
    pub(super) timeout_s: u64,
    pub(super) resource_id: Option<String>,
}

/// The terms of a route, ready to be asked for.
#[derive(Clone)]
pub(super) enum Offers {
    Fixed(Vec<PaymentRequirements>),
    Computed(Compute, Manner),
}

impl Offers {
    /// What a request is asked for, in the order of preference.
    pub(super) fn of(&self, request: &Parts) -> Result<Vec<PaymentRequirements>, PaywallError> {
        match self {
            Self::Fixed(requirements) => Ok(requirements.clone()),
            Self::Computed(compute, manner) => {
                let terms = compute(request);
                if terms.is_empty() {
                    return Err(PaywallError::Free(request.uri.path().to_owned()));
                }
                terms
                    .iter()
                    .map(|terms| manner.ask(terms, request.uri.path()))
                    .collect()
            }
        }
    }
}

impl Manner {
    /// The requirement of some terms, for the route `spec`.
    pub(super) fn ask(
        &self,
        terms: &Terms,
        spec: &str,
    ) -> Result<PaymentRequirements, PaywallError> {
        let (amount, token, means) = terms.price.on(terms.network, spec)?;
        if amount.is_zero() {
            return Err(PaywallError::Free(spec.to_owned()));
        }
        // What a metered payment costs is known after the handler.
        let flow = match means {
            Means::Metered => Flow::AfterHandler,
            Means::Authorization | Means::Permit2 => self.flow,
        };
        let mut extra = token.extra(means, flow);
        if let Some(id) = &self.resource_id {
            extra.insert("resourceId".to_owned(), id.clone().into());
        }
        Ok(PaymentRequirements {
            scheme: means.scheme(),
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
