//! Sells HTTP resources: a tower layer for axum that asks for a payment, has it settled by a facilitator, and gives the handler the
//! [`Payment`]. Start with [`Paywall`].
//!
//! Knows HTTP and the three standard calls of any x402 facilitator. Must not know keys, chains or the ledger. Invariants:
//!
//! - A priced route is never served unpaid, after any failure and for any spelling of its path.
//! - Routes without a price pass unchanged.
//! - A buyer sees neither the facilitator's URL nor the text of internal errors.
//!
//! By default a payment is settled before the handler runs ([`Flow::Upfront`]), so that the handler gets the transaction hash. Settled
//! money is not refunded when the handler fails: the same payment gets the resource later. An answer that broke off is served again at most
//! three times, and until an hour after the payment has expired; an answer of at most 1 MiB is served from a copy then.
//!
//! A price may also be metered ([`Price::metered`]): the buyer signs a maximum, the handler sets the actual amount with a [`Charge`], and
//! this amount is settled before the response is sent.
#![warn(missing_docs)]

mod announced;
mod answer;
mod charge;
mod client;
mod copies;
mod delivery;
mod facilitator_address;
mod forwarded;
mod held;
mod identity;
mod layer;
mod matching;
mod offer;
mod owed;
mod page;
mod path;
mod payment;
mod price;
mod resource;
mod route;
mod sale;
mod settling;
mod suspended;

pub use charge::{Charge, ChargeError};
pub use client::{FacilitatorClient, FacilitatorError};
pub use layer::{PaywallLayer, PaywallService};
pub use offer::Terms;
pub use owed::OwedFileError;
pub use payment::{Payment, Unpaid};
pub use price::{Price, Token};
pub use route::Route;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use tokio_util::task::TaskTracker;
use url::Url;

use crate::clock::{Clock, SystemClock};
use crate::protocol::Network;
use crate::protocol::amount::AmountError;
use crate::seller::announced::Announced;
use crate::seller::copies::Copies;
use crate::seller::facilitator_address::FacilitatorAddresses;
use crate::seller::forwarded::ForwardedCheck;
use crate::seller::held::{BodyLimits, Room};
use crate::seller::offer::{OfferSettings, Offers, Source};
use crate::seller::owed::Purchases;
use crate::seller::path::Pattern;
use crate::seller::sale::PaywallState;
use crate::seller::suspended::SuspendedPayers;

/// When a payment is settled, relative to the handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Before the handler, which gets the transaction hash. The offer announces it as `extra.paymentFlow`.
    #[default]
    Upfront,
    /// After the handler, unless it answers 400 or above. Its response is held back until the payment is settled. The handler runs for a
    /// verified payment that may still fail to settle: its payer can use up the nonce or move the money meanwhile, so do not use it for work
    /// that costs more than you are ready to give away. Metered prices always use this flow.
    AfterHandler,
}

/// Builder of a paywall: routes, payee, network and facilitator. [`Paywall::build`] returns the layer.
#[derive(Clone)]
pub struct Paywall {
    facilitator: String,
    key: Option<String>,
    announced: Announced,
    owed_file: Option<PathBuf>,
    settled: Option<Hook>,
    pay_to: Option<Address>,
    network: Option<Network>,
    public_url: Option<Url>,
    flow: Flow,
    timeout_s: u64,
    limits: BodyLimits,
    clock: Arc<dyn Clock>,
    routes: Vec<Route>,
}

/// Called for each settled payment.
type Hook = Arc<dyn Fn(&Payment) + Send + Sync>;

