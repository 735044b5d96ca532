//! The tower layer: finds the price of a request and lets it through, or into the sale.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::extract::{OriginalUri, Request};
use axum::http::{Method, header};
use axum::response::Response;
use tower::{Layer, Service};

use crate::seller::path::{Meets, find};
use crate::seller::sale::Shop;
use crate::seller::{FacilitatorError, answer};

/// Guards the priced routes of the router that it is layered on.
#[derive(Clone)]
pub struct PaywallLayer {
    shop: Arc<Shop>,
}

/// A service behind a paywall.
#[derive(Clone)]
pub struct PaywallService<S> {
    shop: Arc<Shop>,
    inner: S,
}

impl PaywallLayer {
    pub(super) fn new(shop: Shop) -> Self {
        Self {
            shop: Arc::new(shop),
        }
    }
}

impl PaywallLayer {
    /// Asks the facilitator for its `/supported`, so that one that is not there, redirects or is something else is found when the server
    /// starts, and not by the first buyer. Nothing depends on it.
    ///
    /// # Errors
    /// [`FacilitatorError`] says what is wrong; it is logged too.
    pub async fn check(&self) -> Result<(), FacilitatorError> {
        let answer = self.shop.facilitator.supported().await;
        answer.map(drop).inspect_err(|error| {
            tracing::error!(%error, "facilitator cannot be used; no payment will be taken");
        })
    }
}

impl<S> Layer<S> for PaywallLayer {
    type Service = PaywallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PaywallService {
            shop: Arc::clone(&self.shop),
            inner,
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
        // The clone is not ready yet, the service that was polled is: that one goes.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        match self.shop.price_of(&request) {
            Meets::Nothing => Box::pin(inner.call(request)),
            Meets::Price(_) | Meets::Several if is_preflight(&request) => {
                Box::pin(std::future::ready(Ok(answer::preflight(request.headers()))))
            }
            Meets::Several => Box::pin(std::future::ready(Ok(answer::ambiguous()))),
            Meets::Price(index) => {
                let shop = Arc::clone(&self.shop);
                Box::pin(async move { Ok(shop.sell(index, request, inner).await) })
            }
        }
    }
}

/// Whether a browser asks if a page may send a request.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl Shop {
    /// The path that the router below sees comes first; a layer inside a nested router may be priced by the whole path too.
    fn price_of(&self, request: &Request) -> Meets {
        let patterns = self.routes.iter().map(|route| &route.pattern);
        let seen = find(&patterns, request.method(), request.uri().path());
        match (seen, request.extensions().get::<OriginalUri>()) {
            (Meets::Nothing, Some(OriginalUri(uri))) => {
                find(&patterns, request.method(), uri.path())
            }
            (seen, _) => seen,
        }
    }
}

impl fmt::Debug for PaywallLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PaywallLayer")
            .field("routes", &self.shop.routes.len())
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for PaywallService<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PaywallService")
            .field("routes", &self.shop.routes.len())
            .finish_non_exhaustive()
    }
}
