//! Reorgs while several processes share the ledger, or after a payment was tried more than once.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;
use x402d::ledger::Ledger;
use x402d::protocol::Network;

use crate::support::{
    Answer, Chain, Fault, Proxy, Purchase, Setup, World, eventually, has_event, mintCall,
    new_account, setModeCall,
};

const PAYEE: Address = Address::repeat_byte(0xf0);
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);
const TOKEN: Address = Address::repeat_byte(0x70);
const SEND: &str = "eth_sendRawTransaction";
const HEADS: &str = "eth_getBlockByNumber";

async fn wait_for_state(world: &World, told: &Answer, state: &str) -> Value {
    eventually(state, Duration::from_secs(40), async || {
        let row = world.facilitator.payment(told).await;
        (row["state"] == state).then_some(row)
    })
    .await
}

async fn held_amount(world: &World) -> String {
    sqlx::query_scalar("select sum(held)::text from payer_accounts")
        .fetch_one(&mut world.database.connection().await)
        .await
        .unwrap()
}

fn queryable_setup() -> Setup {
    Setup {
        queryable: true,
        ..Setup::default()
    }
}

/// Two replicas; the node of one is a block behind.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_35_block_unseen_by_another_process_is_no_reorg() {
    let world = World::new().await;
    let lagging = Proxy::before(world.chain.url()).await;
    let further = [("X402D_RPC_URL", lagging.url())];
    let mut replica = world.unstarted_replica(&further);
    replica.restart(None).await;
    let payer = world.payer().await;
    let height = world.chain.call("eth_blockNumber", json!([])).await;
    let height = U256::from_str_radix(&height.as_str().unwrap()[2..], 16).unwrap();
    lagging.all(Fault::StoppedAt(height.to()));
    let body = Purchase::new(&payer, PAYEE, 1).body();
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    // Its watch reads the head every second and compares it with the ledger every three seconds.
    let looks = lagging.calls(HEADS);
    let limit = Duration::from_secs(40);
    eventually("the replica's comparison", limit, async || {
        (lagging.calls(HEADS) > looks + 8).then_some(())
    })
    .await;
    let row = world.facilitator.payment(&told).await;
    assert!(!has_event(&row, "reorged"), "{row}");
    assert_eq!(row["state"], "settled", "{row}");
}

