//! Blocks that leave the chain after money was seen in them.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x4e);

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_leaves_the_chain_takes_its_payment_back_in_flight_and_it_settles_again_once()
{
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 900).body();
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    let before = block_hash(&world, &told).await;

    world.chain.reorganise(1).await;
    let row = eventually("a second settlement", Duration::from_secs(30), async || {
        let row = world.facilitator.payment(&told).await;
        let states = states(&row);
        let again = states.ends_with(&["inflight".to_owned(), "settled".to_owned()]);
        (has_event(&row, "reorged") && again && row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(
        row["transaction"],
        told.transaction().as_str(),
        "the same bytes"
    );
    assert_ne!(block_hash(&world, &told).await, before);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(900));
    assert_eq!(world.transactions(1).await, 1);
    // The grant stays: the buyer has their resource.
    let again = world.facilitator.settle(&body).await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_told_at_the_promised_depth_and_a_reorganisation_before_it_goes_unnoticed() {
    let setup = Setup::default().with("X402D_CONFIRMATIONS", "3");
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 901).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    assert_eq!(world.facilitator.payment(&pending).await["state"], "mined");

    world.chain.reorganise(1).await;
    eventually(
        "the reorganisation to be seen",
        Duration::from_secs(20),
        async || {
            let row = world.facilitator.payment(&pending).await;
            (has_event(&row, "reorged") && row["state"] == "mined").then_some(())
        },
    )
    .await;
    world.chain.mine(1).await;
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(
        pending.reason(),
        "settlement_pending",
        "two of three: {pending:?}"
    );
    world.chain.mine(1).await;
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    assert_eq!(told.transaction(), pending.transaction());
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

async fn block_hash(world: &World, told: &Answer) -> Value {
    world.chain.receipt(&told.transaction()).await["blockHash"].take()
}

fn has_event(row: &Value, kind: &str) -> bool {
    let events = row["events"].as_array().unwrap();
    events.iter().any(|event| event["kind"] == kind)
}

/// The states that the payment went through, oldest first.
fn states(row: &Value) -> Vec<String> {
    let events = row["events"].as_array().unwrap();
    let states = events.iter().filter_map(|event| event["to"].as_str());
    states.map(str::to_owned).collect()
}
