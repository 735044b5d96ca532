//! A grant that was committed and whose commit's answer was lost: nobody was told, so the next presenter is.

use std::time::{Duration, Instant};

use alloy::primitives::Address;
use tempfile::TempDir;

use crate::support::{Purchase, Setup, eventually};

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

/// The database is gone for longer than a few tries take: the grant is void once it is back, and not only when the process ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_grant_is_void_also_after_a_long_outage() {
    let folder = TempDir::new().unwrap();
    let lost = folder.path().join("lost");
    let setup = Setup {
        lined: true,
        ..Setup::default()
    };
    let setup = setup.with("X402D_GRANTS_LOST", lost.to_str().unwrap());
    let world = setup.build().await;
    let line = world.line.as_ref().unwrap();
    let body = Purchase::new(&world.payer().await, PAYEE, 5_000).body();
    std::fs::write(&lost, "").unwrap();
    let answer = world.facilitator.settle(&body).await;
    line.down(true);
    assert_eq!(answer.status, 503, "{answer:?}");
    std::fs::remove_file(&lost).unwrap();
    eventually("its tries to fail", Duration::from_mins(1), async || {
        let log = world.facilitator.log();
        (log.matches("grant not closed").count() > 0).then_some(())
    })
    .await;
    line.down(false);
    let told = eventually("the success", Duration::from_secs(40), async || {
        let answer = world.facilitator.try_settle(&body).await.ok()?;
        answer.succeeded().then_some(answer)
    })
    .await;
    world.moved_once(PAYEE, &told, 5_000).await;
    world.buys_nothing_twice(&body, &told).await;
}
