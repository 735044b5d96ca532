//! The payment history: access, contents, paging, and answers to invalid queries.

use std::collections::HashSet;

use alloy::primitives::Address;
use reqwest::Client;
use serde_json::Value;

use crate::support::{Answer, Facilitator, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x5e);
const OTHER: Address = Address::repeat_byte(0x6f);
const TOKEN: &str = "a-long-enough-token";
/// A well-formed id that no ledger has assigned.
const UNKNOWN_ID: &str = "01a2094f-ebfa-75a9-8017-f2460b126937";

fn id(row: &Value) -> String {
    row["id"].as_str().unwrap().to_owned()
}

/// Payment ids of settled answers.
fn settled(answers: &[Answer]) -> HashSet<String> {
    let ids = answers
        .iter()
        .map(|answer| answer.body["extra"]["paymentId"].as_str().unwrap());
    ids.map(str::to_owned).collect()
}

/// One page: its rows and the path of the next page.
async fn page(facilitator: &Facilitator, path: &str) -> (Vec<Value>, Option<String>) {
    let answer = facilitator.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    let rows = answer.body["payments"].as_array().cloned().unwrap();
    let next = answer.body["nextCursor"].as_str().map(|cursor| {
        let first = path.split("&cursor=").next().unwrap();
        format!("{first}&cursor={cursor}")
    });
    (rows, next)
}

/// Every row from `path` on, and the size of each page.
async fn walk(facilitator: &Facilitator, path: &str) -> (Vec<Value>, Vec<usize>) {
    let (mut rows, mut sizes) = (Vec::new(), Vec::new());
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let (found, after) = page(facilitator, &path).await;
        sizes.push(found.len());
        rows.extend(found);
        next = after;
    }
    (rows, sizes)
}

