//! Hostile sellers. In every case they get one payment at most, and the caller gets an error that describes the outcome.

use std::collections::HashSet;

use crate::support::*;
use x402d::protocol::PresentedPayment;

/// The payments that a seller received.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Value>>>);

impl Received {
    fn push(&self, headers: &HeaderMap) {
        let text = headers["payment-signature"].to_str().unwrap();
        let payment = PresentedPayment::read(X402Version::V2, text).unwrap();
        self.0.lock().unwrap().push(payment.raw().clone());
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn nonces(&self) -> HashSet<String> {
        let received = self.0.lock().unwrap();
        let nonce = |payment: &Value| payment["payload"]["authorization"]["nonce"].to_string();
        received.iter().map(nonce).collect()
    }

    fn assert_one_payment_of_a_cent(&self) {
        assert_eq!(
            self.nonces().len(),
            1,
            "one authorization for all presentations"
        );
        let received = self.0.lock().unwrap();
        for payment in received.iter() {
            assert_eq!(payment["payload"]["authorization"]["value"], "10000");
        }
    }
}

fn challenge_for(amount: &str) -> Value {
    json!({"x402Version": 2, "resource": {"url": "http://shop/report"}, "accepts": [{"scheme": "exact", "network": "eip155:84532",
        "amount": amount, "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
        "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2"}}]})
}

fn required(challenge: &Value) -> Response {
    let headers = [(PAYMENT_REQUIRED, header::encode(challenge).unwrap())];
    (StatusCode::PAYMENT_REQUIRED, headers).into_response()
}

fn result(status: u16, outcome: &Value) -> Response {
    let headers = [(PAYMENT_RESPONSE, header::encode(outcome).unwrap())];
    let status = StatusCode::from_u16(status).unwrap();
    (status, headers, "the report").into_response()
}

/// A seller that asks for a cent and answers a payment with `paid`.
async fn seller(
    market: &mut Market,
    paid: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> (String, Received) {
    let received = Received::default();
    let recorder = received.clone();
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            recorder.push(&headers);
            paid()
        } else {
            required(&challenge_for("10000"))
        }
    });
    (format!("{}/report", market.open(router).await), received)
}

/// Many listed v2 services send the challenge in the body only, or omit or rename members that are not needed to pay.
#[tokio::test]
async fn body_only_and_malformed_header_challenges_are_paid() {
    let good = challenge_for("10000");
    let changed = |change: fn(&mut serde_json::Map<String, Value>)| {
        let mut challenge = good.clone();
        change(challenge.as_object_mut().unwrap());
        challenge
    };
    let bare = changed(|all| drop(all.remove("resource")));
    let renamed = changed(|all| {
        let resource = all.remove("resource").unwrap();
        all.insert("resourceInfo".to_owned(), resource);
    });
    let text = changed(|all| drop(all.insert("resource".to_owned(), json!("http://shop/"))));
    let encoded = |challenge: &Value| Some(header::encode(challenge).unwrap());
    for (head, body) in [
        (None, good.to_string()),
        (None, format!("\u{feff}{good}")),
        (encoded(&bare), String::new()),
        (encoded(&renamed), "{}".to_owned()),
        (encoded(&text), String::new()),
        (None, text.to_string()),
        (Some("this is no base64".to_owned()), good.to_string()),
        (encoded(&json!({"x402Version": 2})), good.to_string()),
    ] {
        let mut market = Market::default();
        let router = Router::new().fallback(async move |headers: HeaderMap| {
            if headers.contains_key("payment-signature") {
                return result(200, &settled());
            }
            let mut answer = (StatusCode::PAYMENT_REQUIRED, body.clone()).into_response();
            if let Some(head) = &head {
                answer
                    .headers_mut()
                    .insert(PAYMENT_REQUIRED, head.parse().unwrap());
            }
            answer
        });
        let url = format!("{}/report", market.open(router).await);
        let paid = client().get(&url, &cent()).await.unwrap();
        assert_eq!(
            (paid.status.as_u16(), paid.transaction()),
            (200, Some(HASH))
        );
    }
}

