//! Slightly wrong requests: the answer is the intended one, or says what to change.

use alloy::primitives::Address;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::bad_input::{REQUIRED, SIGNED, assert_payment_count, with};
use crate::support::{OpenSession, Purchase, World, run};

const PAYEE: Address = Address::repeat_byte(0x5e);
const ORIGIN: &str = "https://shop.example";

#[tokio::test(flavor = "multi_thread")]
async fn doubled_and_trailing_slashes_are_accepted() {
    let world = World::new().await;
    let service = &world.facilitator;
    let kinds = service.get("/supported").await.body;
    for path in [
        "//supported",
        "/supported/",
        "/api//supported",
        "//api/supported/",
    ] {
        let answer = service.get(path).await;
        assert_eq!((answer.status, &answer.body), (200, &kinds), "{path}");
    }
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    for path in ["//verify", "/verify/", "/api//verify", "/api/verify/"] {
        let verdict = service.post_text(path, body.to_string()).await;
        assert!(verdict.is_valid(), "{path}: {verdict:?}");
    }
    // Operator paths match exactly, because a reverse proxy may restrict access to them by path.
    for path in ["//payments", "/payments/", "//api//stats"] {
        assert_eq!(service.get(path).await.status, 404, "{path}");
    }
    let settled = service.post_text("//settle/", body.to_string()).await;
    world.assert_transferred_once(PAYEE, &settled, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encoded_payment_header_is_judged_like_decoded_payment() {
    let world = World::new().await;
    let payer = world.payer().await;
    for body in [
        Purchase::new(&payer, PAYEE, 10_000).v1().body(),
        Purchase::new(&payer, PAYEE, 10_000).body(),
    ] {
        let payment = body["paymentPayload"].to_string();
        for header in [STANDARD.encode(&payment), URL_SAFE_NO_PAD.encode(&payment)] {
            let wrapped = json!({"x402Version": body["x402Version"], "paymentHeader": header,
                "paymentRequirements": body["paymentRequirements"]});
            let verdict = world.facilitator.verify(&wrapped).await;
            assert!(verdict.is_valid(), "{verdict:?}");
        }
        // The byte order mark that some libraries write before a body.
        let marked = format!("\u{feff}{body}");
        let verdict = world.facilitator.post_text("/verify", marked).await;
        assert!(verdict.is_valid(), "{verdict:?}");
    }
    let body = Purchase::new(&payer, PAYEE, 10_000).v1().body();
    for header in ["!", "aGVsbG8="] {
        let wrapped = json!({"x402Version": 1, "paymentHeader": header, "paymentRequirements": body["paymentRequirements"]});
        let verdict = world.facilitator.verify(&wrapped).await;
        assert_eq!((verdict.status, verdict.reason()), (200, "invalid_payload"));
        let said = verdict.body["invalidMessage"].as_str().unwrap();
        assert!(said.contains("paymentHeader"), "{said}");
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn null_equals_absent_member() {
    let world = World::new().await;
    let payer = world.payer().await;
    let v1 = Purchase::new(&payer, PAYEE, 10_000).v1().body();
    let v2 = Purchase::new(&payer, PAYEE, 10_000).body();
    for member in ["resource", "description", "mimeType", "outputSchema"] {
        let mut body = v1.clone();
        body["paymentRequirements"][member] = Value::Null;
        let verdict = world.facilitator.verify(&body).await;
        assert!(verdict.is_valid(), "{member}: {verdict:?}");
    }
    for member in ["resource", "extensions"] {
        let mut body = v2.clone();
        body["paymentPayload"][member] = Value::Null;
        let verdict = world.facilitator.verify(&body).await;
        assert!(verdict.is_valid(), "{member}: {verdict:?}");
    }
    let mut declared = v2.clone();
    declared["paymentPayload"]["extensions"] =
        json!({"eip2612GasSponsoring": {"info": {"version": "1", "signature": null}}});
    let verdict = world.facilitator.verify(&declared).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let entry = OpenSession::entry(PAYEE, 10_000);
    let mut request = OpenSession::request(&entry, payer.address(), "authorization");
    for member in ["resource", "clientReference", "rail", "x402Version"] {
        request[member] = Value::Null;
    }
    let opened = world.facilitator.post("/sessions", &request).await.unwrap();
    assert_eq!(opened.status, 201, "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejection_names_member_value_and_expectation() {
    let world = World::new().await;
    let payer = world.payer().await;
    let v1 = Purchase::new(&payer, PAYEE, 10_000).v1().body();
    let member = |place: &str, name: &str| format!("{place}/{name}");
    for (pointer, value, says) in [
        (
            member(SIGNED, "value"),
            json!(1000),
            ["payload.authorization.value", "1000", "decimal string"],
        ),
        (
            member(SIGNED, "validAfter"),
            json!(1_747_232_741),
            ["authorization.validAfter", "1747232741", "decimal string"],
        ),
        (
            member(REQUIRED, "maxAmountRequired"),
            json!(1000),
            [
                "paymentRequirements.maxAmountRequired",
                "1000",
                "decimal string",
            ],
        ),
        (
            member(REQUIRED, "maxTimeoutSeconds"),
            json!("60"),
            ["paymentRequirements.maxTimeoutSeconds", "\"60\"", "seconds"],
        ),
        (
            member(REQUIRED, "payTo"),
            json!("nobody"),
            ["paymentRequirements.payTo", "nobody", "an address"],
        ),
        (
            "/paymentPayload/x402Version".to_owned(),
            json!("1"),
            ["paymentPayload.x402Version", "\"1\"", "number 1 or 2"],
        ),
    ] {
        let verdict = world.facilitator.verify(&with(&v1, &pointer, value)).await;
        assert_eq!(verdict.status, 200, "{pointer}: {verdict:?}");
        let said = verdict.body["invalidMessage"].as_str().unwrap();
        assert!(
            says.iter().all(|part| said.contains(part)),
            "{pointer}: {said}"
        );
    }
    let text = with(&v1, "/x402Version", json!("1"));
    let answer = world.facilitator.verify(&text).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let said = answer.body["error"].as_str().unwrap();
    assert!(
        said.contains("x402Version") && said.contains("the string \"1\""),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unstorable_text_is_rejected_and_no_outage() {
    let world = World::new().await;
    let payer = world.payer().await;
    let mut entry = OpenSession::entry(PAYEE, 10_000);
    entry["extra"]["resourceId"] = json!("reports\u{0}");
    let in_extra = OpenSession::request(&entry, payer.address(), "authorization");
    let entry = OpenSession::entry(PAYEE, 10_000);
    let good = OpenSession::request(&entry, payer.address(), "authorization");
    let (mut in_reference, mut in_resource) = (good.clone(), good.clone());
    in_reference["clientReference"] = json!("a\u{0}b");
    in_resource["resource"] = json!("https://shop.example/\u{0}");
    for request in [in_extra, in_reference, in_resource] {
        let refused = world.facilitator.post("/sessions", &request).await.unwrap();
        assert_eq!(refused.status, 400, "{refused:?}");
        assert_eq!(refused.body["code"], "invalid_body");
        let said = refused.body["detail"].as_str().unwrap();
        assert!(said.contains("U+0000"), "{said}");
    }
    let opened = world.facilitator.post("/sessions", &good).await.unwrap();
    assert_eq!(opened.status, 201, "{opened:?}");
    let filtered = world.facilitator.get("/payments?resource=a%00").await;
    assert_eq!(filtered.status, 400, "{filtered:?}");
}

async fn preflight(world: &World, path: &str, method: &str) -> Response {
    Client::new()
        .request(
            Method::OPTIONS,
            format!("{}{path}", world.facilitator.url()),
        )
        .header("origin", ORIGIN)
        .header("access-control-request-method", method)
        .header("access-control-request-headers", "content-type")
        .send()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn cors_allows_only_buyer_and_seller_paths() {
    let world = World::new().await;
    for (path, method) in [
        ("/supported", "GET"),
        ("/verify", "POST"),
        ("/api/settle", "POST"),
        ("/sessions", "POST"),
        ("/sessions/ps_1/transfer", "POST"),
        ("/healthz", "GET"),
        ("/openapi.json", "GET"),
    ] {
        let asked = preflight(&world, path, method).await;
        assert!(asked.status().is_success(), "{path}: {asked:?}");
        let allowed = |name: &str| asked.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(allowed("access-control-allow-origin"), "*", "{path}");
        assert!(allowed("access-control-allow-methods").contains(method));
        assert_eq!(allowed("access-control-allow-headers"), "*", "{path}");
    }
    // Browsers must be able to read rejections too.
    let url = format!("{}/sessions/ps_1", world.facilitator.url());
    let refused = Client::new()
        .get(url)
        .header("origin", ORIGIN)
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), 404);
    assert_eq!(refused.headers()["access-control-allow-origin"], "*");
    for path in [
        "/payments",
        "/api/payments",
        "/stats",
        "/signers",
        "/payments/a",
    ] {
        let asked = preflight(&world, path, "GET").await;
        assert_eq!(asked.status(), 405, "{path}");
        let url = format!("{}{path}", world.facilitator.url());
        let read = Client::new()
            .get(url)
            .header("origin", ORIGIN)
            .send()
            .await
            .unwrap();
        for answer in [asked, read] {
            assert!(
                !answer.headers().contains_key("access-control-allow-origin"),
                "{path}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_body_is_rejected_with_415() {
    let world = World::new().await;
    for (path, text) in [
        ("/verify", "error"),
        ("/settle", "error"),
        ("/sessions", "detail"),
    ] {
        for encoding in ["gzip", "br", "identity, gzip"] {
            let url = format!("{}{path}", world.facilitator.url());
            let request = Client::new().post(url).header("content-encoding", encoding);
            let answer = request.body("{}").send().await.unwrap();
            assert_eq!(answer.status(), 415, "{path} {encoding}");
            assert_eq!(answer.headers()["accept-encoding"], "identity");
            let body: Value = answer.json().await.unwrap();
            assert!(body[text].as_str().unwrap().contains("gzip") || encoding == "br");
            assert!(body.get("isValid").is_none() && body.get("success").is_none());
        }
    }
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let url = format!("{}/verify", world.facilitator.url());
    let request = Client::new()
        .post(url)
        .header("content-encoding", "identity");
    let verdict: Value = request
        .body(body.to_string())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(verdict["isValid"], true, "{verdict}");
}

#[tokio::test(flavor = "multi_thread")]
async fn network_without_rpc_answer_is_reported_as_starting() {
    let world = World::new().await;
    let nowhere = "http://127.0.0.1:9".to_owned();
    let mut service = world.unstarted_replica(&[("X402D_RPC_URL", nowhere)]);
    service.spawn(None).await;
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let (verdict, settled) = (service.verify(&body).await, service.settle(&body).await);
    let says = [
        (verdict, "unexpected_verify_error", "invalidMessage"),
        (settled, "unexpected_settle_error", "errorMessage"),
    ];
    for (answer, code, message) in says {
        assert_eq!((answer.status, answer.reason()), (503, code), "{answer:?}");
        let said = answer.body[message].as_str().unwrap();
        assert!(said.contains("network eip155:84532 is starting"), "{said}");
    }
    let entry = OpenSession::entry(PAYEE, 10_000);
    let request = OpenSession::request(&entry, PAYEE, "transfer");
    let url = format!("{}/sessions", service.url());
    let opened = Client::new().post(url).json(&request).send().await.unwrap();
    assert_eq!(opened.status(), 503, "{opened:?}");
    assert!(opened.headers().contains_key("retry-after"), "{opened:?}");
    let opened: Value = opened.json().await.unwrap();
    let said = opened["detail"].as_str().unwrap();
    assert!(said.contains("network eip155:84532 is starting"), "{said}");
    let ready = service.get("/readyz").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.to_string().contains("is starting"), "{ready:?}");
}

/// Clients that assume HTTP/2 are told what to use, and other clients are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_rejected_asking_for_http_1_1() {
    let world = World::new().await;
    let address = world.facilitator.url().trim_start_matches("http://");
    let mut client = TcpStream::connect(address).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // In several pieces, as networks deliver it.
    for piece in [&preface[..3], &preface[3..]] {
        client.write_all(piece).await.unwrap();
        client.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut frames = [0; 26];
    client.read_exact(&mut frames).await.unwrap();
    assert_eq!((frames[3], frames[12]), (4, 7), "SETTINGS, GOAWAY");
    assert_eq!(frames[22..], [0, 0, 0, 13], "HTTP_1_1_REQUIRED");
    // Later bytes are not answered, and the connection ends.
    client
        .write_all(b"GET /supported HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"");
    assert_eq!(world.facilitator.get("/supported").await.status, 200);
}

/// Operator paths accept the configured network name as well as CAIP-2.
#[tokio::test(flavor = "multi_thread")]
async fn history_accepts_network_names() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let settled = world.facilitator.settle(&body).await;
    let hash = settled.transaction();
    for network in ["eip155:84532", "base-sepolia"] {
        for path in [
            format!("/payments?network={network}"),
            format!("/payments/by-transaction/{network}/{hash}"),
        ] {
            let found = world.facilitator.get(&path).await;
            let first = &found.body["payments"][0];
            assert_eq!(first["transaction"], hash.as_str(), "{path}: {found:?}");
        }
        let path = format!("/stats?network={network}");
        let stats = world.facilitator.get(&path).await;
        assert_eq!(stats.body["groups"][0]["payments"], 1, "{path}: {stats:?}");
    }
    for path in [
        "/payments?network=bsae".to_owned(),
        format!("/payments/by-transaction/bsae/{hash}"),
    ] {
        let refused = world.facilitator.get(&path).await;
        assert_eq!(refused.status, 400, "{path}");
        let said = refused.body["detail"].as_str().unwrap();
        assert!(said.contains("a name such as base, got \"bsae\""), "{said}");
    }
}

/// The cause is reported once, before anything is started.
#[test]
fn occupied_port_is_reported_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = ["dev", "--chain-port", "0", "--listen", &address];
    let variables: Vec<(String, String)> = std::env::vars()
        .filter(|(name, _)| name == "DATABASE_URL")
        .collect();
    let variables: Vec<(&str, &str)> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let ended = run(&arguments, &variables, "");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success(), "{said}");
    assert!(
        said.contains(&format!("cannot listen on {address}")),
        "{said}"
    );
    assert_eq!(said.matches("Address already in use").count(), 1, "{said}");
    assert!(said.ends_with("or end what uses it\n"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
