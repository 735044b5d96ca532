//! A caller who goes away before the answer: the success is not used up.

use alloy::primitives::Address;
use x402d::embedded::TEST_USDC;

use crate::support::{Purchase, World};

const PAYEE: Address = Address::repeat_byte(0xb0);

#[tokio::test(flavor = "multi_thread")]
async fn when_a_connection_breaks_before_the_answer_the_next_presenter_gets_success() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 42).body();
    world.chain.automine(false).await;
    let waiting = world.facilitator.settling(&body);
    world.has_sent(1).await;
    drop(waiting);
    world.mine_on().await;

    assert!(world.facilitator.verify(&body).await.is_valid());
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    let next = world.facilitator.settle(&body).await;
    assert_eq!(next.reason(), "duplicate_settlement");
    assert_eq!(next.transaction(), told.transaction());
    let kinds = kinds(&world.facilitator.payment(&told).await);
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "answered").count(),
        1,
        "{kinds:?}"
    );
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_who_wait_the_nine_who_hang_up_take_nothing_from_the_tenth() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 43).body();
    world.chain.automine(false).await;
    let mut waiting: Vec<_> = (0..10).map(|_| world.facilitator.settling(&body)).collect();
    world.has_sent(1).await;
    let mut staying = waiting.pop().unwrap();
    drop(waiting);
    world.mine_on().await;
    let answer = staying.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    let next = world.facilitator.settle(&body).await;
    assert_eq!(next.reason(), "duplicate_settlement");
    assert_eq!(world.transactions(1).await, 1);
}

fn kinds(payment: &serde_json::Value) -> Vec<String> {
    let events = payment["events"].as_array().unwrap();
    let kind = |event: &serde_json::Value| event["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).collect()
}
