//! Metered purchases: the buyer lets go of a maximum, the handler says how much of it is taken.

use std::collections::HashMap;

use super::*;
use crate::protocol::permit2::UPTO_PROXY;
use crate::protocol::{Permit2Payload, Scheme};
use crate::seller::Charge;

/// At most a cent.
fn price() -> Price {
    Price::dollars("0.01").unwrap().metered()
}

/// A handler that charges what its caller wishes: `typed` in our own type, `stock` in the header of official sellers.
async fn generous(uri: Uri, payment: Payment) -> Response {
    let url = reqwest::Url::parse("http://shop").unwrap();
    let url = url.join(&uri.to_string()).unwrap();
    let wish: HashMap<_, _> = url.query_pairs().into_owned().collect();
    let status = wish.get("status").map_or("200", String::as_str);
    let status: StatusCode = status.parse().unwrap();
    let seen = json!({"amount": payment.amount, "paymentId": payment.payment_id});
    let mut response = match wish.get("typed") {
        Some(typed) => (status, typed.parse::<Charge>().unwrap(), Json(seen)).into_response(),
        None => (status, Json(seen)).into_response(),
    };
    if let Some(stock) = wish.get("stock") {
        let headers = response.headers_mut();
        headers.insert("Settlement-Overrides", stock.parse().unwrap());
    }
    response
}

async fn shop(market: &mut Market) -> String {
    market.sells(price(), Flow::Upfront, generous).await
}

/// The amount that the last call named.
fn asked_for(market: &Market) -> (String, Value) {
    let (call, body) = market.asked().pop().unwrap();
    (call, body["paymentRequirements"]["amount"].clone())
}

fn wishing(url: &str, wish: &[(&str, &str)]) -> String {
    reqwest::Url::parse_with_params(url, wish).unwrap().into()
}

#[tokio::test]
async fn the_handler_says_how_much_of_the_maximum_is_charged() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    for (wish, charged) in [
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
        let paid = buyer.get(&wishing(&url, &wish), &cent()).await.unwrap();
        assert_eq!(paid.status, 200);
        assert_eq!(paid.charged(), Some(charged.parse().unwrap()), "{wish:?}");
        assert_eq!(paid.transaction(), Some(HASH));
        assert!(
            !paid.headers.contains_key("settlement-overrides"),
            "{wish:?}"
        );
        assert_eq!(asked_for(&market), ("settle".to_owned(), json!(charged)));
        let seen = json_of(&paid);
        assert_eq!(seen["amount"], "10000", "before it is settled: the maximum");
        assert_eq!(seen["paymentId"], Value::Null);
    }
}

#[tokio::test]
async fn the_maximum_is_signed_for_the_facilitators_account_and_verified_before_the_handler() {
    let mut market = Market::default();
    let url = wishing(&shop(&mut market).await, &[("typed", "1")]);
    client().get(&url, &cent()).await.unwrap();
    let asked = market.asked();
    assert_eq!(market.calls(), ["supported", "verify", "settle"]);
    for (_, body) in &asked[1..] {
        let payload: Permit2Payload =
            serde_json::from_value(body["paymentPayload"]["payload"].clone()).unwrap();
        let authorization = payload.permit2_authorization;
        assert_eq!(authorization.spender, UPTO_PROXY);
        assert_eq!(authorization.witness.facilitator, Some(SETTLER));
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
        assert_eq!(extra["facilitatorAddress"], SETTLER.to_string());
        assert_eq!(
            (extra["name"].as_str(), extra["version"].as_str()),
            (Some("USDC"), Some("2"))
        );
        assert_eq!(extra.get("paymentFlow"), None);
    }
    assert_eq!(asked[1].1["paymentRequirements"]["amount"], "10000");
}

#[tokio::test]
async fn a_charge_of_nothing_is_settled_and_has_no_transaction() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    for wish in [
        ("typed", "0"),
        ("stock", r#"{"amount":"0%"}"#),
        ("typed", "$0"),
    ] {
        let paid = buyer.get(&wishing(&url, &[wish]), &cent()).await.unwrap();
        assert_eq!(
            (paid.status.as_u16(), paid.charged()),
            (200, Some(Amount::ZERO))
        );
        assert_eq!(paid.transaction(), None);
        assert!(paid.payment.as_ref().unwrap().success);
        assert_eq!(extract_payment_id(&paid.headers), None);
        assert_eq!(asked_for(&market), ("settle".to_owned(), json!("0")));
    }
    assert_eq!(
        buyer.committed().to_string(),
        "30000",
        "a seller's word gives no budget back: what was signed is good until it expires"
    );
}

