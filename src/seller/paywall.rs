//! The description of what is for sale.

use std::sync::Arc;

use alloy::primitives::Address;
use axum::http::Method;
use serde_json::{Map, Value};

use super::client::FacilitatorClient;
use super::{FacilitatorError, PaywallLayer, Price};
use crate::protocol::amount::AmountError;
use crate::protocol::assets::default_assets;
use crate::protocol::{Network, PaymentRequirements, Scheme};

/// For how long an authorization should be valid unless the route says otherwise, in seconds.
const TIMEOUT_S: u64 = 300;

/// When a payment is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flow {
    /// Before the handler, which then knows the transaction.
    #[default]
    Upfront,
    /// After the handler, when it answered below 400; what the official middleware does by default.
    AfterHandler,
}

/// Why a paywall cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum PaywallError {
    /// The facilitator's URL.
    #[error(transparent)]
    Facilitator(#[from] FacilitatorError),
    /// The route is not `METHOD /path`.
    #[error("expected a route such as \"GET /report\", got {0:?}")]
    Route(String),
    /// The network has no default token.
    #[error("no default token is known on {0}")]
    NoAsset(Network),
    /// The price does not fit the token.
    #[error("the price of {route} is no amount of the token: {source}")]
    Price {
        /// Which route.
        route: String,
        /// Why not.
        source: AmountError,
    },
    /// `network` or `pay_to` was not called before `route`.
    #[error("say network and pay_to before the first route")]
    Incomplete,
}

/// What is for sale, to whom the money goes, and who settles it.
#[derive(Debug, Clone)]
pub struct Paywall {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Route>,
    network: Option<Network>,
    pay_to: Option<Address>,
    flow: Flow,
}

#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) flow: Flow,
    pub(super) requirements: PaymentRequirements,
}

impl Paywall {
    /// A paywall without routes, settled by the facilitator at `url`.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn new(url: &str) -> Result<Self, PaywallError> {
        let facilitator = FacilitatorClient::new(url)?;
        Ok(Self {
            facilitator,
            routes: Vec::new(),
            network: None,
            pay_to: None,
            flow: Flow::default(),
        })
    }

    /// Where to be paid; for the routes that follow.
    #[must_use]
    pub const fn network(mut self, network: Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Who is paid; for the routes that follow.
    #[must_use]
    pub const fn pay_to(mut self, payee: Address) -> Self {
        self.pay_to = Some(payee);
        self
    }

    /// When to settle; for the routes that follow.
    #[must_use]
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = flow;
        self
    }

    /// Asks `price` for `METHOD /path`. A GET route covers HEAD.
    ///
    /// # Errors
    /// [`PaywallError`] says what is missing or wrong.
    pub fn route(mut self, route: &str, price: &Price) -> Result<Self, PaywallError> {
        let wrong = || PaywallError::Route(route.to_owned());
        let (method, path) = route.split_once(' ').ok_or_else(wrong)?;
        let method: Method = method.parse().map_err(|_| wrong())?;
        if !path.starts_with('/') {
            return Err(wrong());
        }
        let (Some(network), Some(pay_to)) = (self.network, self.pay_to) else {
            return Err(PaywallError::Incomplete);
        };
        let asset = default_assets(network)
            .next()
            .ok_or(PaywallError::NoAsset(network))?;
        let amount = price
            .amount(asset.decimals)
            .map_err(|source| PaywallError::Price {
                route: route.to_owned(),
                source,
            })?;
        let mut extra = Map::from_iter([
            ("name".to_owned(), Value::from(asset.name)),
            ("version".to_owned(), Value::from(asset.version)),
        ]);
        if self.flow == Flow::Upfront {
            extra.insert("paymentFlow".to_owned(), Value::from("upfront"));
        }
        let requirements = PaymentRequirements {
            scheme: Scheme::Exact,
            network,
            amount,
            asset: asset.address,
            pay_to,
            max_timeout_seconds: TIMEOUT_S,
            extra: Some(extra),
        };
        self.routes.push(Route {
            method,
            path: normal(path),
            flow: self.flow,
            requirements,
        });
        Ok(self)
    }

    /// The layer to put around an application.
    pub fn layer(self) -> PaywallLayer {
        PaywallLayer(Arc::new(self))
    }

    /// The priced route of a request. Every spelling of a path that a router could take for the priced one is the priced one.
    pub(super) fn priced(&self, method: &Method, path: &str) -> Option<&Route> {
        let path = normal(path);
        let covers = |route: &&Route| {
            route.method == *method || (route.method == Method::GET && *method == Method::HEAD)
        };
        self.routes
            .iter()
            .filter(covers)
            .find(|route| route.path == path)
    }
}

/// Percent-decoded, without doubled or trailing slashes.
fn normal(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let escaped = after
            .split_at_checked(2)
            .filter(|_| *byte == b'%')
            .and_then(|(digits, after)| {
                let digits = std::str::from_utf8(digits).ok()?;
                Some((u8::from_str_radix(digits, 16).ok()?, after))
            });
        let (byte, after) = escaped.unwrap_or((*byte, after));
        bytes.push(byte);
        rest = after;
    }
    let text = String::from_utf8_lossy(&bytes);
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_spelling_of_a_priced_path_is_free() {
        let network = Network::from_chain_id(84_532);
        let paywall = Paywall::new("http://127.0.0.1:1")
            .unwrap()
            .network(network)
            .pay_to(Address::repeat_byte(1));
        let paywall = paywall
            .route("GET /a/report", &Price::dollars("0.01").unwrap())
            .unwrap();
        for path in [
            "/a/report",
            "/a/report/",
            "//a//report",
            "/a/%72eport",
            "/a%2Freport",
            "/%61/report",
        ] {
            assert!(paywall.priced(&Method::GET, path).is_some(), "{path}");
            assert!(paywall.priced(&Method::HEAD, path).is_some(), "{path}");
        }
        assert!(paywall.priced(&Method::POST, "/a/report").is_none());
        assert!(paywall.priced(&Method::GET, "/a/reports").is_none());
    }
}
