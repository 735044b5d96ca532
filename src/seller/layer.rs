//! The tower layer: finds the price of a request, and passes unpriced requests through.

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

use crate::seller::path::{PriceMatch, find};
use crate::seller::sale::PaywallState;
use crate::seller::{FacilitatorError, answer};

/// The paywall as a tower layer. It guards the priced routes of the router that it is layered on; see [`crate::seller::Paywall::build`].
#[derive(Clone)]
pub struct PaywallLayer {
    state: Arc<PaywallState>,
}

/// The service that [`PaywallLayer`] wraps around a router.
#[derive(Clone)]
pub struct PaywallService<S> {
    state: Arc<PaywallState>,
    inner: S,
}

impl PaywallLayer {
    pub(super) fn new(state: PaywallState) -> Self {
        Self {
            state: Arc::new(state),
        }
    }
}

impl PaywallLayer {
    /// Requests the facilitator's `/supported`. Call it when the server starts, to find a facilitator that is unreachable, redirects or is
    /// not an x402 facilitator before the first buyer does. Calling it is optional.
    ///
    /// # Errors
    /// [`FacilitatorError`], which is logged too.
    pub async fn check(&self) -> Result<(), FacilitatorError> {
        let answer = self.state.facilitator.supported().await;
        answer.map(drop).inspect_err(|error| {
            tracing::error!(%error, "facilitator check failed: payments will be refused");
        })
    }
}

impl<S> Layer<S> for PaywallLayer {
    type Service = PaywallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        PaywallService {
            state: Arc::clone(&self.state),
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
        // Only the polled service is ready, so it takes the request and the clone replaces it (see `tower::Service`).
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        match self.state.price_of(&request) {
            PriceMatch::Unpriced => Box::pin(inner.call(request)),
            PriceMatch::Route(_) | PriceMatch::Ambiguous if is_preflight(&request) => {
                Box::pin(std::future::ready(Ok(answer::preflight(request.headers()))))
            }
            PriceMatch::Ambiguous => Box::pin(std::future::ready(Ok(answer::ambiguous()))),
            PriceMatch::Route(index) => {
                let state = Arc::clone(&self.state);
                Box::pin(async move { Ok(state.sell(index, request, inner).await) })
            }
        }
    }
}

/// Whether the request is a CORS preflight.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ORIGIN)
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

impl PaywallState {
    /// Matches the path that the inner router sees first. A paywall inside a nested router may also be priced by the whole path.
    fn price_of(&self, request: &Request) -> PriceMatch {
        let patterns = self.routes.iter().map(|route| &route.pattern);
        let matched = find(&patterns, request.method(), request.uri().path());
        match (matched, request.extensions().get::<OriginalUri>()) {
            (PriceMatch::Unpriced, Some(OriginalUri(uri))) => {
                find(&patterns, request.method(), uri.path())
            }
            (matched, _) => matched,
        }
    }
}

impl fmt::Debug for PaywallLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PaywallLayer")
            .field("routes", &self.state.routes.len())
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for PaywallService<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PaywallService")
            .field("routes", &self.state.routes.len())
            .finish_non_exhaustive()
    }
}
