//! History answers compared with all rows: every filter, alone and in pairs, sums, and payments by transaction.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use crate::support::FilledLedger;

/// Query key, value, and whether a row matches.
type Case = (
    &'static str,
    String,
    Box<dyn Fn(&Value) -> bool + Send + Sync>,
);

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

fn amount(row: &Value) -> u64 {
    row["amount"].as_str().unwrap().parse().unwrap()
}

/// Filters taken from `row`, so that each matches something, and some that match nothing.
fn cases(row: &Value) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for (key, member) in [
        ("payer", "payer"),
        ("payee", "payee"),
        ("network", "network"),
        ("asset", "asset"),
        ("state", "state"),
        ("status", "state"),
        ("resource", "resource"),
        ("session", "session"),
        ("clientReference", "clientReference"),
        ("transaction", "transaction"),
    ] {
        let Some(value) = row[member].as_str().map(str::to_owned) else {
            continue;
        };
        let wanted = value.clone();
        cases.push((key, value, Box::new(move |row| row[member] == *wanted)));
    }
    let limit = amount(row);
    cases.push((
        "minAmount",
        limit.to_string(),
        Box::new(move |row| amount(row) >= limit),
    ));
    cases.push((
        "maxAmount",
        limit.to_string(),
        Box::new(move |row| amount(row) <= limit),
    ));
    let at = row["createdAt"].as_str().unwrap().to_owned();
    let bound = at.clone();
    let not_before = move |row: &Value| row["createdAt"].as_str().unwrap() >= bound.as_str();
    cases.push(("from", at.clone(), Box::new(not_before)));
    let bound = at.clone();
    let before = move |row: &Value| row["createdAt"].as_str().unwrap() < bound.as_str();
    cases.push(("to", at, Box::new(before)));
    for (key, value) in [
        ("payer", "0x00000000000000000000000000000000000000ff"),
        ("clientReference", "nobody's"),
        ("session", "ps_00000000000000000000000000"),
        ("network", "eip155:1"),
        (
            "minAmount",
            "115792089237316195423570985008687907853269984665640564039457584007913129639935",
        ),
    ] {
        cases.push((key, value.to_owned(), Box::new(|_| false)));
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_matches_alone_and_in_pairs() {
    let ledger = FilledLedger::of(400).await;
    ledger.run("update sessions set client_reference = 'a&b=c d''\"; drop' where client_reference = 'order-31'")
        .await;
    let all = ledger.walk("", 100).await;
    assert_eq!(all.len(), 400);
    assert_eq!(ids(&all).iter().collect::<HashSet<_>>().len(), 400);
    assert!(
        all.is_sorted_by(|newer, older| newer["createdAt"].as_str() >= older["createdAt"].as_str()),
        "newest first"
    );
    let with_session = all
        .iter()
        .find(|row| row["clientReference"] == "a&b=c d'\"; drop");
    let cases = cases(with_session.unwrap());
    assert_eq!(cases.len(), 19, "every member is there");
    let mut fits_some = HashSet::new();
    for (index, (key, value, fits)) in cases.iter().enumerate() {
        for (other_key, other_value, other_fits) in &cases[index..] {
            let same = key == other_key || (*key, *other_key) == ("state", "status");
            if same && value != other_value {
                continue;
            }
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair(key, value);
            if !same {
                query.append_pair(other_key, other_value);
            }
            let query = query.finish();
            let expected: Vec<_> = all
                .iter()
                .filter(|row| fits(row) && other_fits(row))
                .cloned()
                .collect();
            if same && !expected.is_empty() {
                fits_some.insert(*key);
            }
            if (*key, *other_key) == ("state", "status") {
                continue;
            }
            let found = ledger.walk(&query, 37).await;
            assert_eq!(ids(&found), ids(&expected), "{query}");
        }
    }
    assert_eq!(
        fits_some.len(),
        14,
        "each filter matched some rows: {fits_some:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_lists_its_payments_even_without_transfer() {
    let ledger = FilledLedger::of(60).await;
    let all = ledger.walk("state=final&network=eip155:84532", 500).await;
    let (first, second) = (&all[0], &all[1]);
    let path = |network: &str, row: &Value| {
        let hash = row["transaction"].as_str().unwrap();
        format!("/payments/by-transaction/{network}/{hash}")
    };
    let network = first["network"].as_str().unwrap();
    let one = ledger.facilitator.get(&path(network, first)).await;
    assert_eq!(
        ids(one.body["payments"].as_array().unwrap()),
        ids(&all[..1])
    );
    assert_eq!(one.body["payments"][0], *first);
    // A second payment was in the same transaction without a transfer, and was settled by another transaction.
    ledger.run(format!(
        "insert into transaction_payments (transaction_id, position, payment_id, outcome) values ('{}', 1, '{}', 'without_effect')",
        first["id"].as_str().unwrap(),
        second["id"].as_str().unwrap()
    ))
    .await;
    let two = ledger.facilitator.get(&path(network, first)).await;
    assert_eq!(
        ids(two.body["payments"].as_array().unwrap()),
        ids(&all[..2])
    );
    let detail = format!("/payments/{}", second["id"].as_str().unwrap());
    let detail = ledger.facilitator.get(&detail).await.body;
    assert_eq!(detail["attempts"].as_array().unwrap().len(), 2, "{detail}");
    assert_eq!(
        detail["gas"]["used"], 130_000,
        "both transactions cost gas: {detail}"
    );
    assert_eq!(detail["gas"]["feeWei"], "130000000910000");
    let elsewhere = ledger.facilitator.get(&path("eip155:1", first)).await;
    assert_eq!(elsewhere.status, 200);
    assert_eq!(elsewhere.body["payments"], serde_json::json!([]));
    for bad in [
        "/payments/by-transaction/base/0x00",
        "/payments/by-transaction/eip155:84532/0x00",
        "/payments/by-transaction/eip155:84532/%00",
        "/payments/by-transaction/%ff/x",
    ] {
        let answer = ledger.facilitator.get(bad).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
        assert_eq!(answer.body["code"], "invalid_parameter", "{bad}");
    }
}

/// Count and sum by day, payee, network, asset and state; members that are not grouped by are empty.
type Sums = BTreeMap<[String; 5], (u64, u128)>;

const KEYS: [&str; 5] = ["day", "payee", "network", "asset", "state"];

/// The sums that `/stats` should report for the network that has most of `rows`.
fn summed(rows: &[Value], members: &[&str]) -> Sums {
    let mut sums = Sums::new();
    for row in rows.iter().filter(|row| row["network"] == "eip155:84532") {
        let member = |name: &str| row[name].as_str().unwrap().to_owned();
        let asked = |name: &str| members.contains(&name);
        let key = KEYS.map(|name| match name {
            "day" if asked("day") => member("createdAt")[..10].to_owned(),
            "payee" if asked("payee") => member("payee"),
            "state" if asked("state") || asked("status") => member("state"),
            "network" | "asset" => member(name),
            _ => String::new(),
        });
        let group = sums.entry(key).or_default();
        group.0 += 1;
        group.1 += u128::from(amount(row));
    }
    sums
}

/// The sums that `/stats` reports.
fn reported(stats: &Value) -> Sums {
    let groups = stats["groups"].as_array().unwrap();
    let group = |group: &Value| {
        let key = KEYS.map(|name| group[name].as_str().unwrap_or_default().to_owned());
        let sum = group["amount"].as_str().unwrap().parse().unwrap();
        (key, (group["payments"].as_u64().unwrap(), sum))
    };
    groups.iter().map(group).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_equal_the_rows_in_every_grouping() {
    let ledger = FilledLedger::of(3000).await;
    // Amounts whose sum only Postgres's `numeric` can hold.
    ledger.run(
        "update payments set amount = 2::numeric ^ 256 - 1 where id in (select id from payments where network = 'eip155:8453' limit 3)",
    )
    .await;
    let all = ledger.walk("", 500).await;
    for grouping in [
        "",
        "day",
        "payee",
        "state",
        "status,day",
        "day,payee,state",
        "network,asset",
    ] {
        let members: Vec<_> = if grouping.is_empty() {
            vec!["state"]
        } else {
            grouping.split(',').collect()
        };
        let expected = summed(&all, &members);
        let query = if grouping.is_empty() {
            String::new()
        } else {
            format!("&groupBy={grouping}")
        };
        let stats = ledger
            .facilitator
            .get(&format!("/stats?network=eip155:84532{query}"))
            .await;
        assert_eq!(stats.status, 200, "{stats:?}");
        let found = reported(&stats.body);
        assert_eq!(found, expected, "{grouping}");
        assert_eq!(stats.body["truncated"], false, "{grouping}");
        let days: Vec<_> = stats.body["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| group["day"].as_str())
            .collect();
        assert!(
            days.is_sorted_by(|newer, older| newer >= older),
            "newest days first: {days:?}"
        );
    }
    let wide = ledger
        .facilitator
        .get("/stats?network=eip155:8453&groupBy=network&minAmount=99999999999")
        .await;
    let sum = "347376267711948586270712955026063723559809953996921692118372752023739388919805";
    assert_eq!(wide.body["groups"][0]["amount"], sum, "{wide:?}");
    assert_eq!(wide.body["groups"][0]["payments"], 3);
    for bad in [
        "/stats?groupBy=",
        "/stats?groupBy=payer",
        "/stats?limit=1",
        "/stats?payer=1",
        "/stats?state=final&status=final",
    ] {
        let answer = ledger.facilitator.get(bad).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_bounded_and_report_truncation() {
    let ledger = FilledLedger::of(1).await;
    ledger.run(
        "insert into payments (id, x402_version, network, scheme, asset, payer, payee, amount, nonce_domain, nonce, valid_after, valid_before,
            digest, signature, state, confirmations)
        select gen_random_uuid(), x402_version, network, scheme, asset, payer, decode(lpad(to_hex(n), 40, '0'), 'hex'), 1, nonce_domain,
            sha256(convert_to(n::text, 'utf8')), valid_after, valid_before, digest, signature, 'queued', 1
        from payments, generate_series(1, 1000) n",
    )
    .await;
    let stats = ledger.facilitator.get("/stats?groupBy=payee").await;
    assert_eq!(stats.body["groups"].as_array().unwrap().len(), 1000);
    assert_eq!(stats.body["truncated"], true);
    let fewer = ledger
        .facilitator
        .get("/stats?groupBy=payee&state=queued")
        .await;
    assert_eq!(fewer.body["truncated"], false);
}
