//! Purchases from the buyer's side.

use crate::support::*;

#[tokio::test]
async fn v2_purchase_settles_before_handler_and_both_sides_get_hash() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let url = format!("{seller}/report?day=7");
    let paid = client().get(&url, &cent()).await.unwrap();

    assert_eq!(paid.status, 200);
    assert_eq!(extract_payment_id(&paid.headers).as_deref(), Some(HASH));
    assert_eq!(paid.headers["cache-control"], "private");
    assert!(paid.payment.as_ref().unwrap().success);
    let served = json_of(&paid);
    assert_eq!(served["paymentId"], HASH);
    assert_eq!(served["id"], "0190-payment");
    assert_eq!(served["payer"], PAYER.to_string());
    assert_eq!(served["amount"], "10000");

    let calls = market.calls();
    assert_eq!(market.call_names(), ["settle"]);
    let body = &calls[0].1;
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
async fn authorization_matches_offer_amount_payee_and_validity() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap();
    let body = market.calls().remove(0).1;
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
async fn v1_purchase_uses_v1_names_and_headers() {
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
    let body = market.calls().remove(0).1;
    assert_eq!(body["x402Version"], 1);
    assert_eq!(body["paymentPayload"]["network"], "base-sepolia");
    assert_eq!(body["paymentRequirements"]["network"], "base-sepolia");
    assert_eq!(body["paymentRequirements"]["maxAmountRequired"], "10000");
}

#[tokio::test]
async fn price_above_ceiling_is_not_signed() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let options = PayOptions::up_to("9999".parse().unwrap());
    let error = client()
        .get(&format!("{seller}/report"), &options)
        .await
        .unwrap_err();
    assert!(matches!(error, BuyerError::AboveCeiling { .. }), "{error}");
    assert!(!error.money_may_have_moved());
    assert!(market.call_names().is_empty());
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn unpriced_response_is_returned_unchanged() {
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
    assert!(market.call_names().is_empty());
}

#[tokio::test]
async fn pending_payment_is_presented_again_unchanged() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let pending = || (200, failed("settlement_pending", HASH));
    // The seller calls `/settle` twice per presentation: two presentations end pending, the third one succeeds.
    market.respond([pending(), pending(), (500, pending().1), pending()]);
    let paid = retrying_client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap();
    assert_eq!(paid.status, 200);
    let calls = market.calls();
    assert_eq!(calls.len(), 5);
    assert!(
        calls.iter().all(|(_, body)| *body == calls[0].1),
        "one payment, presented unchanged"
    );
    assert_eq!(market.runs(), 1);
}

#[tokio::test]
async fn payment_that_stays_pending_is_reported_with_hash() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    market.respond((0..40).map(|_| (200, failed("settlement_pending", HASH))));
    let error = retrying_client()
        .get(&format!("{seller}/report"), &cent())
        .await
        .unwrap_err();
    let BuyerError::Pending {
        signed,
        transaction,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(transaction, HASH);
    assert_eq!(signed.amount.to_string(), "10000");
    assert!(error.money_may_have_moved());
    assert_eq!(
        market.calls().len(),
        12,
        "six presentations with two calls each"
    );
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn refusal_has_its_code_and_money_may_have_moved() {
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
        market.respond([(200, failed(reason, transaction))]);
        let error = client().get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        if let BuyerError::Refused { reason: text, .. } = &error {
            assert_eq!(text, reason);
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
async fn paid_requests_follow_no_redirect_and_unpaid_stay_in_origin() {
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
    let challenge = challenge(&format!("{seller}/report")).await;
    let required = header::encode(&challenge).unwrap();
    let redirect_payments = move |headers: &HeaderMap| -> Response {
        if headers.contains_key("payment-signature") {
            let location = format!("{elsewhere}/caught");
            (StatusCode::TEMPORARY_REDIRECT, [("location", location)]).into_response()
        } else {
            (
                StatusCode::PAYMENT_REQUIRED,
                [(PAYMENT_REQUIRED, required.clone())],
            )
                .into_response()
        }
    };
    let redirecting = Router::new()
        .route(
            "/paid",
            get(async move |headers: HeaderMap| redirect_payments(&headers)),
        )
        .route(
            "/gone",
            get(async move || (StatusCode::FOUND, [("location", target)])),
        )
        .route(
            "/moved",
            get(async || (StatusCode::FOUND, [("location", "/paid")])),
        );
    let redirecting = market.open(redirecting).await;
    for path in ["/paid", "/moved"] {
        let error = client()
            .get(&format!("{redirecting}{path}"), &cent())
            .await
            .unwrap_err();
        assert!(
            matches!(&error, BuyerError::Redirected { location, .. } if location.ends_with("/caught")),
            "{path}: {error}"
        );
        assert!(error.money_may_have_moved());
    }
    let unpaid = client()
        .get(&format!("{redirecting}/gone"), &cent())
        .await
        .unwrap();
    assert_eq!(unpaid.status, 302);
    assert!(hits.lock().unwrap().is_empty());
}
