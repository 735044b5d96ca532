//! One sale: from the payment header to the handler and the receipt.

use std::convert::Infallible;
use std::sync::Arc;

use alloy::primitives::keccak256;
use axum::body::{Body, to_bytes};
use axum::extract::{OriginalUri, Request};
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::Value;
use tokio_util::task::TaskTracker;
use tower::Service;
use url::Url;

use crate::protocol::challenge::network_name;
use crate::protocol::{Network, PresentedPayment, Reason, SettleResponse, field};
use crate::seller::answer::{Quote, broken, outage, receipt, too_long};
use crate::seller::delivery::watched;
use crate::seller::owed::{PurchaseKey, Purchases, Refused, Serving};
use crate::seller::tender::{Tendered, dialect};
use crate::seller::{
    FacilitatorClient, FacilitatorError, Flow, Hook, OwedFileError, Payment, Priced,
};

/// The longest answer of a handler that is held back until its payment is settled, and the longest body of a paid request.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is sold, and who settles.
pub(super) struct Shop {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Priced>,
    pub(super) purchases: Purchases,
    pub(super) tasks: TaskTracker,
    pub(super) public_url: Option<Url>,
    pub(super) sessions_url: Option<Url>,
    pub(super) settled: Option<Hook>,
}

/// Why a sale ends before its resource is served.
enum Ends {
    /// Ask for a payment, saying what was wrong with this one.
    Ask(Option<String>),
    /// The facilitator refused to settle.
    Refused(Box<SettleResponse>),
    /// The facilitator gave no answer.
    Outage(FacilitatorError),
    /// What is owed cannot be written down: nothing may be settled.
    Unwritten(OwedFileError),
    /// The request's body is longer than what can be held.
    TooLong,
    /// The handler's answer cannot be used.
    Broken,
}

impl Ends {
    /// Whether the facilitator may still say success to this payment.
    fn are_open(&self) -> bool {
        match self {
            Self::Refused(outcome) => {
                outcome.error_reason.as_deref() == Some(Reason::SettlementPending.code())
            }
            Self::Outage(_) => true,
            Self::Ask(_) | Self::Unwritten(_) | Self::TooLong | Self::Broken => false,
        }
    }

    /// Whether a success may have been said to us that we did not hear.
    fn hide_a_success(&self) -> bool {
        match self {
            Self::Outage(error) => error.may_have_been_success(),
            Self::Refused(_) | Self::Ask(_) | Self::Unwritten(_) | Self::TooLong | Self::Broken => {
                false
            }
        }
    }
}

impl From<FacilitatorError> for Ends {
    fn from(error: FacilitatorError) -> Self {
        Self::Outage(error)
    }
}

impl From<OwedFileError> for Ends {
    fn from(error: OwedFileError) -> Self {
        Self::Unwritten(error)
    }
}

impl Shop {
    /// Serves the route with this index to whoever pays for it.
    pub(super) async fn sell<S>(&self, index: usize, request: Request, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let Some(priced) = self.routes.get(index) else {
            return broken();
        };
        let (parts, body) = request.into_parts();
        let quote = priced
            .offers
            .of(&parts)
            .map_err(|error| tracing::error!(%error, "a route cannot be priced"))
            .and_then(|offers| {
                Quote::new(
                    priced,
                    offers,
                    self.url_of(&parts),
                    self.sessions_url.as_ref(),
                )
                .map_err(|error| tracing::error!(%error, "a price has no JSON form"))
            });
        let Ok(quote) = quote else {
            return broken();
        };
        let (version, page) = (
            dialect(&parts),
            crate::seller::page::is_wanted(&parts.headers),
        );
        match self.trade(priced.flow, &quote, (parts, body), inner).await {
            Ok(response) => response,
            Err(Ends::Broken) => broken(),
            Err(Ends::TooLong) => too_long(HELD_BYTES_MAX),
            Err(Ends::Ask(None)) if page => quote.page(),
            Err(Ends::Ask(error)) => quote.challenge(error.as_deref()),
            Err(Ends::Refused(outcome)) => quote.refuse(version, &outcome),
            Err(Ends::Unwritten(error)) => {
                tracing::error!(%error, "a purchase cannot be written down; nothing is sold until it can");
                outage()
            }
            Err(Ends::Outage(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "a payment could not be processed");
                outage()
            }
        }
    }

