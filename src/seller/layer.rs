//! The gate: no payment, no handler.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::Request;
use axum::response::Response;
use tower::{Layer, Service};

use super::client::Call;
use super::offer::{Presented, presented, resource_url, taken};
use super::paywall::Route;
use super::{FacilitatorError, Flow, Payment, Paywall, answer};
use crate::protocol::SettleResponse;

/// Puts a [`Paywall`] around an application.
#[derive(Debug, Clone)]
pub struct PaywallLayer(pub(super) Arc<Paywall>);

/// An application behind a [`Paywall`].
#[derive(Debug, Clone)]
pub struct PaywallService<S> {
    inner: S,
    paywall: Arc<Paywall>,
}

impl<S> Layer<S> for PaywallLayer {
    type Service = PaywallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PaywallService {
            inner,
            paywall: Arc::clone(&self.0),
        }
    }
}

impl<S> Service<Request> for PaywallService<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // The service that was polled ready is the one to be called; its clone waits for the next request.
        let clone = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, clone);
        let paywall = Arc::clone(&self.paywall);
        Box::pin(async move { gate(&paywall, inner, request).await })
    }
}

async fn gate<S>(paywall: &Paywall, mut inner: S, request: Request) -> Result<Response, Infallible>
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    let Some(route) = paywall.priced(request.method(), request.uri().path()) else {
        return inner.call(request).await;
    };
    let resource = resource_url(request.uri(), request.headers());
    let Some(presented) = presented(request.headers()) else {
        return Ok(answer::payment_required(
            route,
            &resource,
            "Payment required",
        ));
    };
    let Some(requirements) = taken(route, &resource, &presented) else {
        return Ok(answer::payment_required(
            route,
            &resource,
            "No matching payment requirements",
        ));
    };
    let call = Call {
        x402_version: presented.version,
        payment_payload: &presented.payload,
        payment_requirements: &requirements,
    };
    let sale = Sale {
        paywall,
        route,
        resource: &resource,
        presented: &presented,
        call: &call,
    };
    match route.flow {
        Flow::Upfront => sale.settle_first(inner, request).await,
        Flow::AfterHandler => sale.settle_last(inner, request).await,
    }
}

struct Sale<'a> {
    paywall: &'a Paywall,
    route: &'a Route,
    resource: &'a str,
    presented: &'a Presented,
    call: &'a Call<'a>,
}

impl Sale<'_> {
    async fn settle_first<S>(
        &self,
        mut inner: S,
        mut request: Request,
    ) -> Result<Response, Infallible>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        match self.settle().await {
            Ok(settlement) if settlement.success => {
                request
                    .extensions_mut()
                    .insert(Payment::settled(&self.route.requirements, &settlement));
                let response = inner.call(request).await?;
                Ok(answer::with_proof(
                    response,
                    self.presented.version,
                    &settlement,
                ))
            }
            Ok(settlement) => Ok(self.not_settled(&settlement)),
            Err(_) => Ok(answer::no_verdict()),
        }
    }

    async fn settle_last<S>(
        &self,
        mut inner: S,
        mut request: Request,
    ) -> Result<Response, Infallible>
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let Ok(verdict) = self.paywall.facilitator.verify(self.call).await else {
            return Ok(answer::no_verdict());
        };
        if !verdict.is_valid {
            let why = verdict
                .invalid_reason
                .unwrap_or_else(|| "the payment is not valid".to_owned());
            return Ok(answer::payment_required(self.route, self.resource, &why));
        }
        request.extensions_mut().insert(Payment::verified(
            &self.route.requirements,
            verdict.payer.as_deref(),
        ));
        let response = inner.call(request).await?;
        if response.status().is_client_error() || response.status().is_server_error() {
            return Ok(response);
        }
        match self.settle().await {
            Ok(settlement) if settlement.success => Ok(answer::with_proof(
                response,
                self.presented.version,
                &settlement,
            )),
            Ok(settlement) => Ok(self.not_settled(&settlement)),
            Err(_) => Ok(answer::no_verdict()),
        }
    }

    /// Settles, and asks once more at once while the outcome is open, as the official sellers do.
    async fn settle(&self) -> Result<SettleResponse, FacilitatorError> {
        let first = self.paywall.facilitator.settle(self.call).await?;
        let open = first.error_reason.as_deref() == Some("settlement_pending")
            && !first.transaction.is_empty();
        if open {
            self.paywall.facilitator.settle(self.call).await
        } else {
            Ok(first)
        }
    }

    fn not_settled(&self, settlement: &SettleResponse) -> Response {
        answer::not_settled(
            self.route,
            self.resource,
            self.presented.version,
            settlement,
        )
    }
}
