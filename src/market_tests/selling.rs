//! The seller's side.

use super::*;

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
        assert!(error.money_may_have_moved());
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn a_facilitator_that_redirects_serves_nothing_and_is_named_with_the_redirects_target() {
    let mut market = Market::default();
    let away = Router::new().fallback(async || {
        let target = "https://www.facilitator.example/v1/?key=secret";
        (StatusCode::PERMANENT_REDIRECT, [("location", target)])
    });
    let facilitator = market.open(away).await;
    let paywall = Paywall::new(&facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .route("GET /report", Price::dollars("0.01").unwrap());
    let error = paywall.build().unwrap().check().await.unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("https://www.facilitator.example/v1/"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");
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
                sessions: crate::buyer::SessionUse::PayFirst,
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

/// A route that is priced for every method: a browser's question costs nothing and runs nothing, and everything else costs.
#[tokio::test]
async fn a_preflight_is_never_asked_for_money_and_sees_nothing_that_is_sold() {
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
    // No preflight: a request like any other.
    assert_eq!(options().send().await.unwrap().status(), 402);
    let asked = reqwest::get(&url).await.unwrap();
    assert_eq!(asked.headers()["access-control-allow-origin"], "*");
    assert_eq!((market.runs(), market.calls()), (0, Vec::<String>::new()));
    // A page reads what it has paid for.
    let paid = present(&url, &challenge(&url).await).await;
    assert_eq!(paid.status(), 200);
    assert_eq!(paid.headers()["access-control-allow-origin"], "*");
    assert_eq!(market.runs(), 1);
}
