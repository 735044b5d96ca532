//! Transactions that blocks leave out: fee bumps under the same nonce, and an empty self-transfer once the content has expired.

use std::time::Duration;

use alloy::primitives::{Address, U64, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;
use x402d::protocol::Amount;

use crate::support::{
    Answer, Fault, Purchase, World, attempts, eventually, manually_mined, settle_until_final,
};

const PAYEE: Address = Address::repeat_byte(0xfe);
const SEND: &str = "eth_sendRawTransaction";
const GWEI: u64 = 1_000_000_000;

/// Mines a block with this base fee; true if it holds a transaction.
async fn block_at(world: &World, gwei: u64) -> bool {
    let fee = json!([U64::from(gwei * GWEI)]);
    let next = "anvil_setNextBlockBaseFeePerGas";
    world.chain.call(next, fee).await;
    world.chain.mine(1).await;
    let block = json!(["latest", false]);
    let block = world.chain.call("eth_getBlockByNumber", block).await;
    !block["transactions"].as_array().unwrap().is_empty()
}

/// Mines expensive blocks until the payment has another attempt. While sends are lost, its bytes do not reach the node.
async fn mine_until_bumped(world: &World, pending: &Answer, gwei: u64) -> Vec<Value> {
    world.proxy.on(SEND, Fault::RequestLost);
    eventually("a fee bump", Duration::from_secs(30), async || {
        assert!(
            !block_at(world, gwei).await,
            "our fee does not cover this base fee"
        );
        let attempts = attempts(world, pending).await;
        (attempts.len() == 2).then_some(attempts)
    })
    .await
}

fn fee(attempt: &Value) -> u128 {
    attempt["maxFeeWei"].as_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_10_rising_base_fee_bumps_fee_under_same_nonce() {
    let (world, payer) = manually_mined("max_fee_wei = 100000000000").await;
    let body = Purchase::new(&payer, PAYEE, 10).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let attempts = mine_until_bumped(&world, &pending, 20).await;
    let (before, after) = (fee(&attempts[0]), fee(&attempts[1]));
    assert!(after * 1_000 >= before * 1_125, "{before} {after}");
    assert_eq!(attempts[0]["nonce"], attempts[1]["nonce"]);
    world.proxy.on(SEND, Fault::None);
    eventually("a block", Duration::from_secs(20), async || {
        block_at(&world, 20).await.then_some(())
    })
    .await;
    let settled = settle_until_final(&world, &body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(settled.transaction(), attempts[1]["transaction"]);
    assert_eq!(world.transactions(1).await, 1);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_11_original_may_be_mined_instead_of_replacement() {
    let (world, payer) = manually_mined("max_fee_wei = 100000000000").await;
    let body = Purchase::new(&payer, PAYEE, 11).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let first = json!([pending.transaction()]);
    let raw = "eth_getRawTransactionByHash";
    let raw = world.chain.call(raw, first).await;
    let attempts = mine_until_bumped(&world, &pending, 20).await;
    world
        .chain
        .call("anvil_dropAllTransactions", json!([]))
        .await;
    assert!(!block_at(&world, 1).await);
    world.chain.call(SEND, json!([raw])).await;
    assert!(block_at(&world, 1).await);
    let settled = settle_until_final(&world, &body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(settled.transaction(), attempts[0]["transaction"]);
    // The chain rejects the late bytes, whichever client sends them.
    world.proxy.on(SEND, Fault::None);
    let next = Purchase::new(&payer, PAYEE, 12).body();
    world.resume_mining().await;
    let next = settle_until_final(&world, &next).await;
    assert!(next.succeeded(), "{next:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(23));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_12_replacement_underpriced_error_proves_nothing() {
    let (world, payer) = manually_mined("").await;
    let body = Purchase::new(&payer, PAYEE, 13).body();
    world
        .proxy
        .on(SEND, Fault::Error("replacement transaction underpriced"));
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    assert_eq!(world.transactions(1).await, 0);
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    let settled = settle_until_final(&world, &body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_29_expired_inflight_payment_fails_and_frees_nonce() {
    let (world, payer) = manually_mined("max_fee_wei = 100000000000").await;
    let purchase = Purchase::new(&payer, PAYEE, 29);
    let pending = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let end = purchase.authorization.valid_before.atomic().to::<u64>();
    let after = json!([end + 60]);
    world.chain.call("evm_setNextBlockTimestamp", after).await;
    mine_until_bumped(&world, &pending, 20).await;
    world.proxy.on(SEND, Fault::None);
    eventually("a block", Duration::from_secs(20), async || {
        block_at(&world, 20).await.then_some(())
    })
    .await;
    let failed = settle_until_final(&world, &purchase.body()).await;
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    assert_eq!(failed.reason(), code, "{failed:?}");
    let row = world.facilitator.payment(&failed).await;
    assert_eq!(
        (&row["state"], &row["gas"]["used"]),
        (&json!("failed"), &json!(21_000))
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);

    world.resume_mining().await;
    let mut later = Purchase::new(&payer, PAYEE, 30);
    later.authorization.valid_before = Amount::from_atomic(U256::from(end + 660));
    let settled = settle_until_final(&world, &later.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(world.transactions(1).await, 2);
}
