//! Guarantees of single ledger statements, tested without a running service.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::task::JoinSet;
use x402d::embedded::{CHAIN_ID, TEST_USDC};
use x402d::ledger::{GrantRequest, Ledger};
use x402d::payment::PaymentId;
use x402d::protocol::Network;

use crate::support::{Chain, Permit2Purchase, Purchase, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x5c);

/// The ledger of a service that has ended, with one settled payment.
struct EndedService {
    connection: PgConnection,
    payment: PaymentId,
    network: Network,
    world: World,
    processes: JoinSet<()>,
}

impl EndedService {
    async fn new() -> Self {
        let mut world = World::new().await;
        let payer = world.payer().await;
        let body = Purchase::new(&payer, PAYEE, 1_000).body();
        let settled = world.facilitator.settle(&body).await;
        let id = settled.body["extra"]["paymentId"].as_str().unwrap();
        let payment = PaymentId(id.parse().unwrap());
        world.facilitator.kill();
        let mut connection = world.database.connection().await;
        // Disables the triggers, so that the test can write states that no transition reaches.
        let free = sqlx::query("set session_replication_role = replica");
        free.execute(&mut connection).await.unwrap();
        Self {
            connection,
            payment,
            network: Network::from_chain_id(CHAIN_ID),
            world,
            processes: JoinSet::new(),
        }
    }

    /// A further process on the ledger.
    async fn process(&mut self) -> Ledger {
        let (_, url) = self.world.database.variable();
        let (ledger, statements) = Ledger::connect(&url, 8).await.unwrap();
        self.processes.spawn(statements.run());
        ledger.begin_process().await.unwrap();
        ledger
    }

