//! HTTP exchanges: a repeatable request and a response with bounded length.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Method, StatusCode, Url};
use serde::Serialize;
use serde_json::Value;

use crate::buyer::reach::{PublicOnly, may_be_public};
use crate::buyer::{BuyerError, ExchangeError};
use crate::protocol::{PaymentHeader, header};

/// The default limit of a response body.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The limit of a JSON response of a facilitator or an RPC endpoint.
const JSON_BYTES_MAX: usize = 256 * 1024;
/// Longer than a facilitator holds a long poll of 20 s.
const JSON_TIMEOUT: Duration = Duration::from_secs(45);
/// Sellers wait up to 90 s for their facilitator, and their handler runs as well.
const TIMEOUT: Duration = Duration::from_mins(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 5;

/// An HTTP request that is sent twice: once to get the price, once with the payment.
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
    /// [`BuyerError::Url`] unless `url` is an http or https URL.
    pub fn new(method: Method, url: &str) -> Result<Self, BuyerError> {
        let invalid = || BuyerError::Url(url.chars().take(200).collect());
        let url = Url::parse(url).map_err(|_| invalid())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(invalid());
        }
        Ok(Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: Vec::new(),
        })
    }

    /// Sets the headers of both requests.
    ///
    /// # Errors
    /// [`BuyerError::AlreadyPaid`] when a payment header is among them.
    pub fn headers(mut self, headers: HeaderMap) -> Result<Self, BuyerError> {
        if headers.contains_key(header::PAYMENT_SIGNATURE)
            || headers.contains_key(header::X_PAYMENT)
        {
            return Err(BuyerError::AlreadyPaid);
        }
        self.headers = headers;
        Ok(self)
    }

    /// What identifies the purchase: method, URL and body.
    pub(super) fn identity(&self) -> (&str, &Url, &[u8]) {
        (self.method.as_str(), &self.url, &self.body)
    }

    /// Sets a JSON body for both requests, and `content-type: application/json` unless the headers have one.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        let content_type = HeaderValue::from_static("application/json");
        self.headers.entry(CONTENT_TYPE).or_insert(content_type);
        self.body(body.to_string())
    }

    /// Sets the body of both requests.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and query may contain the caller's credentials.
        formatter
            .debug_struct("Request")
            .field("method", &self.method)
            .field("origin", &self.url.origin().ascii_serialization())
            .finish_non_exhaustive()
    }
}

/// A complete HTTP response.
pub(super) struct Answer {
    pub(super) url: Url,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

/// Three HTTP clients: requests without a payment follow redirects within their origin, requests with a payment follow none, and requests to
/// hosts that a seller names reach public addresses alone.
#[derive(Debug, Clone)]
pub(super) struct Http {
    unpaid_client: reqwest::Client,
    paid_client: reqwest::Client,
    public_client: reqwest::Client,
    /// The limit of a seller's response body, in bytes.
    pub(super) body_bytes_max: usize,
}

impl Http {
    pub(super) fn new() -> Result<Self, BuyerError> {
        let client = |policy| {
            reqwest::Client::builder()
                .redirect(policy)
                .timeout(TIMEOUT)
                .connect_timeout(CONNECT_TIMEOUT)
        };
        let unpaid_client = client(Policy::custom(same_origin_only)).build();
        let paid_client = client(Policy::none()).build();
        // A proxy would look names up itself.
        let public_client = client(Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(PublicOnly::new()))
            .build();
        Ok(Self {
            unpaid_client: unpaid_client.map_err(BuyerError::Setup)?,
            paid_client: paid_client.map_err(BuyerError::Setup)?,
            public_client: public_client.map_err(BuyerError::Setup)?,
            body_bytes_max: BODY_BYTES_MAX,
        })
    }

    /// Sends a request without a payment.
    pub(super) async fn send_unpaid(&self, request: &Request) -> Result<Answer, ExchangeError> {
        // A followed redirect can turn other methods into GET, and the payment would then be for another request.
        let client = match request.method {
            Method::GET | Method::HEAD => &self.unpaid_client,
            _ => &self.paid_client,
        };
        exchange(client, request, HeaderMap::new(), self.body_bytes_max).await
    }

