//! `PgBouncer` between x402d and Postgres, in each of its modes.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::support::{Cluster, Pooler, Purchase, Setup, eventually};

const PAYEE: Address = Address::repeat_byte(0xb0);

/// With one connection for everything payments are slow, so this mode tests only that it works.
fn payment_count_for(settings: &str) -> u64 {
    if settings.ends_with("= 1") { 1 } else { 20 }
}

/// Settings that a foreign session finds in the server connections that x402d has used.
async fn assert_no_setting_leaks(pooler: &Pooler, database: &str, settings: &str) {
    let mut foreign = pooler.connection(database).await;
    for (setting, default) in [
        ("statement_timeout", "0"),
        ("enable_seqscan", "on"),
        ("lock_timeout", "0"),
    ] {
        // In one message: a pooler may give the next one to another server connection.
        let look = AssertSqlSafe(format!("select current_setting('{setting}')"));
        let shown = sqlx::raw_sql(look).fetch_one(&mut foreign).await.unwrap();
        let shown: String = shown.get(0);
        assert_eq!(shown, default, "{settings}: {setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_settle_behind_pooler_without_leaking_settings() {
    let server = Cluster::start().await;
    let mut kinds = vec![
        "pool_mode = session\ndefault_pool_size = 80",
        "pool_mode = transaction\ndefault_pool_size = 10",
        "pool_mode = transaction\ndefault_pool_size = 1",
    ];
    if Pooler::supports_prepared_statements() {
        kinds
            .push("pool_mode = transaction\nmax_prepared_statements = 200\ndefault_pool_size = 10");
    }
    for (number, settings) in kinds.into_iter().enumerate() {
        let database = format!("ledger_{number}");
        server.run_sql(&format!("create database {database}")).await;
        let pooler = Pooler::before(server.port, settings).await;
        let world = Setup::default()
            .with("DATABASE_URL", pooler.url(&database))
            .build()
            .await;
        let payer = world.payer().await;
        let bodies: Vec<_> = (0..payment_count_for(settings))
            .map(|_| Purchase::new(&payer, PAYEE, 1).body())
            .collect();
        let mut paying = tokio::task::JoinSet::new();
        for body in &bodies {
            paying.spawn(world.facilitator.post_task("/settle", body));
        }
        let replica = world.replica().await;
        for answer in paying.join_all().await {
            let answer = answer.unwrap();
            assert!(answer.succeeded(), "{settings}: {answer:?}");
        }
        let again = replica.settle(&bodies[0]).await;
        assert_eq!(
            again.reason(),
            "duplicate_settlement",
            "{settings}: {again:?}"
        );
        assert_eq!(replica.get("/payments?limit=5").await.status, 200);
        assert_eq!(
            world.chain.usdc(PAYEE).await,
            U256::from(payment_count_for(settings))
        );
        let log = world.facilitator.log();
        assert_eq!(
            log.contains("pooler in transaction mode"),
            settings.contains("transaction"),
            "{log}"
        );

        assert_no_setting_leaks(&pooler, &database, settings).await;
        let mut operator = PgConnection::connect(&server.url(&database)).await.unwrap();
        eventually("no lock of a session", Duration::from_secs(5), async || {
            let locks = "select count(*) from pg_locks where locktype = 'advisory'";
            let locks: i64 = sqlx::query_scalar(locks)
                .fetch_one(&mut operator)
                .await
                .unwrap();
            (locks == 0).then_some(())
        })
        .await;
    }
}