#[tokio::test]
async fn what_cannot_be_charged_is_the_sellers_fault_and_settles_nothing() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let buyer = client();
    let another = PayOptions {
        another: true,
        ..cent()
    };
    for wish in [
        ("typed", "10001"),
        ("typed", "$0.010001"),
        ("stock", r#"{"amount":"10001"}"#),
        ("stock", r#"{"amount":"101%"}"#),
        ("stock", r#"{"amount":1000}"#),
        ("stock", r#"{"amount":"a little"}"#),
        ("stock", "1000"),
    ] {
        market.script.lock().unwrap().asked.clear();
        let error = buyer
            .get(&wishing(&url, &[wish]), &another)
            .await
            .unwrap_err();
        assert!(
            matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
            "{wish:?}: {error}"
        );
        assert!(!market.calls().contains(&"settle".to_owned()), "{wish:?}");
    }
}

#[tokio::test]
async fn a_handler_that_fails_is_not_paid_and_its_answer_passes() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    for status in [400, 404, 500, 503] {
        market.script.lock().unwrap().asked.clear();
        let status = status.to_string();
        let overrides = ("stock", r#"{"amount":"junk"}"#);
        let url = wishing(&url, &[("status", &status), overrides]);
        let challenge = challenge(&url).await;
        let response = present(&url, &challenge).await;
        assert_eq!(response.status().as_str(), status);
        assert!(!response.headers().contains_key("settlement-overrides"));
        assert!(!response.headers().contains_key(PAYMENT_RESPONSE));
        assert_eq!(response.json::<Value>().await.unwrap()["amount"], "10000");
        assert!(!market.calls().contains(&"settle".to_owned()));
    }
}

#[tokio::test]
async fn the_hook_hears_what_was_charged() {
    let mut market = Market::default();
    let facilitator = market.facilitator().await;
    let heard: Arc<Mutex<Vec<Payment>>> = Arc::default();
    let noted = Arc::clone(&heard);
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .on_settled(move |payment: &Payment| {
            noted.lock().unwrap().push(payment.clone());
        })
        .route("/sold", price());
    let router = Router::new().route("/sold", get(generous));
    let url = market.open(router.layer(paywall.build().unwrap())).await + "/sold";
    for charge in ["12%", "0"] {
        client()
            .get(&wishing(&url, &[("typed", charge)]), &cent())
            .await
            .unwrap();
    }
    // A facilitator that does not repeat the amount.
    let mut silent = settled();
    silent.as_object_mut().unwrap().remove("amount");
    market.answers([(200, valid()), (200, silent)]);
    let paid = client()
        .get(&wishing(&url, &[("typed", "34")]), &cent())
        .await
        .unwrap();
    assert_eq!(paid.charged(), Some("34".parse().unwrap()));
    let heard = heard.lock().unwrap().clone();
    let told: Vec<_> = heard
        .iter()
        .map(|payment| (payment.amount.to_string(), payment.payment_id.as_deref()))
        .collect();
    let expected = [("1200", Some(HASH)), ("0", None), ("34", Some(HASH))];
    assert_eq!(
        told,
        expected.map(|(amount, hash)| (amount.to_owned(), hash))
    );
}

#[tokio::test]
async fn a_failed_settlement_serves_no_body() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let refusal = failed("invalid_upto_evm_transaction_failed", "");
    market.answers([(200, valid()), (200, refusal)]);
    let response = present(&url, &challenge(&url).await).await;
    assert_eq!(response.status(), 402);
    assert!(response.headers().contains_key(PAYMENT_RESPONSE));
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        json!({}),
        "v1 is offered nothing"
    );
}

#[tokio::test]
async fn a_fixed_price_is_no_meter() {
    let mut market = Market::default();
    let exact = || Price::dollars("0.01").unwrap();
    let last = market.sells(exact(), Flow::AfterHandler, generous).await;
    let half = [("typed", "50%")];
    let error = client()
        .get(&wishing(&last, &half), &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
        "{error}"
    );
    assert_eq!(market.calls(), ["verify"], "nothing was settled");
    let all = [("stock", r#"{"amount":"100%"}"#)];
    let paid = client().get(&wishing(&last, &all), &cent()).await.unwrap();
    assert_eq!(
        (paid.status.as_u16(), asked_for(&market).1),
        (200, json!("10000"))
    );

    let first = market.sells(exact(), Flow::Upfront, generous).await;
    let stock = [("stock", r#"{"amount":"1"}"#)];
    let paid = client()
        .get(&wishing(&first, &stock), &cent())
        .await
        .unwrap();
    assert_eq!(
        (paid.status.as_u16(), asked_for(&market).1),
        (200, json!("10000"))
    );
    assert!(!paid.headers.contains_key("settlement-overrides"));
}

#[tokio::test]
async fn the_settling_account_is_asked_for_until_it_is_known_and_anew_when_it_is_refused() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let other = json!({"kinds": [{"x402Version": 1, "scheme": "upto", "network": "base-sepolia"},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:8453", "extra": {"facilitatorAddress": SETTLER.to_string()}},
        {"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {}}]});
    let nobody = Address::ZERO.to_string();
    let nobody = json!({"kinds": [{"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": nobody}}]});
    let none = [(503, json!({})), (200, other), (200, nobody)];
    market.script.lock().unwrap().kinds.extend(none);
    for missing in ["an outage", "no kind of this network", "nobody's address"] {
        let response = reqwest::get(&url).await.unwrap();
        assert_eq!(response.status(), 502, "{missing}");
        assert!(!response.headers().contains_key(PAYMENT_REQUIRED));
    }
    for _ in 0..3 {
        let named = challenge(&url).await.offers().remove(0).requirements;
        assert_eq!(named.facilitator(), Some(SETTLER));
    }
    assert_eq!(
        market.calls(),
        ["supported"; 4],
        "once it is known it is not asked for again"
    );

    let mismatch = json!({"isValid": false, "invalidReason": "upto_facilitator_mismatch"});
    market.answers([(200, mismatch)]);
    let moved = Address::repeat_byte(0x44).to_string();
    let moved = json!({"kinds": [{"x402Version": 2, "scheme": "upto", "network": "eip155:84532", "extra": {"facilitatorAddress": moved}}]});
    market.script.lock().unwrap().kinds.push_back((200, moved));
    client().get(&url, &cent()).await.unwrap_err();
    let named = challenge(&url).await.offers().remove(0).requirements;
    assert_eq!(named.facilitator(), Some(Address::repeat_byte(0x44)));
}

#[tokio::test]
async fn a_payment_for_another_account_than_the_sellers_fits_no_offer() {
    let mut market = Market::default();
    let url = shop(&mut market).await;
    let mut challenge = challenge(&url).await;
    challenge.accepts[0]["extra"]["facilitatorAddress"] = json!(PAYER.to_string());
    assert_eq!(present(&url, &challenge).await.status(), 402);
    assert_eq!(market.calls(), ["supported"]);
}

/// A seller that asks for a metered cent and then answers `paid`.
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
async fn a_hostile_seller_gets_no_signature_for_anybody_and_none_above_the_ceiling() {
    let mut market = Market::default();
    for extra in [
        json!({"assetTransferMethod": "permit2"}),
        json!({"facilitatorAddress": Address::ZERO.to_string()}),
        json!({"facilitatorAddress": "somebody"}),
        json!({"assetTransferMethod": "eip3009", "facilitatorAddress": SETTLER.to_string(), "name": "USDC", "version": "2"}),
    ] {
        let url = hostile(&mut market, extra.clone(), settled()).await;
        let error = client().get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), "nothing_payable", "{extra}: {error}");
        assert!(!error.money_may_have_moved());
    }
    let named = json!({"facilitatorAddress": SETTLER.to_string()});
    let url = hostile(&mut market, named, settled()).await;
    let less = PayOptions::up_to("9999".parse().unwrap());
    let error = client().get(&url, &less).await.unwrap_err();
    assert_eq!(error.code(), "above_ceiling", "the maximum is what counts");
    assert!(!error.money_may_have_moved());
}

#[tokio::test]
async fn a_result_above_the_maximum_contradicts_and_one_below_does_not() {
    let mut market = Market::default();
    let named = json!({"facilitatorAddress": SETTLER.to_string()});
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
async fn a_raised_maximum_on_the_retry_is_not_paid() {
    let mut market = Market::default();
    let asking = |amount: &str| {
        json!({"x402Version": 2, "accepts": [{"scheme": "upto", "network": "eip155:84532", "amount": amount, "asset": USDC,
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300,
            "extra": {"facilitatorAddress": SETTLER.to_string()}}]})
    };
    let (first, raised) = (asking("10000"), asking("10001"));
    let seen = Arc::new(AtomicUsize::new(0));
    let presented = Arc::clone(&seen);
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
    let generous = PayOptions::up_to("1000000".parse().unwrap());
    let error = patient().get(&url, &generous).await.unwrap_err();
    assert_eq!(error.code(), "price_changed", "{error}");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// A payment of the offer, as a buyer would sign it; nobody here looks at the signature.
fn payment(challenge: &PaymentRequired) -> PaymentHeader {
    let offer = challenge.offers().remove(0);
    let payload: Permit2Payload = serde_json::from_value(json!({"signature": "0x07", "permit2Authorization": {"from": PAYER.to_string(),
        "permitted": {"token": USDC, "amount": "10000"}, "spender": UPTO_PROXY.to_string(), "nonce": "7", "deadline": "1900000000",
        "witness": {"to": Address::repeat_byte(0x22).to_string(), "facilitator": SETTLER.to_string(), "validAfter": "0"}}}))
    .unwrap();
    PaymentHeader::present(challenge, &offer, &payload).unwrap()
}

#[tokio::test]
async fn an_answer_that_broke_off_is_made_again_for_what_was_charged_first() {
    let mut market = Market::default();
    let runs = Arc::clone(&market.runs);
    // Longer than what a connection swallows without a reader.
    let handler = async move || {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        let charge: Charge = (1000 * run).to_string().parse().unwrap();
        (charge, vec![b'x'; 15 * 1024 * 1024])
    };
    let url = market.sells(price(), Flow::Upfront, handler).await;
    let payment = payment(&challenge(&url).await);
    let asking = reqwest::Client::new();
    let ask = || asking.get(&url).header(payment.name(), payment.value());
    let broken = ask().send().await.unwrap();
    assert_eq!(broken.status(), 200);
    drop(broken);
    // Until the server has seen that nobody reads, the payment is in hand.
    let mut again = ask().send().await.unwrap();
    for _ in 0..10_000 {
        if again.status() != 402 {
            break;
        }
        again = ask().send().await.unwrap();
    }
    let told = again.headers()[PAYMENT_RESPONSE].to_str().unwrap();
    let told: crate::protocol::SettleResponse = header::decode(told).unwrap();
    assert_eq!(told.amount, Some("1000".parse().unwrap()));
    assert_eq!(again.bytes().await.unwrap().len(), 15 * 1024 * 1024);
    assert_eq!((market.runs(), asked_for(&market).1), (2, json!("1000")));
    assert_eq!(market.calls(), ["supported", "verify", "settle"]);
}

#[tokio::test]
async fn a_lost_answer_about_nothing_is_known_again_without_a_hash() {
    for (charge, status) in [("0", 200), ("1", 402)] {
        let mut market = Market::default();
        let url = wishing(&shop(&mut market).await, &[("typed", charge)]);
        let payment = payment(&challenge(&url).await);
        let asking = reqwest::Client::new();
        let ask = || asking.get(&url).header(payment.name(), payment.value());
        market.answers([(200, valid()), (502, json!({}))]);
        assert_eq!(ask().send().await.unwrap().status(), 502);
        market.answers([(200, failed("duplicate_settlement", ""))]);
        let again = ask().send().await.unwrap();
        assert_eq!(again.status(), status, "{charge}");
        if status == 200 {
            let told = again.headers()[PAYMENT_RESPONSE].to_str().unwrap();
            let told: crate::protocol::SettleResponse = header::decode(told).unwrap();
            assert_eq!((told.success, told.amount), (true, Some(Amount::ZERO)));
        }
    }
}
