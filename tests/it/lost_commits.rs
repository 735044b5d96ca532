//! A database that lost its last commits: nothing is paid twice, no payer is rejected, and the lane stays stopped until the operator
//! clears it.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x27);

async fn settled(world: &World, body: &Value) -> Answer {
    let answer = world.facilitator.settle(body).await;
    assert!(answer.succeeded(), "{answer:?}");
    answer
}

/// The reason why the service is not ready.
async fn stopped_reason(world: &World) -> String {
    eventually("the lane to stop", Duration::from_secs(30), async || {
        let asked = world.facilitator.get("/readyz").await;
        let why = asked.body["parts"][1]["detail"]
            .as_str()
            .unwrap_or_default();
        why.contains("lost its last commits")
            .then(|| why.to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_27_lost_payments_are_found_on_chain_and_lane_stops() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup
        .with("X402D_SETTLE_WAIT", "2")
        .shortened()
        .build()
        .await;
    let payer = world.payer().await;
    let bodies: Vec<Value> = (0..4)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    let kept = settled(&world, &bodies[0]).await;
    world.facilitator.terminate().await;
    let copy = world.database.copy().await;
    world.facilitator.restart(None).await;
    let forgotten = [
        settled(&world, &bodies[1]).await,
        settled(&world, &bodies[2]).await,
    ];
    world.facilitator.kill();
    world.database.restore(&copy).await;
    world.facilitator.spawn(None).await;
    let why = stopped_reason(&world).await;
    assert!(why.contains("nonce 2"), "{why}");

    // Payments that the ledger still has are known.
    let again = world.facilitator.settle(&bodies[0]).await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
    assert_eq!(again.transaction(), kept.transaction());
    // Lost payments were settled by our own keys: each counts, and once.
    for (body, before) in bodies[1..3].iter().zip(&forgotten) {
        assert!(world.facilitator.verify(body).await.is_valid());
        let told = settled(&world, body).await;
        assert_eq!(told.transaction(), before.transaction());
        let again = world.facilitator.settle(body).await;
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
    }
    // Nothing new is sent until the operator clears the lane.
    let waits = world.facilitator.settle(&bodies[3]).await;
    assert_eq!(waits.reason(), "unexpected_settle_error", "{waits:?}");
    assert_eq!(world.transactions(1).await, 3);

    sqlx::query("update lanes set stopped_reason = null")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    eventually(
        "the lane to continue",
        Duration::from_secs(30),
        async || {
            let answer = world.facilitator.settle(&bodies[3]).await;
            answer.succeeded().then_some(())
        },
    )
    .await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(15));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 4);
    assert_eq!(world.transactions(1).await, 4, "no nonce skipped");
}

/// The lost transaction is in no block yet: its nonce must not be reused, and becomes free if the transaction is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_27_lost_pending_transaction_stops_lane_once_mined() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup
        .with("X402D_SETTLE_WAIT", "2")
        .shortened()
        .build()
        .await;
    let payer = world.payer().await;
    let bodies: Vec<Value> = (0..3)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    settled(&world, &bodies[0]).await;
    world.facilitator.terminate().await;
    let copy = world.database.copy().await;
    world.facilitator.restart(None).await;
    world.chain.automine(false).await;
    let pending = world.facilitator.settle(&bodies[1]).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    world.facilitator.kill();
    world.database.restore(&copy).await;
    world.facilitator.spawn(None).await;
    let why = stopped_reason(&world).await;
    assert!(why.contains("nonce 1"), "{why}");
    let waits = world.facilitator.settle(&bodies[2]).await;
    assert_eq!(waits.reason(), "unexpected_settle_error", "{waits:?}");
    assert_eq!(world.pending(1).await, 2, "nothing new");

    world.resume_mining().await;
    let told = settled(&world, &bodies[1]).await;
    assert_eq!(told.transaction(), pending.transaction());
    eventually("the lane to stop", Duration::from_secs(30), async || {
        let asked = world.facilitator.get("/signers").await.body;
        let why = asked["signers"][0]["stoppedReason"].as_str()?.to_owned();
        assert!(why.contains("nonce 1"), "{why}");
        Some(())
    })
    .await;
    sqlx::query("update lanes set stopped_reason = null")
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    eventually(
        "the lane to continue",
        Duration::from_secs(30),
        async || {
            let answer = world.facilitator.settle(&bodies[2]).await;
            answer.succeeded().then_some(())
        },
    )
    .await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(7));
    assert_eq!(world.transactions(1).await, 3, "no nonce skipped");
}

/// A payment settled by another facilitator has bought its resource there.
#[tokio::test(flavor = "multi_thread")]
async fn transfer_settled_elsewhere_first_buys_nothing() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 64);
    world.chain.submit(&purchase).await;
    let code = "invalid_exact_evm_nonce_already_used";
    assert_eq!(
        world.facilitator.verify(&purchase.body()).await.reason(),
        code
    );
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert_eq!((answer.reason(), answer.transaction().as_str()), (code, ""));
}
