//! A signer's key used elsewhere: payments survive it, until it happens too often.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xf0);
/// Payments settle again within this time without an operator.
const RECOVERY: Duration = Duration::from_mins(1);

async fn world(signers: usize) -> World {
    let setup = Setup {
        signers,
        queryable: true,
        ..Setup::default()
    };
    let setup = setup.with("X402D_SETTLE_WAIT", "3");
    setup.shortened().build().await
}

/// Sends one transaction with a signer's key, not through the service, and returns its hash.
async fn use_key(world: &World, signer: Address) -> String {
    let foreign = json!([{"from": signer, "to": PAYEE, "value": "0x1"}]);
    let before = world.chain.transaction_count(signer).await;
    let hash = world.chain.call("eth_sendTransaction", foreign).await;
    eventually("a block", Duration::from_secs(20), async || {
        (world.chain.transaction_count(signer).await > before).then_some(())
    })
    .await;
    hash.as_str().unwrap().to_owned()
}

/// Moves the recorded foreign uses five minutes into the past.
async fn skip_five_minutes(world: &World) {
    sqlx::query("update foreign_nonces set found_at = found_at - interval '5 minutes'")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
}

async fn stop_reason(world: &World, signer: Address) -> Option<String> {
    let signers = world.facilitator.get("/signers").await.body;
    let named = signer.to_checksum(None);
    let signers = signers["signers"].as_array().unwrap().clone();
    let found = signers.into_iter().find(|one| one["signer"] == named);
    found.unwrap()["stoppedReason"].as_str().map(str::to_owned)
}

/// Presents all payments until each has settled, and returns how long that took.
async fn settle_all(world: &World, bodies: Vec<Value>) -> Duration {
    let began = Instant::now();
    let mut open = bodies;
    eventually("all to settle", RECOVERY, async || {
        let answers = world.facilitator.settle_all(open.clone()).await;
        let done = |reason: &str| reason.is_empty() || reason == "duplicate_settlement";
        let all = answers.iter().all(|answer| done(answer.reason()));
        open.retain(|_| !all);
        all.then_some(())
    })
    .await;
    began.elapsed()
}

fn assert_use_logged(world: &World) {
    let log = world.facilitator.log();
    let error = log
        .lines()
        .find(|line| line.contains("signer key used elsewhere"))
        .unwrap();
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!(error["level"], "ERROR", "{error}");
    assert!(error["nonce"].is_u64(), "{error}");
    // The span of the lane says where.
    assert_eq!(error["span"]["network"], "eip155:84532", "{error}");
    let signer = error["span"]["signer"].as_str();
    assert!(signer.is_some_and(|one| one.starts_with("0x")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn third_foreign_use_within_an_hour_stops_that_lane_alone() {
    let world = world(2).await;
    let payer = world.payer().await;
    let signers = Chain::signers(2);
    let mut amount = 0_u64;
    let mut sold = 0;
    let mut bodies = |count: u64| -> Vec<Value> {
        let first = amount + 1;
        amount += count;
        (first..=amount)
            .map(|amount| Purchase::new(&payer, PAYEE, amount).body())
            .collect()
    };
    eventually("both lanes", Duration::from_secs(20), async || {
        let signers = world.facilitator.get("/signers").await.body;
        (signers["signers"].as_array()?.len() == 2).then_some(())
    })
    .await;
    for time in 1..=2 {
        let mut hashes = Vec::new();
        for signer in signers {
            hashes.push(use_key(&world, signer.address).await);
        }
        // Each lane has something to send, so that each meets the foreign transaction.
        let some = bodies(12);
        sold += some.len();
        let took = settle_all(&world, some).await;
        assert!(took < RECOVERY, "{took:?}");
        eventually("both foreign uses to be found", RECOVERY, async || {
            let log = world.facilitator.log();
            hashes.iter().all(|hash| log.contains(hash)).then_some(())
        })
        .await;
        for signer in signers {
            assert_eq!(stop_reason(&world, signer.address).await, None, "{time}");
        }
        skip_five_minutes(&world).await;
    }
    assert_use_logged(&world);

    let third = use_key(&world, signers[0].address).await;
    let some = bodies(12);
    sold += some.len();
    let took = settle_all(&world, some).await;
    assert!(took < RECOVERY, "{took:?}");
    let why = eventually("the lane to stop", RECOVERY, async || {
        stop_reason(&world, signers[0].address).await
    })
    .await;
    assert!(
        why.contains("3 times within an hour") && why.contains(&third),
        "{why}"
    );
    assert_eq!(stop_reason(&world, signers[1].address).await, None);
    let ready = world.facilitator.get("/readyz").await;
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (200, &json!("degraded")),
        "{ready:?}"
    );
    assert!(
        ready
            .body
            .to_string()
            .contains(&signers[0].address.to_checksum(None))
    );
    let some = bodies(3);
    sold += some.len();
    settle_all(&world, some).await;
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), sold, "each once");
    let sum = U256::from((1..=amount).sum::<u64>());
    assert_eq!(world.chain.usdc(PAYEE).await, sum);
}

/// The use is also found when the lane is claimed; then it stops no lane.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_use_while_not_running_stops_no_lane() {
    let mut world = world(1).await;
    let payer = world.payer().await;
    let signer = Chain::signers(1)[0].address;
    settle_all(&world, vec![Purchase::new(&payer, PAYEE, 1).body()]).await;
    world.facilitator.terminate().await;
    let hash = use_key(&world, signer).await;
    world.facilitator.restart(None).await;
    settle_all(&world, vec![Purchase::new(&payer, PAYEE, 2).body()]).await;
    assert_eq!(stop_reason(&world, signer).await, None);
    assert!(world.facilitator.log().contains(&hash));
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(3));
}

/// An approval, a swap and a transfer: one use of the key in three blocks, each found separately.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_use_spread_over_three_blocks_counts_once() {
    let world = world(1).await;
    let payer = world.payer().await;
    let signer = Chain::signers(1)[0].address;
    for amount in 1..=3 {
        let hash = use_key(&world, signer).await;
        eventually("the foreign use to be found", RECOVERY, async || {
            world.facilitator.log().contains(&hash).then_some(())
        })
        .await;
        assert_eq!(stop_reason(&world, signer).await, None, "block {amount}");
        settle_all(&world, vec![Purchase::new(&payer, PAYEE, amount).body()]).await;
    }
    for time in [2, 3] {
        skip_five_minutes(&world).await;
        let hash = use_key(&world, signer).await;
        eventually("the foreign use to be found", RECOVERY, async || {
            world.facilitator.log().contains(&hash).then_some(())
        })
        .await;
        let why = stop_reason(&world, signer).await;
        assert_eq!(why.is_some(), time == 3, "time {time}: {why:?}");
    }
}
