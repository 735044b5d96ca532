//! One sale: payment header, handler, settlement and receipt.

use std::convert::Infallible;
use std::sync::Arc;

use alloy::primitives::{B256, keccak256};
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::request::Parts;
use axum::response::Response;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::TaskTracker;
use tower::Service;
use url::Url;

use crate::clock::Clock;
use crate::protocol::response::checksummed;
use crate::protocol::{Amount, PaymentMethod, PaymentRequirements, Reason, SettleResponse};
use crate::seller::announced::Announced;
use crate::seller::answer::{self, Quote, internal_error, receipt, unavailable};
use crate::seller::copies::{AnswerCopy, Copies};
use crate::seller::delivery::track_delivery;
use crate::seller::facilitator_address::{FacilitatorAddresses, NoFacilitatorAddress};
use crate::seller::forwarded::ForwardedCheck;
use crate::seller::held::{BodyLimits, BodyReader, Progress, Room, UNVERIFIED_BYTES_MAX};
use crate::seller::matching::{MatchedPayment, version_of};
use crate::seller::owed::{BodyPlace, ClaimError, ClaimedPurchase, Purchases};
use crate::seller::resource::{self, InvalidHost, path_of};
use crate::seller::settling::{SaleError, Settlement};
use crate::seller::suspended::SuspendedPayers;
use crate::seller::{Charge, ChargeError, FacilitatorClient, Flow, Hook, Priced};

