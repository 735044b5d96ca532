//! The facilitator, as a seller sees it: three calls to any x402 facilitator.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use url::Url;

use crate::protocol::{SettleResponse, Supported, VerifyResponse, X402Version};

/// A facilitator bounds its own waiting below this.
const TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Calls a facilitator.
#[derive(Clone)]
pub struct FacilitatorClient {
    base: Url,
    http: reqwest::Client,
}

/// The body of `/verify` and `/settle`.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Call<'a> {
    pub(crate) x402_version: X402Version,
    pub(crate) payment_payload: &'a Value,
    pub(crate) payment_requirements: &'a Value,
}

/// The facilitator gave no usable answer, which says nothing about the payment. Never shows the facilitator's URL.
#[derive(Debug, thiserror::Error)]
pub enum FacilitatorError {
    /// The URL is not one of http or https.
    #[error("expected an http or https URL for the facilitator")]
    Url,
    /// The HTTP client could not be set up.
    #[error("the HTTP client cannot start")]
    Setup(#[source] reqwest::Error),
    /// No connection, no answer in time, or an answer that broke off.
    #[error("the facilitator did not answer")]
    Unreachable(#[source] reqwest::Error),
    /// It wants to be asked elsewhere, and a payment follows no redirect. Holds the HTTP status and the place, without its query.
    #[error(
        "the facilitator redirects (HTTP {status}) to {target}: configure the URL that answers by itself"
    )]
    Redirected {
        /// The HTTP status.
        status: u16,
        /// Where to.
        target: String,
    },
    /// An answer without the member that makes it one; holds the HTTP status.
    #[error("the facilitator answered {0} with something else than an x402 answer")]
    Unintelligible(u16),
}

impl FacilitatorError {
    /// Whether the facilitator may have said success to this very request, and nobody heard it: the request was sent, and neither refused
    /// nor answered by the facilitator itself.
    pub(super) fn may_have_been_success(&self) -> bool {
        match self {
            Self::Unreachable(error) => !error.is_connect() && !error.is_builder(),
            Self::Unintelligible(status) => matches!(status, 200 | 502 | 504),
            Self::Redirected { .. } | Self::Url | Self::Setup(_) => false,
        }
    }
}

