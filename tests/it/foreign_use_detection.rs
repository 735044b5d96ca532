//! Events that resemble foreign use of a signer's key: no lane stops without proof on the chain.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::json;

use crate::support::{Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0xa1);
const SEND: &str = "eth_sendRawTransaction";
const LOGS: &str = "eth_getLogs";
const RECEIPT: &str = "eth_getTransactionReceipt";

/// The reason why a lane is stopped, if one is.
async fn stopped_reason(world: &World) -> Option<String> {
    let signers = world.facilitator.get("/signers").await.body;
    let signers = signers["signers"].as_array().unwrap().clone();
    let why = signers.iter().find_map(|one| one["stoppedReason"].as_str());
    why.map(str::to_owned)
}

async fn world() -> World {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "2");
    setup.shortened().build().await
}

/// A payer cancels while our transaction is in flight, and the logs that show what used the nonce are unreadable.
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_logs_stop_no_lane_and_fail_no_payment() {
    let world = world().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 1);
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, sends).await;
    world.chain.cancel(&purchase).await;
    world.proxy.on(LOGS, Fault::Error("query limit"));
    world.proxy.on(SEND, Fault::None);
    let pending = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    // "nonce too low" for the same bytes proves nothing, for twice as long as foreign use needs.
    let limit = Duration::from_mins(1);
    let asked = world.proxy.calls(LOGS);
    eventually("many errors", limit, async || {
        (world.proxy.calls(LOGS) > asked + 7).then_some(())
    })
    .await;
    assert_eq!(stopped_reason(&world).await, None);
    let still = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(still.reason(), "settlement_pending", "{still:?}");
    let other = Purchase::new(&payer, PAYEE, 2);
    let answer = world.facilitator.settle(&other.body()).await;
    assert!(answer.succeeded(), "the lane continues: {answer:?}");

    world.proxy.on(LOGS, Fault::None);
    let limit = Duration::from_secs(20);
    let failed = eventually("an outcome", limit, async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        (answer.reason() != "settlement_pending").then_some(answer)
    })
    .await;
    assert_eq!(failed.reason(), "invalid_exact_evm_nonce_already_used");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_queries_stay_within_provider_ranges() {
    let world = world().await;
    world.chain.mine(2_500).await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 4);
    world.proxy.on(LOGS, Fault::LogRangeLimit(1_000));
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, sends).await;
    world.chain.submit(&purchase).await;
    // The foreign submission is many blocks old when the service looks for it.
    world.chain.mine(1_200).await;
    world.proxy.on(SEND, Fault::None);
    drop(waiting.join_next().await.unwrap());
    let answer = eventually("an outcome", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        (answer.reason() != "settlement_pending").then_some(answer)
    })
    .await;
    assert!(
        answer.succeeded() || answer.reason() == "duplicate_settlement",
        "{answer:?}"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(4));
}

/// The receipts of one transaction are unreadable for twice as long as foreign use needs, although its nonce is used.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_43_unreadable_receipts_are_not_foreign_use() {
    let world = world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 8).body();
    let methods = ["eth_getBlockReceipts", RECEIPT];
    for method in methods {
        world.proxy.on(method, Fault::Unavailable);
    }
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let asked = world.proxy.calls(RECEIPT);
    let limit = Duration::from_mins(1);
    eventually("many errors", limit, async || {
        (world.proxy.calls(RECEIPT) > asked + 6).then_some(())
    })
    .await;
    assert_eq!(stopped_reason(&world).await, None);
    for method in methods {
        world.proxy.on(method, Fault::None);
    }
    let settled = eventually("success", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
}

/// A private relay accepts everything and reports nothing: only the chain shows that the nonce is used.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_14_foreign_use_is_detected_only_once_confirmed() {
    let setup = Setup {
        signers: 2,
        ..Setup::default()
    };
    let setup = setup.with("X402D_SETTLE_WAIT", "2");
    let setup = setup.with("X402D_CONFIRMATIONS", "4");
    let world = setup.shortened().build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 16).body();
    world.chain.automine(false).await;
    world.proxy.on(SEND, Fault::AcceptAndDrop);
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let row = world.facilitator.payment(&pending).await;
    let robbed: Address = row["attempts"][0]["signer"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let foreign = json!([{"from": robbed, "to": PAYEE, "value": "0x1", "nonce": "0x0"}]);
    world.chain.call("eth_sendTransaction", foreign).await;
    world.chain.mine(1).await;
    let asked = world.proxy.calls(RECEIPT);
    let limit = Duration::from_mins(1);
    eventually("reads after one confirmation", limit, async || {
        (world.proxy.calls(RECEIPT) > asked + 5).then_some(())
    })
    .await;
    assert_eq!(
        stopped_reason(&world).await,
        None,
        "one block may still be replaced"
    );
    world.chain.mine(3).await;
    eventually("the alarm", Duration::from_secs(40), async || {
        let log = world.facilitator.log();
        log.contains("signer key used elsewhere").then_some(())
    })
    .await;
    world.proxy.on(SEND, Fault::None);
    let settled = eventually("success", Duration::from_secs(40), async || {
        world.chain.mine(1).await;
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_ne!(settled.transaction(), pending.transaction());
    assert_eq!(
        stopped_reason(&world).await,
        None,
        "one foreign use stops no lane"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(16));
}
