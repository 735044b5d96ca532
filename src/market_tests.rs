//! Buyer and seller over real sockets, with a facilitator that answers what a test tells it to.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, Signature, address};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use reqwest::Method;
use serde_json::{Value, json};
use time::macros::datetime;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::buyer::{BuyerError, Client, Paid, PayOptions, Request, Signer, extract_payment_id};
use crate::clock::ManualClock;
use crate::protocol::header::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT_RESPONSE};
use crate::protocol::{
    Amount, DomainSeparator, ExactPayload, Network, PaymentHeader, PaymentRequired,
    PaymentRequirements, X402Version,
};
use crate::seller::{Flow, Payment, Paywall, Price};

const KEY: &str = "0x1111111111111111111111111111111111111111111111111111111111111111";
const PAYER: Address = address!("19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A");
const HASH: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const BASE_SEPOLIA: Network = Network::from_chain_id(84_532);

/// What the facilitator was asked, and what it is going to answer.
#[derive(Default)]
struct Script {
    asked: Vec<(String, Value)>,
    answers: VecDeque<(u16, Value)>,
}

type Shared = Arc<Mutex<Script>>;

/// Servers on loopback ports, gone with this value.
#[derive(Default)]
struct Market {
    servers: JoinSet<()>,
    script: Shared,
    runs: Arc<AtomicUsize>,
}