    async fn trade<S>(
        &self,
        flow: Flow,
        quote: &Quote,
        (parts, body): (Parts, Body),
        inner: S,
    ) -> Result<Response, Ends>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let tendered = Tendered::of(&parts, quote).map_err(Ends::Ask)?;
        let body = to_bytes(body, HELD_BYTES_MAX)
            .await
            .map_err(|_| Ends::TooLong)?;
        let target = [parts.method.as_str(), " ", path_of(&parts), "\n"].concat();
        let request = keccak256([target.as_bytes(), keccak256(&body).as_slice()].concat());
        let key = tendered
            .key()
            .map(PurchaseKey)
            .ok_or_else(|| Ends::Ask(Some(Reason::InvalidPayload.code().to_owned())))?;
        let serving = self.purchases.take(key, request).map_err(|refused| {
            let why = match refused {
                Refused::InHand => "this payment is being served right now",
                Refused::OtherRequest => "this payment is for another request",
            };
            Ends::Ask(Some(format!("{}: {why}", Reason::DuplicateSettlement)))
        })?;
        let request = Request::from_parts(parts, Body::from(body));
        let sale = Sale {
            shop: self,
            tendered,
            serving: Arc::new(serving),
        };
        match flow {
            Flow::Upfront => sale.settled_first(request, inner).await,
            Flow::AfterHandler => sale.settled_last(request, inner).await,
        }
    }

    /// The URL of what is sold, as the outside knows it.
    fn url_of(&self, parts: &Parts) -> String {
        let path = path_of(parts);
        if let Some(base) = &self.public_url {
            return format!("{}{path}", base.as_str().trim_end_matches('/'));
        }
        let host = parts
            .headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .or_else(|| {
                parts
                    .uri
                    .authority()
                    .map(axum::http::uri::Authority::as_str)
            })
            .unwrap_or("localhost");
        format!("http://{host}{path}")
    }
}

/// Path and query as the client sent them.
fn path_of(parts: &Parts) -> &str {
    let uri = parts
        .extensions
        .get::<OriginalUri>()
        .map_or(&parts.uri, |original| &original.0);
    uri.path_and_query()
        .map_or("/", axum::http::uri::PathAndQuery::as_str)
}

/// A payment that fits the offer, in hand.
struct Sale<'a> {
    shop: &'a Shop,
    tendered: Tendered<'a>,
    serving: Arc<Serving>,
}

impl Sale<'_> {
    /// The handler runs once the money has moved. Where it fails, the purchase stays owed.
    async fn settled_first<S>(
        mut self,
        mut request: Request,
        mut inner: S,
    ) -> Result<Response, Ends>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let outcome = self.settlement().await?;
        request.extensions_mut().insert(self.tendered.facts.clone());
        let Ok(response) = inner.call(request).await;
        Ok(self.hand_over(response, &outcome))
    }

    /// The handler runs first, and its answer is held back until the money has moved.
    async fn settled_last<S>(mut self, mut request: Request, mut inner: S) -> Result<Response, Ends>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        if self.serving.owed.is_none() && !self.serving.was_settling {
            self.verify().await?;
        }
        request.extensions_mut().insert(self.tendered.facts.clone());
        let Ok(response) = inner.call(request).await;
        if response.status().as_u16() >= 400 {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let Ok(held) = to_bytes(body, HELD_BYTES_MAX).await else {
            tracing::error!(
                bytes_max = HELD_BYTES_MAX,
                "the answer broke off or is too long to be held back; nothing was settled"
            );
            return Err(Ends::Broken);
        };
        let outcome = self.settlement().await?;
        let response = Response::from_parts(parts, Body::from(held));
        Ok(self.hand_over(response, &outcome))
    }

    /// An answer of a handler that failed leaves the purchase owed; any other strikes it out once it went out whole.
    fn hand_over(self, response: Response, outcome: &SettleResponse) -> Response {
        let response = receipt(response, self.tendered.payment.version, outcome);
        if response.status().is_server_error() {
            tracing::warn!(transaction = %outcome.transaction, "the handler of a paid request failed; the same payment may come again");
            return response;
        }
        watched(response, self.serving)
    }

    async fn verify(&self) -> Result<(), Ends> {
        let payment = &self.tendered.payment;
        let verdict = self
            .shop
            .facilitator
            .verify(payment.version, payment.raw(), self.tendered.requirements)
            .await?;
        if verdict.is_valid {
            return Ok(());
        }
        let reason = verdict.invalid_reason;
        Err(Ends::Ask(Some(
            reason.unwrap_or_else(|| "the payment is not valid".to_owned()),
        )))
    }

    /// The settlement of this payment: the one of before, when its resource is owed, else a new one. Once begun it goes on without the
    /// buyer: what the facilitator says to nobody would be lost.
    async fn settlement(&mut self) -> Result<SettleResponse, Ends> {
        if let Some(outcome) = self.serving.owed.clone() {
            self.tendered.facts.learn(&outcome);
            return Ok(outcome);
        }
        let settling = Settling {
            facilitator: self.shop.facilitator.clone(),
            payment: self.tendered.payment.clone(),
            requirements: self.tendered.requirements.clone(),
            network: self.tendered.facts.network,
            serving: Arc::clone(&self.serving),
        };
        let outcome = self.shop.tasks.spawn(settling.run()).await;
        let outcome = outcome.map_err(|_| Ends::Broken)??;
        self.tendered.facts.learn(&outcome);
        if let Some(hook) = &self.shop.settled {
            hook(&self.tendered.facts);
        }
        Ok(outcome)
    }
}

