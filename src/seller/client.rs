//! A facilitator, as a seller calls it: any one that speaks the standard.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::protocol::{SettleResponse, Supported, VerifyResponse, X402Version};

/// As long as the official sellers wait.
const CALL_LIMIT: Duration = Duration::from_secs(90);

/// A facilitator's three calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FacilitatorClient {
    base: Url,
    http: reqwest::Client,
}

/// Why a facilitator gave no verdict. After a settle this means *unknown*, not failed.
#[derive(Debug, thiserror::Error)]
pub enum FacilitatorError {
    /// The URL cannot be read.
    #[error("expected the facilitator's http or https URL")]
    Url,
    /// No answer.
    #[error("the facilitator cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// An answer without a verdict.
    #[error("the facilitator answered HTTP {0} without a verdict")]
    NoVerdict(u16),
}

/// The body of verify and settle.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Call<'a> {
    pub(super) x402_version: X402Version,
    pub(super) payment_payload: &'a Value,
    pub(super) payment_requirements: &'a Value,
}

impl FacilitatorClient {
    /// A client of the facilitator at `url`, with or without a slash at its end.
    ///
    /// # Errors
    /// [`FacilitatorError::Url`] when it cannot be read.
    pub fn new(url: &str) -> Result<Self, FacilitatorError> {
        let base: Url = format!("{}/", url.trim_end_matches('/'))
            .parse()
            .map_err(|_| FacilitatorError::Url)?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(FacilitatorError::Url);
        }
        let http = reqwest::Client::builder()
            .timeout(CALL_LIMIT)
            .build()
            .map_err(FacilitatorError::Unreachable)?;
        Ok(Self { base, http })
    }

    /// What can be paid there.
    ///
    /// # Errors
    /// When there is no readable answer.
    pub async fn supported(&self) -> Result<Supported, FacilitatorError> {
        let url = self
            .base
            .join("supported")
            .map_err(|_| FacilitatorError::Url)?;
        let answer = self
            .http
            .get(url)
            .send()
            .await
            .map_err(FacilitatorError::Unreachable)?;
        verdict(answer, "kinds").await
    }

    pub(super) async fn verify(&self, call: &Call<'_>) -> Result<VerifyResponse, FacilitatorError> {
        self.post("verify", call, "isValid").await
    }

    pub(super) async fn settle(&self, call: &Call<'_>) -> Result<SettleResponse, FacilitatorError> {
        self.post("settle", call, "success").await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        call: &Call<'_>,
        mark: &str,
    ) -> Result<T, FacilitatorError> {
        let url = self.base.join(path).map_err(|_| FacilitatorError::Url)?;
        let answer = self
            .http
            .post(url)
            .json(call)
            .send()
            .await
            .map_err(FacilitatorError::Unreachable)?;
        verdict(answer, mark).await
    }
}

/// Facilitators put verdicts into bodies of many statuses: the member counts, then the status. A 5xx carries no verdict on a payment.
async fn verdict<T: DeserializeOwned>(
    answer: reqwest::Response,
    mark: &str,
) -> Result<T, FacilitatorError> {
    let status = answer.status();
    let body: Value = answer
        .json()
        .await
        .map_err(|_| FacilitatorError::NoVerdict(status.as_u16()))?;
    let pending = body.get("errorReason").and_then(Value::as_str) == Some("settlement_pending");
    if body.get(mark).is_none() || (status.is_server_error() && !pending) {
        return Err(FacilitatorError::NoVerdict(status.as_u16()));
    }
    serde_json::from_value(body).map_err(|_| FacilitatorError::NoVerdict(status.as_u16()))
}
