//! A grant was committed but the answer to its commit was lost: no caller was told of success, so the next one is.

use std::time::{Duration, Instant};

use alloy::primitives::Address;
use tempfile::TempDir;

use crate::support::{Purchase, Setup, eventually};

const PAYEE: Address = Address::repeat_byte(0x1c);

#[tokio::test(flavor = "multi_thread")]
async fn grant_with_unknown_commit_is_void_at_once() {
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
    world.assert_transferred_once(PAYEE, &told, 4_000).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{began:?}");
    world.assert_duplicate_rejected(&body, &told).await;
}

/// The outage outlasts the retries: the grant is void once the database is back, not only when the process ends.
#[tokio::test(flavor = "multi_thread")]
async fn lost_grant_is_void_after_a_long_outage() {
    let folder = TempDir::new().unwrap();
    let lost = folder.path().join("lost");
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let setup = setup.with("X402D_GRANTS_LOST", lost.to_str().unwrap());
    let world = setup.build().await;
    let link = world.database_proxy.as_ref().unwrap();
    let body = Purchase::new(&world.payer().await, PAYEE, 5_000).body();
    std::fs::write(&lost, "").unwrap();
    let answer = world.facilitator.settle(&body).await;
    link.down(true);
    assert_eq!(answer.status, 503, "{answer:?}");
    std::fs::remove_file(&lost).unwrap();
    eventually("its retries to fail", Duration::from_mins(1), async || {
        let log = world.facilitator.log();
        (log.matches("grant not closed").count() > 0).then_some(())
    })
    .await;
    link.down(false);
    let told = eventually("the success", Duration::from_secs(40), async || {
        let answer = world.facilitator.try_settle(&body).await.ok()?;
        answer.succeeded().then_some(answer)
    })
    .await;
    world.assert_transferred_once(PAYEE, &told, 5_000).await;
    world.assert_duplicate_rejected(&body, &told).await;
}
