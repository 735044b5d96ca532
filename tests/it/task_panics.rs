//! An engine task that panics is restarted. One that keeps panicking ends the process, for its supervisor to restart.

use std::path::Path;
use std::time::Duration;

use alloy::primitives::Address;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x6d);
const LIMIT: Duration = Duration::from_secs(20);

/// A service whose `task` panics as many times as the file has bytes.
async fn world_with_panicking(task: &'static str, panics: &Path, signers: usize) -> World {
    let setup = Setup {
        signers,
        ..Setup::default()
    };
    setup
        .with("X402D_PANIC", task)
        .with("X402D_PANICS", panics.to_str().unwrap())
        .shortened()
        .build()
        .await
}

/// The network's entry of `/readyz`.
fn network(readiness: &Value) -> &Value {
    &readiness["parts"][1]
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_of_panicked_lane_settles_with_next_lane() {
    let folder = TempDir::new().unwrap();
    let panics = folder.path().join("panics");
    let world = world_with_panicking("lane", &panics, 1).await;
    std::fs::write(&panics, "x").unwrap();
    let payer = world.payer().await;
    let first = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1_000).body())
        .await;
    world.assert_transferred_once(PAYEE, &first, 1_000).await;
    assert_eq!(std::fs::read(&panics).unwrap(), b"", "it panicked");

    let log = world.facilitator.log();
    let said = log.lines().find(|line| line.contains("engine task failed"));
    let said: Value = serde_json::from_str(said.unwrap()).unwrap();
    assert_eq!(said["why"], "as a test has asked", "{said}");
    assert!(said["task"].as_str().unwrap().starts_with("lane of 0x"));
    let readiness = world.facilitator.get("/readyz").await;
    assert_eq!(
        (readiness.status, &readiness.body["ready"]),
        (200, &true.into())
    );
    assert_eq!(readiness.body["status"], "degraded", "{readiness:?}");
    let detail = network(&readiness.body)["detail"].as_str().unwrap();
    assert!(
        detail.contains("failed (1 times within a minute) and runs again"),
        "{detail}"
    );

    let second = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 2_000).body())
        .await;
    assert!(second.succeeded(), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn panicked_watch_restarts_and_catches_up() {
    let folder = TempDir::new().unwrap();
    let panics = folder.path().join("panics");
    let world = world_with_panicking("watch", &panics, 1).await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let body = Purchase::new(&payer, PAYEE, 1_000).body();
    let mut settling = world.facilitator.spawn_settle(&body);
    world.wait_until_sent(1).await;
    std::fs::write(&panics, "xxx").unwrap();
    eventually("a failed watch in /readyz", LIMIT, async || {
        let readiness = world.facilitator.get("/readyz").await;
        let part = network(&readiness.body);
        let detail = part["detail"].as_str().unwrap_or_default();
        let said = detail.contains("the watch failed") && part["status"] == "down";
        (said && readiness.status == 503).then_some(())
    })
    .await;
    world.resume_mining().await;
    let settled = settling.join_next().await.unwrap().unwrap().unwrap();
    world.assert_transferred_once(PAYEE, &settled, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_lane_takes_over_payments_of_panicked_lane() {
    let folder = TempDir::new().unwrap();
    let panics = folder.path().join("panics");
    let world = world_with_panicking("lane", &panics, 2).await;
    std::fs::write(&panics, "xx").unwrap();
    let payer = world.payer().await;
    let bodies = (0..6).map(|_| Purchase::new(&payer, PAYEE, 1_000).body());
    let answers = world.facilitator.settle_all(bodies.collect()).await;
    for answer in answers {
        assert!(answer.succeeded(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repeatedly_panicking_lane_ends_the_process() {
    let folder = TempDir::new().unwrap();
    let panics = folder.path().join("panics");
    let mut world = world_with_panicking("lane", &panics, 1).await;
    std::fs::write(&panics, [b'x'; 100]).unwrap();
    let body = Purchase::new(&world.payer().await, PAYEE, 1_000).body();
    let mut settling = world.facilitator.spawn_settle(&body);
    eventually("a failed lane in /readyz", LIMIT, async || {
        let readiness = world.facilitator.try_get("/readyz").await.ok()?;
        let detail = network(&readiness.body)["detail"].as_str()?;
        (readiness.status == 503 && detail.contains("the lane of 0x")).then_some(())
    })
    .await;
    let ended = world.facilitator.wait_for_end().await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let told = settling.join_next().await.unwrap().unwrap().unwrap();
    assert!(!told.succeeded(), "{told:?}");
    assert!(world.facilitator.log().contains("failed too often"));

    std::fs::remove_file(&panics).unwrap();
    world.facilitator.restart(None).await;
    let settled = world.facilitator.settle(&body).await;
    world.assert_transferred_once(PAYEE, &settled, 1_000).await;
}
