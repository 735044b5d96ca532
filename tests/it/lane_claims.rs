//! A lane claimed while the chain has nonces of its signer that the ledger lacks: it waits for what may resolve by itself.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::json;

use crate::support::{Chain, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xc1);
const COUNT: &str = "eth_getTransactionCount";
const LIMIT: Duration = Duration::from_secs(40);

/// A world whose service has settled one payment and has ended.
async fn ended_world() -> World {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup
        .with("X402D_SETTLE_WAIT", "3")
        .shortened()
        .build()
        .await;
    assert_settles(&world, 1).await;
    world.facilitator.terminate().await;
    world
}

fn signer() -> Address {
    Chain::signers(1)[0].address
}

async fn assert_settles(world: &World, amount: u64) {
    let body = Purchase::new(&world.payer().await, PAYEE, amount).body();
    eventually("a payment to settle", LIMIT, async || {
        let answer = world.facilitator.settle(&body).await;
        let done = answer.succeeded() || answer.reason() == "duplicate_settlement";
        done.then_some(())
    })
    .await;
}

/// Sends a transaction with the signer's key, not through the service; it may stay in the pool.
async fn send_foreign_transaction(world: &World) -> B256 {
    let foreign = json!([{"from": signer(), "to": PAYEE, "value": "0x1"}]);
    let hash = world.chain.call("eth_sendTransaction", foreign).await;
    hash.as_str().unwrap().parse().unwrap()
}

async fn stopped_reason(world: &World) -> Option<String> {
    let signers = world.facilitator.get("/signers").await.body;
    signers["signers"][0]["stoppedReason"]
        .as_str()
        .map(str::to_owned)
}

/// Waits until the lane reports why it is paused, without being stopped.
async fn wait_until_paused(world: &World) {
    let why = eventually("the lane to wait", LIMIT, async || {
        assert_eq!(stopped_reason(world).await, None);
        let ready = world.facilitator.get("/readyz").await.body.to_string();
        ready.contains("in the pool").then_some(ready)
    })
    .await;
    assert!(why.contains("nonce 1"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_error_during_nonce_check_stops_no_lane() {
    let mut world = ended_world().await;
    send_foreign_transaction(&world).await;
    world
        .proxy
        .on(COUNT, Fault::RejectAtHeights("Internal error"));
    world.facilitator.spawn(None).await;
    eventually("claims that fail", LIMIT, async || {
        assert_eq!(stopped_reason(&world).await, None);
        let log = world.facilitator.log();
        log.contains("lane claim failed").then_some(())
    })
    .await;
    world.proxy.on(COUNT, Fault::None);
    assert_settles(&world, 2).await;
    assert_eq!(stopped_reason(&world).await, None);
    assert!(
        world
            .facilitator
            .log()
            .contains("signer key used elsewhere")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pruned_node_stops_lane_for_the_operator() {
    let mut world = ended_world().await;
    world.chain.mine(4).await;
    send_foreign_transaction(&world).await;
    world.chain.mine(4).await;
    world.proxy.on(COUNT, Fault::PrunedState(1));
    world.facilitator.spawn(None).await;
    assert_stopped_until_cleared(&world).await;
}

/// The second endpoint does not help: two endpoints have to agree.
#[tokio::test(flavor = "multi_thread")]
async fn one_pruned_endpoint_of_two_stops_lane_for_operator() {
    let mut world = ended_world().await;
    world.chain.mine(4).await;
    send_foreign_transaction(&world).await;
    world.chain.mine(4).await;
    world.proxy.on(COUNT, Fault::PrunedState(1));
    let both = format!("{},{}", world.proxy.url(), world.chain.url());
    world.facilitator = world.unstarted_replica(&[("X402D_RPC_URL", both)]);
    world.facilitator.spawn(None).await;
    assert_stopped_until_cleared(&world).await;
}

async fn assert_stopped_until_cleared(world: &World) {
    let why = eventually("the lane to stop", LIMIT, async || {
        stopped_reason(world).await
    })
    .await;
    assert!(why.contains("nonce 1"), "{why}");
    sqlx::query("update lanes set stopped_reason = null")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    assert_settles(world, 2).await;
    assert_eq!(stopped_reason(world).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn pending_foreign_transaction_is_waited_for() {
    let mut world = ended_world().await;
    for mined in [true, false] {
        let before = world.chain.transaction_count(signer()).await;
        world.chain.automine(false).await;
        let foreign = send_foreign_transaction(&world).await;
        world.facilitator.spawn(None).await;
        if mined {
            wait_until_paused(&world).await;
        } else {
            let claims = world.proxy.calls(COUNT);
            world.proxy.called(COUNT, claims + 8).await;
            world.chain.drop_transaction(foreign).await;
        }
        assert_eq!(stopped_reason(&world).await, None);
        world.resume_mining().await;
        assert_settles(&world, 2).await;
        assert_eq!(stopped_reason(&world).await, None);
        let used = world.chain.transaction_count(signer()).await - before;
        assert_eq!(used, 1 + u64::from(mined), "no nonce skipped");
        world.facilitator.terminate().await;
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(5));
}

/// Pending transactions may be dropped from the pool, so a new lane sends nothing above their nonces.
#[tokio::test(flavor = "multi_thread")]
async fn new_lane_starts_at_first_unmined_nonce() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.shortened().build().await;
    let [first, second] = Chain::signers(2) else {
        unreachable!()
    };
    world.chain.automine(false).await;
    let foreign = json!([{"from": second.address, "to": PAYEE, "value": "0x1"}]);
    let hash = world.chain.call("eth_sendTransaction", foreign).await;
    let asked = world.proxy.calls(COUNT);
    let keys = format!("{},{}", first.key, second.key);
    let mut other = world.unstarted_replica(&[("X402D_SIGNER_KEYS", keys)]);
    other.restart(None).await;
    world.proxy.called(COUNT, asked + 4).await;
    let hash: B256 = hash.as_str().unwrap().parse().unwrap();
    world.chain.drop_transaction(hash).await;
    world.resume_mining().await;
    let next = eventually("the lane", LIMIT, async || {
        sqlx::query_scalar::<_, i64>("select next_nonce from lanes where signer = $1")
            .bind(second.address.as_slice())
            .fetch_optional(&mut world.database.connection().await)
            .await
            .unwrap()
    })
    .await;
    assert_eq!(next, 0);
}