impl Market {
    async fn open(&mut self, router: Router) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.servers.spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        format!("http://{address}")
    }

    async fn facilitator(&mut self) -> String {
        let router = Router::new()
            .route("/{call}", post(answer_by_script))
            .with_state(Arc::clone(&self.script));
        self.open(router).await
    }

    /// A seller of `/report` with a public page beside it.
    async fn seller(&mut self, flow: Flow) -> String {
        let facilitator = self.facilitator().await;
        self.seller_with(&facilitator, flow).await
    }

    async fn seller_with(&mut self, facilitator: &str, flow: Flow) -> String {
        let paywall = Paywall::new(facilitator)
            .pay_to(Address::repeat_byte(0x22))
            .network(BASE_SEPOLIA)
            .flow(flow)
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

    fn answers(&self, answers: impl IntoIterator<Item = (u16, Value)>) {
        self.script.lock().unwrap().answers.extend(answers);
    }

    /// The calls so far, with their bodies.
    fn asked(&self) -> Vec<(String, Value)> {
        self.script.lock().unwrap().asked.clone()
    }

    fn calls(&self) -> Vec<String> {
        self.asked().into_iter().map(|(call, _)| call).collect()
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

async fn answer_by_script(
    State(script): State<Shared>,
    Path(call): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let mut script = script.lock().unwrap();
    script.asked.push((call.clone(), body));
    let (status, answer) = script
        .answers
        .pop_front()
        .unwrap_or_else(|| (200, if call == "verify" { valid() } else { settled() }));
    (StatusCode::from_u16(status).unwrap(), Json(answer)).into_response()
}

fn valid() -> Value {
    json!({"isValid": true, "payer": PAYER.to_string()})
}

fn settled() -> Value {
    json!({"success": true, "payer": PAYER.to_string(), "transaction": HASH, "network": "eip155:84532", "amount": "10000",
        "extra": {"paymentId": "0190-payment"}})
}

fn failed(reason: &str, transaction: &str) -> Value {
    json!({"success": false, "errorReason": reason, "transaction": transaction, "network": "eip155:84532"})
}

async fn report(State(runs): State<Arc<AtomicUsize>>, payment: Payment) -> Json<Value> {
    runs.fetch_add(1, Ordering::SeqCst);
    Json(
        json!({"id": payment.id, "paymentId": payment.payment_id, "payer": payment.payer.to_string(), "amount": payment.amount,
        "network": payment.network, "asset": payment.asset.to_string()}),
    )
}

async fn broken(State(runs): State<Arc<AtomicUsize>>) -> StatusCode {
    runs.fetch_add(1, Ordering::SeqCst);
    StatusCode::INTERNAL_SERVER_ERROR
}

fn client() -> Client {
    let clock = ManualClock::new(datetime!(2026-01-02 03:04:05 UTC));
    Client::new(Signer::from_key(KEY).unwrap())
        .unwrap()
        .clock(Arc::new(clock))
        .pending_pause(Duration::ZERO)
}

fn cent() -> PayOptions {
    PayOptions::up_to("10000".parse().unwrap())
}

fn json_of(paid: &Paid) -> Value {
    serde_json::from_slice(&paid.body).unwrap()
}

async fn challenge(url: &str) -> PaymentRequired {
    let response = reqwest::get(url).await.unwrap();
    assert_eq!(response.status(), 402);
    header::decode(response.headers()[PAYMENT_REQUIRED].to_str().unwrap()).unwrap()
}

/// Sends a payment as it is, without the buyer's own judgement.
async fn present(url: &str, challenge: &PaymentRequired) -> reqwest::Response {
    let offer = challenge.offers().remove(0);
    let payload: ExactPayload = serde_json::from_value(json!({"signature": "0x07", "authorization": {"from": PAYER.to_string(),
        "to": Address::repeat_byte(0x22).to_string(), "value": "10000", "validAfter": "0", "validBefore": "1900000000", "nonce": HASH}}))
    .unwrap();
    let payment = PaymentHeader::present(challenge, &offer, &payload).unwrap();
    reqwest::Client::new()
        .get(url)
        .header(payment.name(), payment.value())
        .send()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_v2_purchase_is_settled_before_the_handler_runs_and_both_sides_hold_the_hash() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let url = format!("{seller}/report?day=7");
    let paid = client().get(&url, &cent()).await.unwrap();

    assert_eq!(paid.status, 200);
    assert_eq!(extract_payment_id(&paid.headers).as_deref(), Some(HASH));
    assert_eq!(paid.headers["cache-control"], "private");
    assert!(paid.payment.as_ref().unwrap().success);
    let seen = json_of(&paid);
    assert_eq!(seen["paymentId"], HASH);
    assert_eq!(seen["id"], "0190-payment");
    assert_eq!(seen["payer"], PAYER.to_string());
    assert_eq!(seen["amount"], "10000");

    let asked = market.asked();
    assert_eq!(market.calls(), ["settle"]);
    let body = &asked[0].1;
    assert_eq!(body["x402Version"], 2);
    assert_eq!(body["paymentPayload"]["resource"]["url"], url);
    assert_eq!(
        body["paymentPayload"]["accepted"],
        body["paymentRequirements"]
    );
    assert_eq!(
        body["paymentRequirements"]["extra"]["paymentFlow"],
        "upfront"
    );
}

#[tokio::test]
async fn what_the_buyer_signs_is_the_offer_for_as_long_as_the_seller_asks() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap();
    let body = market.asked().remove(0).1;
    let payload: ExactPayload =
        serde_json::from_value(body["paymentPayload"]["payload"].clone()).unwrap();
    let offer: PaymentRequirements =
        serde_json::from_value(body["paymentRequirements"].clone()).unwrap();
    let authorization = payload.authorization;
    let now = datetime!(2026-01-02 03:04:05 UTC).unix_timestamp();
    assert_eq!(
        authorization.valid_before.to_string(),
        (now + 300).to_string()
    );
    assert_eq!(authorization.valid_after, Amount::ZERO);
    assert_eq!(authorization.to, Address::repeat_byte(0x22));
    let separator = DomainSeparator::of_token("USDC", "2", BASE_SEPOLIA, offer.asset);
    let signature = Signature::from_raw(&payload.signature).unwrap();
    assert_eq!(
        signature
            .recover_address_from_prehash(&authorization.digest(separator))
            .unwrap(),
        PAYER
    );
    assert!(
        matches!(payload.signature[64], 27 | 28),
        "tokens refuse a v of 0 or 1"
    );
}

#[tokio::test]
async fn a_v1_purchase_uses_v1_names_and_headers_on_both_legs() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let options = PayOptions {
        version: Some(X402Version::V1),
        ..cent()
    };
    let paid = client()
        .get(&format!("{seller}/report"), &options)
        .await
        .unwrap();
    assert_eq!(paid.status, 200);
    assert!(paid.headers.contains_key(X_PAYMENT_RESPONSE));
    assert!(!paid.headers.contains_key(PAYMENT_RESPONSE));
    assert_eq!(extract_payment_id(&paid.headers).as_deref(), Some(HASH));
    let body = market.asked().remove(0).1;
    assert_eq!(body["x402Version"], 1);
    assert_eq!(body["paymentPayload"]["network"], "base-sepolia");
    assert_eq!(body["paymentRequirements"]["network"], "base-sepolia");
    assert_eq!(body["paymentRequirements"]["maxAmountRequired"], "10000");
}

#[tokio::test]
async fn the_challenge_speaks_both_dialects_and_is_not_to_be_stored() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let response = reqwest::get(format!("{seller}/report")).await.unwrap();
    assert_eq!(response.status(), 402);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let exposed = response.headers()["access-control-expose-headers"]
        .to_str()
        .unwrap();
    assert!(exposed.contains("PAYMENT-RESPONSE"));
    let v1: PaymentRequired = response.json().await.unwrap();
    assert_eq!(v1.x402_version, X402Version::V1);
    let v2 = challenge(&format!("{seller}/report")).await;
    assert_eq!(v2.offers()[0].requirements.amount.to_string(), "10000");
    assert_eq!(v1.offers()[0].requirements.amount.to_string(), "10000");
}