/// Only another process has seen the reorg: the lane's own process learns of it from the ledger.
#[tokio::test(flavor = "multi_thread")]
async fn lane_notices_transactions_reopened_by_another_process() {
    let world = queryable_setup().build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 2).body();
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    let receipt = world.chain.receipt(&told.transaction()).await;
    let block: B256 = serde_json::from_value(receipt["blockHash"].clone()).unwrap();
    let (ledger, _task) = Ledger::connect(world.database.variable().1.as_str(), 4)
        .await
        .unwrap();
    let network = Network::from_chain_id(84_532);
    let opened = ledger.roll_back(network, &[block], 0).await.unwrap();
    assert_eq!(opened.transactions, 1);
    let row = eventually("settled again", Duration::from_secs(20), async || {
        let row = world.facilitator.payment(&told).await;
        (has_event(&row, "reorged") && row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(row["transaction"], told.transaction().as_str(), "{row}");
    assert_eq!(held_amount(&world).await, "0");
}

/// A world with the odd token as its only asset, and a payment of 30 that was tried twice.
async fn world_with_payment_tried_twice(purchase_of: impl Fn() -> Setup) -> (World, Answer) {
    let chain = Chain::start().await;
    chain.place("OddToken", TOKEN).await;
    let toml = format!(
        "[[networks.base-sepolia.assets]]\naddress = \"{TOKEN}\"\nname = \"USDC\"\nversion = \"2\"\ndecimals = 6\n"
    );
    let setup = Setup {
        toml,
        ..purchase_of()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").on(chain).await;
    let payer = new_account();
    let (to, amount) = (payer.address(), U256::from(5_000));
    world.chain.send(TOKEN, mintCall { to, amount }).await;
    let purchase = Purchase::new(&payer, PAYEE, 30).in_token(TOKEN, "USDC");
    world.proxy.on(SEND, Fault::Hold);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, 0).await;
    world.chain.send(TOKEN, setModeCall { mode: 5 }).await;
    world.proxy.on(SEND, Fault::None);
    let told = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(told.succeeded(), "{told:?}");
    assert_eq!(world.transactions(1).await, 2, "one ran out of gas");
    (world, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn reorg_of_both_transactions_of_a_payment_is_rolled_back() {
    let (world, told) = world_with_payment_tried_twice(queryable_setup).await;
    world.chain.reorg(2).await;
    let row = eventually("settled again", Duration::from_secs(40), async || {
        let row = world.facilitator.payment(&told).await;
        (has_event(&row, "reorged") && row["state"] == "settled").then_some(row)
    })
    .await;
    let limit = Duration::from_secs(20);
    eventually("both nonces to be used", limit, async || {
        (world.transactions(1).await == 2).then_some(())
    })
    .await;
    assert_eq!(row["transaction"].as_str().unwrap().len(), 66);
    assert_eq!(world.chain.transfers_to(TOKEN, PAYEE).await.len(), 1);
    assert_eq!(held_amount(&world).await, "0");
    let signers = world.facilitator.get("/signers").await.body;
    assert_eq!(signers["signers"][0]["stoppedReason"], json!(null));
}

/// A transaction transferred nothing and its payment was refused. After a reorg the same bytes may still transfer.
#[tokio::test(flavor = "multi_thread")]
async fn reorg_reopens_refused_payment_without_blocking_others() {
    let setup = queryable_setup().with("X402D_SETTLE_WAIT", "6");
    let world = setup.build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 73);
    let everything = Purchase::new(&payer, OTHER_ACCOUNT, 100_000_000);
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, sends).await;
    world.chain.submit(&everything).await;
    world.proxy.on(SEND, Fault::None);
    let refused = waiting.join_next().await.unwrap().unwrap().unwrap();
    let code = "invalid_exact_evm_insufficient_balance";
    assert_eq!(refused.reason(), code, "{refused:?}");

    world.proxy.on(SEND, Fault::RequestLost);
    world.chain.reorg(1).await;
    let limit = Duration::from_secs(20);
    let row = eventually("the reorganisation", limit, async || {
        let row = world.facilitator.payment(&refused).await;
        (row["state"] == "inflight").then_some(row)
    })
    .await;
    let first = row["attempts"][0]["transaction"].clone();
    world.chain.fund(payer.address(), 1_000).await;
    let joined = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(joined.reason(), "settlement_pending", "{joined:?}");
    assert_eq!(joined.transaction(), first, "no second transaction");
    world.proxy.on(SEND, Fault::None);
    let told = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(told.transaction(), first);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(73));
    assert_eq!(held_amount(&world).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_22_cancelled_payment_fails_only_once_confirmed() {
    let setup = queryable_setup().with("X402D_CONFIRMATIONS", "3");
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let (purchase, answer) = world.settle_cancelled(PAYEE, 5).await;
    assert_eq!(answer.reason(), "settlement_pending", "{answer:?}");
    world.chain.mine(1).await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(answer.reason(), "settlement_pending", "two of three");
    world.chain.mine(1).await;
    wait_for_state(&world, &answer, "failed").await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(answer.reason(), "invalid_exact_evm_nonce_already_used");
    assert_eq!(held_amount(&world).await, "0");
}

/// The proof of a failure is orphaned, and our own bytes transfer the money long after the watch has passed that block.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_22_orphaned_failure_is_settled_late() {
    let setup = queryable_setup().with("X402D_SETTLE_WAIT", "25");
    let world = setup.build().await;
    let (purchase, failed) = world.settle_cancelled(PAYEE, 6).await;
    let code = "invalid_exact_evm_nonce_already_used";
    assert_eq!(failed.reason(), code, "{failed:?}");

    world.proxy.on(SEND, Fault::RequestLost);
    let looks = world.proxy.calls(HEADS);
    world.chain.reorg(2).await;
    let limit = Duration::from_secs(40);
    eventually("a few comparisons with the chain", limit, async || {
        (world.proxy.calls(HEADS) > looks + 60).then_some(())
    })
    .await;
    world.proxy.on(SEND, Fault::None);
    let row = wait_for_state(&world, &failed, "late_settled").await;
    assert_eq!(row["transaction"], failed.transaction(), "{row}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    let told = world.facilitator.settle(&purchase.body()).await;
    assert!(told.succeeded(), "{told:?}");
    assert_eq!(held_amount(&world).await, "0");

    // A late settlement can be orphaned like any other.
    world.chain.reorg(1).await;
    let row = eventually("settled again", Duration::from_secs(30), async || {
        let row = world.facilitator.payment(&failed).await;
        (has_event(&row, "reorged") && row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(row["transaction"], failed.transaction(), "{row}");
    assert_eq!(held_amount(&world).await, "0");
}

/// The node that serves logs is slightly behind the one that serves state.
#[tokio::test(flavor = "multi_thread")]
async fn nonce_use_without_event_is_waited_for() {
    const LOGS: &str = "eth_getLogs";
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25");
    let world = setup.build().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 7);
    world.proxy.on(LOGS, Fault::Answer("[]"));
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, sends).await;
    world.chain.submit(&purchase).await;
    world.proxy.on(SEND, Fault::None);
    world.proxy.called(LOGS, 1).await;
    world.proxy.on(LOGS, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    let row = world.facilitator.payment(&answer).await;
    assert_eq!(row["quarantine"], json!(null));
}
