//! Validity windows: an authorization that begins now is valid, one that begins later is not, and a week is accepted.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::clock::{Clock, SystemClock};
use x402d::protocol::Amount;

use crate::support::{Fault, OpenSession, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xcc);

fn now() -> i64 {
    SystemClock.now().unix_timestamp()
}

fn at(seconds: i64) -> Amount {
    Amount::from_atomic(U256::from(seconds))
}

/// Timestamp of the newest block.
async fn block_time(world: &World) -> i64 {
    let latest = json!(["latest", false]);
    let block = world.chain.call("eth_getBlockByNumber", latest).await;
    let time = block["timestamp"].as_str().unwrap();
    i64::from_str_radix(time.trim_start_matches("0x"), 16).unwrap()
}

/// With blocks every six seconds the newest block is nearly always older than an authorization that begins now.
#[tokio::test(flavor = "multi_thread")]
async fn authorization_starting_now_waits_for_its_block() {
    let setup = Setup {
        block_time_s: Some(6),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let begun_now = |amount| {
        let mut purchase = Purchase::new(&payer, PAYEE, amount);
        purchase.authorization.valid_after = at(now());
        purchase
    };
    for amount in 1..=8 {
        let verdict = world.facilitator.verify(&begun_now(amount).body()).await;
        assert!(verdict.is_valid(), "{verdict:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // Three together right after a block, and one that began long ago: none is sent too early, so none reverts.
    let before = block_time(&world).await;
    eventually("a block", Duration::from_secs(20), async || {
        (block_time(&world).await > before).then_some(())
    })
    .await;
    let mut purchases: Vec<_> = [10, 20, 40].map(begun_now).into();
    purchases.push(Purchase::new(&payer, PAYEE, 80));
    let mut settling: Vec<_> = purchases
        .iter()
        .map(|purchase| world.facilitator.spawn_settle(&purchase.body()))
        .collect();
    for (settling, purchase) in settling.iter_mut().zip(&purchases) {
        let answer = settling.join_next().await.unwrap().unwrap().unwrap();
        assert!(answer.succeeded(), "{answer:?}");
        let row = world.facilitator.payment(&answer).await;
        let attempts = row["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1, "{row}");
        let begins = purchase.authorization.valid_after.atomic();
        let time = world.chain.block_time_of(&answer.transaction()).await;
        assert!(U256::from(time) > begins, "{time} {begins}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(150));
}

/// The same with an endpoint that rejects block overrides, and with one that ignores them.
#[tokio::test(flavor = "multi_thread")]
async fn starting_now_is_valid_without_block_overrides() {
    let setup = Setup {
        block_time_s: Some(4),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    for (fault, amount) in [
        (Fault::BlockOverridesRefused, 1),
        (Fault::BlockOverridesIgnored, 2),
    ] {
        world.proxy.on("eth_call", fault);
        let mut purchase = Purchase::new(&payer, PAYEE, amount);
        purchase.authorization.valid_after = at(now());
        let verdict = world.facilitator.verify(&purchase.body()).await;
        assert!(verdict.is_valid(), "{verdict:?}");
        let answer = world.facilitator.settle(&purchase.body()).await;
        assert!(answer.succeeded(), "{answer:?}");
        // Other errors of the token are still reported.
        let mut unfunded = Purchase::new(&crate::support::new_account(), PAYEE, amount);
        unfunded.authorization.valid_after = at(now());
        let verdict = world.facilitator.verify(&unfunded.body()).await;
        assert_eq!(
            verdict.reason(),
            "invalid_exact_evm_insufficient_balance",
            "{verdict:?}"
        );
    }
}

/// A chain that mines only for transactions has an old newest block.
#[tokio::test(flavor = "multi_thread")]
async fn windows_are_judged_by_clock_and_reported_with_limits() {
    let world = World::new().await;
    let payer = world.payer().await;
    // No chain with a clock makes a second block within a second, as this one would.
    eventually("an old newest block", Duration::from_secs(20), async || {
        (now() >= block_time(&world).await + 2).then_some(())
    })
    .await;
    let mut begun_now = Purchase::new(&payer, PAYEE, 5);
    begun_now.authorization.valid_after = at(now());
    let verdict = world.facilitator.verify(&begun_now.body()).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let answer = world.facilitator.settle(&begun_now.body()).await;
    assert!(answer.succeeded(), "{answer:?}");

    let mut ahead = Purchase::new(&payer, PAYEE, 5);
    ahead.authorization.valid_after = at(now() + 30);
    let verdict = world.facilitator.verify(&ahead.body()).await;
    assert_eq!(
        verdict.reason(),
        "invalid_exact_evm_payload_authorization_valid_after"
    );
    let message = verdict.body["invalidMessage"].as_str().unwrap();
    assert!(
        message.contains(" s ahead") && (28..=30).any(|s| message.contains(&format!("{s} s"))),
        "{message}"
    );

    // Windows of sellers that count in days: 600,000 s, and a whole week.
    for (amount, window) in [(6, 600_000), (7, 7 * 86_400)] {
        let mut week = Purchase::new(&payer, PAYEE, amount);
        week.authorization.valid_before = at(now() + window);
        let answer = world.facilitator.settle(&week.body()).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    let supported = world.facilitator.get("/supported").await.body;
    let longest: Vec<_> = supported["kinds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kind| kind["extra"]["maxTimeoutSeconds"].as_i64())
        .collect();
    let limit = longest[0].expect("the longest window");
    assert!(longest.iter().all(|longest| *longest == Some(limit)));
    let mut endless = Purchase::new(&payer, PAYEE, 8);
    endless.authorization.valid_before = at(now() + limit + 60);
    let verdict = world.facilitator.verify(&endless.body()).await;
    assert_eq!(
        verdict.reason(),
        "invalid_exact_evm_payload_authorization_valid_before"
    );
    let message = verdict.body["invalidMessage"].as_str().unwrap();
    assert!(message.contains(&limit.to_string()), "{message}");
    assert_ne!(supported["kinds"], Value::Null);
}

/// The nonce is that of a session, so the chain is asked whether somebody else has moved the money. Somebody has, and the ledger could not
/// store the time.
#[tokio::test(flavor = "multi_thread")]
async fn time_after_the_year_9999_is_refused_also_where_the_money_has_moved() {
    let world = World::new().await;
    let payer = world.payer().await;
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    for end in [U256::from(253_402_300_800_u64), U256::MAX] {
        let rail = "authorization";
        let session = OpenSession::open(&world.facilitator, &payer, rail, PAYEE, 9).await;
        let mut purchase = session.purchase();
        purchase.authorization.valid_before = Amount::from_atomic(end);
        world.assert_rejected_at_both(&purchase.body(), code).await;
        world.chain.submit(&purchase).await;
        world.assert_rejected_at_both(&purchase.body(), code).await;
        let authorization =
            json!({"authorization": purchase.authorization, "signature": purchase.own_signature()});
        let refused = session.submit(&world.facilitator, &authorization).await;
        assert_eq!(refused.status, 422, "{refused:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(18));
}
