//! Callers with keys: whom a key lets pay, read and be told.

use std::collections::HashSet;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Caller, Fault, OpenSession, Purchase, Setup, World, eventually};

pub(crate) const SHOP: Address = Address::repeat_byte(0x5e);
const OTHER: Address = Address::repeat_byte(0x6f);
const STRANGER: Address = Address::repeat_byte(0x7a);
pub(crate) const BOTH: &[&str] = &["--scope", "settle,history"];
/// Within this time a revoked key is refused by every replica.
pub(crate) const REVOCATION: Duration = Duration::from_secs(5);

pub(crate) fn keys_only() -> Setup {
    Setup {
        toml: "[access]\nsettle = \"keys\"\n[limits]\nverify_per_second = 100000\nsettle_per_second = 1000\n".to_owned(),
        ..Setup::default()
    }
}

/// Status and code of an answer, of a standard call or of another one.
pub(crate) fn verdict(answer: &Answer) -> (u16, &str) {
    let code = match answer.reason() {
        "" => answer.body["code"].as_str().unwrap_or_default(),
        code => code,
    };
    (answer.status, code)
}

/// Verify and settle refuse the body in the x402 shape, with this status and code.
pub(crate) async fn assert_refused(caller: &Caller, body: &Value, expected: (u16, &str)) {
    let verified = caller.verify(body).await;
    assert_eq!(verified.body["isValid"], false, "{verified:?}");
    assert_eq!(verdict(&verified), expected, "{verified:?}");
    let settled = caller.settle(body).await;
    assert_eq!(settled.body["success"], false, "{settled:?}");
    assert_eq!(verdict(&settled), expected, "{settled:?}");
    assert_eq!(settled.transaction(), "");
}

