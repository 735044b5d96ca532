//! HTTP client for the three calls of any x402 facilitator: `/verify`, `/settle` and `/supported`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::protocol::{Reason, SettleResponse, Supported, VerifyResponse, X402Version};

/// Longer than a facilitator waits before it answers `/settle`.
const TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limit of a response body, in bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The longest reason of a facilitator that is passed on as a code, in bytes.
const CODE_BYTES_MAX: usize = 100;
/// The header that names a call.
const REQUEST_ID: &str = "x-request-id";

/// A client of one facilitator.
#[derive(Clone)]
pub struct FacilitatorClient {
    base: Url,
    http: reqwest::Client,
    /// A key of the facilitator's operator.
    key: Option<String>,
}

/// The body of `/verify` and `/settle`.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Call<'a> {
    pub(crate) x402_version: X402Version,
    pub(crate) payment_payload: &'a Value,
    pub(crate) payment_requirements: &'a Value,
}

/// The facilitator returned no usable response. It says nothing about the payment. Messages never contain the facilitator's URL.
#[derive(Debug, thiserror::Error)]
pub enum FacilitatorError {
    /// The URL is not an http or https URL.
    #[error("expected an http or https URL for the facilitator")]
    Url,
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot start")]
    Setup(#[source] reqwest::Error),
    /// The connection failed, the call timed out, or the response was incomplete.
    #[error("the facilitator did not answer")]
    Unreachable(#[source] reqwest::Error),
    /// The facilitator redirects, and calls with a payment follow no redirect.
    #[error("the facilitator redirects (HTTP {status}) to {target}: configure its final URL")]
    Redirected {
        /// The HTTP status.
        status: u16,
        /// The target's origin and path, without its query.
        target: String,
    },
    /// The response is not a valid x402 response; holds the HTTP status.
    #[error("the facilitator returned HTTP {0} with a body that is not a valid x402 response")]
    InvalidResponse(u16),
}

impl FacilitatorError {
    /// Whether the facilitator may have answered this request with a success that was lost: the request was sent, and no answer of the
    /// facilitator came back.
    pub(super) fn may_have_been_success(&self) -> bool {
        match self {
            Self::Unreachable(error) => !error.is_connect() && !error.is_builder(),
            Self::InvalidResponse(_) => true,
            Self::Redirected { .. } | Self::Url | Self::Setup(_) => false,
        }
    }
}

impl FacilitatorClient {
    /// A client for the facilitator at `url`, with or without a trailing slash.
    ///
    /// # Errors
    /// [`FacilitatorError::Url`] unless the URL is an http or https URL.
    pub fn new(url: &str) -> Result<Self, FacilitatorError> {
        let mut base = Url::parse(url).map_err(|_| FacilitatorError::Url)?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(FacilitatorError::Url);
        }
        base.set_fragment(None);
        base.path_segments_mut()
            .map_err(|()| FacilitatorError::Url)?
            .pop_if_empty();
        let http = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(FacilitatorError::Setup)?;
        Ok(Self {
            base,
            http,
            key: None,
        })
    }

    /// Sends this key with every call, as `Authorization: Bearer`.
    #[must_use]
    pub fn with_key(self, key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..self
        }
    }

    /// Calls `POST /verify`. A refused payment is an `Ok` with `is_valid` false.
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no usable response.
    pub async fn verify(
        &self,
        version: X402Version,
        payload: &Value,
        requirements: &Value,
    ) -> Result<VerifyResponse, FacilitatorError> {
        let (status, answer) = self
            .post(
                "verify",
                Call {
                    x402_version: version,
                    payment_payload: payload,
                    payment_requirements: requirements,
                },
                None,
            )
            .await?;
        parse_verify(&answer)
            .filter(|verdict| !verdict.is_valid || status.is_success())
            .ok_or(FacilitatorError::InvalidResponse(status.as_u16()))
    }

    /// Calls `POST /settle`. A refused payment is an `Ok` with `success` false.
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no usable response. The money may have moved then: repeat the call with the same payment.
    pub async fn settle(
        &self,
        version: X402Version,
        payload: &Value,
        requirements: &Value,
    ) -> Result<SettleResponse, FacilitatorError> {
        let call = Call {
            x402_version: version,
            payment_payload: payload,
            payment_requirements: requirements,
        };
        self.settle_as(call, None).await
    }

    /// The same under an id of the caller's, at most 128 visible ASCII characters. When x402d answers `duplicate_settlement`, it repeats in
    /// `extra.grantedTo` the id of the call that was told success.
    pub(super) async fn settle_as(
        &self,
        call: Call<'_>,
        request_id: Option<&str>,
    ) -> Result<SettleResponse, FacilitatorError> {
        let (status, answer) = self.post("settle", call, request_id).await?;
        parse_settle(&answer)
            .filter(|outcome| !outcome.success || status.is_success())
            .ok_or(FacilitatorError::InvalidResponse(status.as_u16()))
    }

    /// Calls `GET /supported`. Kinds that cannot be parsed are left out: they belong to schemes that this crate does not support.
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no usable response.
    pub async fn supported(&self) -> Result<Supported, FacilitatorError> {
        let (status, body) = self.send(self.http.get(self.endpoint("supported"))).await?;
        serde_json::from_slice(&body)
            .ok()
            .and_then(|answer| parse_supported(&answer))
            .ok_or(FacilitatorError::InvalidResponse(status.as_u16()))
    }

