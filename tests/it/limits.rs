//! Limits, and the answers when a limit is reached.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use tokio::task::JoinSet;

use crate::support::{Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xb5);

async fn with_limits(limits: &str) -> World {
    let setup = Setup {
        toml: format!("[networks.base-sepolia]\n{limits}\n"),
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "2").build().await
}

#[tokio::test(flavor = "multi_thread")]
async fn gas_above_cap_delays_sending_until_it_falls() {
    let world = with_limits("max_fee_wei = 5000000000").await;
    let body = Purchase::new(&world.payer().await, PAYEE, 51).body();
    world.raise_base_fee(50).await;
    let refused = world.facilitator.settle(&body).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.transaction(), "");
    assert_eq!(world.transactions(1).await, 0);

    world.chain.next_base_fee(1).await;
    let settled = eventually("success", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction().len(), 66);
    assert_eq!(world.transactions(1).await, 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(51));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_rejects_new_payments_and_settles_accepted() {
    let world = with_limits("inflight_max = 1\nqueue_max = 1").await;
    let payer = world.payer().await;
    let bodies: Vec<_> = (0..6)
        .map(|amount: u64| Purchase::new(&payer, PAYEE, 1 << amount).body())
        .collect();
    world.chain.automine(false).await;
    let answers = world.facilitator.settle_all(bodies.clone()).await;
    let busy = answers.iter().filter(|answer| answer.status == 503);
    assert!(busy.count() >= 3, "{answers:?}");
    let pending = answers
        .iter()
        .filter(|answer| answer.reason() == "settlement_pending");
    assert_eq!(pending.count(), 1, "one in flight: {answers:?}");
    assert!(answers.iter().all(|answer| !answer.succeeded()));
    world.resume_mining().await;
    for body in &bodies {
        eventually("success", Duration::from_secs(20), async || {
            world
                .facilitator
                .settle(body)
                .await
                .succeeded()
                .then_some(())
        })
        .await;
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(63));
    assert_eq!(world.transactions(1).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn verifies_share_rpc_round_trips() {
    let world = World::new().await;
    let payer = world.payer().await;
    let body = || Purchase::new(&payer, PAYEE, 1).body();
    world.proxy.all(Fault::Slow(200));
    let (before, began) = (world.proxy.calls("eth_call"), Instant::now());
    assert!(world.facilitator.verify(&body()).await.is_valid());
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "the node was asked"
    );
    // The watch reads the chain meanwhile.
    assert!(world.proxy.calls("eth_call") - before <= 2);
    let before = world.proxy.calls("eth_call");
    let mut asking = JoinSet::new();
    for _ in 0..50 {
        let (caller, body) = ((*world.facilitator).clone(), body());
        asking.spawn(async move { caller.verify(&body).await.is_valid() });
    }
    assert!(asking.join_all().await.into_iter().all(|valid| valid));
    // A busy machine spreads the fifty over several rounds.
    assert!(world.proxy.calls("eth_call") - before < 25);
}
