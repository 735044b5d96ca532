//! The operator's page in headless Chromium, by keyboard alone (`tests/interop/page.mjs`).

use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::Address;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use crate::callers::REVOCATION;
use crate::page::admin_key;
use crate::support::{Chain, Purchase, World, eventually, program};

const PAYEE: Address = Address::repeat_byte(0x5e);
/// A browser starts slowly on a busy machine.
const LIMIT: Duration = Duration::from_mins(5);

/// What the browser cannot do itself.
async fn act(world: &World, asked: &Value) -> Value {
    if asked == "settle" {
        let purchase = Purchase::new(&world.payer().await, PAYEE, 10_000);
        let settled = world.facilitator.settle(&purchase.body()).await;
        assert!(settled.succeeded(), "{settled:?}");
        let payment = &settled.body["extra"]["paymentId"];
        return json!({ "payment": payment, "transaction": settled.transaction() });
    }
    if asked == "pause" {
        let signer = Chain::signers(1)[0].address.to_string();
        world.command(&["signers", "pause", &signer]);
        return Value::Null;
    }
    let (key, is_good) = match (asked["good"].as_str(), asked["revoked"].as_str()) {
        (Some(key), _) => (key, true),
        (None, Some(key)) => (key, false),
        (None, None) => panic!("the browser asked for {asked}"),
    };
    let caller = world.facilitator.with_key(key);
    eventually("the change of the key to hold", REVOCATION, async || {
        let is_known = caller.get("/stats").await.status != 401;
        (is_known == is_good).then_some(())
    })
    .await;
    Value::Null
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_works_in_a_browser_by_keyboard() {
    let world = World::new().await;
    let key = admin_key(&world).await;
    let mut browser = program("page.mjs");
    browser
        .arg(world.facilitator.url())
        .env("KEY", &key)
        .env("PAYEE", PAYEE.to_string())
        .stdin(Stdio::piped());
    // A folder for pictures of every page.
    if let Some(folder) = std::env::var_os("X402D_SCREENSHOTS") {
        browser.env("SCREENSHOTS", folder);
    }
    let mut browser = browser.spawn().unwrap();
    let mut answers = browser.stdin.take().unwrap();
    let mut lines = BufReader::new(browser.stdout.take().unwrap()).lines();
    let talk = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let said: Value = serde_json::from_str(&line).unwrap();
            if said["faults"].is_array() {
                return said;
            }
            let answer = act(&world, &said["ask"]).await;
            let line = format!("{answer}\n");
            answers.write_all(line.as_bytes()).await.unwrap();
        }
        Value::Null
    };
    let said = timeout(LIMIT, talk)
        .await
        .expect("the browser ends in time");
    assert_eq!(said["faults"], json!([]), "{said:#}");
    assert!(browser.wait().await.unwrap().success());
}
