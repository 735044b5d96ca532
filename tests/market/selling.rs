//! Sales from the seller's side.

use crate::support::*;

#[tokio::test]
async fn challenge_has_both_versions_and_is_not_cacheable() {
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
async fn altered_offer_is_refused_without_facilitator_call() {
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
    assert!(market.call_names().is_empty());
    let untouched = challenge(&url).await;
    assert_eq!(present(&url, &untouched).await.status(), 200);
}

#[tokio::test]
async fn unreachable_facilitator_serves_nothing_and_leaks_no_url() {
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
        assert!(error.money_may_have_moved());
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn redirecting_facilitator_serves_nothing_and_names_target() {
    let mut market = Market::default();
    let redirecting = Router::new().fallback(async || {
        let target = "https://www.facilitator.example/v1/?key=secret";
        (StatusCode::PERMANENT_REDIRECT, [("location", target)])
    });
    let facilitator = market.open(redirecting).await;
    let paywall = Paywall::new(&facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .route("GET /report", Price::dollars("0.01").unwrap());
    let error = paywall.build().unwrap().check().await.unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("https://www.facilitator.example/v1/"),
        "{message}"
    );
    assert!(!message.contains("secret"), "{message}");
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let url = format!("{}/report", market.seller_with(&facilitator, flow).await);
        let response = present(&url, &challenge(&url).await).await;
        assert!(response.status().is_server_error(), "{}", response.status());
    }
    assert_eq!(market.runs(), 0);

    let error = client()
        .facilitator(facilitator.parse().unwrap())
        .get(
            &format!("{}/report", market.seller(Flow::Upfront).await),
            &PayOptions {
                sessions: x402d::buyer::SessionUse::PayFirst,
                ..cent()
            },
        )
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("www.facilitator.example/v1/"), "{cause}");
    assert!(!cause.contains("secret"), "{cause}");
}

#[tokio::test]
async fn invalid_facilitator_response_is_502() {
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
            market.respond([(status, body)]);
            let response = present(&url, &challenge(&url).await).await;
            assert_eq!(response.status(), 502, "{status}");
            assert!(!response.text().await.unwrap().contains("secret"));
        }
    }
    assert_eq!(market.runs(), 0);
}

/// Facilitators, and what stands before them, put the text of their errors into answers: URLs of RPC endpoints with their keys.
#[tokio::test]
async fn no_text_of_a_facilitators_error_reaches_a_buyer() {
    let leak = "HTTP request failed. URL: https://rpc.example/v2/secret-key";
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        for (status, answer) in [
            (200, failed(leak, "")),
            (
                200,
                json!({"success": false, "errorReason": "transaction_failed", "errorMessage": leak}),
            ),
            (
                200,
                json!({"success": false, "errorReason": "duplicate_settlement", "errorMessage": leak}),
            ),
            (
                200,
                json!({"success": false, "error_reason": leak, "error": leak}),
            ),
            (400, json!({"success": false, "errorReason": leak})),
            (500, json!({"error": leak})),
            (500, json!(leak)),
            (
                200,
                json!({"isValid": false, "invalidReason": leak, "invalidMessage": leak}),
            ),
        ] {
            let mut market = Market::default();
            let url = format!("{}/report", market.seller(flow).await);
            let offered = challenge(&url).await;
            // Once for each call that a sale makes.
            market.respond([(status, answer.clone()), (status, answer.clone())]);
            let response = present(&url, &offered).await;
            assert!(response.status().as_u16() >= 400, "{answer}");
            let headers = response.headers().clone();
            let mut shown = response.text().await.unwrap();
            for name in [PAYMENT_REQUIRED, PAYMENT_RESPONSE] {
                let text = headers.get(name).map(|value| value.to_str().unwrap());
                let value: Option<Value> = text.map(|text| header::decode(text).unwrap());
                shown.extend(value.map(|value| value.to_string()));
            }
            assert!(!shown.contains("secret"), "{flow:?} {answer}: {shown}");
            assert!(!shown.contains("rpc.example"), "{flow:?} {answer}: {shown}");
        }
    }
}

#[tokio::test]
async fn after_handler_flow_settles_only_successful_responses() {
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
    assert_eq!(market.call_names(), ["verify", "settle"]);

    let request = Request::new(Method::POST, &format!("{seller}/broken")).unwrap();
    let error = client()
        .send(request.body("{}"), &cent())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BuyerError::OutcomeUnknown { status: 500, .. }),
        "{error}"
    );
    assert_eq!(market.call_names(), ["verify", "settle", "verify"]);
    assert_eq!(market.runs(), 2);
}

#[tokio::test]
async fn invalid_payment_runs_no_handler_failed_settle_no_body() {
    let mut market = Market::default();
    let seller = market.seller(Flow::AfterHandler).await;
    let url = format!("{seller}/report");
    market.respond([(
        200,
        json!({"isValid": false, "invalidReason": "invalid_exact_evm_signature"}),
    )]);
    let error = client().get(&url, &cent()).await.unwrap_err();
    assert!(
        matches!(&error, BuyerError::Refused { reason, .. } if reason == "invalid_exact_evm_signature")
    );
    assert_eq!(market.runs(), 0);

    market.respond([
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
async fn paywall_in_nested_router_advertises_the_whole_url() {
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

/// The route is priced for every method: a CORS preflight needs no payment and runs no handler, any other request needs one.
#[tokio::test]
async fn preflight_is_answered_without_payment_or_handler() {
    let mut market = Market::default();
    let facilitator = market.facilitator().await;
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .route("/report", Price::dollars("0.01").unwrap());
    let router = Router::new()
        .route("/report", axum::routing::any(report))
        .with_state(Arc::clone(&market.runs))
        .layer(paywall.build().unwrap());
    let url = format!("{}/report", market.open(router).await);
    let options = || reqwest::Client::new().request(Method::OPTIONS, &url);
    let preflight = options()
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "payment-signature")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 204);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "GET"),
        ("access-control-allow-headers", "payment-signature"),
    ] {
        assert_eq!(preflight.headers()[name], value);
    }
    assert_eq!(preflight.text().await.unwrap(), "");
    // OPTIONS without the preflight headers is priced.
    assert_eq!(options().send().await.unwrap().status(), 402);
    let challenged = reqwest::get(&url).await.unwrap();
    assert_eq!(challenged.headers()["access-control-allow-origin"], "*");
    assert_eq!(
        (market.runs(), market.call_names()),
        (0, Vec::<String>::new())
    );
    // A page may read the paid response.
    let paid = present(&url, &challenge(&url).await).await;
    assert_eq!(paid.status(), 200);
    assert_eq!(paid.headers()["access-control-allow-origin"], "*");
    assert_eq!(market.runs(), 1);
}
