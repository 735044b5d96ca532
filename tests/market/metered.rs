//! Metered purchases: the buyer signs a maximum, the handler sets the charge.

use std::collections::HashMap;

use crate::support::*;
use x402d::protocol::permit2::UPTO_PROXY;
use x402d::protocol::{Permit2Payload, Scheme};
use x402d::seller::Charge;

/// At most a cent.
pub(super) fn price() -> Price {
    Price::dollars("0.01").unwrap().metered()
}

/// A handler whose charge is set by the query: `typed` as a [`Charge`], `stock` in the header of the official SDKs, `status` as status.
pub(super) async fn charging_handler(uri: Uri, payment: Payment) -> Response {
    let url = reqwest::Url::parse("http://shop").unwrap();
    let url = url.join(&uri.to_string()).unwrap();
    let query: HashMap<_, _> = url.query_pairs().into_owned().collect();
    let status = query.get("status").map_or("200", String::as_str);
    let status: StatusCode = status.parse().unwrap();
    let body = json!({"amount": payment.amount, "paymentId": payment.payment_id});
    let mut response = match query.get("typed") {
        Some(typed) => (status, typed.parse::<Charge>().unwrap(), Json(body)).into_response(),
        None => (status, Json(body)).into_response(),
    };
    if let Some(stock) = query.get("stock") {
        let headers = response.headers_mut();
        headers.insert("Settlement-Overrides", stock.parse().unwrap());
    }
    response
}

pub(super) async fn shop(market: &mut Market) -> String {
    market.sell(price(), Flow::Upfront, charging_handler).await
}

/// Name and amount of the last call.
pub(super) fn last_call(market: &Market) -> (String, Value) {
    let (call, body) = market.calls().pop().unwrap();
    (call, body["paymentRequirements"]["amount"].clone())
}

pub(super) fn with_query(url: &str, query: &[(&str, &str)]) -> String {
    reqwest::Url::parse_with_params(url, query).unwrap().into()
}

