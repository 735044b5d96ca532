//! The parts that the tests are built from: a scripted facilitator, sellers and buyers.

pub(crate) use std::collections::VecDeque;
pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Mutex};
pub(crate) use std::time::Duration;

pub(crate) use alloy::primitives::{Address, Signature, address};
pub(crate) use axum::extract::{Path, State};
pub(crate) use axum::http::{HeaderMap, StatusCode, Uri};
pub(crate) use axum::response::{IntoResponse, Response};
pub(crate) use axum::routing::{get, post};
pub(crate) use axum::{Json, Router};
pub(crate) use reqwest::Method;
pub(crate) use serde_json::{Value, json};
pub(crate) use time::macros::datetime;
pub(crate) use tokio::net::TcpListener;
pub(crate) use tokio::task::JoinSet;

pub(crate) use x402d::buyer::{
    BuyerError, Client, Paid, PayOptions, Request, Signer, extract_payment_id,
};
pub(crate) use x402d::clock::ManualClock;
pub(crate) use x402d::protocol::header::{
    self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT_RESPONSE,
};
pub(crate) use x402d::protocol::{
    Amount, DomainSeparator, ExactPayload, Network, PaymentHeader, PaymentRequired,
    PaymentRequirements, X402Version,
};
pub(crate) use x402d::seller::{Flow, Payment, Paywall, Price};

pub(crate) const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");
pub(crate) const HASH: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
/// The facilitator's account for metered payments.
pub(crate) const FACILITATOR: Address = Address::repeat_byte(0x33);
pub(crate) const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
pub(crate) const BASE_SEPOLIA: Network = Network::from_chain_id(84_532);

/// The calls that the facilitator received, and the responses that it is going to return.
#[derive(Default)]
pub(crate) struct Script {
    /// Name and body of each call.
    pub(crate) calls: Vec<(String, Value)>,
    /// The `X-Request-Id` of each call of `/verify` and `/settle`.
    pub(crate) request_ids: Vec<Option<String>>,
    /// Responses of `/verify` and `/settle`, in order; a success once there are no more.
    pub(crate) answers: VecDeque<(u16, Value)>,
    /// Responses of `/supported`, in order; the default once there are no more.
    pub(crate) supported: VecDeque<(u16, Value)>,
}

pub(crate) type Shared = Arc<Mutex<Script>>;

/// Servers on loopback ports; they stop when this value is dropped.
#[derive(Default)]
pub(crate) struct Market {
    pub(crate) servers: JoinSet<()>,
    pub(crate) script: Shared,
    /// How often a handler ran.
    pub(crate) runs: Arc<AtomicUsize>,
}

impl Market {
    pub(crate) async fn open(&mut self, router: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.servers.spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        format!("http://{address}")
    }

    pub(crate) async fn facilitator(&mut self) -> String {
        let router = Router::new()
            .route("/supported", get(supported_by_script))
            .route("/{call}", post(answer_by_script))
            .with_state(Arc::clone(&self.script));
        self.open(router).await
    }

    /// A seller of `/report` and `/broken`, with an unpriced page `/public`.
    pub(crate) async fn seller(&mut self, flow: Flow) -> String {
        let facilitator = self.facilitator().await;
        self.seller_with(&facilitator, flow).await
    }

    pub(crate) async fn seller_with(&mut self, facilitator: &str, flow: Flow) -> String {
        let paywall = Paywall::new(facilitator)
            .pay_to(Address::repeat_byte(0x22))
            .network(BASE_SEPOLIA)
            .flow(flow)
            .clock(clock())
            .route("GET /report", Price::dollars("0.01").unwrap())
            .route("POST /broken", Price::dollars("0.01").unwrap());
        let router = Router::new()
            .route("/report", get(report))
            .route("/broken", post(broken))
            .route("/public", get(async || "free"))
            .fallback(async |uri: Uri| format!("fallback {uri}"))
            .with_state(Arc::clone(&self.runs))
            .layer(paywall.build().unwrap());
        self.open(router).await
    }

    /// Sells `handler` at `/sold` for `price`.
    pub(crate) async fn sell<H, T>(&mut self, price: Price, flow: Flow, handler: H) -> String
    where
        H: axum::handler::Handler<T, ()>,
        T: 'static,
    {
        let facilitator = self.facilitator().await;
        let paywall = Paywall::new(facilitator)
            .pay_to(Address::repeat_byte(0x22))
            .network(BASE_SEPOLIA)
            .flow(flow)
            .clock(clock())
            .sponsors_gas()
            .route("GET /sold", price);
        let router = Router::new().route("/sold", get(handler));
        let url = self.open(router.layer(paywall.build().unwrap())).await;
        format!("{url}/sold")
    }

    pub(crate) fn respond(&self, answers: impl IntoIterator<Item = (u16, Value)>) {
        self.script.lock().unwrap().answers.extend(answers);
    }