impl FacilitatorClient {
    /// A client for the facilitator at `url`, with or without a slash at its end.
    ///
    /// # Errors
    /// [`FacilitatorError::Url`] unless the URL is one of http or https.
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
        Ok(Self { base, http })
    }

    /// `POST /verify`
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no verdict.
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
            )
            .await?;
        verdict(&answer)
            .filter(|verdict| !verdict.is_valid || status.is_success())
            .ok_or(FacilitatorError::Unintelligible(status.as_u16()))
    }

    /// `POST /settle`
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no outcome. The money may have moved then: repeat the call with the same payment.
    pub async fn settle(
        &self,
        version: X402Version,
        payload: &Value,
        requirements: &Value,
    ) -> Result<SettleResponse, FacilitatorError> {
        let (status, answer) = self
            .post(
                "settle",
                Call {
                    x402_version: version,
                    payment_payload: payload,
                    payment_requirements: requirements,
                },
            )
            .await?;
        outcome(&answer)
            .filter(|outcome| !outcome.success || status.is_success())
            .ok_or(FacilitatorError::Unintelligible(status.as_u16()))
    }

    /// `GET /supported`. Kinds that cannot be read are left out: they are of schemes that we do not speak.
    ///
    /// # Errors
    /// [`FacilitatorError`] when there is no list.
    pub async fn supported(&self) -> Result<Supported, FacilitatorError> {
        let (status, body) = self.send(self.http.get(self.at("supported"))).await?;
        serde_json::from_slice(&body)
            .ok()
            .and_then(|answer| supported(&answer))
            .ok_or(FacilitatorError::Unintelligible(status.as_u16()))
    }

    fn at(&self, call: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(call);
        }
        url
    }

    /// The status and the members of the answer; which ones count is the caller's to say.
    async fn post(
        &self,
        name: &str,
        call: Call<'_>,
    ) -> Result<(reqwest::StatusCode, Map<String, Value>), FacilitatorError> {
        let (status, body) = self.send(self.http.post(self.at(name)).json(&call)).await?;
        let answer = serde_json::from_slice(&body)
            .map_err(|_| FacilitatorError::Unintelligible(status.as_u16()))?;
        Ok((status, answer))
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(reqwest::StatusCode, Vec<u8>), FacilitatorError> {
        let unreachable =
            |error: reqwest::Error| FacilitatorError::Unreachable(error.without_url());
        let mut response = request.send().await.map_err(unreachable)?;
        if response.status().is_redirection() {
            return Err(FacilitatorError::Redirected {
                status: response.status().as_u16(),
                target: target_of(&response),
            });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len().saturating_add(chunk.len()) > BODY_BYTES_MAX {
                return Err(FacilitatorError::Unintelligible(response.status().as_u16()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status(), body))
    }
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

impl fmt::Debug for FacilitatorClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold an API key.
        formatter
            .debug_struct("FacilitatorClient")
            .finish_non_exhaustive()
    }
}

// The answers of other facilitators hold nulls, numbers and members of their own: only the deciding member must be right, because
// an answer that is thrown away may be the one about money that moved.

fn text(answer: &Map<String, Value>, member: &str) -> Option<String> {
    let text = answer.get(member)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn verdict(answer: &Map<String, Value>) -> Option<VerifyResponse> {
    Some(VerifyResponse {
        is_valid: answer.get("isValid")?.as_bool()?,
        invalid_reason: text(answer, "invalidReason"),
        invalid_message: text(answer, "invalidMessage"),
        payer: text(answer, "payer"),
    })
}

fn outcome(answer: &Map<String, Value>) -> Option<SettleResponse> {
    Some(SettleResponse {
        success: answer.get("success")?.as_bool()?,
        error_reason: text(answer, "errorReason").or_else(|| text(answer, "error_reason")),
        error_message: text(answer, "errorMessage"),
        payer: text(answer, "payer"),
        transaction: text(answer, "transaction").unwrap_or_default(),
        network: text(answer, "network").unwrap_or_default(),
        amount: text(answer, "amount").and_then(|amount| amount.parse().ok()),
        extra: answer.get("extra").and_then(Value::as_object).cloned(),
    })
}

fn supported(answer: &Map<String, Value>) -> Option<Supported> {
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
    fn the_calls_are_found_below_a_url_with_or_without_a_slash() {
        for (url, expected) in [
            ("http://a", "http://a/settle"),
            ("http://a/", "http://a/settle"),
            ("https://a/api", "https://a/api/settle"),
            ("https://a/api/?key=1", "https://a/api/settle?key=1"),
        ] {
            assert_eq!(
                FacilitatorClient::new(url).unwrap().at("settle").as_str(),
                expected
            );
        }
        assert!(FacilitatorClient::new("file:///etc").is_err());
    }

    #[test]
    fn an_outcome_is_read_however_odd_its_other_members_are() {
        let answer = json!({"success": true, "transaction": "0x12", "payer": null, "amount": 5, "extra": {"paymentId": "p"}});
        let outcome = outcome(answer.as_object().unwrap()).unwrap();
        assert!(outcome.success);
        assert_eq!(outcome.transaction, "0x12");
        assert_eq!(outcome.extra.unwrap()["paymentId"], "p");
        let error = json!({"error": "not here"});
        assert!(super::outcome(error.as_object().unwrap()).is_none());
        assert!(verdict(error.as_object().unwrap()).is_none());
    }

    #[test]
    fn kinds_of_another_world_do_not_hide_those_of_ours() {
        let ours = json!({"x402Version": 2, "scheme": "exact", "network": "eip155:8453"});
        let answer =
            json!({"kinds": [{"x402Version": 3, "scheme": "barter"}, ours], "signers": null});
        let supported = supported(answer.as_object().unwrap()).unwrap();
        assert_eq!(supported.kinds.len(), 1);
        assert_eq!(supported.kinds[0].network, "eip155:8453");
        assert!(super::supported(&Map::new()).is_none());
    }
}
