//! Processes whose clocks are wrong.

use std::path::Path;
use std::process::Command;

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;

use crate::support::{Facilitator, Purchase, Setup};

const PAYEE: Address = Address::repeat_byte(0x41);

/// A preloaded library that shifts the wall clock of a process.
fn build_wrong_clock(folder: &Path) -> String {
    let library = folder.join("wrong_clock.so");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/support/wrong_clock.c"
    );
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl")
        .status();
    assert!(built.unwrap().success());
    library.to_str().unwrap().to_owned()
}

async fn with_clock_off_by(seconds: i64) {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let mut world = setup
        .with("X402D_SETTLE_WAIT", "25")
        .shortened()
        .build()
        .await;
    let mut wrong: Facilitator = world.unstarted_replica(&[
        ("LD_PRELOAD", build_wrong_clock(folder.path())),
        ("WRONG_BY_SECONDS", seconds.to_string()),
    ]);
    wrong.restart(None).await;
    let payer = world.payer().await;
    // First while the other process owns the lane, then after it has died and the lane was claimed here.
    let here = Purchase::new(&payer, PAYEE, 1).body();
    let verdict = wrong.verify(&here).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let answer = wrong.settle(&here).await;
    assert!(answer.succeeded(), "{answer:?}");
    world.facilitator.kill();
    let answer = wrong.settle(&Purchase::new(&payer, PAYEE, 2).body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    // The process with the right clock claims the lane again.
    drop(wrong);
    world.facilitator.restart(None).await;
    let answer = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 4).body())
        .await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(7));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 3);
    assert_eq!(world.transactions(1).await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_41_fast_clock_keeps_leases_and_windows() {
    with_clock_off_by(3_600).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_41_slow_clock_keeps_leases_and_windows() {
    with_clock_off_by(-3_600).await;
}
