//! Size of batches: a failure that splits payments is temporary.

use std::time::Duration;

use alloy::primitives::Address;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Answer, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xba);
const MULTICALL3: &str = "0xca11bde05977b3631167028862be2a173976ca11";

/// Settles this many payments concurrently and returns the number of transactions used.
async fn transactions_to_settle(world: &World, payments: u64) -> u64 {
    let payer = world.payer().await;
    let bodies: Vec<Value> = (0..payments)
        .map(|number| Purchase::new(&payer, PAYEE, 100 + number).body())
        .collect();
    let before = world.transactions(1).await;
    let answers = world.facilitator.settle_all(bodies).await;
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
    }
    world.transactions(1).await - before
}

/// The first payment finds an idle lane and is sent alone; the others wait for it.
const PAYMENTS: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn rejected_batch_simulations_do_not_disable_batching() {
    let setup = Setup {
        block_time_s: Some(2),
        ..Setup::default()
    };
    let world = setup.build().await;
    let before = transactions_to_settle(&world, 100).await;
    assert!(before <= PAYMENTS, "{before} transactions");
    for refusal in [
        "too many requests, limit is 25/s",
        "header not found",
        "internal error",
    ] {
        world
            .proxy
            .on("eth_call", Fault::RejectTo(MULTICALL3, refusal));
        let payer = world.payer().await;
        let bodies: Vec<Value> = (0..12)
            .map(|number| Purchase::new(&payer, PAYEE, 10 + number).body())
            .collect();
        let facilitator = (*world.facilitator).clone();
        let refused = world.proxy.refused();
        let mut settling = JoinSet::new();
        settling.spawn(async move { facilitator.settle_all(bodies).await });
        eventually("refused simulations", Duration::from_secs(20), async || {
            (world.proxy.refused() > refused + 2).then_some(())
        })
        .await;
        world.proxy.on("eth_call", Fault::None);
        let answers = settling.join_next().await.unwrap().unwrap();
        assert!(answers.iter().all(Answer::succeeded), "{answers:?}");
    }
    let after = transactions_to_settle(&world, 100).await;
    assert!(
        after <= PAYMENTS,
        "{before} transactions before, {after} after"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_rejected_alone_does_not_disable_batching() {
    let setup = Setup {
        block_time_s: Some(2),
        ..Setup::default()
    };
    let world = setup.shortened().build().await;
    let send = "eth_sendRawTransaction";
    let refusal = "transaction gas limit too high (cap: 16777216, tx: 17000000)";
    world.proxy.on(send, Fault::Error(refusal));
    let payer = world.payer().await;
    let alone = Purchase::new(&payer, PAYEE, 1).body();
    let settling = world.facilitator.spawn_settle(&alone);
    world.proxy.called(send, 0).await;
    eventually("a refusal", Duration::from_secs(20), async || {
        let log = world.facilitator.log();
        log.contains("broadcast rejected").then_some(())
    })
    .await;
    world.proxy.on(send, Fault::None);
    drop(settling);
    world.wait_until_sent(1).await;
    let after = transactions_to_settle(&world, 100).await;
    assert!(after <= PAYMENTS + 1, "{after} transactions");
}