/// A settlement on its way.
struct Settling {
    facilitator: FacilitatorClient,
    payment: PresentedPayment,
    requirements: Value,
    network: Network,
    serving: Arc<Serving>,
}

impl Settling {
    /// Writes the purchase down before the facilitator is asked, and what came of it before anything is handed over.
    async fn run(self) -> Result<SettleResponse, Ends> {
        self.serving.settling().await?;
        match self.settle().await {
            Ok(outcome) => {
                self.serving.settled(&outcome).await?;
                Ok(outcome)
            }
            Err(ends) => {
                if ends.hide_a_success() {
                    self.serving.unheard();
                } else if !(self.serving.was_settling && ends.are_open()) {
                    self.serving.not_settled().await?;
                }
                Err(ends)
            }
        }
    }

    /// Has the payment settled; an outcome that is not known yet is asked for once more.
    async fn settle(&self) -> Result<SettleResponse, Ends> {
        let payment = &self.payment;
        let ask = || {
            self.facilitator
                .settle(payment.version, payment.raw(), &self.requirements)
        };
        let refused_as = |outcome: &SettleResponse, reason: Reason| {
            !outcome.success && outcome.error_reason.as_deref() == Some(reason.code())
        };
        let mut outcome = ask().await?;
        if refused_as(&outcome, Reason::SettlementPending) {
            // The first answer names a transaction: it must not be lost to a failing second call.
            if let Ok(second) = ask().await {
                outcome = second;
            }
        }
        if outcome.network.is_empty() {
            outcome.network = network_name(payment.version, self.network).unwrap_or_default();
        }
        let ours = self.serving.was_settling
            && refused_as(&outcome, Reason::DuplicateSettlement)
            && !outcome.transaction.is_empty();
        if ours {
            // This server died between asking and hearing: the one who was told success was it.
            outcome.success = true;
            (outcome.error_reason, outcome.error_message) = (None, None);
        }
        if outcome.success {
            Ok(outcome)
        } else {
            Err(Ends::Refused(Box::new(outcome)))
        }
    }
}

impl Payment {
    /// What only a settlement tells.
    fn learn(&mut self, outcome: &SettleResponse) {
        self.payment_id = Some(outcome.transaction.clone()).filter(|hash| !hash.is_empty());
        let extra = |member: &str| {
            let text = outcome.extra.as_ref()?.get(member)?.as_str()?;
            Some(text.to_owned())
        };
        self.id = extra("paymentId");
        self.session_id = extra("sessionId");
        let payer = outcome.payer.as_deref();
        if let Some(payer) = payer.and_then(|payer| field::parse_address(payer).ok()) {
            self.payer = payer;
        }
    }
}

impl std::fmt::Debug for Shop {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Shop")
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}