fn ids(answer: &Answer) -> HashSet<&str> {
    let rows = answer.body["payments"].as_array().unwrap().iter();
    rows.map(|row| row["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sellers_neither_settle_nor_read_each_others_payments() {
    let world = keys_only().build().await;
    let shop = world
        .facilitator
        .with_key(&world.key("shop", SHOP, BOTH).await);
    let other = world
        .facilitator
        .with_key(&world.key("other", OTHER, BOTH).await);
    let payer = world.payer().await;
    let (first, second) = (
        Purchase::new(&payer, SHOP, 11).body(),
        Purchase::new(&payer, OTHER, 12).body(),
    );

    assert_refused(&world.facilitator, &first, (401, "key_required")).await;
    let wrong = format!("x402d_0123456789ab_{}", "0".repeat(64));
    assert_refused(
        &world.facilitator.with_key(&wrong),
        &first,
        (401, "key_invalid"),
    )
    .await;
    assert_refused(&other, &first, (403, "payee_not_allowed")).await;
    assert_refused(&shop, &second, (403, "payee_not_allowed")).await;
    assert_eq!(world.chain.usdc(SHOP).await, U256::ZERO);

    assert!(shop.verify(&first).await.is_valid());
    let settled = shop.settle(&first).await;
    world.assert_transferred_once(SHOP, &settled, 11).await;
    assert_refused(&other, &first, (403, "payee_not_allowed")).await;
    let others = other.settle(&second).await;
    assert!(others.succeeded(), "{others:?}");

    assert_history_is_of_the_shop(&shop, &settled, &others).await;
    let all = world.facilitator.get("/payments").await;
    assert_eq!(ids(&all).len(), 2, "{all:?}");
}

/// The shop reads its own payment and nothing of the other's, in every way.
async fn assert_history_is_of_the_shop(shop: &Caller, settled: &Answer, others: &Answer) {
    let id = |answer: &Answer| {
        let id = answer.body["extra"]["paymentId"].as_str();
        id.unwrap().to_owned()
    };
    let (own, foreign) = (id(settled), id(others));
    for path in [
        "/payments",
        "/payments?state=settled",
        &format!("/payments?payee={SHOP}"),
    ] {
        assert_eq!(
            ids(&shop.get(path).await),
            HashSet::from([own.as_str()]),
            "{path}"
        );
    }
    let narrowed = shop.get(&format!("/payments?payee={OTHER}")).await;
    assert!(ids(&narrowed).is_empty(), "{narrowed:?}");
    let table = shop.get("/payments?format=csv").await;
    assert_eq!(table.status, 200);
    let table = shop.answers();
    let table = table.rsplit_once("\nid,").unwrap().1;
    assert!(table.contains(&own) && !table.contains(&foreign), "{table}");
    assert_eq!(shop.get(&format!("/payments/{own}")).await.status, 200);
    assert_eq!(shop.get(&format!("/payments/{foreign}")).await.status, 404);
    let of_transaction = |answer: &Answer| {
        format!(
            "/payments/by-transaction/base-sepolia/{}",
            answer.transaction()
        )
    };
    assert_eq!(
        ids(&shop.get(&of_transaction(settled)).await),
        HashSet::from([own.as_str()])
    );
    assert!(ids(&shop.get(&of_transaction(others)).await).is_empty());
    let stats = shop.get("/stats?groupBy=payee").await.body;
    let groups = stats["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 1, "{stats}");
    assert_eq!(
        (&groups[0]["payee"], &groups[0]["amount"]),
        (&json!(SHOP.to_string()), &json!("11"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_granted_to_no_other_key_of_the_same_payee() {
    let setup = Setup {
        block_time_s: Some(1),
        ..keys_only()
    };
    let world = setup.build().await;
    let first = world
        .facilitator
        .with_key(&world.key("first", SHOP, &[]).await);
    let second = world
        .facilitator
        .with_key(&world.key("second", SHOP, &[]).await);
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    // While it is under way.
    world.proxy.on("eth_sendRawTransaction", Fault::Hold);
    let sends = world.proxy.calls("eth_sendRawTransaction");
    let mut waiting = first.spawn_settle(&body);
    world.proxy.called("eth_sendRawTransaction", sends).await;
    let verified = second.verify(&body).await;
    assert_eq!(verdict(&verified), (200, "duplicate_settlement"));
    assert!(first.verify(&body).await.is_valid());
    let early = second.settle(&body).await;
    assert_eq!(verdict(&early), (200, "duplicate_settlement"));
    world.proxy.on("eth_sendRawTransaction", Fault::None);
    // Its answer is lost: the grant is void, and still nobody else's.
    waiting.shutdown().await;
    eventually("the money to move", Duration::from_secs(20), async || {
        (world.chain.usdc(SHOP).await == U256::from(11)).then_some(())
    })
    .await;
    for _ in 0..3 {
        let late = second.settle(&body).await;
        assert_eq!(verdict(&late), (200, "duplicate_settlement"), "{late:?}");
    }
    let told = first.settle(&body).await;
    world.assert_transferred_once(SHOP, &told, 11).await;
    let after = second.settle(&body).await;
    assert_eq!(verdict(&after), (200, "duplicate_settlement"));
    assert_eq!(after.transaction(), told.transaction());
    assert_eq!(
        verdict(&first.settle(&body).await),
        (200, "duplicate_settlement")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_callers_are_one_caller_and_keys_are_others() {
    let world = World::new().await;
    let key = world
        .facilitator
        .with_key(&world.key("shop", SHOP, &[]).await);
    let body = Purchase::new(&world.payer().await, SHOP, 11).body();
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    let again = key.settle(&body).await;
    assert_eq!(verdict(&again), (200, "duplicate_settlement"));
    assert_eq!(again.transaction(), settled.transaction());
    // A key is for its payees where everybody may settle, too.
    let elsewhere = Purchase::new(&world.payer().await, STRANGER, 11).body();
    assert_refused(&key, &elsewhere, (403, "payee_not_allowed")).await;
    assert!(world.facilitator.verify(&elsewhere).await.is_valid());
}

/// In order: verify, verify for another payee, sessions, sessions for another payee, payments, stats, signers.
async fn table_of_calls(caller: &Caller, payer: &PrivateKeySigner) -> [Answer; 7] {
    let body = |payee| Purchase::new(payer, payee, 11).body();
    let session = |payee| {
        let entry = OpenSession::entry(payee, 11);
        OpenSession::request(&entry, payer.address(), "authorization")
    };
    [
        caller.verify(&body(SHOP)).await,
        caller.verify(&body(STRANGER)).await,
        caller.post("/sessions", &session(SHOP)).await.unwrap(),
        caller.post("/sessions", &session(STRANGER)).await.unwrap(),
        caller.get("/payments").await,
        caller.get("/stats").await,
        caller.get("/signers").await,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scope_allows_its_own_calls() {
    let world = keys_only().build().await;
    let settle = world.key("settle", SHOP, &[]).await;
    let history = world.key("history", SHOP, &["--scope", "history"]).await;
    let [settle, history] = [settle, history].map(|key| world.facilitator.with_key(&key));
    let said = world.command(&["keys", "create", "admin", "--scope", "admin"]);
    let admin = world.facilitator.with_key(said.lines().next().unwrap());
    eventually("the operator to need a key", REVOCATION, async || {
        let local = world.facilitator.get("/signers").await;
        (verdict(&local) == (401, "operator_only")).then_some(())
    })
    .await;
    let payer = world.payer().await;
    let (missing, not_allowed) = ((403, "scope_missing"), (403, "payee_not_allowed"));
    let (no_key, not_operator) = ((401, "key_required"), (401, "operator_only"));
    let (ok, opened) = ((200, ""), (201, ""));
    for (name, caller, expected) in [
        (
            "settle",
            &settle,
            [
                ok,
                not_allowed,
                opened,
                not_allowed,
                missing,
                missing,
                missing,
            ],
        ),
        (
            "history",
            &history,
            [missing, missing, missing, missing, ok, ok, missing],
        ),
        ("admin", &admin, [ok, ok, opened, opened, ok, ok, ok]),
        (
            "nobody",
            &*world.facilitator,
            [
                no_key,
                no_key,
                opened,
                not_allowed,
                not_operator,
                not_operator,
                not_operator,
            ],
        ),
    ] {
        let answers = table_of_calls(caller, &payer).await;
        for (number, (answer, expected)) in answers.iter().zip(expected).enumerate() {
            assert_eq!(
                verdict(answer),
                expected,
                "{name}, call {number}: {answer:?}"
            );
        }
        for open in ["/supported", "/healthz", "/openapi.json"] {
            assert_eq!(caller.get(open).await.status, 200, "{name} {open}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn buyers_pay_sessions_without_a_key_and_the_payees_seller_is_told() {
    let world = keys_only().build().await;
    let shop = world
        .facilitator
        .with_key(&world.key("shop", SHOP, &[]).await);
    let second = world
        .facilitator
        .with_key(&world.key("second", SHOP, &[]).await);
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, "authorization", SHOP, 11).await;
    let submitted = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert_eq!(submitted.status, 200, "{submitted:?}");
    let body = session.presentation();
    assert_refused(&world.facilitator, &body, (401, "key_required")).await;
    let told = shop.settle(&body).await;
    world.assert_transferred_once(SHOP, &told, 11).await;
    let late = second.settle(&body).await;
    assert_eq!(verdict(&late), (200, "duplicate_settlement"));
    assert_eq!(late.transaction(), told.transaction());

    let session = OpenSession::open(&world.facilitator, &payer, "authorization", SHOP, 11).await;
    world.command(&["keys", "revoke", "shop"]);
    world.command(&["keys", "revoke", "second"]);
    eventually(
        "nothing to be sent for a payee without a key",
        REVOCATION,
        async || {
            let entry = OpenSession::entry(SHOP, 11);
            let asked = OpenSession::request(&entry, payer.address(), "authorization");
            let opened = world.facilitator.post("/sessions", &asked).await.unwrap();
            (verdict(&opened) == (403, "payee_not_allowed")).then_some(())
        },
    )
    .await;
    let submitted = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert_eq!(verdict(&submitted), (403, "payee_not_allowed"));
    assert_eq!(world.chain.transfers_to(TEST_USDC, SHOP).await.len(), 1);
}
