//! Sellers that want more than they are owed. Whatever they do, they hold one payment, and the caller is told what happened.

use std::collections::HashSet;

use super::*;
use crate::protocol::PresentedPayment;

/// What a seller saw of its buyer.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Value>>>);

impl Seen {
    fn note(&self, headers: &HeaderMap) {
        let text = headers["payment-signature"].to_str().unwrap();
        let payment = PresentedPayment::read(X402Version::V2, text).unwrap();
        self.0.lock().unwrap().push(payment.raw().clone());
    }

    fn times(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn nonces(&self) -> HashSet<String> {
        let seen = self.0.lock().unwrap();
        let nonce = |payment: &Value| payment["payload"]["authorization"]["nonce"].to_string();
        seen.iter().map(nonce).collect()
    }

    fn assert_one_payment_of_a_cent(&self) {
        assert_eq!(
            self.nonces().len(),
            1,
            "one authorization, however often it is presented"
        );
        let seen = self.0.lock().unwrap();
        for payment in seen.iter() {
            assert_eq!(payment["payload"]["authorization"]["value"], "10000");
        }
    }
}

fn asking(amount: &str) -> Value {
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

/// A seller that asks for a cent and then answers what `paid` says.
async fn seller(
    market: &mut Market,
    paid: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> (String, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            noted.note(&headers);
            paid()
        } else {
            required(&asking("10000"))
        }
    });
    (format!("{}/report", market.open(router).await), seen)
}

/// Of the services that are listed as v2, a good part say so in the body alone, or leave out or rename what is not needed to pay.
#[tokio::test]
async fn challenges_in_the_body_alone_and_of_odd_headers_are_paid() {
    let good = asking("10000");
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
async fn a_raised_price_on_the_retry_is_not_paid() {
    let mut market = Market::default();
    let (url, seen) = seller(&mut market, || required(&asking("10001"))).await;
    let buyer = patient();
    let generous = PayOptions::up_to("1000000".parse().unwrap());
    for _ in 0..2 {
        let error = buyer.get(&url, &generous).await.unwrap_err();
        assert!(
            matches!(&error, BuyerError::PriceChanged { price, .. } if price.to_string() == "10001"),
            "{error}"
        );
        assert!(error.money_may_have_moved());
    }
    assert_eq!(seen.times(), 2, "no use in asking again within a call");
    seen.assert_one_payment_of_a_cent();
    assert_eq!(buyer.committed().to_string(), "10000");
}

#[tokio::test]
async fn a_402_for_ever_gets_one_payment_and_an_end() {
    let mut market = Market::default();
    let (url, seen) = seller(&mut market, || required(&asking("10000"))).await;
    let buyer = patient();
    for _ in 0..3 {
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), "payment_refused", "{error}");
        assert!(error.money_may_have_moved());
        assert_eq!(error.transaction(), None);
    }
    assert_eq!(seen.times(), 18);
    seen.assert_one_payment_of_a_cent();
}

#[tokio::test]
async fn pending_for_ever_and_a_hash_that_does_not_exist_end_with_what_was_said() {
    let mut market = Market::default();
    for (status, reason, code) in [
        (402, "settlement_pending", "settlement_pending"),
        (402, "duplicate_settlement", "payment_used"),
        (500, "settlement_pending", "outcome_unknown"),
    ] {
        let (url, seen) = seller(&mut market, move || result(status, &failed(reason, HASH))).await;
        let buyer = patient();
        for _ in 0..2 {
            let error = buyer.get(&url, &cent()).await.unwrap_err();
            assert_eq!(error.code(), code, "{error}");
            assert!(
                error.handed().unwrap().valid_before.is_some(),
                "it says until when"
            );
            assert!(!error.advice().is_empty());
        }
        assert_eq!(seen.times(), 12);
        seen.assert_one_payment_of_a_cent();
    }
}

#[tokio::test]
async fn a_result_of_another_network_amount_payer_or_shape_is_reported_with_the_answer() {
    let mut market = Market::default();
    for (member, value) in [
        ("network", json!("eip155:1")),
        ("amount", json!("9999")),
        ("payer", json!("0x3333333333333333333333333333333333333333")),
        ("transaction", json!("0x1234")),
    ] {
        let mut outcome = settled();
        outcome[member] = value;
        let (url, seen) = seller(&mut market, move || result(200, &outcome)).await;
        let error = patient().get(&url, &cent()).await.unwrap_err();
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
        seen.assert_one_payment_of_a_cent();
    }
}

