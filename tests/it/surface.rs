//! What the service shows: its paths, its documents, who may read what, and how it refuses to start.

use std::collections::HashSet;
use std::process::Command;

use alloy::primitives::Address;
use serde_json::{Value, json};

use crate::support::{Chain, Database, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x5e);
const OTHER: Address = Address::repeat_byte(0x6f);

#[tokio::test(flavor = "multi_thread")]
async fn sellers_find_every_kind_at_both_prefixes() {
    let world = World::new().await;
    for path in ["/supported", "/api/supported"] {
        let supported = world.facilitator.get(path).await.body;
        let kinds = json!([
            {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
            {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
        ]);
        assert_eq!(supported["kinds"], kinds);
        assert_eq!(supported["extensions"], json!([]));
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
async fn health_contract_and_its_page_are_there_and_load_nothing_from_elsewhere() {
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
        "/payments",
        "/payments/{id}",
        "/healthz",
        "/readyz",
    ] {
        assert!(contract["paths"][path].is_object(), "{path}");
    }
    let page = reqwest::get(format!("{}/docs/", world.facilitator.url()))
        .await
        .unwrap();
    assert_eq!(page.status(), 200);
    let page = page.text().await.unwrap();
    assert!(
        !page.contains("//cdn") && !page.contains("https://"),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_a_problem_document_with_the_request_id() {
    let world = World::new().await;
    let asked = reqwest::get(format!("{}/nowhere", world.facilitator.url()))
        .await
        .unwrap();
    assert_eq!(asked.status(), 404);
    assert_eq!(asked.headers()["content-type"], "application/problem+json");
    let id = asked.headers()["x-request-id"].to_str().unwrap().to_owned();
    let problem: Value = asked.json().await.unwrap();
    assert_eq!(
        (problem["code"].as_str(), problem["requestId"].as_str()),
        (Some("not_found"), Some(id.as_str()))
    );
    assert_eq!(
        world.facilitator.get("/settle").await.body["code"],
        "method_not_allowed"
    );
    for (path, code) in [
        ("/payments?limit=0", "invalid_parameter"),
        ("/payments?limit=many", "invalid_parameter"),
        ("/payments?colour=red", "invalid_parameter"),
        ("/payments?payer=0x12", "invalid_parameter"),
        ("/payments?state=lost", "invalid_parameter"),
        ("/payments?from=yesterday", "invalid_parameter"),
        ("/payments?network=nowhere", "invalid_parameter"),
        ("/payments?cursor=x", "invalid_parameter"),
        ("/payments/x", "invalid_parameter"),
        (
            "/payments/01a2094f-ebfa-75a9-8017-f2460b126937",
            "not_found",
        ),
    ] {
        let answer = world.facilitator.get(path).await;
        assert_eq!(answer.body["code"], code, "{path}: {answer:?}");
        assert!(
            answer.body["detail"]
                .as_str()
                .is_some_and(|text| text.len() > 10),
            "{path}: {answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_is_the_operators_alone() {
    let world = Setup::default()
        .with("X402D_ADMIN_TOKEN", "a-long-token")
        .build()
        .await;
    let url = format!("{}/payments", world.facilitator.url());
    let client = reqwest::Client::new();
    for (token, status) in [
        (None, 401),
        (Some("wrong"), 401),
        (Some("a-long-token"), 200),
    ] {
        let request = token.into_iter().fold(client.get(&url), |request, token| {
            request.bearer_auth(token)
        });
        assert_eq!(request.send().await.unwrap().status(), status, "{token:?}");
    }
    assert_eq!(world.facilitator.get("/supported").await.status, 200);

    let open = World::new().await;
    let url = format!("{}/payments", open.facilitator.url());
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    let proxied = client
        .get(&url)
        .header("x-forwarded-for", "203.0.113.9")
        .send()
        .await
        .unwrap();
    assert_eq!(
        proxied.status(),
        401,
        "behind a proxy everybody seems to be here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_through_the_history_shows_each_payment_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let bodies = (0..8).map(|number| Purchase::new(&payer, PAYEE, 100 + number).body());
    let answers = world.facilitator.settle_at_once(bodies.collect()).await;
    let id = |row: &Value| row["id"].as_str().unwrap().to_owned();
    let settled: HashSet<String> = answers
        .iter()
        .map(|answer| {
            answer.body["extra"]["paymentId"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let (mut seen, mut path) = (Vec::new(), "/payments?limit=3".to_owned());
    loop {
        let page = world.facilitator.get(&path).await.body;
        seen.extend(page["payments"].as_array().unwrap().iter().map(id));
        let Some(cursor) = page["nextCursor"].as_str() else {
            break;
        };
        path = format!("/payments?limit=3&cursor={cursor}");
    }
    assert_eq!((seen.len(), settled.len()), (8, 8));
    assert!(
        seen.is_sorted_by(|newer, older| newer > older),
        "newest first: {seen:?}"
    );
    assert_eq!(seen.into_iter().collect::<HashSet<_>>(), settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_filter_of_the_history_holds_and_a_payment_shows_its_life() {
    let world = World::new().await;
    let (first, second) = (world.payer().await, world.payer().await);
    let mut bodies: Vec<_> = (0..5)
        .map(|number| Purchase::new(&first, PAYEE, 100 + number).body())
        .collect();
    bodies.extend((0..3).map(|number| Purchase::new(&second, OTHER, 200 + number).v1().body()));
    let answers = world.facilitator.settle_at_once(bodies).await;
    for (query, rows) in [
        (format!("payer={}", first.address()), 5),
        (format!("payee={OTHER}"), 3),
        ("network=eip155:84532&state=settled".to_owned(), 8),
        ("network=eip155:1".to_owned(), 0),
        ("state=failed".to_owned(), 0),
        (
            "asset=0x036cbd53842c5426634e7929541ec2318f3dcf7e".to_owned(),
            8,
        ),
        ("to=2020-01-01T00:00:00Z".to_owned(), 0),
        ("from=2020-01-01T00:00:00Z".to_owned(), 8),
    ] {
        let page = world
            .facilitator
            .get(&format!("/payments?{query}"))
            .await
            .body;
        assert_eq!(page["payments"].as_array().unwrap().len(), rows, "{query}");
    }
    let shown = world.facilitator.payment(&answers[0]).await;
    assert_eq!(
        (shown["decimals"].as_u64(), shown["state"].as_str()),
        (Some(6), Some("settled"))
    );
    let events = shown["events"].as_array().unwrap().iter();
    let kinds: Vec<_> = events
        .map(|event| {
            (
                event["kind"].as_str().unwrap(),
                event["to"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let life = [
        ("state", "queued"),
        ("state", "inflight"),
        ("state", "settled"),
        ("granted", ""),
        ("answered", ""),
    ];
    assert_eq!(kinds, life);
}

/// Runs `x402d serve` with nothing but `variables` and `toml`, and says what it complained of; it must not start.
fn refusal(variables: &[(&str, &str)], toml: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x402d.toml");
    std::fs::write(&file, toml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_x402d"));
    command.arg("serve").arg("--config").arg(file).env_clear();
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
        .env("X402D_LISTEN", "127.0.0.1:0")
        .env("X402D_SIGNER_KEYS", KEY)
        .envs(variables.iter().copied());
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const KEY: &str = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d";
const NO_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:9/x");

#[test]
fn a_mainnet_without_payees_does_not_start() {
    let variables = [
        ("X402D_NETWORK", "base"),
        ("X402D_RPC_URL", "http://127.0.0.1:9/secret-path"),
        NO_DATABASE,
    ];
    let said = refusal(&variables, "");
    assert!(said.contains("X402D_PAYEES"), "{said}");
    assert!(
        !said.contains("secret-path") && !said.contains(&KEY[2..]),
        "{said}"
    );
}

#[test]
fn a_misspelt_key_does_not_start_and_is_named_with_its_line() {
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", "http://127.0.0.1:9"),
        NO_DATABASE,
    ];
    let said = refusal(&variables, "settle_wait_s = 5\nlisten_on = 1\n");
    assert!(
        said.contains("line 2") && said.contains("listen_on"),
        "{said}"
    );
}

#[test]
fn a_database_that_is_not_there_is_complained_of_without_its_password() {
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", "http://127.0.0.1:9"),
        NO_DATABASE,
    ];
    let said = refusal(&variables, "");
    assert!(
        said.contains("database") && !said.contains("hunter2"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_chain_or_a_wrong_token_name_does_not_start_and_says_what_to_correct() {
    let (chain, database) = (Chain::with_block_time(None).await, Database::fresh().await);
    let (variable, place) = database.variable();
    let serving = |network| {
        [
            ("X402D_NETWORK", network),
            ("X402D_RPC_URL", chain.url()),
            (variable, place.as_str()),
        ]
    };

    let said = refusal(&serving("avalanche-fuji"), "");
    assert!(said.contains("84532") && said.contains("43113"), "{said}");

    let toml = "[[networks.base-sepolia.assets]]\naddress = \"0x036CbD53842c5426634e7929541eC2318f3dCF7e\"\nname = \"USD Coin\"\nversion = \"2\"\ndecimals = 6\n";
    let said = refusal(&serving("base-sepolia"), toml);
    assert!(
        said.contains("EIP-712") && said.contains("USD Coin"),
        "{said}"
    );

    let toml = "[[networks.base-sepolia.assets]]\naddress = \"0x00000000000000000000000000000000000000aa\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\n";
    let said = refusal(&serving("base-sepolia"), toml);
    assert!(said.contains("no contract"), "{said}");
}