    async fn run(&mut self, sql: &str) {
        let sql = sqlx::query(AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut self.connection).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_answers_from_the_current_row() {
    let mut ended = EndedService::new().await;
    let ledger = ended.process().await;
    let elsewhere = B256::repeat_byte(0xee);
    ended.run("delete from grants").await;
    // After the caller has read its row, a reorg happens and the payment settles in another transaction.
    ended
        .run(&format!(
            "update payments set transaction_hash = '\\x{}'",
            alloy::hex::encode(elsewhere)
        ))
        .await;
    let granted = ledger.grant(ended.payment, request("one")).await.unwrap();
    let told = format!("{:?}", granted.unwrap().state);
    assert!(told.contains(&elsewhere.to_string()), "{told}");
    let again = ledger
        .grant(ended.payment, request("another"))
        .await
        .unwrap();
    assert!(again.is_none(), "{again:?}");
}

fn request(id: &str) -> GrantRequest {
    GrantRequest {
        request_id: id.to_owned(),
        caller: "a caller".to_owned(),
    }
}

/// A commit may take long while its synchronous standby is away. The process has stopped waiting for it.
#[tokio::test(flavor = "multi_thread")]
async fn late_committed_lost_grant_is_void() {
    let mut ended = EndedService::new().await;
    let ledger = ended.process().await;
    ended.run("delete from grants").await;
    ended.run("begin").await;
    ended.run(&format!(
        "insert into grants (payment_id, process_id, request_id, caller) values ('{}', '{}', 'lost', 'a caller')",
        ended.payment.0,
        ledger.process().0
    ))
    .await;
    let (payment, voiding) = (ended.payment, ledger.clone());
    let voided = tokio::spawn(async move {
        let lost = request("lost");
        voiding.void_lost_grant(payment, &lost).await
    });
    let mut connection = ended.world.database.connection().await;
    eventually("it to wait for the commit", Duration::from_secs(8), async || {
        let waiting = "select from pg_stat_activity where wait_event = 'transactionid' and query like '%voided%' and datname = current_database()";
        let waiting = sqlx::query(waiting).fetch_optional(&mut connection).await;
        waiting.unwrap().map(|_| ())
    })
    .await;
    ended.run("commit").await;
    voided.await.unwrap().unwrap();
    let granted = ledger.grant(payment, request("the next")).await.unwrap();
    assert!(granted.is_some());
    let kinds =
        "select string_agg(kind, ',' order by id) from events where reason in ('lost', 'the next')";
    let (kinds,): (String,) = sqlx::query_as(kinds)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(kinds, "voided,granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_arriving_lost_grant_takes_nothing() {
    let mut ended = EndedService::new().await;
    let ledger = ended.process().await;
    ended.run("delete from grants").await;
    let lost = request("lost");
    ledger.void_lost_grant(ended.payment, &lost).await.unwrap();
    let late = ledger.grant(ended.payment, lost).await.unwrap();
    assert!(late.is_none(), "{late:?}");
    let next = ledger.grant(ended.payment, request("the next")).await;
    assert!(next.unwrap().is_some());
    // Another request's grant is not affected.
    let lost = request("lost");
    ledger.void_lost_grant(ended.payment, &lost).await.unwrap();
    let third = ledger.grant(ended.payment, request("a third")).await;
    assert!(third.unwrap().is_none());

    // The void row of another request lets no late statement in either, and what was never granted has no event.
    ended.run("delete from grants").await;
    for id in ["another lost one", "lost again", "lost again"] {
        let lost = request(id);
        ledger.void_lost_grant(ended.payment, &lost).await.unwrap();
    }
    let late = ledger.grant(ended.payment, request("lost again")).await;
    assert!(late.unwrap().is_none());
    let mut connection = ended.world.database.connection().await;
    let voided = "select count(*) from events where kind = 'voided' and reason like '%lost%'";
    let (voided,): (i64,) = sqlx::query_as(voided)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(voided, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_payment_awaits_no_confirmations() {
    let mut ended = EndedService::new().await;
    let ledger = ended.process().await;
    ended.run(
        "update payments set state = 'mined', quarantined_at = now(), quarantine_reason = 'a test'",
    )
    .await;
    let (settled, waits) = ledger.confirm(ended.network, 1_000_000).await.unwrap();
    assert_eq!((settled, waits), (vec![], false));
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_claimed_by_live_process_is_left_to_it() {
    let mut ended = EndedService::new().await;
    let network = ended.network;
    let signers = [Chain::signers(1)[0].address];
    let holder = ended.process().await;
    let holding = "(select id from processes order by id desc limit 1)";
    let queue = |age: &str| {
        format!(
            "update payments set state = 'queued', transaction_hash = null, log_index = null, block_number = null, block_hash = null,
            block_time = null, queued_by = {holding}, queued_at = now() - interval '{age}'"
        )
    };
    ended.run(&queue("3 seconds")).await;
    let held: (String,) = sqlx::query_as("select queued_by::text from payments")
        .fetch_one(&mut ended.connection)
        .await
        .unwrap();
    let other = ended.process().await;
    let queue = |age: &str| queue(age).replace(holding, &format!("'{}'", held.0));
    let taken = async |by: &Ledger| {
        by.claim_queued(network, &signers, &[], 10)
            .await
            .unwrap()
            .len()
    };

    assert_eq!(taken(&other).await, 0, "its claiming process is alive");
    assert_eq!(
        taken(&holder).await,
        1,
        "its claiming process has forgotten it"
    );
    ended.run(&queue("11 seconds")).await;
    assert_eq!(
        taken(&other).await,
        1,
        "its claiming process seems unable to send it"
    );
    ended.run(&queue("3 seconds")).await;
    ended
        .run(&format!(
            "update processes set lease_until = now() + interval '9 seconds' where id = '{}'",
            held.0
        ))
        .await;
    assert_eq!(
        taken(&other).await,
        1,
        "its claiming process has missed a heartbeat"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_counted_per_payer() {
    let world = World::new().await;
    let mut bodies = Vec::new();
    for _ in 0..8 {
        let payer = world.payer().await;
        world
            .chain
            .approve(TEST_USDC, payer.address(), U256::from(10_000))
            .await;
        let pair =
            [8_000, 7_000].map(|amount| Permit2Purchase::exact(&payer, PAYEE, amount).body());
        bodies.extend(pair);
    }
    let answers = world.facilitator.settle_all(bodies).await;
    let short = answers.iter().filter(|answer| !answer.succeeded());
    let short: Vec<_> = short.map(|answer| answer.reason().to_owned()).collect();
    assert_eq!(short, vec!["permit2_allowance_required"; 8], "{answers:?}");
}
