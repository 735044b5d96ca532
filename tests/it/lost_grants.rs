//! A grant that was committed and whose commit's answer was lost: nobody was told, so the next presenter is.

use std::time::{Duration, Instant};

use alloy::primitives::Address;
use tempfile::TempDir;

use crate::support::{Purchase, Setup};

const PAYEE: Address = Address::repeat_byte(0x1c);

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_whose_commit_gave_no_answer_is_void_at_once() {
    let folder = TempDir::new().unwrap();
    let lost = folder.path().join("lost");
    let setup = Setup::default().with("X402D_GRANTS_LOST", lost.to_str().unwrap());
    let world = setup.build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 4_000).body();
    std::fs::write(&lost, "").unwrap();
    let answer = world.facilitator.settle(&body).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    std::fs::remove_file(&lost).unwrap();

    let began = Instant::now();
    let told = world.facilitator.settle(&body).await;
    world.moved_once(PAYEE, &told, 4_000).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{began:?}");
    world.buys_nothing_twice(&body, &told).await;
}
