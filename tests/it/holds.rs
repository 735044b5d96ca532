//! Held amounts: never more than the payer's balance, and nothing once a payment is settled or abandoned.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use sqlx::Row;
use x402d::embedded::TEST_USDC;

use crate::support::{Fault, Purchase, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0x5d);
const SEND: &str = "eth_sendRawTransaction";

async fn world() -> World {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "25").build().await
}

async fn payer_with(world: &World, amount: u64) -> PrivateKeySigner {
    let payer = new_account();
    world.chain.fund(payer.address(), amount).await;
    payer
}

/// The amount that the ledger holds for a payer.
async fn held_amount(world: &World, payer: &PrivateKeySigner) -> String {
    let row = sqlx::query("select held::text from payer_accounts where payer = $1")
        .bind(payer.address().as_slice())
        .fetch_one(&mut world.database.connection().await)
        .await
        .unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_25_balance_for_one_accepts_one_of_many() {
    let world = world().await;
    let payer = payer_with(&world, 1_000).await;
    let purchases: Vec<_> = (0..12).map(|_| Purchase::new(&payer, PAYEE, 700)).collect();
    for purchase in &purchases {
        assert!(world.facilitator.verify(&purchase.body()).await.is_valid());
    }
    let bodies = purchases.iter().map(Purchase::body).collect();
    let answers = world.facilitator.settle_all(bodies).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.succeeded());
    assert_eq!(good.len(), 1);
    for answer in bad {
        let code = "invalid_exact_evm_insufficient_balance";
        assert_eq!(answer.reason(), code, "{answer:?}");
    }
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.transactions(1).await, 1, "no transaction was wasted");
    assert_eq!(held_amount(&world, &payer).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn inflight_amount_is_held_and_copies_are_not_refused() {
    let world = world().await;
    let payer = payer_with(&world, 1_000).await;
    let first = Purchase::new(&payer, PAYEE, 600);
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&first.body());
    world.proxy.called(SEND, sends).await;
    assert_eq!(held_amount(&world, &payer).await, "600");

    let second = Purchase::new(&payer, PAYEE, 401);
    let refused = world.facilitator.settle(&second.body()).await;
    let said = refused.body["errorMessage"].as_str().unwrap();
    assert!(said.contains("1000") && said.contains("600"), "{said}");
    let copy = world.facilitator.spawn_settle(&first.body());
    world.proxy.on(SEND, Fault::None);
    let settled = waiting.join_next().await.unwrap().unwrap().unwrap();
    let copied = copy.join_all().await.remove(0).unwrap();
    assert!(
        settled.succeeded() ^ copied.succeeded(),
        "{settled:?} {copied:?}"
    );
    assert_eq!(settled.transaction(), copied.transaction());
    assert_eq!(held_amount(&world, &payer).await, "0");

    let fits = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 400).body())
        .await;
    assert!(fits.succeeded(), "{fits:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(1_000));
    assert_eq!(held_amount(&world, &payer).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_copies_are_one_hold() {
    let world = world().await;
    let payer = payer_with(&world, 900).await;
    let body = Purchase::new(&payer, PAYEE, 900).body();
    let answers = world.facilitator.settle_all(vec![body; 40]).await;
    let good = answers.iter().filter(|answer| answer.succeeded()).count();
    assert_eq!(good, 1);
    for answer in answers.iter().filter(|answer| !answer.succeeded()) {
        assert_eq!(answer.reason(), "duplicate_settlement", "{answer:?}");
    }
    assert_eq!(held_amount(&world, &payer).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn reorg_holds_the_paid_amount_again() {
    let world = world().await;
    let payer = payer_with(&world, 1_000).await;
    let settled = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1_000).body())
        .await;
    assert!(settled.succeeded(), "{settled:?}");
    world.chain.automine(false).await;
    world.proxy.on(SEND, Fault::Hold);
    world.chain.reorg(1).await;
    eventually("a hold", Duration::from_secs(20), async || {
        (held_amount(&world, &payer).await == "1000").then_some(())
    })
    .await;
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    eventually("payment", Duration::from_secs(20), async || {
        world.chain.mine(1).await;
        (held_amount(&world, &payer).await == "0").then_some(())
    })
    .await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(1_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_payment_frees_its_hold() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    // The keys are unavailable: nothing is sent, and the caller's wait ends.
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let setup = setup.with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let world = setup.with("X402D_SETTLE_WAIT", "1").build().await;
    let payer = payer_with(&world, 1_000).await;
    let body = Purchase::new(&payer, PAYEE, 800).body();
    let answer = world.facilitator.settle(&body).await;
    assert_eq!(answer.reason(), "unexpected_settle_error", "{answer:?}");
    assert_eq!(held_amount(&world, &payer).await, "0");
    assert_eq!(world.transactions(1).await, 0);
}
