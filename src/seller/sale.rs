//! One sale: payment header, handler, settlement and receipt.

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

use crate::protocol::response::checksummed;
use crate::protocol::{Amount, PaymentMethod, PaymentRequirements, Reason, SettleResponse};
use crate::seller::announced::Announced;
use crate::seller::answer::{Quote, body_too_long, internal_error, receipt, unavailable};
use crate::seller::delivery::track_delivery;
use crate::seller::facilitator_address::{FacilitatorAddresses, NoFacilitatorAddress};
use crate::seller::forwarded::ForwardedCheck;
use crate::seller::matching::{MatchedPayment, version_of};
use crate::seller::owed::{ClaimError, ClaimedPurchase, PurchaseKey, Purchases};
use crate::seller::settling::{SaleError, Settlement};
use crate::seller::{Charge, ChargeError, FacilitatorClient, Flow, Hook, Priced};

/// The limit in bytes of a handler's response that is held back until its payment is settled, and of the body of a paid request.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A built paywall: routes, facilitator client and the state of sales.
pub(super) struct PaywallState {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Priced>,
    pub(super) purchases: Purchases,
    pub(super) tasks: TaskTracker,
    pub(super) public_url: Option<Url>,
    pub(super) forwarded: ForwardedCheck,
    pub(super) announced: Announced,
    pub(super) facilitator_addresses: FacilitatorAddresses,
    pub(super) settled: Option<Hook>,
}

impl PaywallState {
    /// Answers a request to the priced route with this index: serves it for a payment, else asks for one.
    pub(super) async fn sell<S>(&self, index: usize, request: Request, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let Some(priced) = self.routes.get(index) else {
            return internal_error();
        };
        let (parts, body) = request.into_parts();
        let quote = match self.quote(priced, &parts).await {
            Ok(quote) => quote,
            Err(response) => return response,
        };
        let (version, page) = (
            version_of(&parts),
            crate::seller::page::is_requested(&parts.headers),
        );
        match self.serve_paid(&quote, (parts, body), inner).await {
            Ok(response) => response,
            Err(SaleError::Internal) => internal_error(),
            Err(SaleError::BodyTooLong) => body_too_long(HELD_BYTES_MAX),
            Err(SaleError::PaymentRequired(None)) if page => quote.page(),
            Err(SaleError::PaymentRequired(error)) => quote.challenge(error.as_deref()),
            Err(SaleError::Refused(outcome)) => quote.refuse(version, &outcome),
            Err(SaleError::InvalidCharge(error)) => {
                tracing::error!(%error, "handler's charge is invalid: nothing was settled");
                internal_error()
            }
            Err(SaleError::NotRecorded(error)) => {
                tracing::error!(%error, "purchase could not be recorded, its payment may be settled: no sale until the file is writable");
                unavailable()
            }
            Err(SaleError::Unavailable(error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "payment not processed: no usable response from the facilitator, it may still settle");
                unavailable()
            }
        }
    }