#[tokio::test]
async fn an_enormous_body_is_not_read_and_costs_no_second_payment() {
    let mut market = Market::default();
    let (url, seen) = seller(&mut market, || vec![0_u8; 100_001].into_response()).await;
    let buyer = patient().body_bytes_max(100_000);
    for _ in 0..2 {
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert!(
            matches!(
                &error,
                BuyerError::PaidUnanswered {
                    broken: crate::buyer::Broken::TooLong(100_000),
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(seen.times(), 2);
    seen.assert_one_payment_of_a_cent();
    let huge = Router::new().fallback(async || (StatusCode::PAYMENT_REQUIRED, vec![b' '; 100_001]));
    let huge = market.open(huge).await;
    let error = buyer.get(&huge, &cent()).await.unwrap_err();
    assert_eq!(error.code(), "seller_unanswered");
    assert!(!error.money_may_have_moved());
}

#[tokio::test]
async fn a_seller_cannot_have_its_payment_sent_to_a_facilitator_of_its_choice_that_is_unsafe() {
    let mut market = Market::default();
    let caught = Arc::new(AtomicUsize::new(0));
    let hits = Arc::clone(&caught);
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            return result(200, &settled());
        }
        let mut challenge = asking("10000");
        challenge["extensions"] =
            json!({"payment-session": {"info": {"url": "http://pay.example"}}});
        hits.fetch_add(1, Ordering::SeqCst);
        required(&challenge)
    });
    let url = market.open(router).await;
    let first = PayOptions {
        sessions: crate::buyer::SessionUse::PayFirst,
        ..cent()
    };
    let error = client().get(&url, &first).await.unwrap_err();
    assert!(
        matches!(
            error,
            BuyerError::Session(crate::buyer::SessionFailure::UnsafeUrl)
        ),
        "{error}"
    );
    assert!(!error.money_may_have_moved());
    assert_eq!(
        client().get(&url, &cent()).await.unwrap().status,
        200,
        "the header pays without a session"
    );
    assert_eq!(caught.load(Ordering::SeqCst), 2);
}

const SESSION: &str = "ps_0123456789abcdefghjkmnpqrs";

/// A facilitator whose sessions expire at `expires_at` and are paid by `transaction`, with typed data that nobody should sign.
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
async fn of_a_facilitators_answer_nothing_is_signed_and_its_hash_is_compared_with_the_sellers() {
    let mut market = Market::default();
    let (url, seen) = seller(&mut market, || result(200, &settled())).await;
    let end = "2026-01-02T03:09:05Z";
    let liar = facilitator(&mut market, end, "0xbbbb").await;
    let error = client()
        .facilitator(liar)
        .get(&url, &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, BuyerError::Contradiction { what, .. } if what.contains("0xbbbb")),
        "{error}"
    );
    seen.assert_one_payment_of_a_cent();
    let terms =
        crate::protocol::session::requirements_hash(&asking("10000")["accepts"][0]).unwrap();
    let nonce = crate::protocol::session::nonce(&SESSION.parse().unwrap(), terms);
    assert!(
        seen.nonces().contains(&format!("\"{nonce}\"")),
        "the nonce is computed here"
    );

    let honest = facilitator(&mut market, end, HASH).await;
    let paid = client()
        .facilitator(honest)
        .get(&url, &cent())
        .await
        .unwrap();
    assert_eq!(paid.session.unwrap().transaction.as_deref(), Some(HASH));

    let must = PayOptions {
        sessions: crate::buyer::SessionUse::PayFirst,
        ..cent()
    };
    for wrong in ["2026-01-02T03:04:05Z", "2026-01-02T04:04:06Z"] {
        let facilitator = facilitator(&mut market, wrong, HASH).await;
        let error = client()
            .facilitator(facilitator)
            .get(&url, &must)
            .await
            .unwrap_err();
        let expiry = crate::buyer::SessionFailure::Expiry;
        assert!(
            matches!(&error, BuyerError::Session(failure) if *failure == expiry),
            "{wrong}: {error}"
        );
    }
}
