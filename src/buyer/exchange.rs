//! One HTTP exchange: a request that can be repeated, an answer that is bounded.

use std::fmt;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde_json::Value;

use crate::buyer::{Broken, BuyerError};
use crate::protocol::{PaymentHeader, header};

/// The longest answer that is read, unless the caller says otherwise.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Facilitators and endpoints answer shortly.
const SHORT_BYTES_MAX: usize = 256 * 1024;
/// Longer than a facilitator lets anybody wait who asks for 20 s.
const SHORT_TIMEOUT: Duration = Duration::from_secs(45);
/// Sellers wait up to 90 s for their facilitator, and then their handler runs.
const TIMEOUT: Duration = Duration::from_mins(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;

/// A request that can be made twice: once to learn the price, once with the payment.
#[derive(Clone)]
pub struct Request {
    pub(super) method: Method,
    pub(super) url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    /// A request without headers and body.
    ///
    /// # Errors
    /// [`BuyerError::Url`] unless the URL is one of http or https.
    pub fn new(method: Method, url: &str) -> Result<Self, BuyerError> {
        let shown = || BuyerError::Url(url.chars().take(200).collect());
        let url = Url::parse(url).map_err(|_| shown())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(shown());
        }
        Ok(Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Vec::new(),
        })
    }

    /// Sends these headers too, both times.
    ///
    /// # Errors
    /// [`BuyerError::AlreadyPaid`] when there is a payment among them.
    pub fn headers(mut self, headers: HeaderMap) -> Result<Self, BuyerError> {
        if headers.contains_key(header::PAYMENT_SIGNATURE)
            || headers.contains_key(header::X_PAYMENT)
        {
            return Err(BuyerError::AlreadyPaid);
        }
        self.headers = headers;
        Ok(self)
    }

    /// By what a purchase is known: method, URL and body.
    pub(super) fn identity(&self) -> (&str, &Url, &[u8]) {
        (self.method.as_str(), &self.url, &self.body)
    }

    /// Sends this JSON, both times, and says that it is some.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        let kind = HeaderValue::from_static("application/json");
        self.headers.entry(CONTENT_TYPE).or_insert(kind);
        self.body(body.to_string())
    }

    /// Sends this body, both times.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold the caller's credentials, and so may a query.
        formatter
            .debug_struct("Request")
            .field("method", &self.method)
            .field("origin", &self.url.origin().ascii_serialization())
            .finish_non_exhaustive()
    }
}

/// An answer, complete.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// The two ways of asking: without a payment, following redirects that stay where they are; with one, following none.
#[derive(Debug, Clone)]
pub(super) struct Http {
    asking: reqwest::Client,
    paying: reqwest::Client,
    /// The longest answer of a seller that is read.
    pub(super) body_bytes_max: usize,
}

impl Http {
    pub(super) fn new() -> Result<Self, BuyerError> {
        let client = |policy| {
            reqwest::Client::builder()
                .redirect(policy)
                .timeout(TIMEOUT)
                .connect_timeout(CONNECT_TIMEOUT)
                .build()
                .map_err(BuyerError::Setup)
        };
        Ok(Self {
            asking: client(Policy::custom(within_the_origin))?,
            paying: client(Policy::none())?,
            body_bytes_max: BODY_BYTES_MAX,
        })
    }

    /// Asks without a payment.
    pub(super) async fn ask(&self, request: &Request) -> Result<Answer, Broken> {
        // A followed redirect can turn other methods into GET: then nobody knows what would be paid for.
        let client = match request.method {
            Method::GET | Method::HEAD => &self.asking,
            _ => &self.paying,
        };
        exchange(client, request, HeaderMap::new(), self.body_bytes_max).await
    }

    /// Asks with a payment.
    pub(super) async fn present(
        &self,
        request: &Request,
        payment: &PaymentHeader,
    ) -> Result<Answer, Broken> {
        let mut headers = HeaderMap::new();
        if let Ok(mut value) = HeaderValue::from_str(payment.value()) {
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(payment.name()), value);
        }
        exchange(&self.paying, request, headers, self.body_bytes_max).await
    }

    /// Posts JSON to a facilitator or an endpoint: status and JSON, `None` when there is no such answer. Of a redirect, which is not
    /// followed, the JSON is its target as a text: host and path.
    pub(super) async fn post_json<T: Serialize>(
        &self,
        url: &Url,
        body: &T,
    ) -> Option<(u16, Value)> {
        short_json(self.paying.post(url.clone()).json(body)).await
    }

    /// The same without a body.
    pub(super) async fn get_json(&self, url: &Url) -> Option<(u16, Value)> {
        short_json(self.paying.get(url.clone())).await
    }
}

async fn short_json(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let mut response = request.timeout(SHORT_TIMEOUT).send().await.ok()?;
    let body = bounded(&mut response, SHORT_BYTES_MAX).await.ok()?;
    let status = response.status().as_u16();
    if response.status().is_redirection() {
        return Some((status, Value::String(target_of(&response))));
    }
    Some((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Where a redirect leads: host and path alone, because a query may hold a key.
fn target_of(response: &reqwest::Response) -> String {
    let location = response.headers().get(reqwest::header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let target = location.and_then(|location| response.url().join(location).ok());
    let Some(target) = target else {
        return "a place that it does not name".to_owned();
    };
    let shown = format!("{}{}", target.origin().ascii_serialization(), target.path());
    shown.chars().take(200).collect()
}

async fn bounded(response: &mut reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, Broken> {
    let broken = |error: reqwest::Error| Broken::Transport(error.without_url());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len().saturating_add(chunk.len()) > bytes_max {
            return Err(Broken::TooLong(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A change from http to https of the same host counts as staying; anything else goes back to the caller as it came.
fn within_the_origin(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let (before, after) = (attempt.previous().last(), attempt.url());
    let stays = before.is_some_and(|before| {
        let upgraded = before.scheme() == "http"
            && after.scheme() == "https"
            && before.port().is_none()
            && after.port().is_none();
        before.origin() == after.origin() || (upgraded && before.host() == after.host())
    });
    if stays && attempt.previous().len() <= REDIRECTS_MAX {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

async fn exchange(
    client: &reqwest::Client,
    request: &Request,
    payment: HeaderMap,
    bytes_max: usize,
) -> Result<Answer, Broken> {
    // Errors of the client repeat the URL, which may hold the caller's secrets.
    let broken = |error: reqwest::Error| Broken::Transport(error.without_url());
    let mut response = client
        .request(request.method.clone(), request.url.clone())
        .headers(request.headers.clone())
        .headers(payment)
        .body(request.body.clone())
        .send()
        .await
        .map_err(broken)?;
    let body = bounded(&mut response, bytes_max).await?;
    Ok(Answer {
        url: response.url().clone(),
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body,
    })
}
