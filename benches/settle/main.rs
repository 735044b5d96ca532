//! Settlement end to end: callers in a closed loop, real Postgres and a local chain with timed blocks. Every answer is compared with
//! the chain.
//!
//!     DATABASE_URL=postgres://…/postgres cargo bench --bench settle [-- [verify] [watched] callers… [+latency]]
//!
//! `+100` runs only with 100 ms between x402d and the chain. Each line is one run: that many callers, each with one request at a time,
//! for eight blocks of two seconds. With `verify` the callers verify the payments, again and again, and nothing is settled. With
//! `watched` the metrics are read once a second, and a webhook is told of every event. The generator, x402d, Postgres and the chain share
//! the machine.
#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a benchmark may panic like a test"
)]

#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, Bytes, U256};
use alloy::sol;
use alloy::sol_types::SolCall;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use serde_json::{Value, json};
use support::{Chain, Fault, Purchase, Setup, World};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use x402d::embedded::{LocalChain, TEST_USDC};

sol! {
    function mint(address to, uint256 amount) external;
}

const PAYEE: Address = Address::repeat_byte(0xbe);
const BLOCK_S: u64 = 2;
const BLOCKS: u64 = 8;
/// Number of lanes; a node keeps about 16 pending transactions of one sender.
const SIGNERS: usize = 4;
/// Maximum number of payers.
const PAYERS: usize = 1_000;

/// What the callers ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Verify,
    Settle,
}

impl Call {
    /// The path, and the member of the answer that says whether it is good.
    const fn path_and_member(self) -> (&'static str, &'static str) {
        match self {
            Self::Verify => ("verify", "isValid"),
            Self::Settle => ("settle", "success"),
        }
    }
}

/// Result of one run.
struct Run {
    /// Good answers.
    good: usize,
    failed: usize,
    /// Milliseconds, sorted.
    latencies: Vec<u128>,
    took: Duration,
    gas: u64,
    transfers: usize,
    calls: usize,
    resident_kib: u64,
}

#[tokio::main]
async fn main() {
    let (latencies, asked): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|text| text.starts_with('+'));
    let asked: Vec<usize> = asked.iter().filter_map(|text| text.parse().ok()).collect();
    let call = if std::env::args().any(|text| text == "verify") {
        Call::Verify
    } else {
        Call::Settle
    };
    let watched = std::env::args().any(|text| text == "watched");
    let latencies: Vec<u64> = latencies
        .iter()
        .filter_map(|text| text.trim_start_matches('+').parse().ok())
        .collect();
    let latencies = if latencies.is_empty() {
        vec![0, 100]
    } else {
        latencies
    };
    let callers = if asked.is_empty() {
        vec![1, 16, 64, 512, 4096]
    } else {
        asked
    };
    let good = match call {
        Call::Verify => "verified/s",
        Call::Settle => " settled/s",
    };
    println!("callers  rpc ms {good}  failed    p50 ms    p99 ms  gas each  calls each  MiB");
    for latency_ms in latencies {
        for callers in &callers {
            let run = measure((call, watched), *callers, latency_ms).await;
            report(call, *callers, latency_ms, &run);
        }
    }
}

fn report(call: Call, callers: usize, latency_ms: u64, run: &Run) {
    let at = |percent: usize| {
        let index =
            (run.latencies.len() * percent / 100).min(run.latencies.len().saturating_sub(1));
        run.latencies.get(index).copied().unwrap_or_default()
    };
    let each = |count: u64| count.checked_div(run.good as u64).unwrap_or_default();
    println!(
        "{callers:>7} {latency_ms:>7} {:>10} {:>7} {:>9} {:>9} {:>9} {:>11} {:>4}",
        run.good as u128 * 1_000 / run.took.as_millis().max(1),
        run.failed,
        at(50),
        at(99),
        each(run.gas),
        format!(
            "{}.{:03}",
            each(run.calls as u64),
            each(run.calls as u64 * 1_000) % 1_000
        ),
        run.resident_kib / 1024,
    );
    let settled = if call == Call::Settle { run.good } else { 0 };
    assert_eq!(
        run.transfers, settled,
        "every success is one transfer, and there are no others"
    );
}

