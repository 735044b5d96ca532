//! A priced route.

use std::sync::Arc;

use axum::http::request::Parts;

use crate::seller::offer::Source;
use crate::seller::{Flow, Price, Terms};

/// A priced route.
#[derive(Debug, Clone)]
pub struct Route {
    pub(super) spec: String,
    pub(super) source: Source,
    pub(super) further: Vec<Terms>,
    pub(super) resource_id: Option<String>,
    pub(super) description: Option<String>,
    pub(super) mime_type: Option<String>,
    pub(super) flow: Option<Flow>,
}

impl Route {
    /// A route with a fixed price. `spec` is a path, optionally with a method: `GET /report`, `/files/{*path}`. Segments in braces match
    /// anything, as in axum. Without a method every method is priced. `HEAD` counts as `GET`.
    pub fn new(spec: impl Into<String>, price: Price) -> Self {
        Self::of(spec, Source::Price(price))
    }

    /// A route whose price or payee depends on the request. `terms` is called for the unpaid request and again for the paid one; it must
    /// return the same terms for both, otherwise the payment is refused.
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

    /// Adds another way to pay. Offers are listed in the order in which they were added.
    #[must_use]
    pub fn or(mut self, terms: Terms) -> Self {
        self.further.push(terms);
        self
    }

    /// Sets `extra.resourceId`, which binds payment sessions to this route: a session opened for it cannot pay for another one.
    #[must_use]
    pub fn resource_id(mut self, id: impl Into<String>) -> Self {
        self.resource_id = Some(id.into());
        self
    }

    /// A description of the resource, shown to buyers in the challenge.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }

    /// The MIME type of the paid response; `application/json` unless set.
    #[must_use]
    pub fn mime_type(mut self, text: impl Into<String>) -> Self {
        self.mime_type = Some(text.into());
        self
    }

    /// Overrides the paywall's flow. Metered prices ignore it.
    #[must_use]
    pub const fn flow(mut self, flow: Flow) -> Self {
        self.flow = Some(flow);
        self
    }
}