    fn endpoint(&self, call: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(call);
        }
        url
    }

    /// Returns the HTTP status and the members of the JSON body; the caller decides which members are required.
    async fn post(
        &self,
        name: &str,
        call: Call<'_>,
        request_id: Option<&str>,
    ) -> Result<(reqwest::StatusCode, Map<String, Value>), FacilitatorError> {
        let mut request = self.http.post(self.endpoint(name)).json(&call);
        if let Some(id) = request_id {
            request = request.header(REQUEST_ID, id);
        }
        let (status, body) = self.send(request).await?;
        let answer = serde_json::from_slice(&body)
            .map_err(|_| FacilitatorError::InvalidResponse(status.as_u16()))?;
        Ok((status, answer))
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(reqwest::StatusCode, Vec<u8>), FacilitatorError> {
        let unreachable =
            |error: reqwest::Error| FacilitatorError::Unreachable(error.without_url());
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let mut response = request.send().await.map_err(unreachable)?;
        if response.status().is_redirection() {
            return Err(FacilitatorError::Redirected {
                status: response.status().as_u16(),
                target: redirect_target(&response),
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len().saturating_add(chunk.len()) > BODY_BYTES_MAX {
                return Err(FacilitatorError::InvalidResponse(
                    response.status().as_u16(),
                ));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
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

impl fmt::Debug for FacilitatorClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may contain an API key, too.
        formatter
            .debug_struct("FacilitatorClient")
            .finish_non_exhaustive()
    }
}

// Responses of other facilitators contain nulls, numbers and members of their own. Only the deciding member must be valid, because a
// discarded response may be the one that reports moved money.

fn text(answer: &Map<String, Value>, member: &str) -> Option<String> {
    let text = answer.get(member)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// A reason that may be passed on to buyers: a code. Other texts can hold what only this server should see, such as the URL of an RPC endpoint
/// with its key, so `instead` stands for them.
fn reason(answer: &Map<String, Value>, members: &[&str], instead: Reason) -> Option<String> {
    let given = members.iter().find_map(|member| text(answer, member))?;
    let is_code = given.len() <= CODE_BYTES_MAX
        && given
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if is_code {
        return Some(given);
    }
    tracing::debug!(
        reason = given.chars().take(300).collect::<String>(),
        "facilitator's reason is not a code: buyers do not see it"
    );
    Some(instead.code().to_owned())
}

/// A message that may be passed on: one that explains a code of x402d, without a URL.
fn message(answer: &Map<String, Value>, member: &str, reason: Option<&str>) -> Option<String> {
    let known = reason.is_some_and(|reason| reason.parse::<Reason>().is_ok());
    text(answer, member).filter(|message| known && !message.contains("://"))
}

fn parse_verify(answer: &Map<String, Value>) -> Option<VerifyResponse> {
    let why = reason(answer, &["invalidReason"], Reason::UnexpectedVerifyError);
    Some(VerifyResponse {
        is_valid: answer.get("isValid")?.as_bool()?,
        invalid_message: message(answer, "invalidMessage", why.as_deref()),
        invalid_reason: why,
        payer: text(answer, "payer"),
    })
}

fn parse_settle(answer: &Map<String, Value>) -> Option<SettleResponse> {
    let members = ["errorReason", "error_reason"];
    let why = reason(answer, &members, Reason::UnexpectedSettleError);
    Some(SettleResponse {
        success: answer.get("success")?.as_bool()?,
        error_message: message(answer, "errorMessage", why.as_deref()),
        error_reason: why,
        payer: text(answer, "payer"),
        transaction: text(answer, "transaction").unwrap_or_default(),
        network: text(answer, "network").unwrap_or_default(),
        amount: text(answer, "amount").and_then(|amount| amount.parse().ok()),
        extra: answer.get("extra").and_then(Value::as_object).cloned(),
    })
}

fn parse_supported(answer: &Map<String, Value>) -> Option<Supported> {
    let member = |name: &str| answer.get(name).cloned().unwrap_or_default();
    let kinds = answer.get("kinds")?.as_array()?.iter();
    Some(Supported {
        kinds: kinds
            .filter_map(|kind| serde_json::from_value(kind.clone()).ok())
            .collect(),
        extensions: serde_json::from_value(member("extensions")).unwrap_or_default(),
        signers: serde_json::from_value(member("signers")).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_are_built_with_and_without_trailing_slash() {
        for (url, expected) in [
            ("http://a", "http://a/settle"),
            ("http://a/", "http://a/settle"),
            ("https://a/api", "https://a/api/settle"),
            ("https://a/api/?key=1", "https://a/api/settle?key=1"),
        ] {
            assert_eq!(
                FacilitatorClient::new(url)
                    .unwrap()
                    .endpoint("settle")
                    .as_str(),
                expected
            );
        }
        assert!(FacilitatorClient::new("file:///etc").is_err());
    }

    #[test]
    fn outcome_is_parsed_despite_invalid_other_members() {
        let answer = json!({"success": true, "transaction": "0x12", "payer": null, "amount": 5, "extra": {"paymentId": "p"}});
        let outcome = parse_settle(answer.as_object().unwrap()).unwrap();
        assert!(outcome.success);
        assert_eq!(outcome.transaction, "0x12");
        assert_eq!(outcome.extra.unwrap()["paymentId"], "p");
        let error = json!({"error": "not here"});
        assert!(parse_settle(error.as_object().unwrap()).is_none());
        assert!(parse_verify(error.as_object().unwrap()).is_none());
    }

    #[test]
    fn unknown_kinds_are_skipped() {
        let known = json!({"x402Version": 2, "scheme": "exact", "network": "eip155:8453"});
        let answer =
            json!({"kinds": [{"x402Version": 3, "scheme": "barter"}, known], "signers": null});
        let supported = parse_supported(answer.as_object().unwrap()).unwrap();
        assert_eq!(supported.kinds.len(), 1);
        assert_eq!(supported.kinds[0].network, "eip155:8453");
        assert!(parse_supported(&Map::new()).is_none());
    }
}
