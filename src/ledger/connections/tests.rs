use std::thread;

use crate::ledger::connections::code;
use crate::ledger::testing::TestLedger;

const DELETE: &str = "delete from processes";

async fn processes(test: &TestLedger) -> String {
    test.value("select count(*) from processes").await
}

#[tokio::test]
async fn transaction_with_a_failed_statement_is_not_committed() {
    let test = TestLedger::new().await;
    let mut transaction = test.pool.begin().await.unwrap();
    transaction.run(DELETE.to_owned()).await.unwrap();
    let failed = transaction.run("select 1 / 0".to_owned()).await;
    assert_eq!(code(&failed.unwrap_err()).as_deref(), Some("22012"));
    // Postgres would answer the commit with a rollback, and without an error.
    assert!(transaction.commit().await.is_err());
    assert_eq!(processes(&test).await, "1");
    test.check().await.unwrap();
}

#[tokio::test]
async fn dropped_transaction_is_rolled_back() {
    let test = TestLedger::new().await;
    let mut transaction = test.pool.begin().await.unwrap();
    transaction.run(DELETE.to_owned()).await.unwrap();
    drop(transaction);
    // Waits for its lock.
    test.renew_process(&[]).await.unwrap();
    assert_eq!(processes(&test).await, "1");
    test.check().await.unwrap();
}

/// The runtime drops the task of the rollback without running it.
#[tokio::test]
async fn transaction_that_is_open_when_its_runtime_ends_is_rolled_back() {
    let test = TestLedger::new().await;
    let pool = test.pool.clone();
    let ending = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut transaction = pool.begin().await.unwrap();
            transaction.run(DELETE.to_owned()).await.unwrap();
            drop(transaction);
        });
    });
    ending.join().unwrap();
    test.renew_process(&[]).await.unwrap();
    assert_eq!(processes(&test).await, "1");
}