/// The limit in bytes of a handler's response that is held back until its payment is settled.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A built paywall: routes, facilitator client and the state of sales.
pub(super) struct PaywallState {
    pub(super) facilitator: FacilitatorClient,
    pub(super) routes: Vec<Priced>,
    pub(super) purchases: Purchases,
    pub(super) copies: Copies,
    pub(super) suspended: SuspendedPayers,
    pub(super) limits: BodyLimits,
    pub(super) room: Room,
    pub(super) clock: Arc<dyn Clock>,
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
            Err(SaleError::BodyTooLong) => answer::body_too_long(self.limits.bytes_max),
            Err(SaleError::BodyTooSlow) => answer::body_too_slow(),
            Err(SaleError::Busy) => {
                tracing::warn!(
                    held_bytes_max = self.limits.held_bytes_max,
                    "paid request turned away: too many bodies are held in memory"
                );
                answer::busy()
            }
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
        let url = self
            .url_of(parts)
            .map_err(|InvalidHost| answer::invalid_host())?;
        Quote::new(priced, offers, url, &self.announced).map_err(|error| {
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
        let mut reader = BodyReader::new(body, Some(self.limits.deadline));
        let (verified, place) = self.read_body(&payment, &mut reader).await?;
        let (body, room) = reader.finish();
        let claim = self.claim(&payment, request_hash(&parts, &body))?;
        let request = Request::from_parts(parts, Body::from(body));
        let sale = Sale {
            state: self,
            payment,
            claim: Arc::new(claim),
            verified,
            _held: (room, place),
        };
        if let Some(copy) = sale.claim.copy.clone() {
            return sale.serve_copy(&copy);
        }
        let unasked = sale.claim.owed.is_none() && !sale.claim.was_settling;
        match sale.payment.flow() {
            Flow::AfterHandler if unasked => sale.serve_then_settle(request, inner).await,
            Flow::AfterHandler | Flow::Upfront => sale.serve_settled(request, inner).await,
        }
    }

    /// Reads the body of a paid request. Beyond [`UNVERIFIED_BYTES_MAX`], or without room for unverified payments, it is read only for a
    /// payment that the facilitator finds valid or that is known here, and one of them at a time. Returns whether the payment was verified,
    /// and the place of its body.
    async fn read_body(
        &self,
        payment: &MatchedPayment<'_>,
        reader: &mut BodyReader,
    ) -> Result<(bool, Option<BodyPlace>), SaleError> {
        let bytes_max = self.limits.bytes_max;
        let first = reader
            .read(bytes_max.min(UNVERIFIED_BYTES_MAX), &self.room.unverified)
            .await?;
        if first == Progress::Complete {
            return Ok((false, None));
        }
        if reader.length_min() > u64::try_from(bytes_max).unwrap_or(u64::MAX) {
            return Err(SaleError::BodyTooLong);
        }
        // A settled payment is not valid any more, and its buyer may come back for what is owed.
        let is_known = self.purchases.knows(payment.identity);
        if !is_known {
            self.verify(payment).await?;
        }
        let place = self.purchases.place_for_body(payment.identity);
        let place = place.map_err(not_claimed)?;
        match reader.read(bytes_max, &self.room.verified).await? {
            Progress::Complete => Ok((!is_known, Some(place))),
            Progress::LimitReached => Err(SaleError::BodyTooLong),
            Progress::NoRoom => Err(SaleError::Busy),
        }
    }

    fn claim(
        &self,
        payment: &MatchedPayment<'_>,
        request: B256,
    ) -> Result<ClaimedPurchase, SaleError> {
        let timeout_s = payment.offer.max_timeout_seconds;
        let claimed = self.purchases.claim(payment.identity, request, timeout_s);
        claimed.map_err(not_claimed)
    }

    async fn verify(&self, payment: &MatchedPayment<'_>) -> Result<(), SaleError> {
        let presented = &payment.presented;
        let verdict = self
            .facilitator
            .verify(presented.version, presented.raw(), payment.offer_json)
            .await?;
        if verdict.is_valid {
            return Ok(());
        }
        let reason = verdict.invalid_reason;
        self.refresh_facilitator_address(payment, reason.as_deref());
        Err(SaleError::PaymentRequired(Some(
            reason.unwrap_or_else(|| "the payment is not valid".to_owned()),
        )))
    }

    /// Forgets the facilitator's address after a mismatch: the facilitator settles from another account now, and is asked for it again.
    fn refresh_facilitator_address(&self, payment: &MatchedPayment<'_>, reason: Option<&str>) {
        if reason == Some(Reason::UptoFacilitatorMismatch.code()) {
            self.facilitator_addresses.forget(payment.offer.network);
        }
    }

    /// The resource URL as buyers see it.
    fn url_of(&self, parts: &Parts) -> Result<String, InvalidHost> {
        if let Some(base) = &self.public_url {
            return Ok(resource::below(base, parts));
        }
        let url = resource::at_named_host(parts)?;
        self.forwarded.compare(&parts.headers, &url);
        Ok(url)
    }

    /// The present time in Unix seconds.
    fn now(&self) -> i64 {
        self.clock.now().unix_timestamp()
    }
}

/// The answer for a payment that cannot be claimed.
fn not_claimed(error: ClaimError) -> SaleError {
    let why = match error {
        ClaimError::NoRandomness => return SaleError::Internal,
        // A retry may find it free, so it is no refusal of the payment.
        ClaimError::BodyHeld => return SaleError::Busy,
        ClaimError::AlreadyClaimed => "this payment is being served right now",
        ClaimError::OtherRequest => "this payment is for another request",
    };
    SaleError::PaymentRequired(Some(format!("{}: {why}", Reason::DuplicateSettlement)))
}

/// A payment buys one request: this hash covers method, path, query and body.
fn request_hash(parts: &Parts, body: &Bytes) -> B256 {
    let target = [parts.method.as_str(), " ", path_of(parts), "\n"].concat();
    keccak256([target.as_bytes(), keccak256(body).as_slice()].concat())
}

/// A request with a matching payment whose purchase is claimed.
struct Sale<'a> {
    state: &'a PaywallState,
    payment: MatchedPayment<'a>,
    claim: Arc<ClaimedPurchase>,
    /// The facilitator has found the payment valid for this request.
    verified: bool,
    /// What the request's body takes: its bytes, and the place of a long one.
    _held: (Option<OwnedSemaphorePermit>, Option<BodyPlace>),
}

