//! Behaviour of real RPC providers: rate limits, lag, inconsistent pools, missing abilities.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Chain, Fault, Proxy, Purchase, Setup, World, eventually, run};

const PAYEE: Address = Address::repeat_byte(0x4e);
const SEND: &str = "eth_sendRawTransaction";
const LOGS: &str = "eth_getLogs";
const CALL: &str = "eth_call";
const CALLERS: usize = 16;

async fn world(block_time_s: Option<u64>) -> World {
    let setup = Setup {
        block_time_s,
        ..Setup::default()
    };
    setup.shortened().build().await
}

/// Presents payments to `path`, sixteen at a time, and returns every answer.
async fn present(world: &World, path: &'static str, bodies: Vec<Value>) -> Vec<Answer> {
    let (bodies, next) = (Arc::new(bodies), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (caller, bodies, next) = (
            (*world.facilitator).clone(),
            Arc::clone(&bodies),
            Arc::clone(&next),
        );
        callers.spawn(async move {
            let mut answers = Vec::new();
            while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                answers.push(caller.post(path, body).await.unwrap());
            }
            answers
        });
    }
    callers.join_all().await.into_iter().flatten().collect()
}

fn bodies(payers: &[PrivateKeySigner], count: usize) -> Vec<Value> {
    let payers = payers.iter().cycle().take(count);
    payers
        .map(|payer| Purchase::new(payer, PAYEE, 1).body())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_failing_one_call_in_five_costs_nothing() {
    let world = world(Some(1)).await;
    assert_failures_cost_nothing(&world, &[&world.proxy]).await;
}

/// Conclusions need two endpoints that agree, and each fails as many calls.
#[tokio::test(flavor = "multi_thread")]
async fn two_providers_failing_one_call_in_five_cost_nothing() {
    let chain = Chain::with_block_time(Some(1)).await;
    let (first, second) = (
        Proxy::before(chain.url()).await,
        Proxy::before(chain.url()).await,
    );
    let setup = Setup {
        toml: "[networks.base-sepolia]\nconfirm_with = 2\n".to_owned(),
        ..Setup::default()
    };
    let urls = format!("{},{}", first.url(), second.url());
    let world = setup.with("X402D_RPC_URL", urls).on(chain).await;
    assert_failures_cost_nothing(&world, &[&first, &second]).await;
}

async fn assert_failures_cost_nothing(world: &World, proxies: &[&Proxy]) {
    let mut payers = Vec::new();
    for _ in 0..4 {
        payers.push(world.payer().await);
    }
    let all_meet = |fault| proxies.iter().for_each(|proxy| proxy.all(fault));
    all_meet(Fault::Flaky);
    for answer in present(world, "/verify", bodies(&payers, 300)).await {
        assert!(answer.status == 200 && answer.is_valid(), "{answer:?}");
    }
    for answer in present(world, "/settle", bodies(&payers, 200)).await {
        assert!(answer.status == 200 && answer.succeeded(), "{answer:?}");
    }
    // Payments that another account has submitted are looked up on the chain.
    for payer in &payers {
        let used = Purchase::new(payer, PAYEE, 1);
        world.chain.submit(&used).await;
        for path in ["/verify", "/settle"] {
            let answers = present(world, path, vec![used.body(); 5]).await;
            for answer in answers {
                let code = "invalid_exact_evm_nonce_already_used";
                assert_eq!((answer.status, answer.reason()), (200, code), "{answer:?}");
            }
        }
    }
    all_meet(Fault::None);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(204));
    let before = world.transactions(1).await;
    let at_once = bodies(&payers, 100);
    for answer in world.facilitator.settle_all(at_once).await {
        assert!(answer.succeeded(), "{answer:?}");
    }
    let transactions = world.transactions(1).await - before;
    assert!(
        transactions <= 10,
        "100 payments took {transactions} transactions"
    );
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 304);
}