    /// The offers for a request; the `Err` is the response when it cannot be priced.
    async fn quote(&self, priced: &Priced, parts: &Parts) -> Result<Quote, Response> {
        let mut offers = priced.offers.of(parts).map_err(|error| {
            tracing::error!(%error, "route could not be priced");
            internal_error()
        })?;
        let failure = self.add_facilitator_addresses(&mut offers).await.err();
        if let Some(error) = failure {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "metered offers left out: the facilitator's address is unknown");
            // The other offers of the route stay.
            offers.retain(|offer| offer.payment_method() != Some(PaymentMethod::Metered));
            if offers.is_empty() {
                return Err(unavailable());
            }
        }
        Quote::new(priced, offers, self.url_of(parts), &self.announced).map_err(|error| {
            tracing::error!(%error, "offers could not be serialised");
            internal_error()
        })
    }

    /// Adds `extra.facilitatorAddress` to metered offers: the buyer's signature allows only this account to settle.
    async fn add_facilitator_addresses(
        &self,
        offers: &mut [PaymentRequirements],
    ) -> Result<(), NoFacilitatorAddress> {
        for offer in offers {
            if offer.payment_method() == Some(PaymentMethod::Metered) {
                let address = self
                    .facilitator_addresses
                    .get(offer.network, &self.facilitator)
                    .await?;
                let extra = offer.extra.get_or_insert_default();
                extra.insert("facilitatorAddress".to_owned(), checksummed(address).into());
            }
        }
        Ok(())
    }

    /// Claims the purchase of the request's payment, and serves it in the order of its flow.
    async fn serve_paid<S>(
        &self,
        quote: &Quote,
        (parts, body): (Parts, Body),
        inner: S,
    ) -> Result<Response, SaleError>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let payment =
            MatchedPayment::from_request(&parts, quote).map_err(SaleError::PaymentRequired)?;
        let body = to_bytes(body, HELD_BYTES_MAX)
            .await
            .map_err(|_| SaleError::BodyTooLong)?;
        // A payment belongs to one request: this hash covers method, path, query and body.
        let target = [parts.method.as_str(), " ", path_of(&parts), "\n"].concat();
        let request = keccak256([target.as_bytes(), keccak256(&body).as_slice()].concat());
        let key = payment.key().map(PurchaseKey).ok_or_else(|| {
            SaleError::PaymentRequired(Some(Reason::InvalidPayload.code().to_owned()))
        })?;
        let claim = self.purchases.claim(key, request).map_err(|error| {
            let why = match error {
                ClaimError::AlreadyClaimed => "this payment is being served right now",
                ClaimError::OtherRequest => "this payment is for another request",
            };
            SaleError::PaymentRequired(Some(format!("{}: {why}", Reason::DuplicateSettlement)))
        })?;
        let request = Request::from_parts(parts, Body::from(body));
        let sale = Sale {
            state: self,
            payment,
            claim: Arc::new(claim),
        };
        match sale.payment.flow() {
            Flow::Upfront => sale.serve_settled(request, inner).await,
            Flow::AfterHandler => sale.serve_then_settle(request, inner).await,
        }
    }

    /// The resource URL as buyers see it.
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

/// Path and query as the client sent them, also inside a nested router.
fn path_of(parts: &Parts) -> &str {
    let uri = parts
        .extensions
        .get::<OriginalUri>()
        .map_or(&parts.uri, |original| &original.0);
    uri.path_and_query()
        .map_or("/", axum::http::uri::PathAndQuery::as_str)
}

/// A request with a matching payment whose purchase is claimed.
struct Sale<'a> {
    state: &'a PaywallState,
    payment: MatchedPayment<'a>,
    claim: Arc<ClaimedPurchase>,
}