#[tokio::test]
async fn a_price_above_the_ceiling_is_never_signed() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let options = PayOptions::up_to("9999".parse().unwrap());
    let error = client()
        .get(&format!("{seller}/report"), &options)
        .await
        .unwrap_err();
    assert!(matches!(error, BuyerError::TooDear { .. }), "{error}");
    assert!(!error.money_may_move());
    assert!(market.calls().is_empty());
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn what_asks_for_no_money_comes_back_untouched() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let paid = client()
        .get(&format!("{seller}/public"), &cent())
        .await
        .unwrap();
    assert_eq!(paid.status, 200);
    assert_eq!(paid.body, b"free");
    assert!(paid.payment.is_none());
    assert!(!paid.headers.contains_key("cache-control"));
    assert!(market.calls().is_empty());
}

#[tokio::test]
async fn an_altered_offer_is_refused_without_asking_the_facilitator() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let url = format!("{seller}/report");
    for (pointer, value) in [
        ("/amount", json!("1")),
        ("/payTo", json!(PAYER.to_string())),
        ("/extra/paymentFlow", json!("authorization")),
    ] {
        let mut challenge = challenge(&url).await;
        *challenge.accepts[0].pointer_mut(pointer).unwrap() = value;
        let response = present(&url, &challenge).await;
        assert_eq!(response.status(), 402, "{pointer}");
        let again: PaymentRequired =
            header::decode(response.headers()[PAYMENT_REQUIRED].to_str().unwrap()).unwrap();
        assert_eq!(
            again.error.as_deref(),
            Some("No matching payment requirements")
        );
    }
    assert!(market.calls().is_empty());
    let untouched = challenge(&url).await;
    assert_eq!(present(&url, &untouched).await.status(), 200);
}

