//! Reorgs after a payment was seen in a block.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Chain, Fault, Purchase, Setup, World, eventually, has_event};

const PAYEE: Address = Address::repeat_byte(0x4e);

#[tokio::test(flavor = "multi_thread")]
async fn reorg_returns_payment_to_inflight_and_it_settles_again() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 900).body();
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    let before = block_hash(&world, &told).await;

    world.chain.reorg(1).await;
    let row = eventually("a second settlement", Duration::from_secs(30), async || {
        let row = world.facilitator.payment(&told).await;
        let states = states(&row);
        let again = states.ends_with(&["inflight".to_owned(), "settled".to_owned()]);
        (has_event(&row, "reorged") && again && row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(
        row["transaction"],
        told.transaction().as_str(),
        "the same bytes"
    );
    assert_ne!(block_hash(&world, &told).await, before);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(900));
    assert_eq!(world.transactions(1).await, 1);
    // The grant stays: the buyer has the resource.
    let again = world.facilitator.settle(&body).await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn success_waits_for_confirmations_across_a_reorg() {
    let setup = Setup::default().with("X402D_CONFIRMATIONS", "3");
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 901).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    assert_eq!(world.facilitator.payment(&pending).await["state"], "mined");

    world.chain.reorg(1).await;
    eventually(
        "the reorg to be seen",
        Duration::from_secs(20),
        async || {
            let row = world.facilitator.payment(&pending).await;
            (has_event(&row, "reorged") && row["state"] == "mined").then_some(())
        },
    )
    .await;
    world.chain.mine(1).await;
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(
        pending.reason(),
        "settlement_pending",
        "two of three: {pending:?}"
    );
    world.chain.mine(1).await;
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    assert_eq!(told.transaction(), pending.transaction());
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

async fn block_hash(world: &World, told: &Answer) -> Value {
    world.chain.receipt(&told.transaction()).await["blockHash"].take()
}

/// The payment's states, oldest first.
fn states(row: &Value) -> Vec<String> {
    let events = row["events"].as_array().unwrap();
    let states = events.iter().filter_map(|event| event["to"].as_str());
    states.map(str::to_owned).collect()
}

/// Success after one confirmation, then a reorg: returns the row once the payment has settled again.
async fn settled_again(world: &World, told: &Answer) -> Value {
    eventually("a second settlement", Duration::from_secs(30), async || {
        let row = world.facilitator.payment(told).await;
        (has_event(&row, "reorged") && row["state"] == "settled").then_some(row)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_16_payment_in_the_new_block_is_granted_once() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 916).body();
    let told = world.facilitator.settle(&body).await;
    let before = block_hash(&world, &told).await;
    let raw = json!([told.transaction()]);
    let raw = world.chain.call("eth_getRawTransactionByHash", raw).await;
    world.chain.reorg_with(1, &[raw]).await;
    let row = settled_again(&world, &told).await;
    assert_eq!(row["transaction"], told.transaction().as_str());
    assert_ne!(block_hash(&world, &told).await, before);
    let events = row["events"].as_array().unwrap();
    let granted = events.iter().filter(|event| event["kind"] == "granted");
    assert_eq!(granted.count(), 1, "{row}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.transactions(1).await, 1);
    assert_eq!(row["attempts"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_17_same_bytes_settle_again_after_five_block_reorg() {
    let world = World::new().await;
    let payer = world.payer().await;
    let mut told = Vec::new();
    for amount in [1, 2, 4] {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        told.push(world.facilitator.settle(&body).await);
    }
    world.chain.mine(2).await;
    world.chain.reorg(5).await;
    for told in &told {
        let row = settled_again(&world, told).await;
        assert_eq!(row["transaction"], told.transaction().as_str(), "{row}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(7));
    assert_eq!(world.transactions(1).await, 3);
}

/// In the new chain another transfer takes the payer's money first.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_18_payer_without_funds_after_reorg_is_refused() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let setup = setup.with("X402D_CONFIRMATIONS", "3");
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let payer = world.payer().await;
    let body = Purchase::new(&payer, PAYEE, 918).body();
    let everything = Purchase::new(&payer, Address::repeat_byte(0xe1), 100_000_000);
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    assert_eq!(world.facilitator.payment(&pending).await["state"], "mined");

    let spend = Chain::submission(&everything);
    world.chain.reorg_with(1, &[spend]).await;
    // The same bytes are mined again and revert. That is final after three confirmations, like a success.
    let limit = Duration::from_secs(30);
    eventually("the same bytes to revert", limit, async || {
        let row = world.facilitator.payment(&pending).await;
        (row["attempts"][0]["mined"]["succeeded"] == false).then_some(())
    })
    .await;
    for confirmations in 1..3 {
        let answer = world.facilitator.settle(&body).await;
        assert_eq!(
            answer.reason(),
            "settlement_pending",
            "{confirmations} confirmations"
        );
        assert_eq!(answer.transaction(), pending.transaction());
        world.chain.mine(1).await;
    }
    let row = eventually("a refusal", limit, async || {
        let row = world.facilitator.payment(&pending).await;
        (row["state"] == "refused").then_some(row)
    })
    .await;
    assert_eq!(
        row["reason"], "invalid_exact_evm_insufficient_balance",
        "{row}"
    );
    assert!(has_event(&row, "reorged"), "{row}");
    // It has spent the money of a payment on its way.
    let answer = world.facilitator.settle(&body).await;
    assert_eq!(answer.reason(), "payer_suspended");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    let held: String = sqlx::query_scalar("select sum(held)::text from payer_accounts")
        .fetch_one(&mut world.database.connection().await)
        .await
        .unwrap();
    assert_eq!(held, "0");
}

/// Some nodes return receipts of blocks that are only announced. This one keeps returning it although the block was never mined.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_39_receipt_of_unmined_block_is_no_success() {
    const RECEIPT: &str = "eth_getTransactionReceipt";
    const HEADS: &str = "eth_getBlockByNumber";
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "2");
    let world = setup.build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 939).body();
    world.chain.automine(false).await;
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");

    world.proxy.on(HEADS, Fault::Hold);
    let before = world.chain.call("evm_snapshot", json!([])).await;
    world.chain.mine(1).await;
    let announced = world.chain.receipt(&pending.transaction()).await;
    assert_eq!(announced["logs"].as_array().unwrap().len(), 2);
    world.chain.call("evm_revert", json!([before])).await;
    let announced: &'static str = Box::leak(announced.to_string().into_boxed_str());
    world.proxy.on(RECEIPT, Fault::Answer(announced));
    world.proxy.on(HEADS, Fault::None);

    let asked = world.proxy.calls(RECEIPT);
    world.proxy.called(RECEIPT, asked + 1).await;
    let still = world.facilitator.settle(&body).await;
    assert_eq!(still.reason(), "settlement_pending", "{still:?}");
    let row = world.facilitator.payment(&still).await;
    assert_eq!(row["state"], "inflight", "{row}");

    world.proxy.on(RECEIPT, Fault::None);
    world.resume_mining().await;
    let told = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(told.transaction(), pending.transaction());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(939));
}
