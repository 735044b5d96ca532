//! Transactions that nodes or blocks do not take, for reasons other than the base fee.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Chain, Fault, Purchase, Setup, World, attempts, eventually, manually_mined,
    settle_until_final,
};

const PAYEE: Address = Address::repeat_byte(0x57);
const SEND: &str = "eth_sendRawTransaction";

/// `maxFeeWei` and `maxPriorityFeeWei`, in wei.
fn fees(attempt: &Value) -> [u128; 2] {
    ["maxFeeWei", "maxPriorityFeeWei"].map(|name| attempt[name].as_str().unwrap().parse().unwrap())
}

fn is_replacement(before: &Value, after: &Value) -> bool {
    let pairs = fees(before).into_iter().zip(fees(after));
    let mut dearer = pairs.map(|(before, after)| after * 1_000 >= before * 1_125);
    before["nonce"] == after["nonce"] && dearer.all(|one| one)
}

/// Mines until the payment has another attempt.
async fn mine_until_replaced(world: &World, pending: &Answer) -> Vec<Value> {
    eventually(
        "a replacement transaction",
        Duration::from_secs(40),
        async || {
            world.chain.mine(1).await;
            let attempts = attempts(world, pending).await;
            (attempts.len() > 1).then_some(attempts)
        },
    )
    .await
}

/// The error is that of Polygon's nodes.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_10_priority_fee_is_raised_under_the_same_nonce() {
    let (world, payer) = manually_mined("").await;
    let low = "transaction underpriced: gas tip cap 1000000, minimum needed 25000000000";
    world.proxy.on(SEND, Fault::Error(low));
    let body = Purchase::new(&payer, PAYEE, 1).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let attempts = mine_until_replaced(&world, &pending).await;
    assert!(is_replacement(&attempts[0], &attempts[1]), "{attempts:?}");
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    assert!(settle_until_final(&world, &body).await.succeeded());
    assert_eq!(world.transactions(1).await, 1);
}

/// Nodes accept it and its fee covers the base fee, but blocks leave it out.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_10_long_unmined_transaction_gets_a_fee_bump() {
    let (world, payer) = manually_mined("").await;
    world.proxy.on(SEND, Fault::AcceptAndDrop);
    let body = Purchase::new(&payer, PAYEE, 2).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let attempts = mine_until_replaced(&world, &pending).await;
    assert!(is_replacement(&attempts[0], &attempts[1]), "{attempts:?}");
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    let settled = settle_until_final(&world, &body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(world.transactions(1).await, 1);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_29_expired_payment_frees_nonce_by_self_transfer() {
    let (world, payer) = manually_mined("").await;
    world.proxy.on(SEND, Fault::AcceptAndDrop);
    let purchase = Purchase::new(&payer, PAYEE, 3);
    let pending = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let end = purchase.authorization.valid_before.atomic().to::<u64>();
    let after = json!([end + 60]);
    world.chain.call("evm_setNextBlockTimestamp", after).await;
    // One block suffices: there is nothing to wait for.
    world.chain.mine(1).await;
    eventually("no replacement", Duration::from_secs(20), async || {
        let attempts = attempts(&world, &pending).await;
        (attempts.len() > 1).then_some(())
    })
    .await;
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    let failed = settle_until_final(&world, &purchase.body()).await;
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    assert_eq!(failed.reason(), code, "{failed:?}");
    let row = world.facilitator.payment(&failed).await;
    assert_eq!(row["gas"]["used"], json!(21_000), "{row}");
}

/// No node accepts a transaction of this size: its nonce is freed by an empty self-transfer, and the payments go into smaller batches.
#[tokio::test(flavor = "multi_thread")]
async fn oversized_batch_is_split_and_lane_goes_on() {
    let setup = Setup {
        toml: "[networks.base-sepolia]\ninflight_max = 2\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    for sent in 1..=2 {
        let before = Purchase::new(&payer, PAYEE, 1).body();
        let ungranted = world.facilitator.spawn_settle(&before);
        world.wait_until_sent(sent).await;
        drop(ungranted);
    }
    let bodies = (0..12).map(|number: u64| Purchase::new(&payer, PAYEE, 100 + number).body());
    let mut waiting: Vec<_> = bodies
        .map(|body| world.facilitator.spawn_settle(&body))
        .collect();
    eventually("the queue", Duration::from_secs(20), async || {
        let queued = world.facilitator.get("/payments?state=queued").await.body;
        (queued["payments"].as_array().unwrap().len() == 12).then_some(())
    })
    .await;
    let dear = "tx fee (1.21 ether) exceeds the configured cap (1.00 ether)";
    world.proxy.on(SEND, Fault::Error(dear));
    let sends = world.proxy.calls(SEND);
    world.resume_mining().await;
    world.proxy.called(SEND, sends + 1).await;
    world.proxy.on(SEND, Fault::None);
    for waiting in &mut waiting {
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        assert!(answer.succeeded(), "{answer:?}");
    }
    let log = world.facilitator.log();
    assert!(
        log.contains("empty self-transfer"),
        "the nonce was given up"
    );
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 14);
}

/// Gas money for thirty payments sent alone, and not for one batch of all that wait.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_34_low_gas_signer_sends_smaller_batches() {
    let chain = Chain::start().await;
    let signer = Chain::signers(1)[0].address;
    // Empty blocks lower the base fee, so that gas costs little more than the priority fee.
    chain.mine(80).await;
    let setup = Setup {
        toml:
            "[networks.base-sepolia]\npriority_fee_wei = 1000000000\nqueue_max_per_payer = 1000\n"
                .to_owned(),
        ..Setup::default()
    };
    let gas = U256::from(5_000_000) * U256::from(1_000_000_000);
    chain.call("anvil_setBalance", json!([signer, gas])).await;
    let world = setup.with("X402D_SETTLE_WAIT", "25").on(chain).await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let first = Purchase::new(&payer, PAYEE, 9).body();
    let mut waiting = vec![world.facilitator.spawn_settle(&first)];
    world.wait_until_sent(1).await;
    let bodies = (0..90).map(|number: u64| Purchase::new(&payer, PAYEE, 100 + number).body());
    waiting.extend(bodies.map(|body| world.facilitator.spawn_settle(&body)));
    eventually("all of them", Duration::from_secs(20), async || {
        let known = world.facilitator.get("/payments?limit=100").await.body;
        (known["payments"].as_array().unwrap().len() == 91).then_some(())
    })
    .await;
    world.resume_mining().await;
    let mut settled = 0;
    for waiting in &mut waiting {
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        settled += usize::from(answer.succeeded());
        assert_ne!(answer.reason(), "settlement_pending", "{answer:?}");
    }
    assert!(settled >= 20, "{settled}");
    let signers = world.facilitator.get("/signers").await.body;
    assert_eq!(
        signers["signers"][0]["transactionsInFlight"], 0,
        "{signers}"
    );
}
