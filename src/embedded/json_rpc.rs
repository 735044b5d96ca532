//! Calls to the local chain, also of methods that only a development node has.

use std::time::Duration;

use serde_json::{Value, json};

use super::error::EmbeddedError;

/// A node on this machine without load answers within milliseconds.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// One local node.
#[derive(Debug, Clone)]
pub(super) struct JsonRpc {
    url: String,
    http: reqwest::Client,
}

impl JsonRpc {
    /// The node on a port of this machine, reached without any configured proxy.
    pub(super) fn local(port: u16) -> Result<Self, EmbeddedError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(CALL_LIMIT)
            .build();
        let http = http.map_err(|problem| failed("any call", &problem))?;
        Ok(Self {
            url: format!("http://127.0.0.1:{port}"),
            http,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Calls a method and returns its result, which may be `null`.
    pub(super) async fn call(&self, method: &str, params: Value) -> Result<Value, EmbeddedError> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = self
            .http
            .post(&self.url)
            .json(&body)
            .send()
            .await
            .map_err(|problem| failed(method, &problem))?;
        let mut answer: Value = answer
            .json()
            .await
            .map_err(|problem| failed(method, &problem))?;
        match answer.get_mut("error") {
            Some(problem) => Err(failed(method, problem)),
            None => Ok(answer
                .get_mut("result")
                .map(Value::take)
                .unwrap_or_default()),
        }
    }

    /// Calls a method whose result is a text, such as a quantity, a hash or bytes.
    pub(super) async fn text(&self, method: &str, params: Value) -> Result<String, EmbeddedError> {
        let answer = self.call(method, params).await?;
        answer
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| failed(method, &answer))
    }
}

pub(super) fn failed(method: &str, detail: &dyn std::fmt::Display) -> EmbeddedError {
    EmbeddedError::Chain {
        method: method.to_owned(),
        detail: detail.to_string(),
    }
}
