use super::*;
use crate::ledger::testing::{NETWORK, TestLedger};

#[tokio::test]
async fn backlog_counts_what_is_not_done() {
    let test = TestLedger::new().await;
    assert_eq!(test.backlog().await.unwrap(), []);
    let (_, lease) = test.owned_lane().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    test.settled(3).await;
    test.signed(lease, 0, &[&first]).await;
    test.set(second.id, "queued_at = now() - interval '90 seconds'")
        .await;
    Ledger::quarantine(&test, first.id, "a reason")
        .await
        .unwrap();
    let backlog = test.backlog().await.unwrap();
    let oldest = backlog[0].oldest;
    assert!(oldest >= Some(Duration::from_secs(90)), "{oldest:?}");
    let expected = Backlog {
        network: NETWORK,
        queued: 1,
        oldest,
        inflight: 1,
        quarantined: 1,
    };
    assert_eq!(backlog, [expected]);
}

#[tokio::test]
async fn server_tells_its_version_and_takes_writes() {
    let test = TestLedger::new().await;
    let facts = test.server_facts().await.unwrap();
    assert!(facts.version_number >= 120_000, "{facts:?}");
    assert!(!facts.read_only && !facts.pooled, "{facts:?}");
    assert_eq!(test.missing_migrations().await.unwrap(), 0);
    let last =
        "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)";
    test.try_run(last).await.unwrap();
    assert_eq!(test.missing_migrations().await.unwrap(), 1);
}

#[tokio::test]
async fn process_runs_until_it_ends() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    other.renew_process(&[NETWORK]).await.unwrap();
    let mut running = test.running_processes().await.unwrap();
    running.sort_by_key(|one| one.serves.len());
    let serves: Vec<_> = running.iter().map(|one| one.serves.clone()).collect();
    assert_eq!(serves, [vec![], vec![NETWORK]]);
    assert_eq!(running[0].version, env!("CARGO_PKG_VERSION"));
    other.end_process().await.unwrap();
    assert_eq!(test.running_processes().await.unwrap().len(), 1);
}