#[tokio::test(flavor = "multi_thread")]
async fn history_requires_the_configured_token() {
    let world = Setup::default()
        .with("X402D_ADMIN_TOKEN", TOKEN)
        .build()
        .await;
    let client = Client::builder().no_proxy().build().unwrap();
    let one = format!("/payments/{UNKNOWN_ID}");
    for (path, allowed) in [
        ("/payments", 200),
        ("/api/payments", 200),
        (one.as_str(), 404),
    ] {
        let url = format!("{}{path}", world.facilitator.url());
        for (authorization, status) in [
            (None, 401),
            (Some("Bearer wrong".to_owned()), 401),
            (Some("Bearer ".to_owned()), 401),
            (Some(format!("Bearer {TOKEN}x")), 401),
            (Some(format!("Basic {TOKEN}")), 401),
            (Some(TOKEN.to_owned()), 401),
            (Some(format!("Bearer {TOKEN}")), allowed),
            (Some(format!("bearer {TOKEN}")), allowed),
        ] {
            let mut request = client.get(&url);
            if let Some(text) = &authorization {
                request = request.header("authorization", text);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), status, "{path} {authorization:?}");
            if status == 401 {
                assert_eq!(answer.headers()["www-authenticate"], "Bearer");
                assert_eq!(answer.headers()["content-type"], "application/problem+json");
                let problem: Value = answer.json().await.unwrap();
                assert_eq!(problem["code"], "operator_only");
                assert!(!problem.to_string().contains(TOKEN), "{problem}");
            }
        }
    }
    for open in ["/supported", "/healthz", "/openapi.json"] {
        assert_eq!(world.facilitator.get(open).await.status, 200, "{open}");
    }
    assert!(!world.facilitator.log().contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_without_a_token_is_local_only() {
    let world = World::new().await;
    let client = Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/payments", world.facilitator.url());
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    for header in ["forwarded", "x-forwarded-for", "x-real-ip", "via"] {
        let proxied = client.get(&url).header(header, "203.0.113.9");
        let status = proxied.send().await.unwrap().status();
        assert_eq!(
            status, 401,
            "{header}: behind a proxy every caller seems to be local"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_shows_each_payment_once_while_new_ones_arrive() {
    let world = World::new().await;
    let payer = world.payer().await;
    let bodies = |from: u64, to: u64| {
        let amounts = from..to;
        amounts
            .map(|amount| Purchase::new(&payer, PAYEE, amount).body())
            .collect()
    };
    let before = settled(&world.facilitator.settle_all(bodies(100, 108)).await);
    let (first, next) = page(&world.facilitator, "/payments?limit=3").await;
    let later = settled(&world.facilitator.settle_all(bodies(200, 204)).await);
    let (rest, sizes) = walk(&world.facilitator, &next.unwrap()).await;
    assert_eq!((first.len(), sizes), (3, vec![3, 2]));
    let seen: Vec<&Value> = first.iter().chain(&rest).collect();
    let times = seen.iter().map(|row| row["createdAt"].as_str().unwrap());
    assert!(
        times.is_sorted_by(|newer, older| newer >= older),
        "newest first: {seen:?}"
    );
    assert_eq!(seen.len(), before.len(), "each once");
    let seen = seen.into_iter().map(id);
    assert_eq!(seen.collect::<HashSet<_>>(), before);

    let (all, sizes) = walk(&world.facilitator, "/payments?limit=4").await;
    assert_eq!(
        sizes,
        [4, 4, 4, 0],
        "a full last page is followed by an empty one"
    );
    let all: HashSet<String> = all.iter().map(id).collect();
    assert_eq!(all, &before | &later);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_alone_combined_and_across_pages() {
    let world = World::new().await;
    let (first, second) = (world.payer().await, world.payer().await);
    let mut bodies: Vec<_> = (0..5)
        .map(|number| Purchase::new(&first, PAYEE, 100 + number).body())
        .collect();
    bodies.extend((0..3).map(|number| Purchase::new(&second, OTHER, 200 + number).v1().body()));
    world.facilitator.settle_all(bodies).await;
    let (all, _) = walk(&world.facilitator, "/payments?limit=500").await;
    assert_eq!(all.len(), 8);
    let (first, second) = (first.address(), second.address());
    for (query, rows) in [
        (format!("payer={first}"), 5),
        (format!("payer={}", first.to_string().to_lowercase()), 5),
        (format!("payee={OTHER}"), 3),
        (format!("payer={first}&payee={OTHER}"), 0),
        (format!("payer={second}&payee={OTHER}&state=settled"), 3),
        ("network=eip155:84532&state=settled".to_owned(), 8),
        ("network=eip155:1".to_owned(), 0),
        ("state=failed".to_owned(), 0),
        (
            "asset=0x036cbd53842c5426634e7929541ec2318f3dcf7e".to_owned(),
            8,
        ),
        (format!("asset={OTHER}"), 0),
        ("to=2020-01-01T00:00:00Z".to_owned(), 0),
        ("from=2020-01-01T00:00:00Z".to_owned(), 8),
        // The limits of RFC 3339, and an offset.
        (
            "from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59Z".to_owned(),
            8,
        ),
        ("from=2020-01-01T00:00:00%2B14:00".to_owned(), 8),
        ("to=0000-01-01T00:00:00%2B23:59".to_owned(), 0),
    ] {
        let (found, sizes) = walk(&world.facilitator, &format!("/payments?{query}&limit=2")).await;
        assert_eq!(found.len(), rows, "{query}: {sizes:?}");
        assert!(sizes.iter().all(|size| *size <= 2), "{query}: {sizes:?}");
    }
    for row in &all {
        let at = row["createdAt"].as_str().unwrap();
        let count = async |query: String| {
            let path = format!("/payments?{query}={at}&limit=500");
            walk(&world.facilitator, &path).await.0.len()
        };
        let not_before = all
            .iter()
            .filter(|row| row["createdAt"].as_str() >= Some(at));
        assert_eq!(count("from".to_owned()).await, not_before.count(), "{at}");
        let earlier = all
            .iter()
            .filter(|row| row["createdAt"].as_str() < Some(at));
        assert_eq!(count("to".to_owned()).await, earlier.count(), "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_shows_its_members_and_events() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 123);
    let answer = world.facilitator.settle(&purchase.body()).await;
    let again = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(again.reason(), "duplicate_settlement");
    let shown = world.facilitator.payment(&answer).await;
    let address = |address: Address| address.to_checksum(None);
    let expected = serde_json::json!({
        "x402Version": 2, "network": "eip155:84532", "asset": address(purchase.asset), "payer": address(purchase.signer.address()),
        "payee": address(PAYEE), "amount": "123", "decimals": 6, "state": "settled", "transaction": answer.transaction(),
        "confirmationsRequired": 1, "rail": "authorization", "resource": "https://seller.test/goods", "nonce": purchase.authorization.nonce,
    });
    for (member, value) in expected.as_object().unwrap() {
        assert_eq!(&shown[member], value, "{member}");
    }
    let explorer = format!("https://sepolia.basescan.org/tx/{}", answer.transaction());
    assert_eq!(shown["explorerUrl"], explorer);
    let receipt = world.chain.receipt(&answer.transaction()).await;
    let number = |text: &Value| u64::from_str_radix(&text.as_str().unwrap()[2..], 16).unwrap();
    assert_eq!(shown["blockNumber"], number(&receipt["blockNumber"]));
    let log = receipt["logs"].as_array().unwrap().last().unwrap();
    assert_eq!(shown["logIndex"], number(&log["logIndex"]));
    for absent in ["reason", "message", "quarantine"] {
        assert!(shown.get(absent).is_none(), "{absent}: {shown}");
    }

    let events = shown["events"].as_array().unwrap();
    let life: Vec<_> = events
        .iter()
        .map(|event| {
            let member = |name: &str| event[name].as_str().unwrap_or_default();
            (member("kind"), member("from"), member("to"))
        })
        .collect();
    let expected = [
        ("state", "", "queued"),
        ("state", "queued", "inflight"),
        ("state", "inflight", "settled"),
        ("granted", "", ""),
        ("answered", "", ""),
    ];
    assert_eq!(life, expected, "the second presentation leaves no trace");
    let times = events.iter().map(|event| event["at"].as_str().unwrap());
    assert!(times.is_sorted(), "{events:?}");
    assert!(
        !shown
            .to_string()
            .contains(&purchase.own_signature().to_string()[2..])
    );
}

/// Invalid queries.
const INVALID: [&str; 39] = [
    "/payments?limit=0",
    "/payments?limit=501",
    "/payments?limit=-1",
    "/payments?limit=99999999999",
    "/payments?limit=many",
    "/payments?limit=1&limit=2",
    "/payments?colour=red",
    "/payments?payer=0x12",
    "/payments?payer=%ff",
    "/payments?payee=nobody",
    "/payments?asset=",
    "/payments?state=lost",
    "/payments?state=%00",
    "/payments?from=yesterday",
    "/payments?from=2026-02-30T00:00:00Z",
    "/payments?to=1700000000",
    // In UTC this is after the last representable year.
    "/payments?from=9999-12-31T23:59:59-23:59",
    "/payments?network=nowhere",
    "/payments?minAmount=-1",
    "/payments?minAmount=1.5",
    "/payments?maxAmount=0x10",
    "/payments?maxAmount=115792089237316195423570985008687907853269984665640564039457584007913129639936",
    "/payments?session=ps_1",
    "/payments?resource=",
    "/payments?resource=%00",
    "/payments?clientReference=a%00b",
    "/payments?transaction=0x12",
    "/payments?status=settled&state=settled",
    "/payments?format=pdf",
    "/payments?cursor=x",
    "/payments?cursor=1.2",
    "/payments?cursor=9223372036854775807.01a2094febfa75a98017f2460b126937",
    "/stats?colour=red",
    "/stats?groupBy=colour",
    "/stats?cursor=x",
    "/payments?cursor=%00",
    "/payments/x",
    "/payments/%00",
    "/payments/%ff",
];

#[tokio::test(flavor = "multi_thread")]
async fn invalid_query_is_answered_with_a_problem_document() {
    let world = World::new().await;
    let client = Client::builder().no_proxy().build().unwrap();
    let unknown = format!("/payments/{UNKNOWN_ID}");
    let unreadable = INVALID.into_iter().map(|path| (path, 400));
    let cases = unreadable.chain([(unknown.as_str(), 404)]);
    for (path, status) in cases {
        let url = format!("{}{path}", world.facilitator.url());
        let answer = client.get(url).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert_eq!(
            answer.headers()["content-type"],
            "application/problem+json",
            "{path}"
        );
        let id = answer.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        let problem: Value = answer.json().await.unwrap();
        let code = if status == 404 {
            "not_found"
        } else {
            "invalid_parameter"
        };
        assert_eq!(problem["code"], code, "{path}: {problem}");
        assert_eq!(problem["status"], status, "{path}: {problem}");
        assert_eq!(problem["retryable"], false, "{path}: {problem}");
        assert_eq!(problem["requestId"], id, "{path}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.len() > 10, "{path}: {problem}");
        if let Some((_, query)) = path.split_once('?') {
            let key = query.split('=').next().unwrap();
            assert!(detail.starts_with(&format!("{key}: ")), "{path}: {problem}");
        }
    }
    assert!(!world.facilitator.log().contains("panicked"));
}
