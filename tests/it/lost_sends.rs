//! Sends whose fate is unknown: the same bytes go out again, and no second nonce is used.

use alloy::primitives::{Address, U256};
use serde_json::json;
use x402d::embedded::TEST_USDC;

use crate::support::{Fault, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x10);
const SEND: &str = "eth_sendRawTransaction";

async fn patient_world() -> World {
    Setup::default()
        .with("X402D_SETTLE_WAIT", "25")
        .build()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_times_out_although_the_node_took_it_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 31).body();
    world.chain.automine(false).await;
    world.proxy.on(SEND, Fault::AnswerLost);
    let mut waiting = world.facilitator.settling(&body);
    world.has_sent(1).await;
    // Sent again: the first send was given up.
    world.proxy.called(SEND, 1).await;
    world.proxy.on(SEND, Fault::None);
    world.mine_on().await;
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    one_transfer_of(&world, 31).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_the_node_never_got_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 32).body();
    world.proxy.on(SEND, Fault::RequestLost);
    let mut waiting = world.facilitator.settling(&body);
    world.proxy.called(SEND, 1).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    world.proxy.on(SEND, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    one_transfer_of(&world, 32).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_that_meets_errors_and_nonsense_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 33).body();
    let faults = [
        Fault::Unavailable,
        Fault::Nonsense,
        Fault::Error("internal error"),
        Fault::Error("nonce too low"),
        Fault::Error("replacement transaction underpriced"),
    ];
    world.proxy.on(SEND, Fault::Hold);
    let mut waiting = world.facilitator.settling(&body);
    for (sends, fault) in faults.into_iter().enumerate() {
        world.proxy.called(SEND, sends).await;
        world.proxy.on(SEND, fault);
    }
    world.proxy.called(SEND, faults.len()).await;
    world.proxy.on(SEND, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    one_transfer_of(&world, 33).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_pool_forgot_is_sent_again() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 34).body();
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.settling(&body);
    world.has_sent(1).await;
    world
        .chain
        .call("anvil_dropAllTransactions", json!([]))
        .await;
    world.has_sent(0).await;
    world.has_sent(1).await;
    world.mine_on().await;
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    one_transfer_of(&world, 34).await;
}

async fn one_transfer_of(world: &World, amount: u64) {
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(amount));
    assert_eq!(world.transactions(1).await, 1, "no second nonce");
}
