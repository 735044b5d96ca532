//! Selling HTTP resources: a tower layer for axum that asks for payment, has it settled, and tells the handler who paid.
//!
//! Knows HTTP and the three standard calls of any x402 facilitator. Must not know keys, chains or the ledger. What always
//! holds: a priced route is never served unpaid, whatever fails and however its path is spelled; routes without a price pass
//! untouched; and a buyer sees neither the facilitator's URL nor the text of our errors.
//!
//! By default a payment is settled before the handler runs ([`Flow::Upfront`]), so that the handler holds the hash. The price of
//! that order: money that was settled is not given back when the handler fails.
//!
//! A price may also be metered ([`Price::metered`]): the buyer lets go of a maximum, the handler says with a [`Charge`] what its work
//! came to, and that is settled before the answer goes out.
#![warn(missing_docs)]

mod announced;
mod answer;
mod charge;
mod client;
mod delivery;
mod forwarded;
mod layer;
mod offer;
mod owed;
mod page;
mod path;
mod payment;
mod price;
mod sale;
mod settlers;
mod settling;
mod tender;

pub use charge::{Charge, ChargeError};
pub use client::{FacilitatorClient, FacilitatorError};
pub use layer::{PaywallLayer, PaywallService};
pub use offer::Terms;
pub use owed::OwedFileError;
pub use payment::{Payment, Unpaid};
pub use price::{Price, Token};

use std::path::PathBuf;
use std::sync::Arc;

use alloy::primitives::Address;
use axum::http::request::Parts;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::protocol::Network;
use crate::protocol::amount::AmountError;
use crate::seller::announced::Announced;
use crate::seller::forwarded::Forwarded;
use crate::seller::offer::{Manner, Offers, Source};
use crate::seller::owed::Purchases;
use crate::seller::path::Pattern;
use crate::seller::sale::Shop;
use crate::seller::settlers::Settlers;

/// When a payment is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Before the handler, which sees the hash. `extra.paymentFlow` says so to the buyer.
    #[default]
    Upfront,
    /// After the handler, unless it answers 400 or above; its answer is held back until then. The handler runs for payments
    /// that have been verified and may still fail to settle. The only flow of metered prices.
    AfterHandler,
}

/// A resource and its price.
#[derive(Debug, Clone)]
pub struct Route {
    spec: String,
    source: Source,
    further: Vec<Terms>,
    resource_id: Option<String>,
    description: Option<String>,
    mime_type: Option<String>,
    flow: Option<Flow>,
}

impl Route {
    /// `spec` is a path with or without a method before it: `GET /report`, `/files/{*path}`. Segments in braces stand for
    /// anything, as in axum; without a method every method is priced. `HEAD` counts as `GET`.
    pub fn new(spec: impl Into<String>, price: Price) -> Self {
        Self::of(spec, Source::Price(price))
    }

    /// A route whose price or payee depends on the request. `terms` is asked again for the paid request: it must say the same then, or
    /// the payment does not fit.
    pub fn computed(
        spec: impl Into<String>,
        terms: impl Fn(&Parts) -> Vec<Terms> + Send + Sync + 'static,
    ) -> Self {
        Self::of(spec, Source::Computed(Arc::new(terms)))
    }

    fn of(spec: impl Into<String>, source: Source) -> Self {
        Self {
            spec: spec.into(),
            source,
            further: Vec::new(),
            resource_id: None,
            description: None,
            mime_type: None,
            flow: None,
        }
    }

    /// A further way to pay, behind those named before.
    #[must_use]
    pub fn or(mut self, terms: Terms) -> Self {
        self.further.push(terms);
        self
    }

    /// Binds payment sessions to this route: one that was negotiated for it pays for no other.
    #[must_use]
    pub fn resource_id(mut self, id: impl Into<String>) -> Self {
        self.resource_id = Some(id.into());
        self
    }

    /// Tells people and agents what they get.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }

    /// The type of the paid body; `application/json` unless set.
    #[must_use]
    pub fn mime_type(mut self, text: impl Into<String>) -> Self {
        self.mime_type = Some(text.into());
        self
    }

    /// Another flow than the paywall's; metered prices keep theirs.
    #[must_use]
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = Some(flow);
        self
    }
}

/// Describes what is sold, to whom the money goes and who settles it; [`Paywall::build`] makes the layer.
#[derive(Clone)]
pub struct Paywall {
    facilitator: String,
    announced: Announced,
    owed_file: Option<PathBuf>,
    settled: Option<Hook>,
    pay_to: Option<Address>,
    network: Option<Network>,
    public_url: Option<Url>,
    flow: Flow,
    timeout_s: u64,
    routes: Vec<Route>,
}

/// Called for each payment that was settled.
type Hook = Arc<dyn Fn(&Payment) + Send + Sync>;

