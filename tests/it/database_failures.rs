//! The database goes silent, becomes read-only, fails over or restarts: service resumes by itself, and nothing is lost or doubled.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::{Answer, Caller, Cluster, Purchase, Setup, TcpProxy, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xdb);
/// Maximum time of a request when one of its statements gets no answer.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// A payment whose caller retries ends within this time.
const PAYMENT_LIMIT: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_fail_only_their_requests() {
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let link = world.database_proxy.as_ref().unwrap();
    let payer = world.payer().await;
    let mut locker = world.database.connection().await;
    let lock = "begin; lock table payments in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut locker).await.unwrap();
    let mut hanging = JoinSet::new();
    for amount in 1..=3 {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        hanging.spawn(world.facilitator.post_task("/verify", &body));
        let body = Purchase::new(&payer, PAYEE, amount).body();
        hanging.spawn(world.facilitator.post_task("/settle", &body));
    }
    eventually("hanging statements", Duration::from_secs(8), async || {
        let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        let mut connection = world.database.connection().await;
        let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(&mut connection).await.unwrap();
        (waiting >= 2).then_some(())
    })
    .await;
    let (began, mut unanswered) = (Instant::now(), 0);
    link.stall();
    sqlx::raw_sql("rollback")
        .execute(&mut locker)
        .await
        .unwrap();
    while let Some(answer) = hanging.join_next().await {
        let answer = answer.unwrap().unwrap();
        // Requests that queued for a connection behind the lost statements are served after them.
        let served = answer.is_valid() || answer.succeeded();
        assert!(answer.status == 503 || served, "{answer:?}");
        unanswered += u32::from(answer.status == 503);
    }
    assert!(began.elapsed() < SILENCE_LIMIT, "{:?}", began.elapsed());
    assert!(
        unanswered > 0,
        "no request was waiting when the connections went silent"
    );
    let began = Instant::now();
    let answer = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 7).body())
        .await;
    assert!(answer.succeeded(), "{answer:?}");
    assert!(began.elapsed() < SILENCE_LIMIT, "{:?}", began.elapsed());
}

/// A caller waiting for a block is answered early when the database goes away, not at the end of the wait.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_caller_is_told_of_database_outage_in_time() {
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let link = world.database_proxy.as_ref().unwrap();
    let body = Purchase::new(&world.payer().await, PAYEE, 1).body();
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.spawn_settle(&body);
    eventually("its transaction", Duration::from_secs(20), async || {
        (world.pending(1).await > 0).then_some(())
    })
    .await;
    link.down(true);
    let began = Instant::now();
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(began.elapsed() < SILENCE_LIMIT, "{:?}", began.elapsed());
    link.down(false);
    world.resume_mining().await;
    eventually("the success", Duration::from_secs(30), async || {
        let answer = world.facilitator.try_settle(&body).await.ok()?;
        answer.succeeded().then_some(())
    })
    .await;
}

