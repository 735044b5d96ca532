//! Faults that break other facilitators (figures in `benches/README.md`), with blocks of two seconds and sixteen concurrent callers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Caller, Chain, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xfa);
const SEND: &str = "eth_sendRawTransaction";
const CALLERS: usize = 16;
const BLOCK_S: u64 = 2;
/// Duration of the node's fault.
const FAULT_DURATION: Duration = Duration::from_millis(2_200);

async fn world() -> World {
    let setup = Setup {
        block_time_s: Some(BLOCK_S),
        ..Setup::default()
    };
    setup.build().await
}

/// Number of failures at the operator's cost: reverted transactions and payments without a transfer.
async fn failures_at_our_cost(world: &World) -> usize {
    let mut wasted = 0;
    let newest = world.chain.call("eth_blockNumber", json!([])).await;
    let newest: U256 = serde_json::from_value(newest).unwrap();
    let signer = Chain::signers(1)[0].address.to_string().to_lowercase();
    for number in 0..=newest.to::<u64>() {
        let block = json!([format!("0x{number:x}")]);
        let receipts = world.chain.call("eth_getBlockReceipts", block).await;
        let ours = receipts.as_array().unwrap().iter();
        let ours = ours.filter(|receipt| receipt["from"] == signer.as_str());
        wasted += ours.filter(|receipt| receipt["status"] != "0x1").count();
    }
    wasted
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_after_kill_with_sixteen_pending_get_their_hash() {
    let mut world = world().await;
    let payer = world.payer().await;
    let bodies: Vec<Value> = (0..CALLERS)
        .map(|_| Purchase::new(&payer, PAYEE, 160).body())
        .collect();
    world.chain.automine(false).await;
    let mut pending: Vec<_> = bodies
        .iter()
        .map(|body| world.facilitator.spawn_settle(body))
        .collect();
    eventually("all to be sent", Duration::from_secs(20), async || {
        let inflight = world.facilitator.get("/payments?state=inflight").await.body;
        (inflight["payments"].as_array().unwrap().len() == CALLERS).then_some(())
    })
    .await;
    world.facilitator.kill();
    for pending in &mut pending {
        assert!(pending.join_next().await.unwrap().unwrap().is_err());
    }
    world.facilitator.restart(None).await;
    let answers = world.facilitator.settle_all(bodies).await;
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    for answer in answers {
        assert!(answer.succeeded(), "{answer:?}");
        let hash = answer.transaction();
        assert!(
            transfers
                .iter()
                .any(|log| log["transactionHash"] == hash.as_str())
        );
    }
    assert_eq!(transfers.len(), CALLERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_cost_no_gas_and_get_the_first_transaction() {
    let world = world().await;
    let payer = world.payer().await;
    let bodies: Vec<Value> = (0..24)
        .map(|number| Purchase::new(&payer, PAYEE, 240 + number).body())
        .collect();
    let twice = [bodies.clone(), bodies.clone()].concat();
    let answers = world.facilitator.settle_all(twice).await;
    let mut hashes: HashMap<String, Vec<String>> = HashMap::new();
    for answer in &answers {
        assert!(
            answer.succeeded() || answer.reason() == "duplicate_settlement",
            "{answer:?}"
        );
        let amount = answer.body["amount"].as_str().unwrap().to_owned();
        hashes.entry(amount).or_default().push(answer.transaction());
    }
    let successes = answers.iter().filter(|answer| answer.succeeded());
    assert_eq!(successes.count(), 24);
    for again in world.facilitator.settle_all(bodies).await {
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
        let told = &hashes[again.body["amount"].as_str().unwrap()];
        assert!(
            told.iter().all(|hash| *hash == again.transaction()),
            "{told:?}"
        );
    }
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 24);
    assert_eq!(failures_at_our_cost(&world).await, 0);
}

/// Callers in a closed loop that never retry, while the node fails for a while.
struct ClosedLoop {
    world: World,
    took: Arc<AtomicU64>,
    answers: Vec<Answer>,
    /// Blocks without payments between the first and the last block with payments.
    empty_blocks: u64,
}

impl ClosedLoop {
    async fn run_under(fault: Fault) -> Self {
        let world = world().await;
        let payer = world.payer().await;
        let over = Arc::new(AtomicBool::new(false));
        let took = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let caller = (*world.facilitator).clone();
            callers.spawn(buy(
                caller,
                payer.clone(),
                Arc::clone(&over),
                Arc::clone(&took),
            ));
        }
        let rounds = async |rounds: usize| {
            let wanted = usize::try_from(took.load(Ordering::Relaxed)).unwrap() + rounds * CALLERS;
            eventually("some rounds", Duration::from_secs(40), async || {
                let done = usize::try_from(took.load(Ordering::Relaxed)).unwrap();
                (done >= wanted).then_some(())
            })
            .await;
        };
        rounds(2).await;
        world.proxy.on(SEND, fault);
        let until = Instant::now() + FAULT_DURATION;
        eventually("the fault to end", FAULT_DURATION * 2, async || {
            (Instant::now() >= until).then_some(())
        })
        .await;
        world.proxy.on(SEND, Fault::None);
        rounds(3).await;
        over.store(true, Ordering::Relaxed);
        let answers = callers.join_all().await.into_iter().flatten().collect();
        let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
        let block = |log: &Value| -> u64 {
            let number: U256 = serde_json::from_value(log["blockNumber"].clone()).unwrap();
            number.to()
        };
        let blocks: HashSet<u64> = transfers.iter().map(block).collect();
        let span = blocks.iter().max().unwrap() - blocks.iter().min().unwrap() + 1;
        Self {
            empty_blocks: span - u64::try_from(blocks.len()).unwrap(),
            world,
            took,
            answers,
        }
    }

    /// Every caller received success at the first request, and no other transfer happened.
    async fn assert_all_told_success(&self) {
        assert!(
            self.answers.iter().all(Answer::succeeded),
            "{:?}",
            self.answers
        );
        let transfers = self.world.chain.transfers_to(TEST_USDC, PAYEE).await;
        assert_eq!(transfers.len(), self.answers.len());
        assert_eq!(
            self.took.load(Ordering::Relaxed),
            u64::try_from(transfers.len()).unwrap()
        );
        let signer = Chain::signers(1)[0].address;
        let mined = self.world.chain.transaction_count(signer).await;
        assert_eq!(
            mined,
            self.world.chain.pending_count(signer).await,
            "no gap"
        );
        assert_eq!(failures_at_our_cost(&self.world).await, 0);
    }
}

async fn buy(
    caller: Caller,
    payer: PrivateKeySigner,
    over: Arc<AtomicBool>,
    took: Arc<AtomicU64>,
) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let body = Purchase::new(&payer, PAYEE, 16).body();
        answers.push(caller.settle(&body).await);
        took.fetch_add(1, Ordering::Relaxed);
    }
    answers
}

/// The fault lasts longer than a block, so one empty block is unavoidable. At most one more is needed to notice the end of it.
#[tokio::test(flavor = "multi_thread")]
async fn two_seconds_of_503_cost_at_most_one_block() {
    let run = ClosedLoop::run_under(Fault::Unavailable).await;
    run.assert_all_told_success().await;
    println!("empty blocks: {}", run.empty_blocks);
    assert!(run.empty_blocks <= 2, "{} blocks", run.empty_blocks);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_send_answers_leave_no_unreported_settlement() {
    let run = ClosedLoop::run_under(Fault::AnswerLost).await;
    run.assert_all_told_success().await;
    assert_eq!(run.empty_blocks, 0, "the node received everything");
}