/// A paywall that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PaywallError {
    /// The facilitator cannot be used; its URL is not repeated, because it may hold a key.
    #[error("the facilitator cannot be used")]
    Facilitator(#[source] FacilitatorError),
    /// Nobody was named to be paid.
    #[error("the paywall needs an address to be paid to: call pay_to")]
    PayTo,
    /// No network was named.
    #[error("the paywall needs a network to be paid on: call network")]
    Network,
    /// The text describes no route.
    #[error("expected a route such as \"GET /report\", got {0:?}")]
    Route(String),
    /// Two prices for one route.
    #[error("the route {0:?} is priced twice")]
    Twice(String),
    /// A price in dollars on a network without a default token.
    #[error("{0} has no default token: give the price in a token of your own")]
    NoDefaultToken(Network),
    /// The price does not fit the token.
    #[error("the price of {route:?} cannot be asked for in its token")]
    Price {
        /// Whose price.
        route: String,
        /// Why not.
        #[source]
        source: AmountError,
    },
    /// The file of owed purchases.
    #[error(transparent)]
    Owed(#[from] OwedFileError),
    /// Payments of nothing are refused by facilitators, and so is leave to take nothing at most.
    #[error("the price of {0:?} is zero: leave the route out instead")]
    Free(String),
}

/// A route, ready to be asked about.
#[derive(Debug)]
struct Priced {
    pattern: Pattern,
    offers: Offers,
    description: Option<String>,
    mime_type: Option<String>,
}

impl Paywall {
    /// A paywall whose payments are settled by the facilitator at `url`, such as `http://127.0.0.1:4402`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            facilitator: url.into(),
            announced: Announced::default(),
            owed_file: None,
            settled: None,
            pay_to: None,
            network: None,
            public_url: None,
            flow: Flow::default(),
            timeout_s: 300,
            routes: Vec::new(),
        }
    }

    /// Tells buyers that the facilitator at `url`, as they reach it, offers payment sessions.
    #[must_use]
    pub fn sessions_at(mut self, url: Url) -> Self {
        self.announced.sessions = Some(url);
        self
    }

    /// Tells buyers who pay by Permit2 that they need not have approved it: with the payment they may sign the token's own permit
    /// (EIP-2612), and the facilitator pays for its gas. Announced as it is set here: the facilitator has to list
    /// `eip2612GasSponsoring` in its `/supported`, and one that does not refuses such payments for want of the allowance.
    #[must_use]
    pub const fn sponsors_gas(mut self) -> Self {
        self.announced.gas = true;
        self
    }

    /// Keeps purchases that were settled and not delivered in a file too, so that a restart leaves no buyer with a hash and no
    /// resource. Each process needs a file of its own.
    #[must_use]
    pub fn owed_in(mut self, file: impl Into<PathBuf>) -> Self {
        self.owed_file = Some(file.into());
        self
    }

    /// Calls `hook` for each payment that was settled; in [`Flow::AfterHandler`] it is the first to know the hash, and at a metered
    /// price what was charged.
    #[must_use]
    pub fn on_settled(mut self, hook: impl Fn(&Payment) + Send + Sync + 'static) -> Self {
        self.settled = Some(Arc::new(hook));
        self
    }

    /// Who is paid.
    #[must_use]
    pub const fn pay_to(mut self, address: Address) -> Self {
        self.pay_to = Some(address);
        self
    }

    /// Where.
    #[must_use]
    pub const fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Under which URL buyers reach this server; otherwise the `Host` of each request is believed.
    #[must_use]
    pub fn public_url(mut self, url: Url) -> Self {
        self.public_url = Some(url);
        self
    }

    /// When payments are settled; [`Flow::Upfront`] unless set.
    #[must_use]
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = flow;
        self
    }

    /// For how long a buyer's authorization should be valid, in seconds; 300 unless set, and at least 60 is wise.
    #[must_use]
    pub const fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// Sells `spec` (see [`Route::new`]) at `price`.
    #[must_use]
    pub fn route(self, spec: impl Into<String>, price: Price) -> Self {
        self.sell(Route::new(spec, price))
    }

    /// Sells a route with all its details.
    #[must_use]
    pub fn sell(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// The layer for [`axum::Router::layer`].
    ///
    /// # Errors
    /// [`PaywallError`] says what is missing or wrong. The facilitator is not asked here but by [`PaywallLayer::check`].
    pub fn build(self) -> Result<PaywallLayer, PaywallError> {
        let facilitator =
            FacilitatorClient::new(&self.facilitator).map_err(PaywallError::Facilitator)?;
        let mut routes: Vec<Priced> = Vec::new();
        for route in &self.routes {
            let priced = self.priced(route)?;
            if routes.iter().any(|other| other.pattern == priced.pattern) {
                return Err(PaywallError::Twice(route.spec.clone()));
            }
            routes.push(priced);
        }
        let purchases = match &self.owed_file {
            Some(path) => Purchases::in_file(path)?,
            None => Purchases::default(),
        };
        Ok(PaywallLayer::new(Shop {
            facilitator,
            routes,
            purchases,
            tasks: TaskTracker::new(),
            public_url: self.public_url,
            forwarded: Forwarded::default(),
            announced: self.announced,
            settlers: Settlers::default(),
            settled: self.settled,
        }))
    }

    fn priced(&self, route: &Route) -> Result<Priced, PaywallError> {
        let manner = Manner {
            flow: route.flow.unwrap_or(self.flow),
            timeout_s: self.timeout_s,
            resource_id: route.resource_id.clone(),
        };
        Ok(Priced {
            pattern: Pattern::parse(&route.spec)
                .ok_or_else(|| PaywallError::Route(route.spec.clone()))?,
            offers: self.offers(route, manner)?,
            description: route.description.clone(),
            mime_type: route.mime_type.clone(),
        })
    }

    fn offers(&self, route: &Route, manner: Manner) -> Result<Offers, PaywallError> {
        match &route.source {
            Source::Computed(compute) => Ok(Offers::Computed(Arc::clone(compute), manner)),
            Source::Price(price) => {
                let network = self.network.ok_or(PaywallError::Network)?;
                let pay_to = self.pay_to.ok_or(PaywallError::PayTo)?;
                let first = Terms::new(network, pay_to, price.clone());
                let all = [first].into_iter().chain(route.further.iter().cloned());
                let asked: Result<_, _> =
                    all.map(|terms| manner.ask(&terms, &route.spec)).collect();
                Ok(Offers::Fixed(asked?))
            }
        }
    }
}

