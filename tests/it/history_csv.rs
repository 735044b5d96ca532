//! The history as CSV, and the chain data of a payment: session, attempts, gas, confirmations.

use std::collections::HashSet;

use alloy::primitives::Address;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{Answer, FilledLedger, Purchase, World};

const PAYEE: Address = Address::repeat_byte(0x5e);

/// Strict RFC 4180: CRLF ends a line, quotes are doubled, only a comma or a line end follows a closing quote.
fn parse(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if cell.is_empty() => loop {
                match letters.next().expect("the quote is closed") {
                    '"' if letters.next_if_eq(&'"').is_some() => cell.push('"'),
                    '"' => {
                        assert!(matches!(letters.peek(), Some(',' | '\r')), "{cell}");
                        break;
                    }
                    inside => cell.push(inside),
                }
            },
            '"' | '\n' => panic!("{letter:?} stands bare after {cell:?}"),
            ',' => row.push(std::mem::take(&mut cell)),
            '\r' => {
                assert_eq!(letters.next(), Some('\n'));
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            plain => cell.push(plain),
        }
    }
    assert!(
        row.is_empty() && cell.is_empty(),
        "the last line has an end"
    );
    rows
}

/// A row's member as its CSV cell shows it.
fn shown(member: &Value) -> String {
    match member {
        Value::Null => String::new(),
        Value::String(text) if text.starts_with('=') => format!("'{text}"),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            member.to_string()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn csv_holds_every_matching_row() {
    let ledger = FilledLedger::of(1250).await;
    let url = ledger.facilitator.url();
    let client = Client::builder().no_proxy().build().unwrap();
    ledger.run(
        "update payments set resource = 'two\r\nlines, \"quoted\"' where id = (select id from payments order by created_at limit 1);
        update sessions set client_reference = '=hyperlink(\"https://evil.test\")' where payment_id in (select id from payments order by created_at limit 3)",
    )
    .await;
    for query in [
        "",
        "&payee=0xeEEeEeeeEEEeeEEeEEeeeeEeeEEeeeeEEEeeee01",
        "&network=eip155:8453&minAmount=500000",
        "&payer=0x0000000000000000000000000000000000000009",
    ] {
        let rows = ledger.walk(query.trim_start_matches('&'), 500).await;
        let answer = client
            .get(format!("{url}/payments?format=csv{query}"))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert!(
            answer.headers()["content-type"]
                .to_str()
                .unwrap()
                .starts_with("text/csv")
        );
        let table = parse(&answer.text().await.unwrap());
        let names = &table[0];
        assert_eq!(names.len(), 24);
        assert_eq!(table.len() - 1, rows.len(), "{query}");
        for (line, row) in table[1..].iter().zip(&rows) {
            for (name, cell) in names.iter().zip(line) {
                let shown = shown(&row[name]);
                assert_eq!(*cell, shown, "{name} of {row}");
            }
        }
        if query.is_empty() {
            let text = format!("{table:?}");
            assert!(text.contains("two\\r\\nlines, \\\"quoted\\\""));
            assert!(text.contains("'=hyperlink("));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_header_selects_csv_without_pages() {
    let ledger = FilledLedger::of(2).await;
    let client = Client::builder().no_proxy().build().unwrap();
    for (accept, query, kind) in [
        ("text/csv", "", "text/csv"),
        ("TEXT/CSV; q=0.9", "", "text/csv"),
        ("text/csv, application/json", "", "text/csv"),
        ("application/json, text/csv", "", "application/json"),
        ("text/csv;q=0", "", "application/json"),
        ("*/*", "", "application/json"),
        ("text/html", "", "application/json"),
        ("text/csv", "?format=json", "application/json"),
        ("application/json", "?format=csv", "text/csv"),
        ("*/*", "?format=xml", "application/problem+json"),
        ("*/*", "?format=csv&limit=5", "application/problem+json"),
        (
            "text/csv",
            "?cursor=1.01a2094febfa75a98017f2460b126937",
            "application/problem+json",
        ),
    ] {
        let url = format!("{}/payments{query}", ledger.facilitator.url());
        let answer = client
            .get(url)
            .header("accept", accept)
            .send()
            .await
            .unwrap();
        let got = answer.headers()["content-type"].to_str().unwrap();
        assert!(got.starts_with(kind), "{accept} {query}: {got}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_row_breaks_the_csv_off() {
    // More rows than the buffers hold between the ledger and a reader that has read one chunk.
    let ledger = FilledLedger::of(60_000).await;
    let client = Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/payments?format=csv", ledger.facilitator.url());
    let mut answer = client.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let first = answer.chunk().await.unwrap().unwrap();
    let mut lines = first.split(|byte| *byte == b'\n').count() - 1;
    ledger
        .run("alter table payments rename to payments_elsewhere")
        .await;
    let ended = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => lines += chunk.split(|byte| *byte == b'\n').count() - 1,
            Ok(None) => break "complete",
            Err(_) => break "broken off",
        }
    };
    assert_eq!(ended, "broken off", "after {lines} lines");
    assert!(
        (500..60_000).contains(&lines),
        "{lines}: the batches before came"
    );
    let page = ledger
        .facilitator
        .get("/payments?to=2026-01-01T00:02:00Z")
        .await;
    assert_eq!(page.status, 503, "a page says so: {page:?}");
    assert!(ledger.facilitator.log().contains("table broken off"));
}

/// Opens a session for a purchase and gives its authorization the session's nonce.
async fn in_session(world: &World, mut purchase: Purchase, reference: &str) -> (Purchase, String) {
    let body = json!({
        "accepted": purchase.body()["paymentRequirements"], "payer": purchase.signer.address(),
        "resource": "https://seller.test/session", "clientReference": reference,
    });
    let opened = world
        .facilitator
        .post_text("/sessions", body.to_string())
        .await;
    assert_eq!(opened.status, 201, "{opened:?}");
    let signed = &opened.body["authorization"]["message"];
    purchase.authorization = serde_json::from_value(signed.clone()).unwrap();
    (
        purchase,
        opened.body["sessionId"].as_str().unwrap().to_owned(),
    )
}

/// Compares the payment's only attempt with its receipt.
async fn assert_attempt_shown(world: &World, transaction: &str, shown: &Value) {
    let receipt = world.chain.receipt(transaction).await;
    let number =
        |name: &str| u128::from_str_radix(&receipt[name].as_str().unwrap()[2..], 16).unwrap();
    let attempts = shown["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{shown}");
    let attempt = &attempts[0];
    assert_eq!(attempt["transaction"], transaction);
    assert_eq!(
        attempt["signer"].as_str().unwrap().to_lowercase(),
        receipt["from"]
    );
    assert_eq!(attempt["nonce"], 0);
    assert_eq!(attempt["mined"]["outcome"], "transferred");
    assert_eq!(attempt["mined"]["payments"], 1);
    assert_eq!(attempt["mined"]["succeeded"], true);
    let fee = number("gasUsed") * number("effectiveGasPrice");
    assert_eq!(attempt["mined"]["feeWei"], fee.to_string());
    assert_eq!(
        shown["gas"],
        json!({"used": u64::try_from(number("gasUsed")).unwrap(), "feeWei": fee.to_string(), "decimals": 18, "symbol": "ETH"})
    );
    for bound in ["maxFeeWei", "maxPriorityFeeWei"] {
        assert!(
            attempt[bound].as_str().unwrap().parse::<u128>().is_ok(),
            "{attempt}"
        );
    }
    assert!(attempt["gasLimit"].as_u64() > attempt["mined"]["gasUsed"].as_u64());
    let block = u64::try_from(number("blockNumber")).unwrap();
    assert_eq!(attempt["mined"]["blockNumber"], block);
    assert!(shown["blockTime"].as_str().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_shows_session_attempts_and_gas_cost() {
    let world = World::new().await;
    let payer = world.payer().await;
    let (purchase, session) =
        in_session(&world, Purchase::new(&payer, PAYEE, 321), "order 7").await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 5).body())
        .await;
    let shown = world.facilitator.payment(&answer).await;
    assert_eq!(shown["session"], *session);
    assert_eq!(shown["clientReference"], "order 7");
    for query in [
        format!("session={session}"),
        "clientReference=order%207".to_owned(),
        format!("transaction={}", answer.transaction()),
    ] {
        let found = world.facilitator.get(&format!("/payments?{query}")).await;
        let rows = found.body["payments"].as_array().unwrap();
        assert_eq!(rows.len(), 1, "{query}: {rows:?}");
        assert_eq!(rows[0]["id"], shown["id"], "{query}");
    }

    assert_attempt_shown(&world, &answer.transaction(), &shown).await;
    let id = shown["id"].as_str().unwrap();
    crate::support::eventually(
        "the reply to the send",
        std::time::Duration::from_secs(10),
        async || {
            let shown = world.facilitator.get(&format!("/payments/{id}")).await.body;
            (shown["attempts"][0]["broadcast"] == "accepted").then_some(())
        },
    )
    .await;
    world.chain.mine(5).await;
    crate::support::eventually(
        "more confirmations",
        std::time::Duration::from_secs(10),
        async || {
            let shown = world.facilitator.get(&format!("/payments/{id}")).await.body;
            // The second payment's block and five more follow.
            (shown["confirmations"] == 7).then_some(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paging_under_load_shows_earlier_payments_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let body = |amount: u64| Purchase::new(&payer, PAYEE, amount).body();
    let settled = |answers: &[Answer]| -> HashSet<String> {
        let ids = answers
            .iter()
            .map(|answer| answer.body["extra"]["paymentId"].as_str().unwrap());
        ids.map(str::to_owned).collect()
    };
    let before = settled(
        &world
            .facilitator
            .settle_all((100..110).map(body).collect())
            .await,
    );
    let mut payments = JoinSet::new();
    let (caller, bodies) = (world.facilitator.clone(), (200..240).map(body).collect());
    payments.spawn(async move { caller.settle_all(bodies).await });
    let mut walks = 0;
    let mut sizes = HashSet::new();
    let answers = loop {
        let mut seen = Vec::new();
        let mut next = Some("/payments?limit=3".to_owned());
        while let Some(path) = next {
            let page = world.facilitator.get(&path).await.body;
            let rows = page["payments"].as_array().unwrap();
            seen.extend(
                rows.iter()
                    .map(|row| row["id"].as_str().unwrap().to_owned()),
            );
            next = page["nextCursor"]
                .as_str()
                .map(|cursor| format!("/payments?limit=3&cursor={cursor}"));
        }
        let distinct: HashSet<String> = seen.iter().cloned().collect();
        assert_eq!(distinct.len(), seen.len(), "none twice: {seen:?}");
        assert!(
            before.is_subset(&distinct),
            "each earlier payment is listed"
        );
        walks += 1;
        sizes.insert(seen.len());
        if let Some(answers) = payments.try_join_next() {
            break answers.unwrap();
        }
    };
    assert!(
        walks > 1 && sizes.len() > 1,
        "the payments came while walking: {walks} walks of {sizes:?}"
    );
    assert_eq!(settled(&answers).len(), 40);
}
