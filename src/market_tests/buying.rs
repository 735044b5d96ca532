//! The buyer's side.

use super::*;

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
async fn a_price_above_the_ceiling_is_never_signed() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let options = PayOptions::up_to("9999".parse().unwrap());
    let error = client()
        .get(&format!("{seller}/report"), &options)
        .await
        .unwrap_err();
    assert!(matches!(error, BuyerError::TooDear { .. }), "{error}");
    assert!(!error.money_may_have_moved());
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
async fn a_pending_payment_is_presented_again_and_never_signed_twice() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let pending = || (200, failed("settlement_pending", HASH));
    // The seller repeats each settlement once: two presentations end pending, the third one succeeds.
    market.answers([pending(), pending(), (500, pending().1), pending()]);
    let paid = patient()
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
    let error = patient()
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
    assert!(error.money_may_have_moved());
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
    for (reason, transaction, code) in [
        (
            "invalid_exact_evm_insufficient_balance",
            "",
            "payment_refused",
        ),
        ("duplicate_settlement", HASH, "payment_used"),
        ("unexpected_settle_error", "", "payment_refused"),
    ] {
        market.answers([(200, failed(reason, transaction))]);
        let error = client().get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        if let BuyerError::Refused { reason: told, .. } = &error {
            assert_eq!(told, reason);
        }
        assert_eq!(error.transaction().unwrap_or_default(), transaction);
        assert!(
            error.money_may_have_moved(),
            "the seller holds the payment: {reason}"
        );
    }
    assert_eq!(market.runs(), 0);
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
    let target = format!("{elsewhere}/caught");
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
            "/gone",
            get(async move || (StatusCode::FOUND, [("location", target)])),
        )
        .route(
            "/moved",
            get(async || (StatusCode::FOUND, [("location", "/paid")])),
        );
    let thief = market.open(thief).await;
    for path in ["/paid", "/moved"] {
        let error = client()
            .get(&format!("{thief}{path}"), &cent())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, BuyerError::Redirected { location, .. } if location.ends_with("/caught")),
            "{path}: {error}"
        );
        assert!(error.money_may_have_moved());
    }
    let unpaid = client()
        .get(&format!("{thief}/gone"), &cent())
        .await
        .unwrap();
    assert_eq!(unpaid.status, 302);
    assert!(hits.lock().unwrap().is_empty());
}
