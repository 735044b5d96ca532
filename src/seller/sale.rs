//! One sale: from the payment header to the handler and the receipt.

use std::convert::Infallible;
use std::sync::Arc;

use alloy::primitives::keccak256;
use axum::body::{Body, to_bytes};
use axum::extract::{OriginalUri, Request};
use axum::http::header::HOST;
use axum::http::request::Parts;
use axum::response::Response;
use tokio_util::task::TaskTracker;
use tower::Service;
use url::Url;

use crate::protocol::response::spelled;
use crate::protocol::{Amount, Means, PaymentRequirements, Reason, SettleResponse};
use crate::seller::announced::Announced;
use crate::seller::answer::{Quote, broken, outage, receipt, too_long};
use crate::seller::delivery::watched;
use crate::seller::forwarded::Forwarded;
use crate::seller::owed::{PurchaseKey, Purchases, Refused, Serving};
use crate::seller::settlers::{NoSettler, Settlers};
use crate::seller::settling::{Ends, Settling};
use crate::seller::tender::{Tendered, dialect};
use crate::seller::{Charge, ChargeError, FacilitatorClient, Flow, Hook, Priced};

/// The longest answer of a handler that is held back until its payment is settled, and the longest body of a paid request.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What is sold, and who settles.
pub(super) struct Shop {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Priced>,
    pub(super) purchases: Purchases,
    pub(super) tasks: TaskTracker,
    pub(super) public_url: Option<Url>,
    pub(super) forwarded: Forwarded,
    pub(super) announced: Announced,
    pub(super) settlers: Settlers,
    pub(super) settled: Option<Hook>,
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
        let quote = match self.quote(priced, &parts).await {
            Ok(quote) => quote,
            Err(response) => return response,
        };
        let (version, page) = (
            dialect(&parts),
            crate::seller::page::is_wanted(&parts.headers),
        );
        match self.trade(&quote, (parts, body), inner).await {
            Ok(response) => response,
            Err(Ends::Broken) => broken(),
            Err(Ends::TooLong) => too_long(HELD_BYTES_MAX),
            Err(Ends::Ask(None)) if page => quote.page(),
            Err(Ends::Ask(error)) => quote.challenge(error.as_deref()),
            Err(Ends::Refused(outcome)) => quote.refuse(version, &outcome),
            Err(Ends::Misjudged(error)) => {
                tracing::error!(%error, "a handler charges what cannot be charged; nothing was settled");
                broken()
            }
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

    /// What the request is asked for; the `Err` is the answer where that cannot be said.
    async fn quote(&self, priced: &Priced, parts: &Parts) -> Result<Quote, Response> {
        let mut offers = priced.offers.of(parts).map_err(|error| {
            tracing::error!(%error, "a route cannot be priced");
            broken()
        })?;
        let trouble = self.name_settlers(&mut offers).await.err();
        if let Some(error) = trouble {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "nothing metered can be sold now");
            // What can be sold in another way is.
            offers.retain(|offer| offer.means() != Some(Means::Metered));
            if offers.is_empty() {
                return Err(outage());
            }
        }
        Quote::new(priced, offers, self.url_of(parts), &self.announced).map_err(|error| {
            tracing::error!(%error, "a price has no JSON form");
            broken()
        })
    }

    /// Metered offers say who will settle them: the buyer signs for nobody else.
    async fn name_settlers(&self, offers: &mut [PaymentRequirements]) -> Result<(), NoSettler> {
        for offer in offers {
            if offer.means() == Some(Means::Metered) {
                let settler = self.settlers.on(offer.network, &self.facilitator).await?;
                let extra = offer.extra.get_or_insert_default();
                extra.insert("facilitatorAddress".to_owned(), spelled(settler).into());
            }
        }
        Ok(())
    }

    async fn trade<S>(
        &self,
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
        match sale.tendered.flow() {
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
        let url = format!("http://{host}{path}");
        self.forwarded.compare(&parts.headers, &url);
        url
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
        let outcome = self.settlement(self.tendered.terms.amount).await?;
        request.extensions_mut().insert(self.tendered.facts.clone());
        let Ok(mut response) = inner.call(request).await;
        if let Err(error) = self.charge(&mut response) {
            tracing::error!(%error, "a handler charges for what was paid already; the charge is ignored");
        }
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
        let Ok(mut response) = inner.call(request).await;
        let charge = self.charge(&mut response);
        if response.status().as_u16() >= 400 {
            return Ok(response);
        }
        let charge = match charge {
            // What was settled before stays as it is, whatever this run of the handler comes to.
            _ if self.serving.owed.is_some() => self.tendered.terms.amount,
            Ok(charge) => charge,
            Err(error) => return Err(Ends::Misjudged(error)),
        };
        let (parts, body) = response.into_parts();
        let Ok(held) = to_bytes(body, HELD_BYTES_MAX).await else {
            tracing::error!(
                bytes_max = HELD_BYTES_MAX,
                "the answer broke off or is too long to be held back; nothing was settled"
            );
            return Err(Ends::Broken);
        };
        let outcome = self.settlement(charge).await?;
        let response = Response::from_parts(parts, Body::from(held));
        Ok(self.hand_over(response, &outcome))
    }

    /// What a handler's answer charges, taken out of it: all of the price when it says nothing.
    fn charge(&self, response: &mut Response) -> Result<Amount, ChargeError> {
        let terms = self.tendered.terms;
        match Charge::taken_from(response)? {
            Some(charge) => charge.on(terms),
            None => Ok(terms.amount),
        }
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
        self.look_after_settler(reason.as_deref());
        Err(Ends::Ask(Some(
            reason.unwrap_or_else(|| "the payment is not valid".to_owned()),
        )))
    }

    /// A facilitator that does not know the account which it named before will name another one.
    fn look_after_settler(&self, reason: Option<&str>) {
        if reason == Some(Reason::UptoFacilitatorMismatch.code()) {
            self.shop.settlers.forget(self.tendered.terms.network);
        }
    }

    /// The settlement of this payment: the one of before, when its resource is owed, else a new one for `charge`. Once begun it goes on
    /// without the buyer: what the facilitator says to nobody would be lost.
    async fn settlement(&mut self, charge: Amount) -> Result<SettleResponse, Ends> {
        if let Some(outcome) = self.serving.owed.clone() {
            self.tendered.learn(&outcome);
            return Ok(outcome);
        }
        let metered = self.tendered.terms.means() == Some(Means::Metered);
        let mut requirements = self.tendered.requirements.clone();
        if let Some(requirements) = requirements.as_object_mut().filter(|_| metered) {
            requirements.insert("amount".to_owned(), charge.to_string().into());
        }
        let settling = Settling {
            facilitator: self.shop.facilitator.clone(),
            payment: self.tendered.payment.clone(),
            requirements,
            network: self.tendered.facts.network,
            charge: metered.then_some(charge),
            serving: Arc::clone(&self.serving),
        };
        let outcome = self.shop.tasks.spawn(settling.run()).await;
        let outcome = outcome.map_err(|_| Ends::Broken)?;
        if let Err(Ends::Refused(refusal)) = &outcome {
            self.look_after_settler(refusal.error_reason.as_deref());
        }
        let outcome = outcome?;
        self.tendered.learn(&outcome);
        if let Some(hook) = &self.shop.settled {
            hook(&self.tendered.facts);
        }
        Ok(outcome)
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