    /// Sends a request with a payment.
    pub(super) async fn send_paid(
        &self,
        request: &Request,
        payment: &PaymentHeader,
    ) -> Result<Answer, ExchangeError> {
        let mut headers = HeaderMap::new();
        if let Ok(mut value) = HeaderValue::from_str(payment.value()) {
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static(payment.name()), value);
        }
        exchange(&self.paid_client, request, headers, self.body_bytes_max).await
    }

    /// Sends a JSON POST to a URL of the caller's. Returns status and JSON body, `None` without a complete response. Redirects are not
    /// followed: for one the JSON is a string with the target's origin and path.
    pub(super) async fn post_json<T: Serialize>(
        &self,
        url: &Url,
        body: &T,
    ) -> Option<(u16, Value)> {
        json_exchange(self.paid_client.post(url.clone()).json(body)).await
    }

    /// The same for a facilitator, which is reached at public addresses alone unless it is `trusted`.
    pub(super) async fn post_to_facilitator<T: Serialize>(
        &self,
        (url, trusted): (&Url, bool),
        body: &T,
    ) -> Option<(u16, Value)> {
        let client = self.facilitator_client(url, trusted)?;
        json_exchange(client.post(url.clone()).json(body)).await
    }

    /// The same for GET without a body.
    pub(super) async fn get_from_facilitator(
        &self,
        (url, trusted): (&Url, bool),
    ) -> Option<(u16, Value)> {
        let client = self.facilitator_client(url, trusted)?;
        json_exchange(client.get(url.clone())).await
    }

    fn facilitator_client(&self, url: &Url, trusted: bool) -> Option<&reqwest::Client> {
        if trusted {
            Some(&self.paid_client)
        } else {
            may_be_public(url).then_some(&self.public_client)
        }
    }
}

async fn json_exchange(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let mut response = request.timeout(JSON_TIMEOUT).send().await.ok()?;
    let body = read_bounded(&mut response, JSON_BYTES_MAX).await.ok()?;
    let status = response.status().as_u16();
    if response.status().is_redirection() {
        return Some((status, Value::String(redirect_target(&response))));
    }
    Some((status, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Origin and path of a redirect's target. The query is left out because it may contain a key.
fn redirect_target(response: &reqwest::Response) -> String {
    let location = response.headers().get(reqwest::header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let target = location.and_then(|location| response.url().join(location).ok());
    let Some(target) = target else {
        return "an unknown target".to_owned();
    };
    let target = format!("{}{}", target.origin().ascii_serialization(), target.path());
    target.chars().take(200).collect()
}

async fn read_bounded(
    response: &mut reqwest::Response,
    bytes_max: usize,
) -> Result<Vec<u8>, ExchangeError> {
    let broken = |error: reqwest::Error| ExchangeError::Transport(error.without_url());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len().saturating_add(chunk.len()) > bytes_max {
            return Err(ExchangeError::TooLong(bytes_max));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Follows redirects within the origin, and upgrades from http to https on the same host. Any other redirect is returned to the caller.
fn same_origin_only(attempt: Attempt<'_>) -> reqwest::redirect::Action {
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
) -> Result<Answer, ExchangeError> {
    // reqwest's errors contain the URL, which may hold the caller's secrets.
    let broken = |error: reqwest::Error| ExchangeError::Transport(error.without_url());
    let mut response = client
        .request(request.method.clone(), request.url.clone())
        .headers(request.headers.clone())
        .headers(payment)
        .body(request.body.clone())
        .send()
        .await
        .map_err(broken)?;
    let body = read_bounded(&mut response, bytes_max).await?;
    Ok(Answer {
        url: response.url().clone(),
        status: response.status(),
        headers: std::mem::take(response.headers_mut()),
        body,
    })
}