#[tokio::test]
async fn price_raised_after_payment_is_not_paid() {
    let mut market = Market::default();
    let (url, received) = seller(&mut market, || required(&challenge_for("10001"))).await;
    let buyer = retrying_client();
    let high_ceiling = PayOptions::up_to("1000000".parse().unwrap());
    for _ in 0..2 {
        let error = buyer.get(&url, &high_ceiling).await.unwrap_err();
        assert!(
            matches!(&error, BuyerError::PriceChanged { price, .. } if price.to_string() == "10001"),
            "{error}"
        );
        assert!(error.money_may_have_moved());
    }
    assert_eq!(received.count(), 2, "not presented again within a call");
    received.assert_one_payment_of_a_cent();
    assert_eq!(buyer.committed().to_string(), "10000");
}

#[tokio::test]
async fn endless_402_gets_one_payment_and_an_error() {
    let mut market = Market::default();
    let (url, received) = seller(&mut market, || required(&challenge_for("10000"))).await;
    let buyer = retrying_client();
    for _ in 0..3 {
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), "payment_refused", "{error}");
        assert!(error.money_may_have_moved());
        assert_eq!(error.transaction(), None);
    }
    assert_eq!(received.count(), 18);
    received.assert_one_payment_of_a_cent();
}

#[tokio::test]
async fn endless_pending_or_used_results_end_with_their_code() {
    let mut market = Market::default();
    for (status, reason, code) in [
        (402, "settlement_pending", "settlement_pending"),
        (402, "duplicate_settlement", "payment_used"),
        (500, "settlement_pending", "outcome_unknown"),
    ] {
        let (url, received) =
            seller(&mut market, move || result(status, &failed(reason, HASH))).await;
        let buyer = retrying_client();
        for _ in 0..2 {
            let error = buyer.get(&url, &cent()).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(
                error.signed().unwrap().valid_before.is_some(),
                "the error has the expiry"
            );
            assert!(!error.advice().is_empty());
        }
        assert_eq!(received.count(), 12);
        received.assert_one_payment_of_a_cent();
    }
}

#[tokio::test]
async fn contradicting_result_is_reported_with_the_response() {
    let mut market = Market::default();
    for (member, value) in [
        ("network", json!("eip155:1")),
        ("amount", json!("9999")),
        ("payer", json!("0x3333333333333333333333333333333333333333")),
        ("transaction", json!("0x1234")),
    ] {
        let mut outcome = settled();
        outcome[member] = value;
        let (url, received) = seller(&mut market, move || result(200, &outcome)).await;
        let error = retrying_client().get(&url, &cent()).await.unwrap_err();
        let BuyerError::Contradiction { what, answer, .. } = &error else {
            panic!("{member}: {error}")
        };
        assert!(
            what.contains(if member == "transaction" {
                "0x1234"
            } else {
                member
            }),
            "{what}"
        );
        assert_eq!(answer.body, b"the report");
        received.assert_one_payment_of_a_cent();
    }
}

