//! Several processes on one database.

use std::os::unix::process::ExitStatusExt;

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x2e);

#[tokio::test(flavor = "multi_thread")]
async fn payment_at_two_processes_gets_one_transfer_and_success() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 11).body();
    let (here, there) = tokio::join!(
        world.facilitator.settle_all(vec![body.clone(); 10]),
        replica.settle_all(vec![body; 10])
    );
    let answers = [here, there].concat();
    let successes = answers.iter().filter(|answer| answer.succeeded()).count();
    assert_eq!(successes, 1, "{answers:?}");
    let duplicates = answers
        .iter()
        .filter(|answer| answer.reason() == "duplicate_settlement");
    assert_eq!(duplicates.count(), 19, "{answers:?}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.transactions(1).await, 1);
}

/// The survivor claims the lane when the dead process's lease has expired, and sends the bytes that were only recorded.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_02_other_process_sends_bytes_of_a_killed_one() {
    let setup = Setup {
        failpoint: Some("recorded"),
        ..Setup::default()
    };
    let mut world = setup
        .with("X402D_SETTLE_WAIT", "25")
        .shortened()
        .build()
        .await;
    let body = Purchase::new(&world.payer().await, PAYEE, 12).body();
    let replica = world.replica().await;
    assert!(world.facilitator.try_settle(&body).await.is_err());
    assert_eq!(world.facilitator.wait_for_end().await.signal(), Some(9));
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    assert!(replica.verify(&body).await.is_valid());
    let answer = replica.settle(&body).await;
    assert!(answer.succeeded(), "{answer:?}");
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(
        transfers[0]["transactionHash"],
        answer.transaction().as_str()
    );
    assert_eq!(world.transactions(1).await, 1);
}

/// A suspended process is not dead: when it resumes, its lane belongs to another process, and it must not use a nonce.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_26_process_resuming_without_its_lane_sends_nothing() {
    let world = Setup::default().shortened().build().await;
    let payer = world.payer().await;
    let replica = world.replica().await;
    world.facilitator.signal(nix::sys::signal::Signal::SIGSTOP);
    let asleep = Purchase::new(&payer, PAYEE, 100).body();
    let ungranted = world.facilitator.spawn_settle(&asleep);
    let awake = Purchase::new(&payer, PAYEE, 10).body();
    let answer = replica.settle(&awake).await;
    assert!(answer.succeeded(), "{answer:?}");
    world.facilitator.signal(nix::sys::signal::Signal::SIGCONT);
    drop(ungranted);
    for body in [&asleep, &Purchase::new(&payer, PAYEE, 1).body()] {
        let answer = world.facilitator.settle(body).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(111));
    assert_eq!(
        world.transactions(1).await,
        3,
        "no nonce used twice or skipped"
    );
}

/// Its own queue is full at once, because it has no lane. The payments wait in the ledger for the owner of the lane.
#[tokio::test(flavor = "multi_thread")]
async fn process_without_lane_accepts_beyond_its_queue() {
    let setup = Setup {
        toml: "[networks.base-sepolia]\nqueue_max = 1\n".to_owned(),
        ..Setup::default()
    };
    let world = setup
        .with("X402D_SETTLE_WAIT", "25")
        .shortened()
        .build()
        .await;
    let replica = world.replica().await;
    let payer = world.payer().await;
    let bodies = (0..4).map(|amount: u64| Purchase::new(&payer, PAYEE, 1 << amount).body());
    let answers = replica.settle_all(bodies.collect()).await;
    assert!(answers.iter().all(Answer::succeeded), "{answers:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(15));
}
