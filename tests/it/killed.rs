//! `kill -9` at each step of a settlement (the failpoints of `settlement/failpoint.rs`), and SIGTERM.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;

use crate::support::{Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x4b);
const SIGKILL: i32 = 9;

/// Kills the service at `step` of a payment, restarts it and presents the payment as a stock seller does. `sent`: whether the
/// transaction has left the process by then.
async fn assert_settles_once_after_kill_at(step: &'static str, sent: bool) {
    let setup = Setup {
        failpoint: Some(step),
        ..Setup::default()
    };
    let mut world = setup.shortened().build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 123_456).body();
    assert!(world.facilitator.verify(&body).await.is_valid());
    let broken = world.facilitator.try_settle(&body).await;
    assert!(broken.is_err(), "it was killed, but answered {broken:?}");
    let ended = world.facilitator.wait_for_end().await;
    assert_eq!(ended.signal(), Some(SIGKILL));
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), usize::from(sent), "before the restart");

    world.facilitator.restart(None).await;
    let verdict = world.facilitator.verify(&body).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let first = world.facilitator.settle(&body).await;
    assert!(first.succeeded(), "{first:?}");
    let verdict = world.facilitator.verify(&body).await;
    assert_eq!(verdict.reason(), "duplicate_settlement");
    let second = world.facilitator.settle(&body).await;
    assert_eq!(second.reason(), "duplicate_settlement");
    assert_eq!(second.transaction(), first.transaction());

    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(
        transfers[0]["transactionHash"],
        first.transaction().as_str()
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(123_456));
    assert_eq!(world.transactions(1).await, 1, "one nonce, no gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_claim_settles_once() {
    assert_settles_once_after_kill_at("picked", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_simulation_settles_once() {
    assert_settles_once_after_kill_at("simulated", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_01_kill_after_signing_settles_once() {
    assert_settles_once_after_kill_at("signed", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_commit_before_send_settles_once() {
    assert_settles_once_after_kill_at("recorded", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_03_kill_after_broadcast_settles_once() {
    assert_settles_once_after_kill_at("broadcast", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_04_kill_after_receipt_settles_once() {
    assert_settles_once_after_kill_at("mined", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_result_commit_settles_once() {
    assert_settles_once_after_kill_at("resultrecorded", true).await;
}

/// The first presentation after the restart waits until the dead process's lease has expired.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_05_kill_between_grant_and_answer_grants_next_caller() {
    assert_settles_once_after_kill_at("granted", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_continues_with_pending_transaction() {
    let mut world = Setup::default().shortened().build().await;
    let payer = world.payer().await;
    let bodies = [1, 2, 3].map(|amount| Purchase::new(&payer, PAYEE, amount).body());
    world.chain.automine(false).await;
    // The first finds its lane idle and is sent alone, the others share a batch.
    let first = world.facilitator.spawn_settle(&bodies[0]);
    world.wait_until_sent(1).await;
    let [second, third] = [1, 2].map(|number| world.facilitator.spawn_settle(&bodies[number]));
    world.wait_until_sent(2).await;
    world.facilitator.kill();
    for mut one in [first, second, third] {
        assert!(one.join_next().await.unwrap().unwrap().is_err());
    }
    world.resume_mining().await;
    world.facilitator.restart(None).await;
    for answer in world.facilitator.settle_all(bodies.to_vec()).await {
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(6));
    assert_eq!(world.transactions(1).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_answers_pending_and_restart_completes_it() {
    let mut world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 77).body();
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.spawn_settle(&body);
    world.wait_until_sent(1).await;
    let (status, took) = world.facilitator.terminate().await;
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    let pending = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(
        (pending.status, pending.reason()),
        (200, "settlement_pending")
    );
    assert_eq!(pending.transaction().len(), 66, "{pending:?}");

    world.resume_mining().await;
    world.facilitator.restart(None).await;
    assert!(world.facilitator.verify(&body).await.is_valid());
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
}