impl Sale<'_> {
    /// Settles, or has settled before, then runs the handler. If the handler fails, the purchase stays owed.
    async fn serve_settled<S>(
        mut self,
        mut request: Request,
        mut inner: S,
    ) -> Result<Response, SaleError>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        // What an earlier call asked for is asked for again: the payment may have been settled by it.
        let charge = self.claim.earlier_charge;
        let charge = charge.unwrap_or(self.payment.offer.amount);
        let outcome = self.settlement(charge).await?;
        request
            .extensions_mut()
            .insert(self.payment.details.clone());
        self.claim.begin_answer();
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
        self.refuse_suspended()?;
        if !self.verified {
            self.state.verify(&self.payment).await?;
        }
        request
            .extensions_mut()
            .insert(self.payment.details.clone());
        let Ok(mut response) = inner.call(request).await;
        let charge = self.charge(&mut response);
        if response.status().as_u16() >= 400 {
            return Ok(response);
        }
        let charge = charge.map_err(SaleError::InvalidCharge)?;
        let (parts, body) = response.into_parts();
        let mut reader = BodyReader::new(body, None);
        let read = reader
            .read(RESPONSE_BYTES_MAX, &self.state.room.verified)
            .await;
        match read {
            Ok(Progress::Complete) => {}
            Ok(Progress::NoRoom) => return Err(SaleError::Busy),
            Ok(Progress::LimitReached) | Err(_) => {
                tracing::error!(
                    bytes_max = RESPONSE_BYTES_MAX,
                    "handler's response is incomplete or too long to be held back: nothing was settled"
                );
                return Err(SaleError::Internal);
            }
        }
        let (held, _room) = reader.finish();
        let outcome = self.settlement(charge).await;
        self.count_outcome(&outcome);
        let outcome = outcome?;
        self.claim.begin_answer();
        let response = Response::from_parts(parts, Body::from(held));
        Ok(self.deliver(response, &outcome))
    }

    /// Refuses a payer whose verified payments did not settle after the handler had run.
    fn refuse_suspended(&self) -> Result<(), SaleError> {
        let (payer, now) = (self.payment.identity.payer, self.state.now());
        match payer.and_then(|payer| self.state.suspended.until(payer, now)) {
            None => Ok(()),
            Some(until) => Err(SaleError::PaymentRequired(Some(format!(
                "payer_suspended: earlier payments of this payer were valid and could not be settled; nothing is served to it until {until} (Unix \
                 seconds), and nothing was settled"
            )))),
        }
    }

    /// Counts whether a verified payment settled after the handler had run.
    fn count_outcome(&self, outcome: &Result<SettleResponse, SaleError>) {
        let Some(payer) = self.payment.identity.payer else {
            return;
        };
        match outcome {
            Ok(_) => self.state.suspended.record_success(payer),
            Err(error) if error.is_final_refusal() => {
                self.state.suspended.record_failure(payer, self.state.now());
                tracing::warn!(%payer, "verified payment not settled after the handler ran: its payer has to wait");
            }
            Err(_) => {}
        }
    }

    /// Serves a copy of the answer that broke off.
    fn serve_copy(mut self, copy: &AnswerCopy) -> Result<Response, SaleError> {
        let outcome = self.claim.owed.clone().ok_or(SaleError::Internal)?;
        self.payment.apply(&outcome);
        self.claim.begin_answer();
        let response = receipt(copy.response(), self.payment.presented.version, &outcome);
        let tasks = self.state.tasks.clone();
        Ok(track_delivery(response, self.claim, (None, tasks)))
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
        let version = self.payment.presented.version;
        let lowest_failure = match self.payment.flow() {
            Flow::Upfront => 500,
            // Nothing would have been charged for it in the first place.
            Flow::AfterHandler => 400,
        };
        if response.status().as_u16() >= lowest_failure {
            tracing::warn!(transaction = %outcome.transaction, "handler of a paid request failed: the same payment can be presented again");
            self.claim.record_failed();
            return receipt(response, version, outcome);
        }
        let copying = self.state.copies.begin(&response);
        let response = receipt(response, version, outcome);
        track_delivery(response, self.claim, (copying, self.state.tasks.clone()))
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
            let reason = refusal.error_reason.as_deref();
            self.state
                .refresh_facilitator_address(&self.payment, reason);
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