/// Why a paywall cannot be built, or a route cannot be priced.
#[derive(Debug, thiserror::Error)]
pub enum PaywallError {
    /// The facilitator's URL is not usable. The URL is not part of the message, because it may contain a key.
    #[error("the facilitator cannot be used")]
    Facilitator(#[source] FacilitatorError),
    /// No payee is set ([`Paywall::pay_to`]).
    #[error("the paywall has no payee: call pay_to")]
    PayTo,
    /// No network is set ([`Paywall::network`]).
    #[error("the paywall has no network: call network")]
    Network,
    /// The text is not a route.
    #[error("expected a route such as \"GET /report\", got {0:?}")]
    Route(String),
    /// A route was added twice.
    #[error("the route {0:?} is priced twice")]
    DuplicateRoute(String),
    /// A price in the default token, on a network that has none.
    #[error("{0} has no default token: use Price::in_token")]
    NoDefaultToken(Network),
    /// The price has more decimals than the token, or is too large.
    #[error("the price of {route:?} cannot be expressed in its token")]
    Price {
        /// The route.
        route: String,
        /// The cause.
        #[source]
        source: AmountError,
    },
    /// The file of owed purchases cannot be used ([`Paywall::owed_in`]).
    #[error(transparent)]
    Owed(#[from] OwedFileError),
    /// The price is zero, or a computed route returned no terms. Facilitators refuse payments of zero.
    #[error("the price of {0:?} is zero: leave the route out instead")]
    ZeroPrice(String),
}

/// A route with its compiled pattern and offers.
#[derive(Debug)]
struct Priced {
    pattern: Pattern,
    offers: Offers,
    description: Option<String>,
    mime_type: Option<String>,
}

impl Paywall {
    /// A paywall whose payments are settled by the facilitator at `url`, for example `http://127.0.0.1:4402`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            facilitator: url.into(),
            key: None,
            announced: Announced::default(),
            owed_file: None,
            settled: None,
            pay_to: None,
            network: None,
            public_url: None,
            flow: Flow::default(),
            timeout_s: 300,
            limits: BodyLimits::default(),
            clock: Arc::new(SystemClock),
            routes: Vec::new(),
        }
    }

    /// Sends this key with every call to the facilitator, as `Authorization: Bearer`. An x402d needs one on mainnets.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Announces that the facilitator offers payment sessions at `url`, the URL at which buyers reach it.
    #[must_use]
    pub fn sessions_at(mut self, url: Url) -> Self {
        self.announced.sessions = Some(url);
        self
    }

    /// Announces that buyers need no earlier allowance to Permit2: they may sign the token's permit (EIP-2612) with the payment, and the
    /// facilitator pays its gas. The paywall does not check it: the facilitator must list `eip2612GasSponsoring` in `/supported`;
    /// otherwise it refuses such payments because the allowance is missing.
    #[must_use]
    pub const fn sponsors_gas(mut self) -> Self {
        self.announced.gas = true;
        self
    }

    /// Keeps owed purchases (settled, but not delivered) in `file` as well as in memory, so that a buyer can still get the resource for the
    /// same payment after a restart. Each process needs its own file. Copies of answers that broke off are not in it: after a restart the
    /// handler runs again.
    #[must_use]
    pub fn owed_in(mut self, file: impl Into<PathBuf>) -> Self {
        self.owed_file = Some(file.into());
        self
    }

    /// Calls `hook` for each settled payment. In [`Flow::AfterHandler`] only the hook gets the transaction hash and, at a metered price,
    /// the charged amount: the handler has run before.
    #[must_use]
    pub fn on_settled(mut self, hook: impl Fn(&Payment) + Send + Sync + 'static) -> Self {
        self.settled = Some(Arc::new(hook));
        self
    }

    /// Sets the account that is paid.
    #[must_use]
    pub const fn pay_to(mut self, address: Address) -> Self {
        self.pay_to = Some(address);
        self
    }

    /// Sets the network on which payments are made.
    #[must_use]
    pub const fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Sets the URL at which buyers reach this server. Without it the `Host` header of each request is used, which any client can choose:
    /// what it names stands in the challenge and in the facilitator's history. Set it on every server that strangers can reach.
    #[must_use]
    pub fn public_url(mut self, url: Url) -> Self {
        self.public_url = Some(url);
        self
    }

