//! The service's surface: its paths, its documents, access to them, and refusals to start.

use alloy::primitives::Address;
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Purchase, World, run};

const PAYEE: Address = Address::repeat_byte(0x5e);

#[tokio::test(flavor = "multi_thread")]
async fn sellers_find_every_kind_at_both_prefixes() {
    let world = World::new().await;
    let none = json!({ TEST_USDC.to_string(): "0" });
    for path in ["/supported", "/api/supported"] {
        let supported = world.facilitator.get(path).await.body;
        let kinds = json!([
            {"x402Version": 2, "scheme": "exact", "network": "eip155:84532", "extra": {"maxTimeoutSeconds": 691_200, "minimumAmounts": none}},
            {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "extra": {"maxTimeoutSeconds": 691_200, "minimumAmounts": none}},
            {"x402Version": 2, "scheme": "upto", "network": "eip155:84532",
                "extra": {"facilitatorAddress": Chain::signers(1)[0].address.to_checksum(None), "maxTimeoutSeconds": 691_200, "minimumAmounts": none}},
        ]);
        assert_eq!(supported["kinds"], kinds);
        let extensions = json!(["payment-session", "eip2612GasSponsoring"]);
        assert_eq!(supported["extensions"], extensions);
        assert_eq!(
            supported["signers"]["eip155:*"],
            json!([Chain::signers(1)[0].address.to_checksum(None)])
        );
    }
    let body = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let verdict = world
        .facilitator
        .post_text("/api/verify", body.to_string())
        .await;
    assert!(verdict.is_valid(), "{verdict:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_api_page_load_nothing_external() {
    let world = World::new().await;
    assert_eq!(
        world.facilitator.get("/healthz").await.body,
        json!({"status": "ok"})
    );
    assert_eq!(world.facilitator.get("/readyz").await.body["ready"], true);
    let contract = world.facilitator.get("/openapi.json").await.body;
    for path in [
        "/supported",
        "/verify",
        "/settle",
        "/status",
        "/payments",
        "/payments/{id}",
        "/healthz",
        "/readyz",
    ] {
        assert!(contract["paths"][path].is_object(), "{path}");
    }
    let docs = format!("{}/docs/", world.facilitator.url());
    let page = reqwest::get(&docs).await.unwrap();
    assert_eq!(page.status(), 200);
    let kind = page.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("text/html"), "{kind}");
    let page = page.text().await.unwrap();
    assert!(!page.contains("//"), "an asset from elsewhere: {page}");
    let linked = ["src=\"", "href=\""]
        .into_iter()
        .flat_map(|link| page.split(link).skip(1))
        .map(|rest| rest.split('"').next().unwrap());
    let mut assets = 0;
    for asset in linked {
        let found = reqwest::get(format!("{docs}{asset}")).await.unwrap();
        assert_eq!(found.status(), 200, "{asset}");
        assets += 1;
    }
    assert!(assets >= 3, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_get_a_problem_with_request_id() {
    let world = World::new().await;
    let client = reqwest::Client::new();
    for (method, path, code) in [
        ("GET", "/nowhere", "not_found"),
        ("POST", "/nowhere", "not_found"),
        ("GET", "/api", "not_found"),
        ("GET", "/api/nowhere", "not_found"),
        ("GET", "/API/supported", "not_found"),
        ("GET", "//payments", "not_found"),
        ("GET", "/payments/", "not_found"),
        ("GET", "/payments/a/b", "not_found"),
        ("GET", "/docs/nowhere.js", "not_found"),
        ("GET", "/%ff", "not_found"),
        ("GET", "/settle", "method_not_allowed"),
        ("GET", "/api/verify", "method_not_allowed"),
        ("PUT", "/verify", "method_not_allowed"),
        ("POST", "/supported", "method_not_allowed"),
        ("DELETE", "/payments", "method_not_allowed"),
        ("PATCH", "/healthz", "method_not_allowed"),
        ("POST", "/openapi.json", "method_not_allowed"),
    ] {
        let url = format!("{}{path}", world.facilitator.url());
        let request = client.request(method.parse().unwrap(), url);
        let asked = request
            .header("x-request-id", "chosen")
            .send()
            .await
            .unwrap();
        let what = format!("{method} {path}");
        let status = asked.status().as_u16();
        assert_eq!(
            status,
            if code == "not_found" { 404 } else { 405 },
            "{what}"
        );
        assert_eq!(
            asked.headers()["content-type"],
            "application/problem+json",
            "{what}"
        );
        let id = asked.headers()["x-request-id"].to_str().unwrap().to_owned();
        assert_ne!(id, "chosen", "{what}: the id is ours");
        let problem: Value = asked.json().await.unwrap();
        assert_eq!(problem["code"], code, "{what}: {problem}");
        assert_eq!(problem["status"], status, "{what}: {problem}");
        assert_eq!(problem["requestId"], id, "{what}: {problem}");
    }
    for path in [
        "/supported",
        "/healthz",
        "/readyz",
        "/payments",
        "/openapi.json",
    ] {
        let url = format!("{}{path}", world.facilitator.url());
        let asked = client.get(url).send().await.unwrap();
        assert!(asked.headers().contains_key("x-request-id"), "{path}");
        let kind = asked.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind.starts_with("application/json"), "{path}: {kind}");
    }
}

/// Runs `x402d serve` with only `variables` and `toml`, and returns its error output; it must not start.
fn start_error(variables: &[(&str, &str)], toml: &str) -> String {
    let always = [("X402D_LISTEN", "127.0.0.1:0"), ("X402D_SIGNER_KEYS", KEY)];
    let output = run(&["serve"], &[&always, variables].concat(), toml);
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
const NO_DATABASE: (&str, &str) = (
    "DATABASE_URL",
    "postgres://me:hunter2@127.0.0.1:9/x?passwort=hunter2",
);

#[test]
fn mainnet_without_payees_does_not_start() {
    let variables = [
        ("X402D_NETWORK", "base"),
        ("X402D_RPC_URL", "http://127.0.0.1:9/secret-path"),
        NO_DATABASE,
    ];
    let said = start_error(&variables, "");
    assert!(said.contains("X402D_PAYEES"), "{said}");
    assert!(
        !said.contains("secret-path") && !said.contains(&KEY[2..]),
        "{said}"
    );
}

#[test]
fn misspelt_key_is_named_with_its_line() {
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", "http://127.0.0.1:9"),
        NO_DATABASE,
    ];
    let said = start_error(&variables, "settle_wait_s = 5\nlisten_on = 1\n");
    assert!(
        said.contains("line 2") && said.contains("listen_on"),
        "{said}"
    );
}

#[test]
fn missing_database_is_reported_without_password() {
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", "http://127.0.0.1:9"),
        NO_DATABASE,
    ];
    let said = start_error(&variables, "");
    assert!(
        said.contains("database") && !said.contains("hunter2"),
        "{said}"
    );
}