/// A transaction left open at the other end of a silent connection keeps its lane's row locked until the server ends it.
#[tokio::test(flavor = "multi_thread")]
async fn silent_open_transaction_releases_its_lane_in_time() {
    let setup = Setup {
        database_proxied: true,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let payer = world.payer().await;
    let mut operator = world.database.connection().await;
    let slow = "create table slow_writes (); insert into slow_writes default values;
        create function writes_slowly() returns trigger language plpgsql as $$ begin
            if exists (select from slow_writes) then perform pg_sleep(2); end if;
            return new;
        end $$;
        create trigger writes_slowly before insert on transactions for each row execute function writes_slowly()";
    sqlx::raw_sql(slow).execute(&mut operator).await.unwrap();
    let mut waiting = world
        .facilitator
        .spawn_settle(&Purchase::new(&payer, PAYEE, 1).body());
    eventually("the write", Duration::from_secs(15), async || {
        let writing = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()";
        let writing: i64 = sqlx::query_scalar(writing)
            .fetch_one(&mut operator)
            .await
            .unwrap();
        (writing > 0).then_some(())
    })
    .await;
    world.database_proxy.as_ref().unwrap().stall();
    sqlx::raw_sql("truncate slow_writes")
        .execute(&mut operator)
        .await
        .unwrap();
    let answer = waiting.join_next().await.unwrap().unwrap();
    assert!(!answer.is_ok_and(|answer| answer.succeeded()));
    let body = Purchase::new(&payer, PAYEE, 2).body();
    eventually("service", Duration::from_secs(30), async || {
        let answer = world.facilitator.try_settle(&body).await.ok()?;
        answer.succeeded().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_server_is_reported_until_writable_again() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let mut operator = world.database.connection().await;
    let name: String = sqlx::query_scalar("select current_database()::text")
        .fetch_one(&mut operator)
        .await
        .unwrap();
    let alter = |what: &str| AssertSqlSafe(format!("alter database \"{name}\" {what}"));
    sqlx::raw_sql(alter("set default_transaction_read_only = on"))
        .execute(&mut operator)
        .await
        .unwrap();
    let drop_all = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'x402d' and datname = current_database()";
    sqlx::raw_sql(drop_all)
        .execute(&mut operator)
        .await
        .unwrap();
    eventually(
        "/readyz to report it",
        Duration::from_secs(30),
        async || {
            let answer = world.facilitator.get("/readyz").await;
            let told = answer.body["parts"][0]["detail"]
                .as_str()
                .unwrap_or_default()
                .contains("takes no writes");
            (answer.status == 503 && told).then_some(())
        },
    )
    .await;
    eventually("/metrics to show it", Duration::from_secs(20), async || {
        let url = format!("{}/metrics", world.facilitator.url());
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        text.contains("x402d_database_up 0").then_some(())
    })
    .await;
    let refused = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1).body())
        .await;
    assert_eq!(
        (refused.status, refused.reason()),
        (503, "unexpected_settle_error")
    );

    sqlx::raw_sql(alter("reset default_transaction_read_only"))
        .execute(&mut operator)
        .await
        .unwrap();
    let body = Purchase::new(&payer, PAYEE, 2).body();
    eventually("success", Duration::from_secs(15), async || {
        world
            .facilitator
            .settle(&body)
            .await
            .succeeded()
            .then_some(())
    })
    .await;
}

/// Callers that buy repeatedly and present each payment until it is settled.
fn spawn_callers(
    world: &World,
    payers: Vec<alloy::signers::local::PrivateKeySigner>,
    until: Instant,
) -> JoinSet<u64> {
    let mut callers = JoinSet::new();
    for payer in payers {
        let caller = Caller::clone(&world.facilitator);
        callers.spawn(async move {
            let mut bought = 0;
            while Instant::now() < until {
                let body = Purchase::new(&payer, PAYEE, 1).body();
                let deadline = Instant::now() + PAYMENT_LIMIT;
                loop {
                    let answer = caller.try_settle(&body).await;
                    let ended = |answer: &Answer| {
                        answer.succeeded() || answer.reason() == "duplicate_settlement"
                    };
                    if answer.as_ref().is_ok_and(ended) {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{answer:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                bought += 1;
            }
            bought
        });
    }
    callers
}

async fn world_behind_proxy(port: u16, database: &str) -> (World, TcpProxy) {
    let link = TcpProxy::to_database(port, None).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/{database}", link.port());
    let world = Setup {
        block_time_s: Some(1),
        ..Setup::default()
    };
    (
        world
            .with("DATABASE_URL", url)
            .with("X402D_SETTLE_WAIT", "5")
            .build()
            .await,
        link,
    )
}

async fn payers(world: &World, count: usize) -> Vec<alloy::signers::local::PrivateKeySigner> {
    let mut payers = Vec::new();
    for _ in 0..count {
        payers.push(world.payer().await);
    }
    payers
}

async fn assert_each_paid_once(world: &World, mut callers: JoinSet<u64>) {
    let mut bought = 0;
    while let Some(count) = callers.join_next().await {
        bought += count.unwrap();
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(bought));
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_settle_within_seconds_after_failover() {
    let mut primary = Cluster::start().await;
    primary.run_sql("create database ledger").await;
    let standby = Cluster::standby_of(primary.port).await;
    // Synchronous replication: a commit is on both servers, so losing the primary loses nothing.
    primary
        .run_sql("alter system set synchronous_standby_names = '*'")
        .await;
    primary.run_sql("select pg_reload_conf()").await;
    let (world, link) = world_behind_proxy(primary.port, "ledger").await;
    let payers = payers(&world, 4).await;
    let probe = world.payer().await;
    let callers = spawn_callers(&world, payers, Instant::now() + Duration::from_secs(25));
    let some = Duration::from_secs(20);
    eventually("payments", some, async || {
        (world.chain.usdc(PAYEE).await > U256::from(4)).then_some(())
    })
    .await;
    primary.end(Signal::SIGKILL);
    link.redirect_to(standby.port);
    let seconds = Duration::from_secs(2);
    tokio::time::sleep(seconds).await;
    standby.run_sql("select pg_promote()").await;
    let promoted = Instant::now();
    let body = Purchase::new(&probe, Address::repeat_byte(0xdc), 1).body();
    eventually("service", Duration::from_secs(40), async || {
        let answer = world.facilitator.try_settle(&body).await.ok()?;
        (answer.succeeded() || answer.reason() == "duplicate_settlement").then_some(())
    })
    .await;
    assert!(
        promoted.elapsed() < Duration::from_secs(15),
        "{:?}",
        promoted.elapsed()
    );
    assert_each_paid_once(&world, callers).await;
}

/// A lagging standby lacks the last payments. They are found on the chain, and nothing is paid twice.
#[tokio::test(flavor = "multi_thread")]
async fn payments_lost_by_standby_are_found_on_chain_once() {
    let mut primary = Cluster::start().await;
    primary.run_sql("create database ledger").await;
    let replication = TcpProxy::to_database(primary.port, None).await;
    let standby = Cluster::standby_of(replication.port()).await;
    let (world, link) = world_behind_proxy(primary.port, "ledger").await;
    let payer = world.payer().await;
    let bodies: Vec<_> = (0..4)
        .map(|_| Purchase::new(&payer, PAYEE, 1).body())
        .collect();
    let kept = world.facilitator.settle(&bodies[0]).await;
    assert!(kept.succeeded(), "{kept:?}");
    let url = standby.url("ledger");
    eventually(
        "the standby to catch up",
        Duration::from_secs(20),
        async || {
            let mut connection = PgConnection::connect(&url).await.ok()?;
            let closed = "select count(*) from grants where answered_at is not null";
            let closed: i64 = sqlx::query_scalar(closed)
                .fetch_one(&mut connection)
                .await
                .ok()?;
            (closed == 1).then_some(())
        },
    )
    .await;
    replication.stall();
    let mut forgotten = Vec::new();
    for body in &bodies[1..3] {
        let answer = world.facilitator.settle(body).await;
        assert!(answer.succeeded(), "{answer:?}");
        forgotten.push(answer.transaction());
    }
    primary.end(Signal::SIGKILL);
    link.redirect_to(standby.port);
    standby.run_sql("select pg_promote()").await;

    let again = eventually("the new primary", Duration::from_secs(15), async || {
        let answer = world.facilitator.try_settle(&bodies[0]).await.ok()?;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
    for (body, transaction) in bodies[1..3].iter().zip(&forgotten) {
        let told = eventually("the lost payments", Duration::from_secs(30), async || {
            let answer = world.facilitator.settle(body).await;
            answer.succeeded().then_some(answer)
        })
        .await;
        assert_eq!(&told.transaction(), transaction);
    }
    // The lane stays stopped until the operator clears it.
    let waits = world.facilitator.settle(&bodies[3]).await;
    assert!(!waits.succeeded(), "{waits:?}");
    let ready = world.facilitator.get("/readyz").await.body.to_string();
    assert!(ready.contains("lost its last commits"), "{ready}");
    let mut operator = PgConnection::connect(&url).await.unwrap();
    sqlx::query("update lanes set stopped_reason = null")
        .execute(&mut operator)
        .await
        .unwrap();
    eventually(
        "the lane to continue",
        Duration::from_secs(30),
        async || {
            let answer = world.facilitator.settle(&bodies[3]).await;
            answer.succeeded().then_some(())
        },
    )
    .await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_every_ten_seconds_loses_and_doubles_nothing() {
    let mut server = Cluster::start().await;
    server.run_sql("create database ledger").await;
    let (world, _line) = world_behind_proxy(server.port, "ledger").await;
    let payers = payers(&world, 4).await;
    let callers = spawn_callers(&world, payers, Instant::now() + Duration::from_mins(1));
    let mut restart = tokio::time::interval(Duration::from_secs(10));
    restart.tick().await;
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGINT,
    ] {
        restart.tick().await;
        server.end(signal);
        server.run().await;
    }
    assert_each_paid_once(&world, callers).await;
    let mut connection = PgConnection::connect(&server.url("ledger")).await.unwrap();
    let open = "select count(*) from payments where state not in ('mined', 'settled', 'final')";
    eventually("each payment's end", Duration::from_secs(30), async || {
        let open: i64 = sqlx::query_scalar(open)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        (open == 0).then_some(())
    })
    .await;
}
