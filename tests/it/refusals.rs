//! `/refusals`: what was turned away before it was a payment leaves a trace, and a flood of it does no harm.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::callers::{BOTH, verdict};
use crate::support::{
    Answer, Caller, OpenSession, Purchase, Setup, World, eventually, new_account,
};

const PAYEE: Address = Address::repeat_byte(0x5f);
const OTHER: Address = Address::repeat_byte(0x6e);
/// They are written each second.
const WRITTEN: Duration = Duration::from_secs(15);

async fn page(caller: &Caller, path: &str) -> Vec<Value> {
    let answer = caller.get(path).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body["refusals"].as_array().unwrap().clone()
}

/// Waits until `count` refusals are listed at `path`.
async fn listed(caller: &Caller, path: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} refusals at {path}");
    eventually(&what, WRITTEN, async || {
        let rows = page(caller, path).await;
        (rows.len() == count).then_some(rows)
    })
    .await
}

/// A payment that its payer cannot pay.
fn unfunded(payee: Address) -> Purchase {
    Purchase::new(&new_account(), payee, 1_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_payment_is_found_with_its_reason() {
    let world = World::new().await;
    let purchase = unfunded(PAYEE);
    let payer = purchase.authorization.from.to_checksum(None);
    let (verified, settled) = (
        world.facilitator.verify(&purchase.body()).await,
        world.facilitator.settle(&purchase.body()).await,
    );
    let rows = listed(&world.facilitator, &format!("/refusals?payer={payer}"), 2).await;
    for (row, (answer, endpoint)) in rows
        .iter()
        .zip([(&settled, "settle"), (&verified, "verify")])
    {
        assert_eq!(row["endpoint"], endpoint);
        assert_eq!(row["code"], answer.reason());
        assert_eq!(row["requestId"], answer.request_id.as_str());
        let message = answer.body.get("errorMessage");
        let message = message.or_else(|| answer.body.get("invalidMessage"));
        assert_eq!(Some(&row["message"]), message);
        assert_eq!(row["network"], "eip155:84532");
        assert_eq!(row["payer"], payer.as_str());
        assert_eq!(row["payee"], PAYEE.to_checksum(None));
        assert_eq!(row["asset"], TEST_USDC.to_checksum(None));
        assert_eq!(row["amount"], "1000");
        assert_eq!(row["caller"], "anonymous");
        let signature = purchase.own_signature().to_string();
        assert!(!row.to_string().contains(&signature[2..20]), "{row}");
    }
    let payments = world.facilitator.get("/payments").await;
    assert_eq!(payments.body["payments"], json!([]));

    // What cannot be parsed is listed as far as it was read.
    let mut broken = purchase.body();
    broken["paymentRequirements"]["network"] = json!("eip155:1");
    broken["paymentPayload"]["payload"]["authorization"]["value"] = json!("much");
    assert_eq!(
        world.facilitator.verify(&broken).await.reason(),
        "invalid_payload"
    );
    let rows = listed(&world.facilitator, "/refusals?code=invalid_payload", 1).await;
    assert!(rows[0].get("payee").is_none(), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_filtered_and_paged() {
    let world = World::new().await;
    for payee in [PAYEE, OTHER, PAYEE, OTHER, PAYEE] {
        let refused = world.facilitator.verify(&unfunded(payee).body()).await;
        assert!(!refused.is_valid());
    }
    listed(&world.facilitator, "/refusals", 5).await;
    let of_payee = format!("/refusals?payee={PAYEE}");
    assert_eq!(page(&world.facilitator, &of_payee).await.len(), 3);
    for (filter, count) in [
        ("from=2020-01-01T00:00:00Z", 5),
        ("to=2020-01-01T00:00:00Z", 0),
        ("code=invalid_exact_evm_insufficient_balance", 5),
        ("code=address_denied", 0),
    ] {
        let path = format!("/refusals?{filter}");
        assert_eq!(page(&world.facilitator, &path).await.len(), count, "{path}");
    }
    let (mut path, mut ids) = ("/refusals?limit=2".to_owned(), Vec::new());
    loop {
        let answer = world.facilitator.get(&path).await;
        let rows = answer.body["refusals"].as_array().unwrap();
        ids.extend(
            rows.iter()
                .map(|row| row["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = answer.body["nextCursor"].as_str() else {
            break;
        };
        path = format!("/refusals?limit=2&cursor={next}");
    }
    assert_eq!(ids.len(), 5);
    assert!(ids.is_sorted_by(|newer, older| newer > older), "{ids:?}");
    for wrong in [
        "payer=0x1",
        "limit=0",
        "limit=501",
        "cursor=x",
        "code=",
        "code=a%00",
        "state=x",
    ] {
        let answer = world.facilitator.get(&format!("/refusals?{wrong}")).await;
        assert_eq!(verdict(&answer), (400, "invalid_parameter"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holder_of_a_key_sees_its_own_alone() {
    let setup = Setup {
        toml: "[access]\nsettle = \"keys\"\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let key = |name: &'static str, payee, further: &'static [&str]| world.key(name, payee, further);
    let shop = world.facilitator.with_key(&key("shop", PAYEE, BOTH).await);
    let other = world.facilitator.with_key(&key("other", OTHER, BOTH).await);
    let blind = ["--scope", "settle"];
    let blind = world.key("blind", PAYEE, &blind).await;
    let blind = world.facilitator.with_key(&blind);
    let first = shop.verify(&unfunded(PAYEE).body()).await;
    let second = other.verify(&unfunded(PAYEE).body()).await;
    let third = other.verify(&unfunded(OTHER).body()).await;
    assert_eq!(second.reason(), "payee_not_allowed", "{second:?}");

    let rows = listed(&world.facilitator, "/refusals", 3).await;
    let names = rows.iter().map(|row| row["keyName"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["other", "other", "shop"]);
    let requests = |rows: &[Value]| {
        let ids = rows.iter().map(|row| row["requestId"].clone());
        ids.collect::<Vec<Value>>()
    };
    let of = |answer: &Answer| Value::from(answer.request_id.clone());
    let seen = page(&shop, "/refusals").await;
    assert_eq!(requests(&seen), [of(&second), of(&first)]);
    assert!(seen[0].get("keyName").is_none(), "{seen:?}");
    assert_eq!(seen[1]["keyName"], "shop");
    let seen = page(&other, "/refusals").await;
    assert_eq!(requests(&seen), [of(&third), of(&second)]);
    assert_eq!(
        verdict(&blind.get("/refusals").await),
        (403, "scope_missing")
    );
    let wrong = world.facilitator.with_key("x402d_0123456789ab_00");
    assert_eq!(wrong.get("/refusals").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_sessions_are_listed() {
    let world = World::new().await;
    let payer = world.payer().await;
    let mut entry = OpenSession::entry(PAYEE, 5);
    entry["network"] = json!("eip155:1");
    let asked = OpenSession::request(&entry, payer.address(), "authorization");
    let refused = world.facilitator.post("/sessions", &asked).await.unwrap();
    assert_eq!(verdict(&refused), (422, "invalid_network"), "{refused:?}");
    let session = OpenSession::open(&world.facilitator, &payer, "authorization", PAYEE, 6).await;
    let foreign = OpenSession::open(&world.facilitator, &payer, "authorization", PAYEE, 6).await;
    let submitted = session
        .submit(&world.facilitator, &foreign.authorization())
        .await;
    let code = submitted.body["code"].as_str().unwrap();
    let rows = listed(&world.facilitator, "/refusals", 2).await;
    let told = |row: &Value| (row["endpoint"].clone(), row["code"].clone());
    assert_eq!(told(&rows[0]), (json!("transfer"), json!(code)));
    assert_eq!(
        told(&rows[1]),
        (json!("sessions"), json!("invalid_network"))
    );
    for row in &rows {
        assert_eq!(row["payer"], payer.address().to_checksum(None));
        assert_eq!(row["payee"], PAYEE.to_checksum(None));
    }
}

/// What one caller floods with takes neither the room of others nor the time of payments, and little of the database.
#[tokio::test(flavor = "multi_thread")]
async fn flood_of_refusals_is_dropped_and_counted() {
    const FLOOD: usize = 3_000;
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let shop = world.key("shop", PAYEE, BOTH).await;
    let shop = world.facilitator.with_key(&shop);
    let payer = world.payer().await;
    // Refused before the chain is asked.
    let mut denied = Purchase::new(&payer, PAYEE, 7);
    denied.asset = Address::repeat_byte(0x99);
    let body = denied.body();
    let began = Instant::now();
    let mut flood = JoinSet::new();
    for _ in 0..20 {
        let (caller, body) = (Caller::clone(&world.facilitator), body.clone());
        flood.spawn(async move {
            for _ in 0..FLOOD / 20 {
                assert!(!caller.verify(&body).await.is_valid());
            }
        });
    }
    let refused = shop.verify(&unfunded(PAYEE).body()).await;
    assert!(!refused.is_valid(), "{refused:?}");
    let good = Purchase::new(&payer, PAYEE, 8).body();
    assert!(shop.settle(&good).await.succeeded());
    flood.join_all().await;
    let found = format!("/refusals?code={}", refused.reason());
    let own = listed(&shop, &found, 1).await;
    assert_eq!(own[0]["requestId"], refused.request_id.as_str());

    let minutes = began.elapsed().as_secs() / 60 + 1;
    let asked = u64::try_from(FLOOD + 1).unwrap();
    let (rows, dropped) = eventually("all to be written or dropped", WRITTEN, async || {
        let rows = rows_of_refusals(&world).await;
        let answer = world.facilitator.get("/refusals?limit=1").await;
        let dropped = answer.body["dropped"].as_u64().unwrap();
        (rows + dropped == asked).then_some((rows, dropped))
    })
    .await;
    assert!(
        rows <= 60 * (minutes + 1) + 1,
        "{rows} rows in {minutes} minutes"
    );
    println!("{asked} refusals: {rows} rows, {dropped} dropped");
}

async fn rows_of_refusals(world: &World) -> u64 {
    let rows: i64 = sqlx::query_scalar("select count(*) from refusals")
        .fetch_one(&mut world.database.connection().await)
        .await
        .unwrap();
    u64::try_from(rows).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_outlive_an_orderly_stop_and_an_outage_of_the_database() {
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let database = world.database_proxy.as_ref().unwrap();
    database.down(true);
    // Refused without a look into the ledger.
    let mut body = unfunded(PAYEE).body();
    body["paymentPayload"]["payload"]["authorization"]["nonce"] = json!("0x12");
    let refused = world.facilitator.verify(&body).await;
    assert_eq!(refused.reason(), "invalid_payload", "{refused:?}");
    database.down(false);
    let found = "/refusals?code=invalid_payload";
    eventually("the refusal", Duration::from_secs(40), async || {
        let answer = world.facilitator.get(found).await;
        let rows = answer.body["refusals"].as_array()?.len();
        (rows == 1).then_some(())
    })
    .await;

    let purchase = unfunded(PAYEE);
    let refused = world.facilitator.settle(&purchase.body()).await;
    assert!(!refused.succeeded(), "{refused:?}");
    let (status, _) = world.facilitator.terminate().await;
    assert!(status.success(), "{status:?}");
    world.facilitator.restart(None).await;
    let payer = purchase.authorization.from;
    let rows = page(&world.facilitator, &format!("/refusals?payer={payer}")).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
}