impl Sale<'_> {
    /// [`Flow::Upfront`]: settles, then runs the handler. If the handler fails, the purchase stays owed.
    async fn serve_settled<S>(
        mut self,
        mut request: Request,
        mut inner: S,
    ) -> Result<Response, SaleError>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let outcome = self.settlement(self.payment.offer.amount).await?;
        request
            .extensions_mut()
            .insert(self.payment.details.clone());
        let Ok(mut response) = inner.call(request).await;
        if let Err(error) = self.charge(&mut response) {
            tracing::error!(%error, "charge ignored: the payment was settled before the handler ran");
        }
        Ok(self.deliver(response, &outcome))
    }

    /// [`Flow::AfterHandler`]: runs the handler, and holds its response back until the payment is settled.
    async fn serve_then_settle<S>(
        mut self,
        mut request: Request,
        mut inner: S,
    ) -> Result<Response, SaleError>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        if self.claim.owed.is_none() && !self.claim.was_settling {
            self.verify().await?;
        }
        request
            .extensions_mut()
            .insert(self.payment.details.clone());
        let Ok(mut response) = inner.call(request).await;
        let charge = self.charge(&mut response);
        if response.status().as_u16() >= 400 {
            return Ok(response);
        }
        let charge = match charge {
            // An earlier settlement is final: the charge of this run of the handler is not used.
            _ if self.claim.owed.is_some() => self.payment.offer.amount,
            Ok(charge) => charge,
            Err(error) => return Err(SaleError::InvalidCharge(error)),
        };
        let (parts, body) = response.into_parts();
        let Ok(held) = to_bytes(body, HELD_BYTES_MAX).await else {
            tracing::error!(
                bytes_max = HELD_BYTES_MAX,
                "handler's response is incomplete or too long to be held back: nothing was settled"
            );
            return Err(SaleError::Internal);
        };
        let outcome = self.settlement(charge).await?;
        let response = Response::from_parts(parts, Body::from(held));
        Ok(self.deliver(response, &outcome))
    }

    /// Removes the charge from a handler's response; without one the whole price is charged.
    fn charge(&self, response: &mut Response) -> Result<Amount, ChargeError> {
        let offer = self.payment.offer;
        match Charge::take_from(response)? {
            Some(charge) => charge.resolve(offer),
            None => Ok(offer.amount),
        }
    }

    /// Adds the receipt. After a server error of the handler the purchase stays owed; otherwise it is closed once the response was sent
    /// completely.
    fn deliver(self, response: Response, outcome: &SettleResponse) -> Response {
        let response = receipt(response, self.payment.presented.version, outcome);
        if response.status().is_server_error() {
            tracing::warn!(transaction = %outcome.transaction, "handler of a paid request failed: the same payment can be presented again");
            return response;
        }
        track_delivery(response, self.claim)
    }

    async fn verify(&self) -> Result<(), SaleError> {
        let payment = &self.payment.presented;
        let verdict = self
            .state
            .facilitator
            .verify(payment.version, payment.raw(), self.payment.offer_json)
            .await?;
        if verdict.is_valid {
            return Ok(());
        }
        let reason = verdict.invalid_reason;
        self.refresh_facilitator_address(reason.as_deref());
        Err(SaleError::PaymentRequired(Some(
            reason.unwrap_or_else(|| "the payment is not valid".to_owned()),
        )))
    }

    /// Forgets the facilitator's address after a mismatch: the facilitator settles from another account now, and is asked for it again.
    fn refresh_facilitator_address(&self, reason: Option<&str>) {
        if reason == Some(Reason::UptoFacilitatorMismatch.code()) {
            self.state
                .facilitator_addresses
                .forget(self.payment.offer.network);
        }
    }

    /// The settlement of this payment: the earlier one when its resource is owed, else a new one for `charge`. A new one runs in a task of
    /// its own, because the facilitator's response must be recorded even when the buyer disconnects.
    async fn settlement(&mut self, charge: Amount) -> Result<SettleResponse, SaleError> {
        if let Some(outcome) = self.claim.owed.clone() {
            self.payment.apply(&outcome);
            return Ok(outcome);
        }
        let metered = self.payment.offer.payment_method() == Some(PaymentMethod::Metered);
        let mut requirements = self.payment.offer_json.clone();
        if let Some(requirements) = requirements.as_object_mut().filter(|_| metered) {
            requirements.insert("amount".to_owned(), charge.to_string().into());
        }
        let settlement = Settlement {
            facilitator: self.state.facilitator.clone(),
            payment: self.payment.presented.clone(),
            requirements,
            network: self.payment.details.network,
            charge: metered.then_some(charge),
            claim: Arc::clone(&self.claim),
        };
        let outcome = self.state.tasks.spawn(settlement.run()).await;
        let outcome = outcome.map_err(|_| SaleError::Internal)?;
        if let Err(SaleError::Refused(refusal)) = &outcome {
            self.refresh_facilitator_address(refusal.error_reason.as_deref());
        }
        let outcome = outcome?;
        self.payment.apply(&outcome);
        if let Some(hook) = &self.state.settled {
            hook(&self.payment.details);
        }
        Ok(outcome)
    }
}

impl std::fmt::Debug for PaywallState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PaywallState")
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}