#[tokio::test]
async fn without_a_facilitator_nothing_is_served_and_nothing_is_told_about_it() {
    let mut market = Market::default();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let seller = market.seller_with(&format!("http://{closed}"), flow).await;
        let url = format!("{seller}/report");
        let response = present(&url, &challenge(&url).await).await;
        assert_eq!(response.status(), 502);
        let text = response.text().await.unwrap();
        assert!(text.contains("error") && !text.contains(&closed), "{text}");
        let error = client().get(&url, &cent()).await.unwrap_err();
        assert!(
            matches!(error, BuyerError::OutcomeUnknown { status: 502, .. }),
            "{error}"
        );
        assert!(error.money_may_move());
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn an_answer_that_is_no_x402_answer_is_an_outage_too() {
    let mut market = Market::default();
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let seller = market.seller(flow).await;
        let url = format!("{seller}/report");
        for (status, body) in [
            (200, json!({})),
            (500, json!("<html>secret</html>")),
            (500, settled()),
            (500, valid()),
        ] {
            market.answers([(status, body)]);
            let response = present(&url, &challenge(&url).await).await;
            assert_eq!(response.status(), 502, "{status}");
            assert!(!response.text().await.unwrap().contains("secret"));
        }
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn a_pending_payment_is_presented_again_and_never_signed_twice() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let pending = || (200, failed("settlement_pending", HASH));
    // The seller repeats each settlement once: two presentations end pending, the third one succeeds.
    market.answers([pending(), pending(), (500, pending().1), pending()]);
    let paid = client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap();
    assert_eq!(paid.status, 200);
    let asked = market.asked();
    assert_eq!(asked.len(), 5);
    assert!(
        asked.iter().all(|(_, body)| *body == asked[0].1),
        "one payment, presented unchanged"
    );
    assert_eq!(market.runs(), 1);
}

#[tokio::test]
async fn a_payment_that_stays_pending_is_reported_with_its_hash() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    market.answers((0..40).map(|_| (200, failed("settlement_pending", HASH))));
    let error = client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap_err();
    let BuyerError::Pending {
        handed,
        transaction,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(transaction, HASH);
    assert_eq!(handed.amount.to_string(), "10000");
    assert!(error.money_may_move());
    assert_eq!(
        market.asked().len(),
        12,
        "six presentations, each asked twice"
    );
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn a_refusal_reaches_the_buyer_with_its_code_and_its_consequence() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let url = format!("{seller}/report");
    for (reason, transaction, may_move) in [
        ("invalid_exact_evm_insufficient_balance", "", false),
        ("duplicate_settlement", HASH, true),
        ("unexpected_settle_error", "", true),
    ] {
        market.answers([(200, failed(reason, transaction))]);
        let error = client().get(&url, &cent()).await.unwrap_err();
        let BuyerError::Refused { reason: told, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(told, reason);
        assert_eq!(error.money_may_move(), may_move, "{reason}");
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn a_handler_that_answers_first_is_paid_only_if_it_succeeds() {
    let mut market = Market::default();
    let seller = market.seller(Flow::AfterHandler).await;
    let paid = client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap();
    assert_eq!(
        json_of(&paid)["paymentId"],
        Value::Null,
        "not settled yet when the handler runs"
    );
    assert_eq!(extract_payment_id(&paid.headers).as_deref(), Some(HASH));
    assert_eq!(market.calls(), ["verify", "settle"]);

    let request = Request::new(Method::POST, &format!("{seller}/broken")).unwrap();
    let error = client()
        .send(request.body("{}"), &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
        "{error}"
    );
    assert_eq!(market.calls(), ["verify", "settle", "verify"]);
    assert_eq!(market.runs(), 2);
}

#[tokio::test]
async fn an_invalid_payment_runs_no_handler_and_a_failed_settlement_serves_no_body() {
    let mut market = Market::default();
    let seller = market.seller(Flow::AfterHandler).await;
    let url = format!("{seller}/report");
    market.answers([(
        200,
        json!({"isValid": false, "invalidReason": "invalid_exact_evm_signature"}),
    )]);
    let error = client().get(&url, &cent()).await.unwrap_err();
    assert!(
        matches!(&error, BuyerError::Refused { reason, .. } if reason == "invalid_exact_evm_signature")
    );
    assert_eq!(market.runs(), 0);

    market.answers([
        (200, valid()),
        (200, failed("invalid_exact_evm_transaction_failed", "")),
    ]);
    let response = present(&url, &challenge(&url).await).await;
    assert_eq!(response.status(), 402);
    assert!(response.headers().contains_key(PAYMENT_RESPONSE));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"], "invalid_exact_evm_transaction_failed");
    assert_eq!(market.runs(), 1);
}

#[tokio::test]
async fn no_spelling_and_no_method_of_a_priced_route_is_free() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let address = seller.trim_start_matches("http://").to_owned();
    for target in [
        "GET /report",
        "HEAD /report",
        "GET /report/",
        "GET //report",
        "GET /%72eport",
        "GET /./report",
        "GET /public/../report",
        "GET /report?x=1",
    ] {
        let status = status_of(&address, target).await;
        assert_eq!(status, "402", "{target}");
    }
    assert_eq!(status_of(&address, "GET /elsewhere").await, "200");
    assert_eq!(market.runs(), 0);
}

/// Asks with a path as it is; HTTP clients would tidy it first.
async fn status_of(address: &str, target: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer)
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_paywall_inside_a_nested_router_names_the_whole_url() {
    let mut market = Market::default();
    let facilitator = market.facilitator().await;
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .route("GET /report", Price::dollars("0.01").unwrap());
    let inner = Router::new()
        .route("/report", get(report))
        .with_state(Arc::clone(&market.runs))
        .layer(paywall.build().unwrap());
    let seller = market.open(Router::new().nest("/shop", inner)).await;
    let url = format!("{seller}/shop/report");
    assert_eq!(challenge(&url).await.resource.unwrap().url, url);
    assert_eq!(client().get(&url, &cent()).await.unwrap().status, 200);
    assert_eq!(market.runs(), 1);
}

#[tokio::test]
async fn a_payment_never_follows_a_redirect_and_an_unpaid_request_stays_with_its_origin() {
    let mut market = Market::default();
    let hits: Arc<Mutex<Vec<HeaderMap>>> = Arc::default();
    let elsewhere = Router::new().fallback({
        let hits = Arc::clone(&hits);
        async move |headers: HeaderMap| {
            hits.lock().unwrap().push(headers);
            "caught"
        }
    });
    let elsewhere = market.open(elsewhere).await;
    let seller = market.seller(Flow::Upfront).await;
    let asked = challenge(&format!("{seller}/report")).await;
    let required = header::encode(&asked).unwrap();
    let away = move |headers: &HeaderMap| -> Response {
        if headers.contains_key("payment-signature") {
            let place = format!("{elsewhere}/caught");
            (StatusCode::TEMPORARY_REDIRECT, [("location", place)]).into_response()
        } else {
            (
                StatusCode::PAYMENT_REQUIRED,
                [(PAYMENT_REQUIRED, required.clone())],
            )
                .into_response()
        }
    };
    let thief = Router::new()
        .route("/paid", get(async move |headers: HeaderMap| away(&headers)))
        .route(
            "/moved",
            get(async || (StatusCode::FOUND, [("location", "/paid")])),
        );
    let thief = market.open(thief).await;
    for path in ["/paid", "/moved"] {
        let paid = client()
            .get(&format!("{thief}{path}"), &cent())
            .await
            .unwrap();
        assert_eq!(
            paid.status, 307,
            "{path}: the redirect comes back to the caller"
        );
    }
    assert!(hits.lock().unwrap().is_empty());
}
