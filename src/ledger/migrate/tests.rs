use super::*;
use crate::ledger::testing::TestLedger;

const APPLIED: &str =
    "select string_agg(version || ' ' || xmin, ', ' order by version) from _sqlx_migrations";

#[tokio::test]
async fn migrated_schema_is_not_migrated_again() {
    let test = TestLedger::new().await;
    let before = test.value(APPLIED).await;
    test.migrate().await.unwrap();
    // Another process may have applied it between the check and the lock.
    for migration in MIGRATOR.iter() {
        let mut transaction = test.pool.begin().await.unwrap();
        assert!(!write(&mut transaction, migration).await.unwrap());
        transaction.rollback().await.unwrap();
    }
    assert_eq!(test.value(APPLIED).await, before);
}

#[tokio::test]
async fn schema_of_another_program_is_refused() {
    let test = TestLedger::new().await;
    test.run("insert into _sqlx_migrations values (9999, 'later', now(), true, '\\x00', 0)")
        .await;
    let refused = test.migrate().await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::NewerSchema { version: 9999 }),
        "{refused:?}"
    );
    let other = "delete from _sqlx_migrations where version = 9999;
        update _sqlx_migrations set checksum = '\\x00' where version = 2";
    test.run(other).await;
    let refused = test.migrate().await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::OtherSchema { version: 2 }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn failed_migration_changes_nothing() {
    let test = TestLedger::new().await;
    // The tables of the migration exist.
    test.run("delete from _sqlx_migrations where version = 6")
        .await;
    let refused = test.migrate().await.unwrap_err();
    assert!(matches!(refused, LedgerError::Driver(_)), "{refused:?}");
    let versions = "select count(*) from _sqlx_migrations where version = 6";
    assert_eq!(test.value(versions).await, "0");
}