impl std::fmt::Debug for Paywall {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The facilitator's URL may hold a key.
        formatter
            .debug_struct("Paywall")
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Amount, Scheme};

    fn paywall() -> Paywall {
        Paywall::new("http://127.0.0.1:4402/")
            .pay_to(Address::repeat_byte(0x22))
            .network(Network::from_chain_id(84_532))
    }

    #[test]
    fn a_price_in_dollars_is_asked_for_in_the_networks_default_token() {
        let paywall = paywall();
        let priced = |flow| {
            let route = Route::new("GET /report", Price::dollars("$0.01").unwrap()).flow(flow);
            match paywall.priced(&route).unwrap().offers {
                Offers::Fixed(mut offers) => offers.remove(0),
                Offers::Computed(..) => panic!("computed"),
            }
        };
        let upfront = priced(Flow::Upfront);
        assert_eq!(upfront.amount.to_string(), "10000");
        assert_eq!(
            upfront.asset.to_string(),
            "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
        );
        assert_eq!(upfront.domain_name(), Some("USDC"));
        assert_eq!(upfront.payment_flow(), Some("upfront"));
        assert_eq!(priced(Flow::AfterHandler).payment_flow(), None);
    }

    #[test]
    fn how_a_price_is_taken_decides_scheme_method_and_flow() {
        let cent = || Price::dollars("0.01").unwrap();
        for (price, scheme, method, flow) in [
            (cent(), Scheme::Exact, None, Some("upfront")),
            (
                cent().by_permit2(),
                Scheme::Exact,
                Some("permit2"),
                Some("upfront"),
            ),
            (cent().metered(), Scheme::Upto, Some("permit2"), None),
            (
                cent().metered().by_permit2(),
                Scheme::Upto,
                Some("permit2"),
                None,
            ),
            (
                cent().by_permit2().metered(),
                Scheme::Upto,
                Some("permit2"),
                None,
            ),
        ] {
            let Offers::Fixed(offers) = paywall().priced(&Route::new("/a", price)).unwrap().offers
            else {
                panic!("computed")
            };
            assert_eq!(offers[0].scheme, scheme);
            assert_eq!(offers[0].transfer_method(), method);
            assert_eq!(offers[0].payment_flow(), flow);
            assert_eq!(
                offers[0].domain_name(),
                Some("USDC"),
                "for the token's permit"
            );
        }
    }

    #[test]
    fn a_paywall_with_a_mistake_is_not_built() {
        let cent = || Price::dollars("0.01").unwrap();
        let error = |paywall: Paywall| paywall.build().unwrap_err();
        let twice = paywall().route("GET /a", cent()).route("GET /a/", cent());
        assert!(matches!(error(twice), PaywallError::Twice(_)));
        let free = paywall().route("GET /a", Price::atomic(Amount::ZERO));
        assert!(matches!(error(free), PaywallError::Free(_)));
        let unnamed = paywall().route("report", cent());
        assert!(matches!(error(unnamed), PaywallError::Route(_)));
        let unpriced = paywall()
            .network(Network::from_chain_id(31_337))
            .route("/a", cent());
        assert!(matches!(error(unpriced), PaywallError::NoDefaultToken(_)));
        let nobody = Paywall::new("http://127.0.0.1:1")
            .network(Network::from_chain_id(1))
            .route("/a", cent());
        assert!(matches!(error(nobody), PaywallError::PayTo));
        assert!(matches!(
            error(Paywall::new("ftp://secret@host")),
            PaywallError::Facilitator(_)
        ));
    }
}
