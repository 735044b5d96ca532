//! An HTTP client of the service.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinSet;

use super::eventually;

/// A client of the service, like a seller's. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    url: String,
    http: Client,
    key: Option<String>,
    answers: Arc<Mutex<String>>,
}

/// Status and body of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Seconds in `Retry-After`.
    pub(crate) retry_after: Option<u64>,
    /// `null` when the body was not JSON.
    pub(crate) body: Value,
    /// The service's own id of the request.
    pub(crate) request_id: String,
}

impl Answer {
    /// `success` of a settle.
    pub(crate) fn succeeded(&self) -> bool {
        self.body["success"] == true
    }

    /// The hash of a settle, or empty.
    pub(crate) fn transaction(&self) -> String {
        self.body["transaction"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// `isValid` of a verify.
    pub(crate) fn is_valid(&self) -> bool {
        self.body["isValid"] == true
    }

    /// The code of a rejection by verify or settle.
    pub(crate) fn reason(&self) -> &str {
        let reason = self.body["errorReason"].as_str();
        reason
            .or_else(|| self.body["invalidReason"].as_str())
            .unwrap_or_default()
    }
}

impl Caller {
    /// Sends later requests to `url`, over new connections.
    pub(super) fn connect_to(&mut self, url: String) {
        self.url = url;
        let fresh = Client::builder().no_proxy().pool_max_idle_per_host(0);
        self.http = fresh.build().unwrap();
    }

    /// The same client with a key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// The service's address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Every answer so far, with headers, across restarts.
    pub(crate) fn answers(&self) -> String {
        self.answers.lock().unwrap().clone()
    }

    pub(crate) async fn verify(&self, body: &Value) -> Answer {
        self.post("/verify", body).await.unwrap()
    }

    pub(crate) async fn settle(&self, body: &Value) -> Answer {
        self.try_settle(body).await.unwrap()
    }

    /// Like `settle`, where the connection may break.
    pub(crate) async fn try_settle(&self, body: &Value) -> Result<Answer, reqwest::Error> {
        self.post("/settle", body).await
    }

    /// A settle to which the caller gives an id.
    pub(crate) async fn settle_as(&self, body: &Value, id: &str) -> Answer {
        self.try_settle_as(body, id).await.unwrap()
    }

    /// The same, where the connection may break.
    pub(crate) async fn try_settle_as(
        &self,
        body: &Value,
        id: &str,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.http.post(format!("{}/settle", self.url));
        self.answer(request.header("x-request-id", id).json(body))
            .await
    }

    /// Starts a settle; its answer is the set's only result. Dropping the set breaks the connection.
    pub(crate) fn spawn_settle(&self, body: &Value) -> JoinSet<Result<Answer, reqwest::Error>> {
        let mut one = JoinSet::new();
        let (caller, body) = (self.clone(), body.clone());
        one.spawn(async move { caller.try_settle(&body).await });
        one
    }

    /// Settles all concurrently.
    pub(crate) async fn settle_all(&self, bodies: Vec<Value>) -> Vec<Answer> {
        let mut settling = JoinSet::new();
        for body in bodies {
            let caller = self.clone();
            settling.spawn(async move { caller.settle(&body).await });
        }
        settling.join_all().await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.try_get(path).await.unwrap()
    }

    pub(crate) async fn try_get(&self, path: &str) -> Result<Answer, reqwest::Error> {
        let request = self.http.get(format!("{}{path}", self.url));
        self.answer(request).await
    }

    /// The payment as the operator sees it, with its events.
    pub(crate) async fn payment(&self, settled: &Answer) -> Value {
        let id = settled.body["extra"]["paymentId"].as_str().unwrap();
        let path = format!("/payments/{id}");
        // After an outage of the database the keys of callers are read again within a second.
        eventually("the payment", Duration::from_secs(20), async || {
            let answer = self.get(&path).await;
            (answer.status != 503).then_some(answer.body)
        })
        .await
    }

    /// Posts any text. The service may answer a long body before it has read it all; that answer is returned.
    pub(crate) async fn post_text(&self, path: &str, text: String) -> Answer {
        let request = self.http.post(format!("{}{path}", self.url)).body(text);
        self.answer(request).await.unwrap()
    }

    /// Posts JSON to any path.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Answer, reqwest::Error> {
        let request = self.http.post(format!("{}{path}", self.url)).json(body);
        self.answer(request).await
    }

    /// Like `post`, as a `'static` future for a task.
    pub(crate) fn post_task(
        &self,
        path: &'static str,
        body: &Value,
    ) -> impl Future<Output = Result<Answer, reqwest::Error>> + Send + 'static {
        let (caller, body) = (self.clone(), body.clone());
        async move { caller.post(path, &body).await }
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Answer, reqwest::Error> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let record = format!("{status} {headers:?}\n{text}\n");
        self.answers.lock().unwrap().push_str(&record);
        let retry_after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let body = serde_json::from_str(&text).unwrap_or_default();
        let id = headers.get("x-request-id");
        let request_id = id.and_then(|id| id.to_str().ok()).unwrap_or_default();
        Ok(Answer {
            status,
            retry_after,
            body,
            request_id: request_id.to_owned(),
        })
    }
}

/// Whether a payment, as the operator sees it, has an event of this kind.
pub(crate) fn has_event(row: &Value, kind: &str) -> bool {
    let events = row["events"].as_array().unwrap();
    events.iter().any(|event| event["kind"] == kind)
}
