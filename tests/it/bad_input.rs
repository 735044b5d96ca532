//! Invalid input gets the documented answer, causes no panic and does not grow memory.

use alloy::primitives::Address;
use serde_json::{Value, json};

use crate::support::{Answer, Facilitator, Purchase, World};

const PAYEE: Address = Address::repeat_byte(0x5e);

/// A valid body with one member changed; the path is a JSON pointer.
pub(crate) fn with(body: &Value, pointer: &str, value: Value) -> Value {
    let mut changed = body.clone();
    *changed
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("{pointer} is not there")) = value;
    changed
}

/// A valid body with the price changed in `accepted` and in the requirement.
fn with_amount(body: &Value, amount: &Value) -> Value {
    let changed = with(body, "/paymentRequirements/amount", amount.clone());
    with(&changed, "/paymentPayload/accepted/amount", amount.clone())
}

async fn verify_and_settle(facilitator: &Facilitator, body: &Value) -> [Answer; 2] {
    [
        facilitator.verify(body).await,
        facilitator.settle(body).await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_get_400_without_verdict() {
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
    assert_payment_count(&world, 0).await;
}

pub(crate) const REQUIRED: &str = "/paymentRequirements";
pub(crate) const ACCEPTED: &str = "/paymentPayload/accepted";
pub(crate) const PAYLOAD: &str = "/paymentPayload/payload";
pub(crate) const SIGNED: &str = "/paymentPayload/payload/authorization";

/// Place in a valid v2 body, member, replacement JSON, expected code.
const INVALID_MEMBERS: &[(&str, &str, &str, &str)] = &[
    ("", "/x402Version", "1", "invalid_x402_version"),
    (
        "/paymentPayload",
        "/x402Version",
        "3",
        "invalid_x402_version",
    ),
    (REQUIRED, "/scheme", r#""barter""#, "unsupported_scheme"),
    (ACCEPTED, "/scheme", r#""barter""#, "unsupported_scheme"),
    (REQUIRED, "/network", r#""eip155:1""#, "invalid_network"),
    (
        REQUIRED,
        "/network",
        r#""solana:mainnet""#,
        "invalid_network",
    ),
    (
        REQUIRED,
        "/network",
        r#""eip155:84532x""#,
        "invalid_network",
    ),
    (
        ACCEPTED,
        "/network",
        r#""eip155:8453""#,
        "invalid_exact_evm_network_mismatch",
    ),
    (
        REQUIRED,
        "/asset",
        r#""0x5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e""#,
        "invalid_payment_requirements",
    ),
    (
        REQUIRED,
        "/asset",
        r#""0x12""#,
        "invalid_payment_requirements",
    ),
    (
        REQUIRED,
        "/payTo",
        r#""nobody""#,
        "invalid_payment_requirements",
    ),
    (
        REQUIRED,
        "/maxTimeoutSeconds",
        r#""300""#,
        "invalid_payment_requirements",
    ),
    (
        REQUIRED,
        "/extra",
        "{}",
        "invalid_exact_evm_missing_eip712_domain",
    ),
    (
        REQUIRED,
        "/extra/name",
        r#""USD Coin""#,
        "invalid_exact_evm_token_name_mismatch",
    ),
    (
        REQUIRED,
        "/extra/version",
        r#""1""#,
        "invalid_exact_evm_token_version_mismatch",
    ),
    (
        REQUIRED,
        "/amount",
        r#""9999""#,
        "invalid_exact_evm_payload_authorization_value_mismatch",
    ),
    (
        PAYLOAD,
        "",
        r#"{"permit2Authorization": {}, "signature": "0x"}"#,
        "invalid_payload",
    ),
    (PAYLOAD, "", r#"{"signature": "0x00"}"#, "invalid_payload"),
    (PAYLOAD, "", "[[[[[[[[1]]]]]]]]", "invalid_payload"),
    (PAYLOAD, "/signature", r#""0x123""#, "invalid_payload"),
    (
        PAYLOAD,
        "/signature",
        r#""0x""#,
        "invalid_exact_evm_signature",
    ),
    (
        PAYLOAD,
        "/signature",
        r#""0x1111""#,
        "invalid_exact_evm_signature",
    ),
    (SIGNED, "/nonce", r#""0xab""#, "invalid_payload"),
    (
        SIGNED,
        "/validBefore",
        r#""1""#,
        "invalid_exact_evm_payload_authorization_valid_before",
    ),
    (
        SIGNED,
        "/validBefore",
        r#""99999999999""#,
        "invalid_exact_evm_payload_authorization_valid_before",
    ),
    (
        SIGNED,
        "/validAfter",
        r#""99999999999""#,
        "invalid_exact_evm_payload_authorization_valid_after",
    ),
    (
        SIGNED,
        "/to",
        r#""0x0000000000000000000000000000000000000000""#,
        "invalid_exact_evm_recipient_mismatch",
    ),
];

/// Values that are not valid amounts.
const INVALID_AMOUNTS: &[&str] = &[
    r#""-1""#,
    r#""0x10""#,
    r#""1e6""#,
    r#""1.5""#,
    r#""""#,
    r#"" 1""#,
    r#""01""#,
    r#""1_0""#,
    "10000",
    "null",
    r#""1157920892373161954235709850086879078532699846656405640394575840079131296399360""#,
];

#[tokio::test(flavor = "multi_thread")]
async fn each_invalid_member_has_its_code() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let mut cases: Vec<(Value, &str)> = INVALID_MEMBERS
        .iter()
        .map(|(place, member, value, code)| {
            (with(&good, &format!("{place}{member}"), json(value)), *code)
        })
        .collect();
    for amount in INVALID_AMOUNTS {
        cases.push((
            with_amount(&good, &json(amount)),
            "invalid_payment_requirements",
        ));
        cases.push((
            with(&good, &format!("{SIGNED}/value"), json(amount)),
            "invalid_payload",
        ));
    }
    cases.push((
        with_amount(&good, &json!("0")),
        "invalid_payment_requirements",
    ));
    let long = json!(format!("0x{}", "ab".repeat(9000)));
    cases.push((
        with(&good, &format!("{PAYLOAD}/signature"), long),
        "invalid_payload",
    ));
    let v1 = Purchase::new(&world.payer().await, PAYEE, 10_000)
        .v1()
        .body();
    cases.push((
        with(&v1, &format!("{REQUIRED}/network"), json!("nowhere")),
        "invalid_network",
    ));
    cases.push((
        with(&v1, &format!("{REQUIRED}/maxAmountRequired"), json!("9999")),
        "invalid_exact_evm_authorization_value",
    ));
    for (body, code) in cases {
        for answer in verify_and_settle(&world.facilitator, &body).await {
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
    assert_payment_count(&world, 0).await;
}

/// A valid body with one member removed.
fn without(body: &Value, place: &str, member: &str) -> Value {
    let mut changed = body.clone();
    let members = changed.pointer_mut(place).and_then(Value::as_object_mut);
    let removed = members.and_then(|members| members.remove(member));
    assert!(removed.is_some(), "{place}/{member} is not there");
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_member_has_its_code() {
    let world = World::new().await;
    let payer = world.payer().await;
    let v2 = Purchase::new(&payer, PAYEE, 10_000).body();
    let v1 = Purchase::new(&payer, PAYEE, 10_000).v1().body();
    let mut cases = Vec::new();
    for (body, price) in [(&v1, "maxAmountRequired"), (&v2, "amount")] {
        for member in ["asset", "payTo", "maxTimeoutSeconds", price] {
            cases.push((body, REQUIRED, member, "invalid_payment_requirements"));
        }
        cases.push((body, REQUIRED, "scheme", "unsupported_scheme"));
        cases.push((body, REQUIRED, "network", "invalid_network"));
        cases.push((body, "/paymentPayload", "payload", "invalid_payload"));
        cases.push((body, PAYLOAD, "signature", "invalid_payload"));
        cases.push((body, PAYLOAD, "authorization", "invalid_payload"));
        for member in ["from", "to", "value", "validAfter", "validBefore", "nonce"] {
            cases.push((body, SIGNED, member, "invalid_payload"));
        }
    }
    for member in ["scheme", "network"] {
        cases.push((&v1, "/paymentPayload", member, "invalid_payload"));
        cases.push((&v2, ACCEPTED, member, "invalid_payload"));
    }
    cases.push((&v2, "/paymentPayload", "accepted", "invalid_payload"));
    let no_domain = "invalid_exact_evm_missing_eip712_domain";
    cases.push((&v2, REQUIRED, "extra", no_domain));
    cases.push((&v2, "/paymentRequirements/extra", "name", no_domain));
    cases.push((&v2, "/paymentRequirements/extra", "version", no_domain));
    for (body, place, member, code) in cases {
        for answer in verify_and_settle(&world.facilitator, &without(body, place, member)).await {
            let found = (answer.status, answer.reason());
            assert_eq!(found, (200, code), "{place}/{member}: {answer:?}");
        }
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_compare_by_bytes_not_spelling() {
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
    assert_payment_count(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_bad_requests_do_not_grow_memory() {
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
    assert_payment_count(&world, 0).await;
}

/// The service runs, no handler has panicked, and ledger and chain hold `payments` payments.
pub(crate) async fn assert_payment_count(world: &World, payments: usize) {
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