#[tokio::test]
async fn handler_sets_the_charge_up_to_the_maximum() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    for (query, charged) in [
        (vec![("typed", "1000")], "1000"),
        (vec![("typed", "50%")], "5000"),
        (vec![("typed", "$0.002")], "2000"),
        (vec![("stock", r#"{"amount":"1000"}"#)], "1000"),
        (vec![("stock", r#"{"amount":"33.33%"}"#)], "3333"),
        (vec![("stock", r#"{"amount":"$0.0000019"}"#)], "1"),
        (vec![("typed", "7"), ("stock", r#"{"amount":"8"}"#)], "7"),
        (vec![("stock", "{}")], "10000"),
        (vec![("typed", "10000")], "10000"),
        (vec![], "10000"),
    ] {
        let paid = buyer.get(&with_query(&url, &query), &cent()).await.unwrap();
        assert_eq!(paid.status, 200);
        assert_eq!(paid.charged(), Some(charged.parse().unwrap()), "{query:?}");
        assert_eq!(paid.transaction(), Some(HASH));
        assert!(
            !paid.headers.contains_key("settlement-overrides"),
            "{query:?}"
        );
        assert_eq!(last_call(&market), ("settle".to_owned(), json!(charged)));
        let served = json_of(&paid);
        assert_eq!(served["amount"], "10000", "before settlement: the maximum");
        assert_eq!(served["paymentId"], Value::Null);
    }
}

#[tokio::test]
async fn maximum_is_signed_for_facilitator_and_verified_first() {
    let mut market = Market::default();
    let url = with_query(&shop(&mut market).await, &[("typed", "1")]);
    client().get(&url, &cent()).await.unwrap();
    let calls = market.calls();
    assert_eq!(market.call_names(), ["supported", "verify", "settle"]);
    for (_, body) in &calls[1..] {
        let payload: Permit2Payload =
            serde_json::from_value(body["paymentPayload"]["payload"].clone()).unwrap();
        let authorization = payload.permit2_authorization;
        assert_eq!(authorization.spender, UPTO_PROXY);
        assert_eq!(authorization.witness.facilitator, Some(FACILITATOR));
        assert_eq!(authorization.permitted.amount.to_string(), "10000");
        let separator = DomainSeparator::of_permit2(BASE_SEPOLIA);
        let digest = authorization.digest(Scheme::Upto, separator);
        let signature = Signature::from_raw(&payload.signature).unwrap();
        let signer = signature.recover_address_from_prehash(&digest).unwrap();
        assert_eq!(signer, PAYER);
        assert_eq!(body["paymentPayload"]["accepted"]["amount"], "10000");
        assert_eq!(body["paymentPayload"]["accepted"]["scheme"], "upto");
        let extra = &body["paymentRequirements"]["extra"];
        assert_eq!(extra["assetTransferMethod"], "permit2");
        assert_eq!(extra["facilitatorAddress"], FACILITATOR.to_string());
        assert_eq!(
            (extra["name"].as_str(), extra["version"].as_str()),
            (Some("USDC"), Some("2"))
        );
        assert_eq!(extra.get("paymentFlow"), None);
    }
    assert_eq!(calls[1].1["paymentRequirements"]["amount"], "10000");
}

#[tokio::test]
async fn zero_charge_is_settled_without_transaction() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    for query in [
        ("typed", "0"),
        ("stock", r#"{"amount":"0%"}"#),
        ("typed", "$0"),
    ] {
        let paid = buyer
            .get(&with_query(&url, &[query]), &cent())
            .await
            .unwrap();
        assert_eq!(
            (paid.status.as_u16(), paid.charged()),
            (200, Some(Amount::ZERO))
        );
        assert_eq!(paid.transaction(), None);
        assert!(paid.payment.as_ref().unwrap().success);
        assert_eq!(extract_payment_id(&paid.headers), None);
        assert_eq!(last_call(&market), ("settle".to_owned(), json!("0")));
    }
    assert_eq!(
        buyer.committed().to_string(),
        "30000",
        "a reported charge releases no budget: the signed maximum stays valid until it expires"
    );
}

#[tokio::test]
async fn invalid_charge_is_a_500_and_settles_nothing() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    let another = PayOptions {
        another: true,
        ..cent()
    };
    for query in [
        ("typed", "10001"),
        ("typed", "$0.010001"),
        ("stock", r#"{"amount":"10001"}"#),
        ("stock", r#"{"amount":"101%"}"#),
        ("stock", r#"{"amount":1000}"#),
        ("stock", r#"{"amount":"a little"}"#),
        ("stock", "1000"),
    ] {
        market.script.lock().unwrap().calls.clear();
        let error = buyer
            .get(&with_query(&url, &[query]), &another)
            .await
            .unwrap_err();
        assert!(
            matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
            "{query:?}: {error}"
        );
        assert!(
            !market.call_names().contains(&"settle".to_owned()),
            "{query:?}"
        );
    }
}

#[tokio::test]
async fn failing_handler_is_not_paid_and_its_response_passes() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    for status in [400, 404, 500, 503] {
        market.script.lock().unwrap().calls.clear();
        let status = status.to_string();
        let overrides = ("stock", r#"{"amount":"junk"}"#);
        let url = with_query(&url, &[("status", &status), overrides]);
        let challenge = challenge(&url).await;
        let response = present(&url, &challenge).await;
        assert_eq!(response.status().as_str(), status);
        assert!(!response.headers().contains_key("settlement-overrides"));
        assert!(!response.headers().contains_key(PAYMENT_RESPONSE));
        assert_eq!(response.json::<Value>().await.unwrap()["amount"], "10000");
        assert!(!market.call_names().contains(&"settle".to_owned()));
    }
}

#[tokio::test]
async fn hook_gets_the_charged_amount() {
    let mut market = Market::default();
    let facilitator = market.facilitator().await;
    let settled_payments: Arc<Mutex<Vec<Payment>>> = Arc::default();
    let recorder = Arc::clone(&settled_payments);
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .on_settled(move |payment: &Payment| {
            recorder.lock().unwrap().push(payment.clone());
        })
        .route("/sold", price());
    let router = Router::new().route("/sold", get(charging_handler));
    let url = market.open(router.layer(paywall.build().unwrap())).await + "/sold";
    for charge in ["12%", "0"] {
        client()
            .get(&with_query(&url, &[("typed", charge)]), &cent())
            .await
            .unwrap();
    }
    // A facilitator whose response has no amount.
    let mut without_amount = settled();
    without_amount.as_object_mut().unwrap().remove("amount");
    market.respond([(200, valid()), (200, without_amount)]);
    let paid = client()
        .get(&with_query(&url, &[("typed", "34")]), &cent())
        .await
        .unwrap();
    assert_eq!(paid.charged(), Some("34".parse().unwrap()));
    let settled_payments = settled_payments.lock().unwrap().clone();
    let charges: Vec<_> = settled_payments
        .iter()
        .map(|payment| (payment.amount.to_string(), payment.payment_id.as_deref()))
        .collect();
    let expected = [("1200", Some(HASH)), ("0", None), ("34", Some(HASH))];
    assert_eq!(
        charges,
        expected.map(|(amount, hash)| (amount.to_owned(), hash))
    );
}

#[tokio::test]
async fn failed_settlement_serves_no_body() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let refusal = failed("invalid_upto_evm_transaction_failed", "");
    market.respond([(200, valid()), (200, refusal)]);
    let response = present(&url, &challenge(&url).await).await;
    assert_eq!(response.status(), 402);
    assert!(response.headers().contains_key(PAYMENT_RESPONSE));
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        json!({}),
        "no offer in v1"
    );
}

#[tokio::test]
async fn charge_cannot_change_a_fixed_price() {
    let mut market = Market::default();
    let exact = || Price::dollars("0.01").unwrap();
    let after = market
        .sell(exact(), Flow::AfterHandler, charging_handler)
        .await;
    let half = [("typed", "50%")];
    let error = client()
        .get(&with_query(&after, &half), &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
        "{error}"
    );
    assert_eq!(market.call_names(), ["verify"], "nothing was settled");
    let all = [("stock", r#"{"amount":"100%"}"#)];
    let paid = client()
        .get(&with_query(&after, &all), &cent())
        .await
        .unwrap();
    assert_eq!(
        (paid.status.as_u16(), last_call(&market).1),
        (200, json!("10000"))
    );

    let upfront = market.sell(exact(), Flow::Upfront, charging_handler).await;
    let stock = [("stock", r#"{"amount":"1"}"#)];
    let paid = client()
        .get(&with_query(&upfront, &stock), &cent())
        .await
        .unwrap();
    assert_eq!(
        (paid.status.as_u16(), last_call(&market).1),
        (200, json!("10000"))
    );
    assert!(!paid.headers.contains_key("settlement-overrides"));
}

#[tokio::test]
async fn facilitator_address_is_cached_and_refreshed_on_mismatch() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let other = json!({"kinds": [{"x402Version": 1, "scheme": "upto", "network": "base-sepolia"},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:8453", "extra": {"facilitatorAddress": FACILITATOR.to_string()}},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {}}]});
    let zero = Address::ZERO.to_string();
    let zero = json!({"kinds": [{"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": zero}}]});
    let none = [(503, json!({})), (200, other), (200, zero)];
    market.script.lock().unwrap().supported.extend(none);
    for missing in ["an outage", "no kind of this network", "the zero address"] {
        let response = reqwest::get(&url).await.unwrap();
        assert_eq!(response.status(), 502, "{missing}");
        assert!(!response.headers().contains_key(PAYMENT_REQUIRED));
    }
    for _ in 0..3 {
        let named = challenge(&url).await.offers().remove(0).requirements;
        assert_eq!(named.facilitator(), Some(FACILITATOR));
    }
    assert_eq!(
        market.call_names(),
        ["supported"; 4],
        "a known address is not requested again"
    );

    let mismatch = json!({"isValid": false, "invalidReason": "upto_facilitator_mismatch"});
    market.respond([(200, mismatch)]);
    let changed = Address::repeat_byte(0x44).to_string();
    let changed = json!({"kinds": [{"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": changed}}]});
    market
        .script
        .lock()
        .unwrap()
        .supported
        .push_back((200, changed));
    client().get(&url, &cent()).await.unwrap_err();
    let named = challenge(&url).await.offers().remove(0).requirements;
    assert_eq!(named.facilitator(), Some(Address::repeat_byte(0x44)));
}

#[tokio::test]
async fn payment_for_another_facilitator_matches_no_offer() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let mut challenge = challenge(&url).await;
    challenge.accepts[0]["extra"]["facilitatorAddress"] = json!(PAYER.to_string());
    assert_eq!(present(&url, &challenge).await.status(), 402);
    assert_eq!(market.call_names(), ["supported"]);
}

/// A seller of a metered resource for a cent that answers a payment with `paid`.
async fn hostile(market: &mut Market, extra: Value, paid: Value) -> String {
    let challenge = json!({"x402Version": 2, "accepts": [{"scheme": "upto", "network": "eip155:84532", "amount": "10000", "asset": USDC,
        "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": extra}]});
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        if headers.contains_key("payment-signature") {
            let headers = [(PAYMENT_RESPONSE, header::encode(&paid).unwrap())];
            return (headers, "the report").into_response();
        }
        let headers = [(PAYMENT_REQUIRED, header::encode(&challenge).unwrap())];
        (StatusCode::PAYMENT_REQUIRED, headers).into_response()
    });
    market.open(router).await
}

#[tokio::test]
async fn metered_offer_without_facilitator_is_not_signed() {
    let mut market = Market::default();
    for extra in [
        json!({"assetTransferMethod": "permit2"}),
        json!({"facilitatorAddress": Address::ZERO.to_string()}),
        json!({"facilitatorAddress": "not an address"}),
        json!({"assetTransferMethod": "eip3009", "facilitatorAddress": FACILITATOR.to_string(), "name": "USDC", "version": "2"}),
    ] {
        let url = hostile(&mut market, extra.clone(), settled()).await;
        let error = client().get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), "nothing_payable", "{extra}: {error}");
        assert!(!error.money_may_have_moved());
    }
    let named = json!({"facilitatorAddress": FACILITATOR.to_string()});
    let url = hostile(&mut market, named, settled()).await;
    let less = PayOptions::up_to("9999".parse().unwrap());
    let error = client().get(&url, &less).await.unwrap_err();
    assert_eq!(error.code(), "above_ceiling", "the maximum counts");
    assert!(!error.money_may_have_moved());
}

#[tokio::test]
async fn result_above_maximum_contradicts_and_below_does_not() {
    let mut market = Market::default();
    let named = json!({"facilitatorAddress": FACILITATOR.to_string()});
    for (amount, fits) in [("10001", false), ("10000", true), ("1", true), ("0", true)] {
        let url = hostile(&mut market, named.clone(), settled_for(amount)).await;
        let outcome = client().get(&url, &cent()).await;
        if fits {
            assert_eq!(outcome.unwrap().charged(), Some(amount.parse().unwrap()));
            continue;
        }
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), "result_contradicts");
        assert!(
            matches!(&error, BuyerError::Contradiction { what, .. } if what.contains("10001") && what.contains("10000")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn maximum_raised_after_payment_is_not_paid() {
    let mut market = Market::default();
    let challenge_for = |amount: &str| {
        json!({"x402Version": 2, "accepts": [{"scheme": "upto", "network": "eip155:84532", "amount": amount, "asset": USDC,
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300,
            "extra": {"facilitatorAddress": FACILITATOR.to_string()}}]})
    };
    let (first, raised) = (challenge_for("10000"), challenge_for("10001"));
    let count = Arc::new(AtomicUsize::new(0));
    let presented = Arc::clone(&count);
    let router = Router::new().fallback(async move |headers: HeaderMap| {
        let paid = headers.contains_key("payment-signature");
        presented.fetch_add(usize::from(paid), Ordering::SeqCst);
        let challenge = header::encode(if paid { &raised } else { &first }).unwrap();
        (
            StatusCode::PAYMENT_REQUIRED,
            [(PAYMENT_REQUIRED, challenge)],
        )
    });
    let url = market.open(router).await;
    let high_ceiling = PayOptions::up_to("1000000".parse().unwrap());
    let error = retrying_client()
        .get(&url, &high_ceiling)
        .await
        .unwrap_err();
    assert_eq!(error.code(), "price_changed", "{error}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

/// A payment for the first offer, with an invalid signature that the scripted facilitator does not check.
pub(super) fn payment(challenge: &PaymentRequired) -> PaymentHeader {
    payment_with_nonce(challenge, "7")
}

pub(super) fn payment_with_nonce(challenge: &PaymentRequired, nonce: &str) -> PaymentHeader {
    let offer = challenge.offers().remove(0);
    let payload: Permit2Payload = serde_json::from_value(json!({"signature": "0x07", "permit2Authorization": {"from": PAYER.to_string(),
        "permitted": {"token": USDC, "amount": "10000"}, "spender": UPTO_PROXY.to_string(), "nonce": nonce, "deadline": "1900000000",
        "witness": {"to": Address::repeat_byte(0x22).to_string(), "facilitator": FACILITATOR.to_string(), "validAfter": "0"}}}))
    .unwrap();
    PaymentHeader::present(challenge, &offer, &payload).unwrap()
}