fn run_check(url: &str) -> std::process::Output {
    let keys = Chain::signers(1)[0].key;
    let variables = [
        ("X402D_NETWORK", "base-sepolia"),
        ("X402D_RPC_URL", url),
        ("X402D_SIGNER_KEYS", keys),
    ];
    run(&["networks", "--check"], &variables, "")
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_without_state_overrides_is_used_for_the_rest() {
    for fault in [Fault::OverridesRefused, Fault::OverridesIgnored] {
        let chain = Chain::start().await;
        let lacking = Proxy::before(chain.url()).await;
        lacking.on(CALL, fault);
        let alone = lacking.url();
        let output = tokio::task::spawn_blocking(move || run_check(&alone));
        let output = output.await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("state overrides"), "{said}");

        let good = Proxy::before(chain.url()).await;
        let urls = format!("{},{}", lacking.url(), good.url());
        let both = urls.clone();
        let output = tokio::task::spawn_blocking(move || run_check(&both));
        let output = output.await.unwrap();
        assert!(output.status.success(), "{output:?}");

        let setup = Setup::default().with("X402D_RPC_URL", urls);
        let world = setup.on(chain).await;
        let log = world.facilitator.log();
        assert!(log.contains("endpoint without state overrides"), "{log}");
        let payer = world.payer().await;
        for amount in 1..4 {
            let body = Purchase::new(&payer, PAYEE, amount).body();
            let verdict = world.facilitator.verify(&body).await;
            assert!(verdict.is_valid(), "{fault:?}: {verdict:?}");
            assert!(world.facilitator.settle(&body).await.succeeded());
        }
        // It is used for the remaining calls, and for all of them once it supports overrides.
        good.all(Fault::Unavailable);
        lacking.on(CALL, Fault::None);
        eventually(
            "a verify by the other",
            Duration::from_mins(1),
            async || {
                let body = Purchase::new(&payer, PAYEE, 9).body();
                world
                    .facilitator
                    .verify(&body)
                    .await
                    .is_valid()
                    .then_some(())
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_losing_state_overrides_is_skipped() {
    let chain = Chain::start().await;
    let (first, second) = (
        Proxy::before(chain.url()).await,
        Proxy::before(chain.url()).await,
    );
    let urls = format!("{},{}", first.url(), second.url());
    // Less than simulated calls offer for their gas: an endpoint that ignores the override of the balance refuses them for that.
    let balance = json!([Chain::signers(1)[0].address, "0xde0b6b3a7640000"]);
    chain.call("anvil_setBalance", balance).await;
    let world = Setup::default().with("X402D_RPC_URL", urls).on(chain).await;
    let payer = world.payer().await;
    let faults = [Fault::OverridesIgnored, Fault::OverridesRefused];
    // Each endpoint in turn, because only one of them is asked first.
    for (fault, lacking) in faults
        .into_iter()
        .flat_map(|fault| [(fault, &first), (fault, &second)])
    {
        lacking.on(CALL, fault);
        for _ in 0..3 {
            let body = Purchase::new(&payer, PAYEE, 3).body();
            // Both endpoints may be slow on a busy machine.
            let verdict = eventually("a verdict", Duration::from_secs(20), async || {
                let verdict = world.facilitator.verify(&body).await;
                (verdict.status != 503).then_some(verdict)
            })
            .await;
            assert!(verdict.is_valid(), "{verdict:?}");
            assert!(world.facilitator.settle(&body).await.succeeded());
        }
        lacking.on(CALL, Fault::None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn log_queries_of_five_blocks_suffice() {
    let world = world(None).await;
    let payer = world.payer().await;
    world.proxy.on(LOGS, Fault::LogRangeLimit(5));
    // Used by a foreign transaction a while ago.
    let used = Purchase::new(&payer, PAYEE, 1);
    world.chain.submit(&used).await;
    world.chain.mine(300).await;
    let verdict = world.facilitator.verify(&used.body()).await;
    let code = "invalid_exact_evm_nonce_already_used";
    assert_eq!(
        (verdict.status, verdict.reason()),
        (200, code),
        "{verdict:?}"
    );
    let settled = world.facilitator.settle(&used.body()).await;
    assert_eq!(
        (settled.status, settled.reason()),
        (200, code),
        "{settled:?}"
    );

    // Submitted by another account while ours was in flight, and many blocks old when it is looked up.
    let raced = Purchase::new(&payer, PAYEE, 2);
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&raced.body());
    world.proxy.called(SEND, sends).await;
    world.chain.submit(&raced).await;
    world.chain.mine(400).await;
    world.proxy.on(SEND, Fault::None);
    drop(waiting.join_next().await.unwrap());
    assert_settled(&world, &raced, Duration::from_secs(40)).await;
}

async fn assert_settled(world: &World, purchase: &Purchase, limit: Duration) {
    let body = purchase.body();
    let answer = eventually("an outcome", limit, async || {
        let answer = world.facilitator.settle(&body).await;
        (answer.status == 200 && answer.reason() != "settlement_pending").then_some(answer)
    })
    .await;
    assert!(
        answer.succeeded() || answer.reason() == "duplicate_settlement",
        "{answer:?}"
    );
}

/// Fast chain; one node keeps the state of a few blocks, the other all of it: both find a transfer of minutes ago.
#[tokio::test(flavor = "multi_thread")]
async fn lookback_counts_time_not_blocks() {
    let world = world(None).await;
    let payer = world.payer().await;
    for (fault, blocks) in [(Fault::None, 3_300), (Fault::PrunedState(100), 3_300)] {
        world.proxy.on(CALL, fault);
        let raced = Purchase::new(&payer, PAYEE, 2);
        world.proxy.on(SEND, Fault::Hold);
        let sends = world.proxy.calls(SEND);
        let mut waiting = world.facilitator.spawn_settle(&raced.body());
        world.proxy.called(SEND, sends).await;
        world.chain.submit(&raced).await;
        world.chain.mine(blocks).await;
        world.proxy.on(LOGS, Fault::LogRangeLimit(1_000));
        world.proxy.on(SEND, Fault::None);
        drop(waiting.join_next().await.unwrap());
        assert_settled(&world, &raced, Duration::from_secs(40)).await;
    }
}

/// The node keeps no old state and allows one block per log query: older events are not found, and nothing is concluded from that.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_log_search_decides_nothing() {
    let world = world(None).await;
    let payer = world.payer().await;
    let raced = Purchase::new(&payer, PAYEE, 2);
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&raced.body());
    world.proxy.called(SEND, sends).await;
    world.chain.submit(&raced).await;
    world.chain.mine(400).await;
    world.proxy.on(LOGS, Fault::LogRangeLimit(1));
    world.proxy.on(CALL, Fault::PrunedState(10));
    world.proxy.on(SEND, Fault::None);
    drop(waiting.join_next().await.unwrap());
    // As many lookups as take longer than the wait for a contradiction.
    let asked = world.proxy.calls(LOGS);
    eventually("unsuccessful lookups", Duration::from_mins(2), async || {
        (world.proxy.calls(LOGS) > asked + 1_200).then_some(())
    })
    .await;
    world.proxy.all(Fault::None);
    for method in [LOGS, CALL] {
        world.proxy.on(method, Fault::None);
    }
    assert_settled(&world, &raced, Duration::from_secs(40)).await;
}

/// What used ten nonces is unknown: that affects ten payments and no other.
#[tokio::test(flavor = "multi_thread")]
async fn undecidable_payments_block_no_other() {
    let setup = Setup {
        block_time_s: Some(1),
        ..Setup::default()
    };
    let world = setup
        .with("X402D_SETTLE_WAIT", "4")
        .shortened()
        .build()
        .await;
    let payer = world.payer().await;
    let stolen: Vec<_> = (1..=10)
        .map(|amount| Purchase::new(&payer, PAYEE, amount))
        .collect();
    world.proxy.on(LOGS, Fault::Error("query limit"));
    // Accepted, and submitted by another account before they can be sent.
    world.proxy.on("eth_getBlockByNumber", Fault::Hold);
    let mut waiting: Vec<_> = stolen
        .iter()
        .map(|purchase| world.facilitator.spawn_settle(&purchase.body()))
        .collect();
    for purchase in &stolen {
        world.chain.submit(purchase).await;
    }
    world.proxy.on("eth_getBlockByNumber", Fault::None);
    let other = world.payer().await;
    for amount in [100, 200, 300] {
        let body = Purchase::new(&other, PAYEE, amount).body();
        let answer = world.facilitator.settle(&body).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    for waiting in &mut waiting {
        drop(waiting.join_next().await.unwrap());
    }
    world.proxy.on(LOGS, Fault::None);
    for purchase in &stolen {
        assert_settled(&world, purchase, Duration::from_mins(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payer_paying_each_block_is_served_behind_lagging_rpc() {
    let world = world(Some(1)).await;
    let payer = world.payer().await;
    world.chain.mine(2).await;
    world.proxy.on(CALL, Fault::Lags(1));
    let mut hashes = HashSet::new();
    for amount in 1..=6 {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        let answer = world.facilitator.settle(&body).await;
        assert!(answer.succeeded(), "payment {amount}: {answer:?}");
        hashes.insert(answer.transaction());
    }
    assert_eq!(hashes.len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn null_or_missing_rpc_members_block_nothing() {
    let world = world(None).await;
    let payer = world.payer().await;
    let (block, receipts, receipt) = (
        ["eth_getBlockByNumber", "eth_getBlockByHash"],
        "eth_getBlockReceipts",
        "eth_getTransactionReceipt",
    );
    let of_blocks = [
        Fault::Null("baseFeePerGas"),
        Fault::Without("baseFeePerGas"),
    ];
    let of_receipts = [
        Fault::Null("effectiveGasPrice"),
        Fault::Without("effectiveGasPrice"),
        Fault::Null("contractAddress"),
        Fault::Null("gasUsed"),
        Fault::Without("logsBloom"),
        Fault::Null("blockTimestamp"),
    ];
    let settles = async |fault: Fault, amount: u64| {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        let answer = world.facilitator.settle(&body).await;
        assert!(answer.succeeded(), "{fault:?}: {answer:?}");
        let of = serde_json::json!([answer.transaction()]);
        let sent = world.chain.call("eth_getTransactionByHash", of).await;
        assert_eq!(sent["type"], "0x2", "the chain has a base fee: {sent}");
    };
    for fault in of_blocks {
        for method in block {
            world.proxy.on(method, fault);
        }
        settles(fault, 1).await;
    }
    for method in block {
        world.proxy.on(method, Fault::None);
    }
    for fault in of_receipts {
        for method in [receipts, receipt] {
            world.proxy.on(method, fault);
        }
        settles(fault, 2).await;
    }
    // A receipt without logs proves nothing. The transfer has happened, and is found by other means.
    world.proxy.on(receipts, Fault::Null("logs"));
    let body = Purchase::new(&payer, PAYEE, 3).body();
    let answer = world.facilitator.settle(&body).await;
    assert!(answer.succeeded(), "{answer:?}");
}