async fn measure((call, watched): (Call, bool), callers: usize, latency_ms: u64) -> Run {
    let setup = Setup {
        signers: SIGNERS,
        block_time_s: Some(BLOCK_S),
        ..Setup::default()
    };
    let world = setup.build().await;
    let bodies = signed(&world, callers).await;
    let mut watching = JoinSet::new();
    if watched {
        watch(&world, &mut watching).await;
    }
    if latency_ms > 0 {
        world.proxy.all(Fault::Slow(latency_ms));
    }
    let (first, calls) = (height(&world.chain).await, world.proxy.all_calls());
    let http = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(callers);
    let http = http.timeout(Duration::from_mins(1)).build().unwrap();
    let (next, bodies) = (Arc::new(AtomicUsize::new(0)), Arc::new(bodies));
    let url = format!("{}/{}", world.facilitator.url(), call.path_and_member().0);
    let began = Instant::now();
    let end = began + Duration::from_secs(BLOCK_S * BLOCKS);
    let mut running = JoinSet::new();
    for _ in 0..callers {
        let (http, url, next, bodies) = (
            http.clone(),
            url.clone(),
            Arc::clone(&next),
            Arc::clone(&bodies),
        );
        running.spawn(async move {
            let mut answers = Vec::new();
            while Instant::now() < end {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if call == Call::Settle && number >= bodies.len() {
                    break;
                }
                let body = &bodies[number % bodies.len()];
                let asked = Instant::now();
                let request = http.post(&url).header("content-type", "application/json");
                let answer: Value = match request.body(body.clone()).send().await {
                    Ok(answer) => answer.json().await.unwrap_or_default(),
                    Err(_) => Value::Null,
                };
                answers.push((asked.elapsed().as_millis(), answer));
            }
            answers
        });
    }
    let answers: Vec<_> = running.join_all().await.into_iter().flatten().collect();
    let took = began.elapsed();
    let run = Audited {
        call,
        first,
        calls,
        took,
    };
    audit(&world, &answers, run).await
}

/// Reads the metrics once a second, and takes the events of a webhook.
async fn watch(world: &World, watching: &mut JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let receiver = format!("http://{}/", listener.local_addr().unwrap());
    let take = Router::new().route("/", post(async || StatusCode::NO_CONTENT));
    watching.spawn(async move { axum::serve(listener, take).await.unwrap() });
    let add = ["webhooks", "add", &receiver, "--events", "payment.*"];
    world.command(&[&add[..], &["--insecure-http", "--allow-private"]].concat());
    let metrics = format!("{}/metrics", world.facilitator.url());
    watching.spawn(async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let answer = reqwest::get(&metrics).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
        }
    });
}

/// Kind, start and duration of a run.
struct Audited {
    call: Call,
    first: u64,
    calls: usize,
    took: Duration,
}

async fn audit(world: &World, answers: &[(u128, Value)], run: Audited) -> Run {
    let calls = world.proxy.all_calls() - run.calls;
    let (_, member) = run.call.path_and_member();
    let (good, bad): (Vec<_>, Vec<_>) = answers
        .iter()
        .partition(|(_, answer)| answer[member] == true);
    for (_, answer) in bad.iter().take(3) {
        eprintln!("failed: {answer}");
    }
    let told: HashSet<_> = good
        .iter()
        .filter_map(|(_, answer)| answer.get("transaction").cloned())
        .collect();
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    let moved: HashSet<_> = transfers
        .iter()
        .map(|log| log["transactionHash"].clone())
        .collect();
    assert!(told.is_subset(&moved), "every hash is on the chain");
    let mut latencies: Vec<_> = good.iter().map(|(latency, _)| *latency).collect();
    latencies.sort_unstable();
    let mut gas = 0;
    for number in run.first + 1..=height(&world.chain).await {
        let receipts = world
            .chain
            .call("eth_getBlockReceipts", json!([format!("0x{number:x}")]))
            .await;
        for receipt in receipts.as_array().into_iter().flatten() {
            let used: U256 = serde_json::from_value(receipt["gasUsed"].clone()).unwrap();
            gas += used.to::<u64>();
        }
    }
    Run {
        good: good.len(),
        failed: bad.len(),
        latencies,
        took: run.took,
        gas,
        transfers: transfers.len(),
        calls,
        resident_kib: world.facilitator.resident_kib(),
    }
}

async fn height(chain: &Chain) -> u64 {
    let height: U256 =
        serde_json::from_value(chain.call("eth_blockNumber", json!([])).await).unwrap();
    height.to()
}

/// Signs as many payments as the run can use, before the clock starts.
async fn signed(world: &World, callers: usize) -> Vec<String> {
    let payers: Vec<_> = (0..PAYERS.min(callers.max(2)))
        .map(|_| support::new_account())
        .collect();
    let (last, others) = payers.split_last().unwrap();
    for payer in others {
        // Not waited for: they share a block with the last payer's.
        let (to, amount) = (payer.address(), U256::from(100_000_000));
        let data = Bytes::from(mintCall { to, amount }.abi_encode());
        let from = LocalChain::funded_keys()[0].address;
        let transaction = json!([{"from": from, "to": TEST_USDC, "data": data}]);
        world.chain.call("eth_sendTransaction", transaction).await;
    }
    world.chain.fund(last.address(), 100_000_000).await;
    let wanted = (callers * usize::try_from(BLOCKS).unwrap() * 2).clamp(64, 60_000);
    let cores: Vec<_> = (0..2)
        .map(|core| {
            let payers = payers.clone();
            tokio::task::spawn_blocking(move || -> Vec<String> {
                let numbers = (0..wanted).filter(|number| number % 2 == core);
                let body = |number: usize| {
                    let payer = &payers[number % payers.len()];
                    Purchase::new(payer, PAYEE, 100).body().to_string()
                };
                numbers.map(body).collect()
            })
        })
        .collect();
    let mut bodies = Vec::new();
    for core in cores {
        bodies.extend(core.await.unwrap());
    }
    bodies
}
