//! Mixed load for a while: payments, duplicates, invalid requests, payers that spend held money, and a node that fails every few
//! seconds. `X402D_SOAK_SECONDS` sets the duration; the default is shorter than the run in `benches/README.md`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use sqlx::Row;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Caller, Chain, Fault, Proxy, Purchase, Setup, World, eventually, new_account, random,
};

const PAYEE: Address = Address::repeat_byte(0x50);
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);
const SIGNERS: usize = 2;
const BUYERS: usize = 32;
const PAYERS: usize = 16;
/// Balance of a payer that does not pay.
const SMALL_BALANCE: u64 = 1_000;
/// Permitted growth of memory after the first third, in KiB. The allocator's share varies.
const GROWTH_KIB: u64 = 16 * 1024;

/// State shared by all tasks.
struct Shared {
    caller: Caller,
    payers: Vec<PrivateKeySigner>,
    ends: Instant,
    /// By nonce: the hash and amount of each success that callers received.
    paid: Mutex<HashMap<B256, (String, u64)>>,
    duplicates: AtomicUsize,
    invalid: AtomicUsize,
    drained: AtomicUsize,
    faults: AtomicUsize,
}

fn seconds() -> u64 {
    let asked = std::env::var("X402D_SOAK_SECONDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(30)
}

#[tokio::test(flavor = "multi_thread")]
async fn mixed_load_keeps_memory_flat_and_ledger_equal_to_chain() {
    let setup = Setup {
        signers: SIGNERS,
        block_time_s: Some(1),
        queryable: true,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "5").build().await;
    let mut payers = Vec::new();
    for _ in 0..PAYERS {
        payers.push(world.payer().await);
    }
    let shared = Arc::new(Shared {
        caller: world.facilitator.clone(),
        payers,
        ends: Instant::now() + Duration::from_secs(seconds()),
        paid: Mutex::default(),
        duplicates: AtomicUsize::new(0),
        invalid: AtomicUsize::new(0),
        drained: AtomicUsize::new(0),
        faults: AtomicUsize::new(0),
    });
    let mut visitors = JoinSet::new();
    for _ in 0..BUYERS {
        visitors.spawn(buy(Arc::clone(&shared)));
    }
    visitors.spawn(send_invalid_requests(Arc::clone(&shared)));
    let memory = tokio::select! {
        memory = watch_memory(&world, &shared) => memory,
        () = spend_promised_funds(&world, &shared) => unreachable!("it goes on"),
        () = inject_faults(&world.proxy, &shared) => unreachable!("it goes on"),
    };
    clear_faults(&world.proxy);
    visitors.join_all().await;
    assert_sums(&world, &shared).await;
    let third = memory.len() / 3;
    let (settled_down, at_the_end) = (memory[third], *memory.last().unwrap());
    let paid = shared.paid.lock().unwrap().len();
    println!(
        "{} s: {paid} paid, {} duplicates, {} invalid requests, {} drained payers, {} faults; memory {} KiB after a third, {} at most, {at_the_end} at the end",
        seconds(),
        shared.duplicates.load(Ordering::Relaxed),
        shared.invalid.load(Ordering::Relaxed),
        shared.drained.load(Ordering::Relaxed),
        shared.faults.load(Ordering::Relaxed),
        settled_down,
        memory.iter().max().unwrap(),
    );
    assert!(at_the_end < settled_down + GROWTH_KIB, "{memory:?}");
    assert!(paid > 100, "{paid}");
}

/// Buys repeatedly; each payment is presented until its answer is final, every fourth by two callers at once.
async fn buy(shared: Arc<Shared>) {
    while Instant::now() < shared.ends {
        let amount = 1 + u64::try_from(random(250)).unwrap();
        let purchase = Purchase::new(&shared.payers[random(PAYERS)], PAYEE, amount);
        let body = purchase.body();
        let copies = if random(4) == 0 { 2 } else { 1 };
        loop {
            let mut asking = JoinSet::new();
            for _ in 0..copies {
                let (caller, body) = (shared.caller.clone(), body.clone());
                asking.spawn(async move { caller.try_settle(&body).await });
            }
            let answers = asking.join_all().await;
            let answers: Vec<Answer> = answers.into_iter().flatten().collect();
            let copied = answers
                .iter()
                .filter(|answer| answer.reason() == "duplicate_settlement");
            shared
                .duplicates
                .fetch_add(copied.count(), Ordering::Relaxed);
            let told =
                |answer: &&Answer| answer.succeeded() || answer.reason() == "duplicate_settlement";
            if let Some(told) = answers.iter().find(told) {
                let told = (told.transaction(), amount);
                shared
                    .paid
                    .lock()
                    .unwrap()
                    .insert(purchase.authorization.nonce, told);
                break;
            }
            // An outage or still pending: a valid payment is never refused for good.
            for answer in answers {
                let open = ["settlement_pending", "unexpected_settle_error"];
                assert!(open.contains(&answer.reason()), "{answer:?}");
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn send_invalid_requests(shared: Arc<Shared>) {
    let mut pace = interval(Duration::from_millis(20));
    let unfunded = new_account();
    while Instant::now() < shared.ends {
        pace.tick().await;
        let purchase = Purchase::new(&shared.payers[random(PAYERS)], PAYEE, 7);
        let mut body = purchase.body();
        let text = match random(5) {
            0 => "[".repeat(5_000),
            1 => {
                body["paymentRequirements"]["amount"] = json!("-1");
                body.to_string()
            }
            2 => Purchase::new(&unfunded, PAYEE, 7).body().to_string(),
            3 => {
                let mut signature = purchase.clone().v1().own_signature().to_string();
                let digit = if signature[2..].starts_with('0') {
                    "1"
                } else {
                    "0"
                };
                signature.replace_range(2..3, digit);
                body["paymentPayload"]["payload"]["signature"] = json!(signature);
                body.to_string()
            }
            _ => {
                body["paymentRequirements"]["network"] = json!("eip155:1");
                body.to_string()
            }
        };
        let path = if random(2) == 0 { "/verify" } else { "/settle" };
        let answer = shared.caller.post_text(path, text).await;
        assert!(!answer.succeeded() && !answer.is_valid(), "{answer:?}");
        shared.invalid.fetch_add(1, Ordering::Relaxed);
    }
}

/// Payers promise three times their balance, and spend it elsewhere.
async fn spend_promised_funds(world: &World, shared: &Shared) {
    loop {
        let payer = new_account();
        world.chain.fund(payer.address(), SMALL_BALANCE).await;
        let payments =
            (0..3).map(|_| Purchase::new(&payer, OTHER_ACCOUNT, SMALL_BALANCE * 2 / 3).body());
        let all = Purchase::new(&payer, OTHER_ACCOUNT, SMALL_BALANCE);
        let (answers, ()) = tokio::join!(
            world.facilitator.settle_all(payments.collect()),
            world.chain.submit(&all)
        );
        let good = answers.iter().filter(|answer| answer.succeeded()).count();
        assert!(good <= 1, "{answers:?}");
        shared.drained.fetch_add(1, Ordering::Relaxed);
    }
}

const METHODS: [&str; 5] = [
    "eth_sendRawTransaction",
    "eth_call",
    "eth_getBlockReceipts",
    "eth_getBlockByNumber",
    "eth_getTransactionReceipt",
];

/// One second of faults in every three.
async fn inject_faults(proxy: &Proxy, shared: &Shared) {
    let faults = [
        Fault::Unavailable,
        Fault::AnswerLost,
        Fault::RequestLost,
        Fault::NotJson,
        Fault::Slow(300),
        Fault::Error("internal error"),
        Fault::Error("txpool is full"),
    ];
    let mut pace = interval(Duration::from_secs(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        proxy.on(METHODS[random(METHODS.len())], faults[random(faults.len())]);
        shared.faults.fetch_add(1, Ordering::Relaxed);
        pace.tick().await;
        clear_faults(proxy);
        pace.tick().await;
    }
}

fn clear_faults(proxy: &Proxy) {
    for method in METHODS {
        proxy.on(method, Fault::None);
    }
}

/// Resident memory in KiB, once a second until the end.
async fn watch_memory(world: &World, shared: &Shared) -> Vec<u64> {
    let mut pace = interval(Duration::from_secs(1));
    let mut memory = Vec::new();
    while Instant::now() < shared.ends {
        pace.tick().await;
        memory.push(world.facilitator.resident_kib());
    }
    memory
}

async fn assert_sums(world: &World, shared: &Shared) {
    let mut ledger = world.database.connection().await;
    let open = "select (select count(*) from payments where state in ('queued', 'inflight', 'mined') or quarantined_at is not null)
        + (select count(*) from transactions where state <> 'mined') + (select count(*) from payer_accounts where held <> 0)";
    eventually("nothing to be open", Duration::from_mins(1), async || {
        let open: i64 = sqlx::query_scalar(open)
            .fetch_one(&mut ledger)
            .await
            .unwrap();
        (open == 0).then_some(())
    })
    .await;
    let mut on_chain: HashMap<String, u64> = HashMap::new();
    for transfer in world.chain.transfers_to(TEST_USDC, PAYEE).await {
        let amount: U256 = transfer["data"].as_str().unwrap().parse().unwrap();
        let hash = transfer["transactionHash"].as_str().unwrap().to_owned();
        *on_chain.entry(hash).or_default() += amount.to::<u64>();
    }
    let mut told: HashMap<String, u64> = HashMap::new();
    for (hash, amount) in shared.paid.lock().unwrap().values() {
        *told.entry(hash.clone()).or_default() += amount;
    }
    assert_eq!(told, on_chain, "the successes of callers, by transaction");
    let rows = sqlx::query(
        "select '0x' || encode(transaction_hash, 'hex'), sum(amount)::bigint from payments
        where payee = $1 and state in ('settled', 'final', 'late_settled') group by transaction_hash",
    )
    .bind(PAYEE.as_slice())
    .fetch_all(&mut ledger)
    .await
    .unwrap();
    let recorded = rows.iter().map(|row| {
        let amount = u64::try_from(row.get::<i64, _>(1)).unwrap();
        (row.get::<String, _>(0), amount)
    });
    assert_eq!(recorded.collect::<HashMap<_, _>>(), on_chain, "the ledger");
    let sum: u64 = on_chain.values().sum();
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(sum));
    for signer in Chain::signers(SIGNERS) {
        let mined = world.chain.transaction_count(signer.address).await;
        assert_eq!(
            mined,
            world.chain.pending_count(signer.address).await,
            "no gap"
        );
    }
}