#[tokio::test]
async fn oversized_body_is_not_read_and_costs_no_second_payment() {
    let mut market = Market::default();
    let (url, received) = seller(&mut market, || vec![0_u8; 100_001].into_response()).await;
    let buyer = retrying_client().body_bytes_max(100_000);
    for _ in 0..2 {
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                BuyerError::PaidUnanswered {
                    cause: x402d::buyer::ExchangeError::TooLong(100_000),
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(received.count(), 2);
    received.assert_one_payment_of_a_cent();
    let huge = Router::new().fallback(async || (StatusCode::PAYMENT_REQUIRED, vec![b' '; 100_001]));
    let huge = market.open(huge).await;
    let error = buyer.get(&huge, &cent()).await.unwrap_err();
    assert_eq!(error.code(), "seller_unanswered");
    assert!(!error.money_may_have_moved());
}

#[tokio::test]
async fn unsafe_facilitator_url_from_seller_is_rejected() {
    let mut market = Market::default();
    let challenges = Arc::new(AtomicUsize::new(0));
    let hits = Arc::clone(&challenges);
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            return result(200, &settled());
        }
        let mut challenge = challenge_for("10000");
        challenge["extensions"] =
            json!({"payment-session": {"info": {"url": "http://pay.example"}}});
        hits.fetch_add(1, Ordering::SeqCst);
        required(&challenge)
    });
    let url = market.open(router).await;
    let pay_first = PayOptions {
        sessions: x402d::buyer::SessionUse::PayFirst,
        ..cent()
    };
    let error = client().get(&url, &pay_first).await.unwrap_err();
    assert!(
        matches!(
            error,
            BuyerError::Session(x402d::buyer::SessionFailure::UnsafeUrl)
        ),
        "{error}"
    );
    assert!(!error.money_may_have_moved());
    assert_eq!(
        client().get(&url, &cent()).await.unwrap().status,
        200,
        "the header pays without a session"
    );
    assert_eq!(challenges.load(Ordering::SeqCst), 2);
}

const OTHER_HASH: &str = "0xbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const SESSION: &str = "ps_0123456789abcdefghjkmnpqrs";

/// A facilitator whose sessions expire at `expires_at` and are paid by `transaction`. Its responses contain typed data that must not be
/// signed.
async fn facilitator(
    market: &mut Market,
    expires_at: &'static str,
    transaction: &'static str,
) -> reqwest::Url {
    let view = move |state: &str| {
        json!({"sessionId": SESSION, "state": state, "rail": "authorization", "network": "eip155:84532",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
            "payer": PAYER.to_string(), "amount": "10000", "decimals": 6, "requirementsHash": HASH, "confirmations": 1,
            "acceptFromBlock": 1, "expiresAt": expires_at, "createdAt": "2026-01-02T03:04:05Z", "transaction": transaction,
            "moneyMayMove": true, "cancelToken": "ct", "authorization": {"message": {"nonce": HASH, "value": "999999"}}})
    };
    let router = Router::new()
        .route(
            "/sessions",
            post(async move || (StatusCode::CREATED, Json(view("open")))),
        )
        .route("/sessions/{id}", get(async move || Json(view("consumed"))));
    market.open(router).await.parse().unwrap()
}

#[tokio::test]
async fn session_nonce_is_computed_here_and_hashes_are_compared() {
    let mut market = Market::default();
    let (url, received) = seller(&mut market, || result(200, &settled())).await;
    let end = "2026-01-02T03:09:05Z";
    let lying = facilitator(&mut market, end, OTHER_HASH).await;
    let error = client()
        .facilitator(lying)
        .get(&url, &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BuyerError::Contradiction { what, .. } if what.contains(OTHER_HASH)),
        "{error}"
    );
    received.assert_one_payment_of_a_cent();
    let terms =
        x402d::protocol::session::requirements_hash(&challenge_for("10000")["accepts"][0]).unwrap();
    let nonce = x402d::protocol::session::nonce(&SESSION.parse().unwrap(), terms);
    assert!(
        received.nonces().contains(&format!("\"{nonce}\"")),
        "the nonce is computed by the buyer"
    );

    let honest = facilitator(&mut market, end, HASH).await;
    let paid = client()
        .facilitator(honest)
        .get(&url, &cent())
        .await
        .unwrap();
    assert_eq!(paid.session.unwrap().transaction.as_deref(), Some(HASH));

    let pay_first = PayOptions {
        sessions: x402d::buyer::SessionUse::PayFirst,
        ..cent()
    };
    for wrong in ["2026-01-02T03:04:05Z", "2026-01-02T04:04:06Z"] {
        let facilitator = facilitator(&mut market, wrong, HASH).await;
        let error = client()
            .facilitator(facilitator)
            .get(&url, &pay_first)
            .await
            .unwrap_err();
        let expiry = x402d::buyer::SessionFailure::Expiry;
        assert!(
            matches!(&error, BuyerError::Session(failure) if *failure == expiry),
            "{wrong}: {error}"
        );
    }
}

