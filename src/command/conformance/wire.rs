//! Requests to the facilitator, and its answers as they come.

use std::time::Duration;

use alloy::primitives::B256;
use reqwest::{Client, RequestBuilder, Response, Url, redirect};
use serde_json::Value;

use crate::command::CommandError;
use crate::protocol::text::escaped_start;

/// How long official sellers wait for `/settle`.
const CALL_LIMIT: Duration = Duration::from_secs(90);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// The most characters of an answer that is none of a facilitator's.
const UNKNOWN_SHOWN_MAX: usize = 200;
/// The members of an answer that a summary shows.
const SUMMARIZED: [&str; 6] = [
    "isValid",
    "invalidReason",
    "success",
    "errorReason",
    "transaction",
    "error",
];

/// The facilitator under test.
pub(super) struct Facilitator {
    http: Client,
    base: String,
    key: Option<String>,
}

/// What came back.
pub(super) struct Reply {
    /// The status; 0 when there was no answer.
    pub(super) status: u16,
    /// The JSON of the answer; `Null` when it is none.
    pub(super) body: Value,
    /// The beginning of what is no JSON, or why there is no answer.
    text: String,
}

impl Facilitator {
    /// `key` is sent as a bearer token.
    pub(super) fn new(url: &Url, key: Option<String>) -> Result<Self, CommandError> {
        let http = Client::builder()
            .timeout(CALL_LIMIT)
            .redirect(redirect::Policy::none());
        Ok(Self {
            http: http.build()?,
            base: url.as_str().trim_end_matches('/').to_owned(),
            key,
        })
    }

    pub(super) async fn supported(&self) -> Reply {
        let request = self.http.get(format!("{}/supported", self.base));
        self.send(request).await
    }

    pub(super) async fn verify(&self, body: &Value) -> Reply {
        self.post("verify", body.to_string()).await
    }

    pub(super) async fn settle(&self, body: &Value) -> Reply {
        self.post("settle", body.to_string()).await
    }

    /// As official sellers do it: a settlement whose outcome is open is asked for once more.
    pub(super) async fn settle_patiently(&self, body: &Value) -> Reply {
        let reply = self.settle(body).await;
        if reply.text_of("errorReason") == "settlement_pending" {
            return self.settle(body).await;
        }
        reply
    }

    pub(super) async fn post(&self, path: &str, body: String) -> Reply {
        let request = self.http.post(format!("{}/{path}", self.base));
        let request = request.header("content-type", "application/json");
        self.send(request.body(body)).await
    }

    async fn send(&self, mut request: RequestBuilder) -> Reply {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let read = match request.send().await {
            Ok(response) => read(response).await,
            Err(error) => Err(error),
        };
        // An error of the client would repeat the URL, which may hold a secret.
        read.unwrap_or_else(|error| Reply {
            status: 0,
            body: Value::Null,
            text: format!("no answer: {}", error.without_url()),
        })
    }
}

/// Reads an answer up to its limit.
async fn read(mut response: Response) -> Result<Reply, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    Ok(Reply {
        status: response.status().as_u16(),
        text: one_line(&bytes),
        body,
    })
}

/// The beginning of a text, without its line breaks.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<_> = text.split_whitespace().collect();
    escaped_start(&words.join(" "), UNKNOWN_SHOWN_MAX)
}

impl Reply {
    #[cfg(test)]
    pub(super) const fn of(status: u16, body: Value) -> Self {
        Self {
            status,
            body,
            text: String::new(),
        }
    }

    /// A member of the answer; `Null` when there is none.
    pub(super) fn member(&self, name: &str) -> &Value {
        self.body.get(name).unwrap_or(&Value::Null)
    }

    /// A member of the answer that is a text; empty when there is none.
    pub(super) fn text_of(&self, name: &str) -> &str {
        self.member(name).as_str().unwrap_or_default()
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.member(name).as_bool()
    }

    pub(super) fn transaction(&self) -> Option<B256> {
        self.text_of("transaction").parse().ok()
    }

    /// Status and telling members, in one line.
    pub(super) fn summary(&self) -> String {
        if self.status == 0 {
            return self.text.clone();
        }
        let members = SUMMARIZED.iter().filter_map(|name| {
            let member = self.body.get(*name)?;
            let text = member
                .as_str()
                .map_or_else(|| member.to_string(), str::to_owned);
            Some(format!("{name}={text}"))
        });
        let members: Vec<_> = members.collect();
        match (members.is_empty(), self.body.is_null()) {
            (false, _) => format!("{} {}", self.status, members.join(" ")),
            (true, false) => format!("{} {}", self.status, self.text),
            (true, true) => format!("{}, no JSON: {}", self.status, self.text),
        }
    }
}
