//! A facilitator that breaks a rule: a proxy that changes what the real one answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// Changes the answer of a path; an answer of `Null` has no body.
pub(crate) type Lie = fn(path: &str, status: u16, body: Value) -> (u16, Value);

/// A proxy before a facilitator.
pub(crate) struct LyingFacilitator {
    pub(crate) url: String,
    _server: AbortOnDropHandle<()>,
}

struct Lies {
    http: reqwest::Client,
    facilitator: String,
    lie: Lie,
}

impl LyingFacilitator {
    pub(crate) async fn before(facilitator: &str, lie: Lie) -> Self {
        let lies = Arc::new(Lies {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            facilitator: facilitator.to_owned(),
            lie,
        });
        let router = Router::new().fallback(pass).with_state(lies);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            TaskTracker::new().spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            _server: AbortOnDropHandle::new(server),
        }
    }
}

async fn pass(State(lies): State<Arc<Lies>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let request = lies
        .http
        .request(method, format!("{}{uri}", lies.facilitator));
    let request = request
        .header("content-type", "application/json")
        .body(body);
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.json().await.unwrap_or_default();
    let (status, body) = (lies.lie)(uri.path(), status, body);
    let text = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    (StatusCode::from_u16(status).unwrap(), text).into_response()
}