/// What a terminal obeys: erase the line, set the clipboard, reverse the direction of text.
const ESCAPES: &str = "x\u{1b}[2K\u{1b}[1A\u{1b}]52;c;eA==\u{7}\u{202e}\u{9b}y\r\nz";

#[tokio::test]
async fn texts_of_a_seller_are_escaped_and_a_hash_is_a_hash() {
    let mut market = Market::default();
    let refused = failed(ESCAPES, ESCAPES);
    let used = failed("duplicate_settlement", ESCAPES);
    let pending = failed("settlement_pending", ESCAPES);
    let mut contradicting = settled();
    contradicting["network"] = json!(ESCAPES);
    let mut junk_hash = settled();
    junk_hash["transaction"] = json!(ESCAPES);
    for (status, outcome) in [
        (402, refused),
        (402, used),
        (402, pending),
        (200, contradicting),
        (200, junk_hash),
    ] {
        let answer = outcome.clone();
        let paid = move || {
            let mut response = result(status, &answer);
            let challenge = header::encode(&challenge_for("10000")).unwrap();
            let headers = response.headers_mut();
            headers.insert(PAYMENT_REQUIRED, challenge.parse().unwrap());
            response
        };
        let (url, _) = seller(&mut market, paid).await;
        let error = client().get(&url, &cent()).await.unwrap_err();
        let shown = error.to_string();
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert!(!shown.contains('\u{202e}'), "{shown:?}");
        let hash = error.transaction();
        assert!(hash.is_none_or(|hash| hash == HASH), "{outcome}");
        assert!(error.money_may_have_moved());
    }
}

#[tokio::test]
async fn seller_on_plain_http_elsewhere_is_not_paid_unless_allowed() {
    let mut market = Market::default();
    let (url, received) = seller(&mut market, || result(200, &settled())).await;
    // This machine by an address that is none of the loopback ones.
    let elsewhere = url.replace("127.0.0.1", "0.0.0.0");
    let error = client().get(&elsewhere, &cent()).await.unwrap_err();
    assert_eq!(error.code(), "insecure_seller", "{error}");
    assert!(!error.money_may_have_moved());
    assert_eq!(received.count(), 0);
    let allowed = client().allow_http().get(&elsewhere, &cent()).await;
    assert_eq!(allowed.unwrap().status, 200);
    assert_eq!(client().get(&url, &cent()).await.unwrap().status, 200);
    assert_eq!(received.count(), 2);
}

/// A seller names a facilitator by a name that leads to this machine, but is not `localhost`.
#[tokio::test]
async fn facilitator_named_by_a_seller_is_not_reached_at_a_private_address() {
    let mut market = Market::default();
    let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            return result(200, &settled());
        }
        let mut challenge = challenge_for("10000");
        let url = format!("https://localhost.:{port}/");
        challenge["extensions"] = json!({"payment-session": {"info": {"url": url}}});
        required(&challenge)
    });
    let url = market.open(router).await;
    let pay_first = PayOptions {
        sessions: x402d::buyer::SessionUse::PayFirst,
        ..cent()
    };
    let buyer = client();
    let (ended, reached) = tokio::select! {
        error = buyer.get(&url, &pay_first) => (error.unwrap_err().code(), false),
        _ = inside.accept() => ("", true),
    };
    assert!(!reached, "a connection into the buyer's network");
    assert_eq!(ended, "session_unavailable");
    let paid = buyer.get(&url, &cent()).await.unwrap();
    assert_eq!(paid.status, 200, "the header pays without a session");
}
