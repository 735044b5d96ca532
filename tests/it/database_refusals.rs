//! The database refuses or fails half-way: callers get 503, nothing is lost, and service resumes by itself.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::Instant;

use crate::support::{Answer, Cluster, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xd7);
/// Maximum time until a caller is told of the outage, and until a payment settles after it.
const LIMIT: Duration = Duration::from_secs(15);

async fn run_sql(connection: &mut PgConnection, statements: &str) {
    let statements = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(statements).execute(connection).await.unwrap();
}

/// The answer during an outage: in time, retryable, and without the database's error text.
async fn assert_retryable(world: &World, body: &Value) {
    let began = Instant::now();
    let answer = world.facilitator.settle(body).await;
    assert_eq!(
        (answer.status, answer.reason()),
        (503, "unexpected_settle_error"),
        "{answer:?}"
    );
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let message = answer.body["errorMessage"].as_str().unwrap();
    assert!(!message.contains("postgres://"), "{message}");
}

/// The same payment settles soon after the outage, in the same process.
async fn settle_soon(world: &World, body: &Value) -> Answer {
    eventually("the payment to settle", LIMIT, async || {
        let answer = world.facilitator.try_settle(body).await.ok()?;
        answer.succeeded().then_some(answer)
    })
    .await
}

async fn world() -> (World, Vec<Value>) {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let bodies = bodies(&world).await;
    (world, bodies)
}

async fn bodies(world: &World) -> Vec<Value> {
    let payer = world.payer().await;
    (0..2)
        .map(|_| Purchase::new(&payer, PAYEE, 1).body())
        .collect()
}

async fn assert_paid(world: &World, count: u64) {
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(count));
}

/// Writes fail with the error of a full disk, in one table after the other.
#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_outage_and_loses_nothing() {
    let (world, bodies) = world().await;
    let mut operator = world.database.connection().await;
    let full = "create function is_full() returns trigger language plpgsql as $$ begin
        raise exception 'could not extend file \"base/1/2\": No space left on device' using errcode = 'disk_full';
    end $$";
    run_sql(&mut operator, full).await;
    let trigger = |table: &str| {
        format!(
            "create trigger is_full before insert on {table} for each row execute function is_full()"
        )
    };
    run_sql(&mut operator, &trigger("payments")).await;
    assert_retryable(&world, &bodies[0]).await;
    run_sql(&mut operator, "drop trigger is_full on payments").await;
    settle_soon(&world, &bodies[0]).await;

    // Accepted but not signed: the payment is pending, not failed.
    run_sql(&mut operator, &trigger("transactions")).await;
    let answer = world.facilitator.settle(&bodies[1]).await;
    assert!(
        answer.body["errorMessage"]
            .as_str()
            .is_some_and(|text| text.contains("nothing is under way")),
        "{answer:?}"
    );
    assert_eq!(
        world.transactions(1).await,
        1,
        "nothing is sent before it is recorded"
    );
    run_sql(&mut operator, "drop trigger is_full on transactions").await;
    settle_soon(&world, &bodies[1]).await;
    assert_paid(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_connections_are_outage_until_freed() {
    let server = Cluster::start_with(&["max_connections=20"]).await;
    server.run_sql("create database ledger").await;
    let world = Setup::default()
        .with("DATABASE_URL", server.url("ledger"))
        .build()
        .await;
    let bodies = bodies(&world).await;
    let first = PgConnection::connect(&server.url("postgres"))
        .await
        .unwrap();
    let mut others = vec![first];
    eventually("all connections to be taken", LIMIT, async || {
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'x402d'";
        let ended: i64 = sqlx::query_scalar(end)
            .fetch_one(&mut others[0])
            .await
            .unwrap();
        while let Ok(other) = PgConnection::connect(&server.url("postgres")).await {
            others.push(other);
        }
        (ended == 0).then_some(())
    })
    .await;
    assert_retryable(&world, &bodies[0]).await;
    let ready = world.facilitator.get("/readyz").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    drop(others);
    settle_soon(&world, &bodies[0]).await;
    assert_paid(&world, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_table_is_outage_until_unlocked() {
    let (world, bodies) = world().await;
    let mut locker = world.database.connection().await;
    let lock = "begin; lock table payments in access exclusive mode";
    run_sql(&mut locker, lock).await;
    assert_retryable(&world, &bodies[0]).await;
    run_sql(&mut locker, "rollback").await;
    settle_soon(&world, &bodies[0]).await;

    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut locker)
        .await
        .unwrap();
    let limit = format!(
        "alter database \"{name}\" set lock_timeout = '200ms';
        select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'x402d' and datname = '{name}'"
    );
    run_sql(&mut locker, &limit).await;
    run_sql(&mut locker, lock).await;
    assert_retryable(&world, &bodies[1]).await;
    run_sql(&mut locker, "rollback").await;
    settle_soon(&world, &bodies[1]).await;
    assert_paid(&world, 2).await;
}

/// The server dies during a commit, so its outcome is unknown: first the acceptance, then the write of the transaction.
#[tokio::test(flavor = "multi_thread")]
async fn crash_during_commit_still_settles_once() {
    let mut server = Cluster::start().await;
    server.run_sql("create database ledger").await;
    let world = Setup::default()
        .with("DATABASE_URL", server.url("ledger"))
        .with("X402D_SETTLE_WAIT", "5")
        .build()
        .await;
    let bodies = bodies(&world).await;
    let url = server.url("ledger");
    let mut operator = PgConnection::connect(&url).await.unwrap();
    let slow = "create table slow_commits (); insert into slow_commits default values;
        create function commits_slowly() returns trigger language plpgsql as $$ begin
            if exists (select from slow_commits) then perform pg_sleep(60); end if;
            return null;
        end $$";
    run_sql(&mut operator, slow).await;
    for (table, body) in ["payments", "transactions"].into_iter().zip(&bodies) {
        let trigger = format!(
            "create constraint trigger commits_slowly after insert on {table} deferrable initially deferred
            for each row execute function commits_slowly()"
        );
        run_sql(&mut operator, &trigger).await;
        let mut waiting = world.facilitator.spawn_settle(body);
        eventually("a commit", LIMIT, async || {
            let committing = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
            let committing: i64 = sqlx::query_scalar(committing)
                .fetch_one(&mut operator)
                .await
                .unwrap();
            (committing > 0).then_some(())
        })
        .await;
        server.end(Signal::SIGQUIT);
        server.run().await;
        operator = PgConnection::connect(&url).await.unwrap();
        let normal = format!(
            "truncate slow_commits; drop trigger commits_slowly on {table}; insert into slow_commits default values"
        );
        run_sql(&mut operator, &normal).await;
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        if !answer.succeeded() {
            settle_soon(&world, body).await;
        }
    }
    assert_paid(&world, 2).await;
    assert_eq!(world.transactions(1).await, 2);
}