    /// Name and body of each call so far.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        self.script.lock().unwrap().calls.clone()
    }

    pub(crate) fn call_names(&self) -> Vec<String> {
        self.calls().into_iter().map(|(call, _)| call).collect()
    }

    pub(crate) fn request_ids(&self) -> Vec<Option<String>> {
        self.script.lock().unwrap().request_ids.clone()
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

pub(crate) async fn answer_by_script(
    State(script): State<Shared>,
    Path(call): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let mut script = script.lock().unwrap();
    script.calls.push((call.clone(), body.clone()));
    let id = headers.get("x-request-id");
    script
        .request_ids
        .push(id.map(|id| id.to_str().unwrap().to_owned()));
    let default = || match call.as_str() {
        "verify" => valid(),
        _ => settled_for(
            body["paymentRequirements"]["amount"]
                .as_str()
                .unwrap_or("10000"),
        ),
    };
    let (status, answer) = script
        .answers
        .pop_front()
        .unwrap_or_else(|| (200, default()));
    (StatusCode::from_u16(status).unwrap(), Json(answer)).into_response()
}

pub(crate) async fn supported_by_script(State(script): State<Shared>) -> Response {
    let mut script = script.lock().unwrap();
    script.calls.push(("supported".to_owned(), Value::Null));
    let default = json!({"kinds": [{"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": FACILITATOR.to_string()}}]});
    let (status, answer) = script.supported.pop_front().unwrap_or((200, default));
    (StatusCode::from_u16(status).unwrap(), Json(answer)).into_response()
}

pub(crate) fn valid() -> Value {
    json!({"isValid": true, "payer": PAYER.to_string()})
}

pub(crate) fn settled() -> Value {
    json!({"success": true, "payer": PAYER.to_string(), "transaction": HASH, "network": "eip155:84532", "amount": "10000",
        "extra": {"paymentId": "0190-payment"}})
}

/// A success for another amount; a charge of zero has no transaction.
pub(crate) fn settled_for(amount: &str) -> Value {
    let mut settled = settled();
    settled["amount"] = json!(amount);
    if amount == "0" {
        settled["transaction"] = json!("");
    }
    settled
}

pub(crate) fn failed(reason: &str, transaction: &str) -> Value {
    json!({"success": false, "errorReason": reason, "transaction": transaction, "network": "eip155:84532"})
}

pub(crate) async fn report(State(runs): State<Arc<AtomicUsize>>, payment: Payment) -> Json<Value> {
    runs.fetch_add(1, Ordering::SeqCst);
    Json(
        json!({"id": payment.id, "paymentId": payment.payment_id, "payer": payment.payer.to_string(), "amount": payment.amount,
        "network": payment.network, "asset": payment.asset.to_string()}),
    )
}

pub(crate) async fn broken(State(runs): State<Arc<AtomicUsize>>) -> StatusCode {
    runs.fetch_add(1, Ordering::SeqCst);
    StatusCode::INTERNAL_SERVER_ERROR
}

/// The clock of sellers and clients.
pub(crate) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(datetime!(2026-01-02 03:04:05 UTC)))
}

/// A client without retries.
pub(crate) fn client() -> Client {
    Client::new(Signer::from_key(KEY).unwrap())
        .unwrap()
        .clock(clock())
        .recovery(0, Duration::ZERO, Duration::from_mins(1))
}

/// A client with five retries.
pub(crate) fn retrying_client() -> Client {
    client().recovery(5, Duration::ZERO, Duration::from_mins(1))
}

pub(crate) fn cent() -> PayOptions {
    PayOptions::up_to("10000".parse().unwrap())
}

pub(crate) fn json_of(paid: &Paid) -> Value {
    serde_json::from_slice(&paid.body).unwrap()
}

pub(crate) async fn challenge(url: &str) -> PaymentRequired {
    let response = reqwest::get(url).await.unwrap();
    assert_eq!(response.status(), 402);
    header::decode(response.headers()[PAYMENT_REQUIRED].to_str().unwrap()).unwrap()
}

/// A payment for the first offer of `challenge`, with a signature that the scripted facilitator does not check.
pub(crate) fn unsigned_payment(challenge: &PaymentRequired, nonce: &str) -> PaymentHeader {
    let payload = json!({"signature": "0x07", "authorization": {"from": PAYER.to_string(),
        "to": Address::repeat_byte(0x22).to_string(), "value": "10000", "validAfter": "0", "validBefore": "1900000000", "nonce": nonce}});
    PaymentHeader::present(challenge, &challenge.offers().remove(0), &payload).unwrap()
}

/// Sends a payment for the first offer of `challenge` directly, without the buyer's checks.
pub(crate) async fn present(url: &str, challenge: &PaymentRequired) -> reqwest::Response {
    send(url, &unsigned_payment(challenge, HASH)).await
}

pub(crate) async fn send(url: &str, payment: &PaymentHeader) -> reqwest::Response {
    reqwest::Client::new()
        .get(url)
        .header(payment.name(), payment.value())
        .send()
        .await
        .unwrap()
}
