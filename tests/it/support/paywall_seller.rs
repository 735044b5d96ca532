//! A seller on our own module, in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use x402d::protocol::header;
use x402d::seller::{Flow, Payment, Paywall, Price, Route};

use super::Purchase;

/// More than socket buffers hold.
const LARGE: usize = 64 * 1024 * 1024;

/// A seller of `/report` and `/large` (settled before the handler) and `/after` (settled after it).
pub(crate) struct PaywallSeller {
    pub(crate) url: String,
    counter: Counter,
    _server: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct Counter {
    runs: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

impl PaywallSeller {
    /// Opens a seller that is paid at `pay_to` through `facilitator`; `adjust` may change its paywall.
    pub(crate) async fn open(
        facilitator: &str,
        pay_to: Address,
        adjust: impl FnOnce(Paywall) -> Paywall,
    ) -> Self {
        let cent = || Price::dollars("0.01").unwrap();
        let paywall = Paywall::new(facilitator)
            .network("eip155:84532".parse().unwrap())
            .pay_to(pay_to)
            .sessions_at(facilitator.parse().unwrap())
            .route("GET /report", cent())
            .route("GET /large", cent())
            .sell(Route::new("GET /after", cent()).flow(Flow::AfterHandler));
        let counter = Counter::default();
        let router = Router::new()
            .route("/report", get(report))
            .route("/after", get(report))
            .route("/large", get(async || vec![b'x'; LARGE]))
            .route("/free", get(async || "free"))
            .with_state(counter.clone())
            .layer(adjust(paywall).build().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server =
            TaskTracker::new().spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            counter,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// Number of handler runs.
    pub(crate) fn runs(&self) -> usize {
        self.counter.runs.load(Ordering::SeqCst)
    }

    /// Sets whether the handler fails.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.counter.broken.store(broken, Ordering::SeqCst);
    }
}

async fn report(
    State(counter): State<Counter>,
    payment: Payment,
) -> Result<Json<Value>, StatusCode> {
    let served = counter.runs.fetch_add(1, Ordering::SeqCst) + 1;
    if counter.broken.load(Ordering::SeqCst) {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(Json(
        json!({"served": served, "paymentId": payment.payment_id, "sessionId": payment.session_id, "id": payment.id}),
    ))
}

/// Requests `url`, and signs a payment of its price: the value of `PAYMENT-SIGNATURE`.
pub(crate) async fn payment_header(url: &str, payer: &PrivateKeySigner) -> String {
    let asked = reqwest::get(url).await.unwrap();
    assert_eq!(asked.status(), 402);
    let challenge = asked.headers()["payment-required"].to_str().unwrap();
    let challenge: Value = header::decode(challenge).unwrap();
    let accepted = challenge["accepts"][0].clone();
    let pay_to: Address = accepted["payTo"].as_str().unwrap().parse().unwrap();
    let amount: U256 = accepted["amount"].as_str().unwrap().parse().unwrap();
    let mut payment = Purchase::new(payer, pay_to, amount.to()).body()["paymentPayload"].clone();
    payment["accepted"] = accepted;
    header::encode(&payment).unwrap()
}

/// Presents a payment header.
pub(crate) async fn present(url: &str, payment: &str) -> Result<reqwest::Response, reqwest::Error> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0);
    let request = client.build().unwrap().get(url);
    request.header("PAYMENT-SIGNATURE", payment).send().await
}

/// The decoded `PAYMENT-RESPONSE` of a paid answer.
pub(crate) fn receipt(response: &reqwest::Response) -> Value {
    let receipt = response.headers()["payment-response"].to_str().unwrap();
    header::decode(receipt).unwrap()
}
