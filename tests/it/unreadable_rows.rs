//! Rows that this version of the program cannot read: each is quarantined and shown, and no other payment is affected.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};

use crate::support::{Answer, OpenSession, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x1e);
/// A code that a later version might write.
const NEWER_CODE: &str = "a_code_of_a_later_version";

async fn change(world: &World, set: &str, amount: u64) {
    let statement = format!("update payments set {set} where amount = {amount}");
    let changed = sqlx::query(sqlx::AssertSqlSafe(statement))
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    assert_eq!(changed.rows_affected(), 1);
}

/// Changes a payment's row to a state that no version of the program writes.
async fn make_unreadable(world: &World, amount: u64) {
    change(world, "valid_after = timestamptz '1960-01-01'", amount).await;
}

/// Presents one payment many times, each time beside a readable one, and returns its answers. Every readable one succeeds.
async fn present_among_others(world: &World, payer: &Payer, unreadable: &Value) -> Vec<Answer> {
    let mut bodies = Vec::new();
    for _ in 0..16 {
        bodies.push(Purchase::new(payer, PAYEE, 1).body());
        bodies.push(unreadable.clone());
    }
    let answers = world.facilitator.settle_all(bodies).await;
    let (good, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Answer::succeeded);
    assert_eq!(good.len(), 16, "another payment failed: {failed:?}");
    failed
}

type Payer = alloy::signers::local::PrivateKeySigner;

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_row_affects_no_other_and_is_shown() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let payer = world.payer().await;
    let unreadable = Purchase::new(&payer, PAYEE, 7_000).body();
    let settled = world.facilitator.settle(&unreadable).await;
    assert!(settled.succeeded(), "{settled:?}");
    let id = settled.body["extra"]["paymentId"].as_str().unwrap();
    make_unreadable(&world, 7_000).await;
    for _ in 0..2 {
        for answer in present_among_others(&world, &payer, &unreadable).await {
            let said = (answer.status, answer.reason());
            assert_eq!(said, (200, "settlement_pending"), "{answer:?}");
        }
    }
    let readable = Purchase::new(&payer, PAYEE, 1).body();
    let (verdict, judged) = tokio::join!(
        world.facilitator.verify(&unreadable),
        world.facilitator.verify(&readable)
    );
    assert_eq!(verdict.reason(), "settlement_pending", "{verdict:?}");
    assert!(judged.is_valid(), "{judged:?}");
    // The operator sees all of them, and why this one is quarantined.
    let page = world.facilitator.get("/payments").await;
    assert_eq!(page.status, 200, "{page:?}");
    let rows = page.body["payments"].as_array().unwrap();
    assert_eq!(rows.len(), 33, "{page:?}");
    let shown = world.facilitator.get(&format!("/payments/{id}")).await;
    assert_eq!(shown.status, 200, "{shown:?}");
    for row in [
        rows.iter().find(|row| row["id"] == id).unwrap(),
        &shown.body,
    ] {
        let why = row["quarantine"].as_str().unwrap_or_default();
        assert!(why.contains("valid_after"), "{row}");
        let seen = (&row["state"], &row["amount"], &row["transaction"]);
        let transaction = json!(settled.transaction());
        assert_eq!(seen, (&json!("settled"), &json!("7000"), &transaction));
    }
    let events = shown.body["events"].as_array().unwrap();
    let quarantined = events.iter().filter(|event| event["kind"] == "quarantined");
    assert_eq!(quarantined.count(), 1, "said once: {events:?}");
    let hash = settled.transaction();
    for path in [
        "/payments?format=csv".to_owned(),
        format!("/payments/by-transaction/eip155:84532/{hash}"),
        "/stats".to_owned(),
        "/readyz".to_owned(),
    ] {
        let answer = world.facilitator.get(&path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    let table = world.facilitator.answers();
    assert!(
        table.contains(&format!("\n{id},")),
        "the table has the row too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn code_of_a_later_version_is_read_and_returned() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    // While this file exists the keys are unavailable, which keeps payments queued.
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let setup = setup.with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let world = setup.with("X402D_SETTLE_WAIT", "6").build().await;
    let payer = world.payer().await;
    let [again, failed] = [7_000, 8_000].map(|amount| Purchase::new(&payer, PAYEE, amount).body());
    for body in [&again, &failed] {
        let refused = world.facilitator.settle(body).await;
        assert_eq!(refused.reason(), "unexpected_settle_error", "{refused:?}");
    }
    change(&world, &format!("reason = '{NEWER_CODE}'"), 7_000).await;
    let state = format!("state = 'failed', reason = '{NEWER_CODE}'");
    change(&world, &state, 8_000).await;
    std::fs::remove_file(&down).unwrap();
    eventually("available keys", Duration::from_secs(30), async || {
        let body = Purchase::new(&payer, PAYEE, 3).body();
        world
            .facilitator
            .settle(&body)
            .await
            .succeeded()
            .then_some(())
    })
    .await;
    for answer in present_among_others(&world, &payer, &failed).await {
        assert_eq!(answer.reason(), NEWER_CODE, "{answer:?}");
    }
    let page = world.facilitator.get("/payments?state=refused").await;
    assert_eq!(page.status, 200, "{page:?}");
    let rows = page.body["payments"].as_array().unwrap();
    let row = rows.iter().find(|row| row["amount"] == "7000").unwrap();
    assert_eq!(row["reason"], NEWER_CODE, "{row}");
    assert_eq!(row["quarantine"], Value::Null, "{row}");
    let settled = world.facilitator.settle(&again).await;
    assert!(
        settled.succeeded(),
        "a refused payment can settle later: {settled:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_transfer_delays_no_other_payer() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let (unreadable, readable) = (world.payer_with_gas().await, world.payer_with_gas().await);
    world.chain.automine(false).await;
    let mut sessions = Vec::new();
    for (payer, amount) in [(&unreadable, 7_000), (&readable, 40)] {
        let caller = &world.facilitator;
        let session = OpenSession::open(caller, payer, "transfer", PAYEE, amount).await;
        let raw = json!({"rawTransaction": session.transaction(0, None).0});
        let path = format!("/sessions/{}/transfer", session.id);
        let submitted = caller.post(&path, &raw).await.unwrap();
        assert_eq!(submitted.status, 200, "{submitted:?}");
        if amount == 7_000 {
            make_unreadable(&world, amount).await;
        }
        sessions.push(session);
    }
    world.resume_mining().await;
    let outcome = sessions[1].outcome(&world.facilitator).await;
    assert_eq!(outcome["state"], "paid", "{outcome}");
    let page = world.facilitator.get("/payments?state=inflight").await;
    let why = page.body["payments"][0]["quarantine"].as_str();
    assert!(
        why.is_some_and(|why| why.contains("valid_after")),
        "{page:?}"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(7_040));
}