    /// Sets when payments are settled; [`Flow::Upfront`] unless set.
    #[must_use]
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = flow;
        self
    }

    /// Sets the validity of a buyer's payment in seconds (`maxTimeoutSeconds`); 300 unless set, at least 60 is recommended.
    #[must_use]
    pub const fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// Sets the longest body of a paid request, in bytes; 1 MiB unless set. Nothing beyond 64 KiB is read before the facilitator has found
    /// the payment valid. A longer body is answered with 413, and nothing is settled.
    #[must_use]
    pub const fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.bytes_max = bytes;
        self
    }

    /// Sets how long the body of a paid request may take; 30 s unless set. A slower one is answered with 408, and nothing is settled.
    #[must_use]
    pub const fn body_deadline(mut self, limit: Duration) -> Self {
        self.limits.deadline = limit;
        self
    }

    /// Sets the limit of everything that the paywall holds for paid requests at one time, in bytes: their bodies, and the responses that
    /// wait for a settlement. 64 MiB unless set; a quarter of it, besides, is for payments that are not verified yet. A request that finds no
    /// room is answered with 503, and nothing is settled.
    #[must_use]
    pub const fn held_bytes_max(mut self, bytes: usize) -> Self {
        self.limits.held_bytes_max = bytes;
        self
    }

    /// Uses `clock` for the end of owed purchases; the machine's clock unless set.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Adds the route `spec` (see [`Route::new`]) at `price`.
    #[must_use]
    pub fn route(self, spec: impl Into<String>, price: Price) -> Self {
        self.sell(Route::new(spec, price))
    }

    /// Adds a route.
    #[must_use]
    pub fn sell(mut self, route: Route) -> Self {
        self.routes.push(route);
        self
    }

    /// Builds the layer for [`axum::Router::layer`].
    ///
    /// # Errors
    /// [`PaywallError`]. The facilitator is not contacted; [`PaywallLayer::check`] does that.
    pub fn build(self) -> Result<PaywallLayer, PaywallError> {
        let mut facilitator =
            FacilitatorClient::new(&self.facilitator).map_err(PaywallError::Facilitator)?;
        if let Some(key) = &self.key {
            facilitator = facilitator.with_key(key);
        }
        let mut routes: Vec<Priced> = Vec::new();
        for route in &self.routes {
            let priced = self.priced(route)?;
            if routes.iter().any(|other| other.pattern == priced.pattern) {
                return Err(PaywallError::DuplicateRoute(route.spec.clone()));
            }
            routes.push(priced);
        }
        let purchases = match &self.owed_file {
            Some(path) => Purchases::in_file(path, Arc::clone(&self.clock))?,
            None => Purchases::in_memory(Arc::clone(&self.clock)),
        };
        Ok(PaywallLayer::new(PaywallState {
            facilitator,
            routes,
            purchases,
            copies: Copies::default(),
            suspended: SuspendedPayers::default(),
            limits: self.limits,
            room: Room::new(self.limits),
            clock: self.clock,
            tasks: TaskTracker::new(),
            public_url: self.public_url,
            forwarded: ForwardedCheck::default(),
            announced: self.announced,
            facilitator_addresses: FacilitatorAddresses::default(),
            settled: self.settled,
        }))
    }

    fn priced(&self, route: &Route) -> Result<Priced, PaywallError> {
        let settings = OfferSettings {
            flow: route.flow.unwrap_or(self.flow),
            timeout_s: self.timeout_s,
            resource_id: route.resource_id.clone(),
        };
        Ok(Priced {
            pattern: Pattern::parse(&route.spec)
                .ok_or_else(|| PaywallError::Route(route.spec.clone()))?,
            offers: self.offers(route, settings)?,
            description: route.description.clone(),
            mime_type: route.mime_type.clone(),
        })
    }

    fn offers(&self, route: &Route, settings: OfferSettings) -> Result<Offers, PaywallError> {
        match &route.source {
            Source::Computed(compute) => Ok(Offers::Computed(Arc::clone(compute), settings)),
            Source::Price(price) => {
                let network = self.network.ok_or(PaywallError::Network)?;
                let pay_to = self.pay_to.ok_or(PaywallError::PayTo)?;
                let first = Terms::new(network, pay_to, price.clone());
                let all = [first].into_iter().chain(route.further.iter().cloned());
                let requirements: Result<_, _> = all
                    .map(|terms| settings.requirements(&terms, &route.spec))
                    .collect();
                Ok(Offers::Fixed(requirements?))
            }
        }
    }
}

impl std::fmt::Debug for Paywall {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The facilitator's URL may contain a key.
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
    fn dollar_price_uses_the_networks_default_token() {
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
    fn price_determines_scheme_method_and_flow() {
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
    fn invalid_paywall_is_not_built() {
        let cent = || Price::dollars("0.01").unwrap();
        let error = |paywall: Paywall| paywall.build().unwrap_err();
        let twice = paywall().route("GET /a", cent()).route("GET /a/", cent());
        assert!(matches!(error(twice), PaywallError::DuplicateRoute(_)));
        let free = paywall().route("GET /a", Price::atomic(Amount::ZERO));
        assert!(matches!(error(free), PaywallError::ZeroPrice(_)));
        let unnamed = paywall().route("report", cent());
        assert!(matches!(error(unnamed), PaywallError::Route(_)));
        let unpriced = paywall()
            .network(Network::from_chain_id(31_337))
            .route("/a", cent());
        assert!(matches!(error(unpriced), PaywallError::NoDefaultToken(_)));
        let no_payee = Paywall::new("http://127.0.0.1:1")
            .network(Network::from_chain_id(1))
            .route("/a", cent());
        assert!(matches!(error(no_payee), PaywallError::PayTo));
        assert!(matches!(
            error(Paywall::new("ftp://secret@host")),
            PaywallError::Facilitator(_)
        ));
    }
}
