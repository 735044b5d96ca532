//! Whatever is sent, the answer is the documented one, nothing panics, and nothing grows.

use alloy::primitives::Address;
use serde_json::{Value, json};

use crate::support::{Answer, Facilitator, Purchase, World};

const PAYEE: Address = Address::repeat_byte(0x5e);

/// A good body with one member changed; the path is that of a JSON pointer.
fn with(body: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = body.clone();
    *changed
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{pointer} is not there")) = value;
    changed
}

/// A good body with the price changed on both sides.
fn with_amount(body: &Value, amount: &Value) -> Value {
    let changed = with(body, "/paymentRequirements/amount", amount.clone());
    with(&changed, "/paymentPayload/accepted/amount", amount.clone())
}

async fn both(facilitator: &Facilitator, body: &Value) -> [Answer; 2] {
    [
        facilitator.verify(body).await,
        facilitator.settle(body).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_answered_400_without_a_verdict() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let bodies = [
        String::new(),
        "not json".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "{}".to_owned(),
        r#"{"x402Version":2}"#.to_owned(),
        r#"{"x402Version":"2","paymentPayload":{},"paymentRequirements":{}}"#.to_owned(),
        with(&good, "/paymentPayload", json!("text")).to_string(),
        with(&good, "/paymentRequirements", json!([1])).to_string(),
        r#"{"paymentPayload":{},"paymentRequirements":{}}"#.to_owned(),
        deep.clone(),
        good.to_string().trim_end_matches('}').to_owned(),
        good.to_string().replacen(
            "\"paymentPayload\"",
            "\"paymentPayload\":{},\"paymentPayload\"",
            1,
        ),
    ];
    for path in ["/verify", "/settle", "/api/verify", "/api/settle"] {
        for body in &bodies {
            let answer = world.facilitator.post_text(path, body.clone()).await;
            let shown: String = body.chars().take(80).collect();
            assert_eq!(answer.status, 400, "{path} {shown}: {answer:?}");
            assert!(
                answer.body["error"].is_string(),
                "{path} {shown}: {answer:?}"
            );
            assert!(answer.body.get("isValid").is_none() && answer.body.get("success").is_none());
        }
    }
    nothing_happened(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_with_413() {
    let world = World::new().await;
    let answer = world
        .facilitator
        .post_text("/settle", "x".repeat(10 * 1024 * 1024))
        .await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(
        answer.body["error"].as_str().unwrap().contains("65536"),
        "{answer:?}"
    );
    nothing_happened(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_thing_that_is_wrong_inside_a_request_has_its_code() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let v1 = Purchase::new(&world.payer().await, PAYEE, 10_000)
        .v1()
        .body();
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let too_large = format!("{}0", alloy::primitives::U256::MAX);
    let mut cases = vec![
        (
            with(&good, "/x402Version", json!(1)),
            "invalid_x402_version",
        ),
        (
            with(
                &with(&good, "/x402Version", json!(3)),
                "/paymentPayload/x402Version",
                json!(3),
            ),
            "invalid_x402_version",
        ),
        (
            with(&good, "/paymentRequirements/scheme", json!("barter")),
            "unsupported_scheme",
        ),
        (
            with(&good, "/paymentPayload/accepted/scheme", json!("barter")),
            "unsupported_scheme",
        ),
        (
            with(&good, "/paymentRequirements/network", json!("eip155:1")),
            "invalid_network",
        ),
        (
            with(
                &good,
                "/paymentRequirements/network",
                json!("solana:mainnet"),
            ),
            "invalid_network",
        ),
        (
            with(
                &good,
                "/paymentRequirements/network",
                json!("eip155:84532x"),
            ),
            "invalid_network",
        ),
        (
            with(
                &good,
                "/paymentPayload/accepted/network",
                json!("eip155:8453"),
            ),
            "invalid_exact_evm_network_mismatch",
        ),
        (
            with(&v1, "/paymentRequirements/network", json!("nowhere")),
            "invalid_network",
        ),
        (
            with(&good, "/paymentRequirements/asset", json!(PAYEE)),
            "invalid_payment_requirements",
        ),
        (
            with(&good, "/paymentRequirements/asset", json!("0x12")),
            "invalid_payment_requirements",
        ),
        (
            with(&good, "/paymentRequirements/payTo", json!("nobody")),
            "invalid_payment_requirements",
        ),
        (
            with(
                &good,
                "/paymentRequirements/maxTimeoutSeconds",
                json!("300"),
            ),
            "invalid_payment_requirements",
        ),
        (
            with(&good, "/paymentRequirements/extra", json!({})),
            "invalid_exact_evm_missing_eip712_domain",
        ),
        (
            with(&good, "/paymentRequirements/extra/name", json!("USD Coin")),
            "invalid_exact_evm_token_name_mismatch",
        ),
        (
            with(&good, "/paymentRequirements/extra/version", json!("1")),
            "invalid_exact_evm_token_version_mismatch",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload",
                json!({"permit2Authorization": {}, "signature": "0x"}),
            ),
            "unsupported_payload_type",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload",
                json!({"signature": "0x00"}),
            ),
            "invalid_payload",
        ),
        (
            with(&good, "/paymentPayload/payload", nested),
            "invalid_payload",
        ),
        (
            with(&good, "/paymentPayload/payload/signature", json!("0x123")),
            "invalid_payload",
        ),
        (
            with(&good, "/paymentPayload/payload/signature", json!("0x")),
            "invalid_exact_evm_signature",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/signature",
                json!(format!("0x{}", "ab".repeat(9000))),
            ),
            "invalid_payload",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/signature",
                json!(format!("0x{}", "11".repeat(65))),
            ),
            "invalid_exact_evm_signature",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/authorization/nonce",
                json!("0xab"),
            ),
            "invalid_payload",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/authorization/validBefore",
                json!("1"),
            ),
            "invalid_exact_evm_payload_authorization_valid_before",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/authorization/validBefore",
                json!("99999999999"),
            ),
            "invalid_exact_evm_payload_authorization_valid_before",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/authorization/validAfter",
                json!("99999999999"),
            ),
            "invalid_exact_evm_payload_authorization_valid_after",
        ),
        (
            with(
                &good,
                "/paymentPayload/payload/authorization/to",
                json!(Address::ZERO),
            ),
            "invalid_exact_evm_recipient_mismatch",
        ),
        (
            with(&good, "/paymentRequirements/amount", json!("9999")),
            "invalid_exact_evm_payload_authorization_value_mismatch",
        ),
        (
            with(&v1, "/paymentRequirements/maxAmountRequired", json!("9999")),
            "invalid_exact_evm_authorization_value",
        ),
        (
            with_amount(&good, &json!("0")),
            "invalid_payment_requirements",
        ),
    ];
    for amount in [
        json!("-1"),
        json!("0x10"),
        json!("1e6"),
        json!("1.5"),
        json!(""),
        json!(" 1"),
        json!("01"),
        json!(10_000),
        json!(null),
        json!(too_large),
    ] {
        cases.push((with_amount(&good, &amount), "invalid_payment_requirements"));
        cases.push((
            with(&good, "/paymentPayload/payload/authorization/value", amount),
            "invalid_payload",
        ));
    }
    for (body, code) in cases {
        for answer in both(&world.facilitator, &body).await {
            assert_eq!(
                (answer.status, answer.reason()),
                (200, code),
                "{body}\n{answer:?}"
            );
            let message = answer.body["invalidMessage"]
                .as_str()
                .or_else(|| answer.body["errorMessage"].as_str());
            assert!(message.is_some_and(|text| text.len() > 10), "{answer:?}");
        }
    }
    nothing_happened(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_its_bytes_whatever_its_letters_look_like() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let wrong_checksum = "0x5E5e5E5e5E5e5E5e5E5e5E5e5E5e5E5e5E5e5E5e";
    let changed = with(&body, "/paymentRequirements/payTo", json!(wrong_checksum));
    let upper = with(
        &changed,
        "/paymentRequirements/asset",
        json!("0x036CBD53842C5426634E7929541EC2318F3DCF7E"),
    );
    let answer = world.facilitator.settle(&upper).await;
    assert!(answer.succeeded(), "{answer:?}");
    let again = world.facilitator.settle(&body).await;
    assert_eq!(again.reason(), "duplicate_settlement");
    nothing_happened(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_bad_requests_leave_the_memory_as_it_was() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let bodies = [
        "x".repeat(200_000),
        "[".repeat(60_000),
        with(
            &good,
            "/paymentPayload/payload/signature",
            json!(format!("0x{}", "11".repeat(65))),
        )
        .to_string(),
        with(&good, "/paymentRequirements/asset", json!(PAYEE)).to_string(),
        with_amount(&good, &json!("1e6")).to_string(),
    ];
    let flood = async |rounds: usize| {
        for _ in 0..rounds {
            for body in &bodies {
                world.facilitator.post_text("/verify", body.clone()).await;
            }
        }
    };
    flood(100).await;
    let before = world.facilitator.resident_kib();
    flood(600).await;
    let after = world.facilitator.resident_kib();
    assert!(
        after < before + 8 * 1024,
        "{before} KiB before, {after} KiB after"
    );
    nothing_happened(&world, 0).await;
}

/// The service lives, no handler panicked, and the ledger and the chain hold `payments`.
async fn nothing_happened(world: &World, payments: usize) {
    assert_eq!(world.facilitator.get("/healthz").await.status, 200);
    let log = world.facilitator.log();
    assert!(!log.contains("panicked"), "{log}");
    let rows = world.facilitator.get("/payments").await.body;
    assert_eq!(rows["payments"].as_array().unwrap().len(), payments);
    assert_eq!(
        world.transactions(1).await,
        u64::try_from(payments).unwrap()
    );
}
