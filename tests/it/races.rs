//! Events on the chain between our preflight and our transaction.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::json;
use x402d::clock::{Clock, SystemClock};
use x402d::embedded::TEST_USDC;
use x402d::protocol::Amount;

use crate::support::{Answer, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x4a);
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);
const SEND: &str = "eth_sendRawTransaction";

/// Settles `purchase`; its transaction reaches the node after `meanwhile`.
async fn settle_while(world: &World, purchase: &Purchase, meanwhile: impl AsyncFnOnce()) -> Answer {
    world.proxy.on(SEND, Fault::Hold);
    let sends = world.proxy.calls(SEND);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.proxy.called(SEND, sends).await;
    meanwhile().await;
    world.proxy.on(SEND, Fault::None);
    waiting.join_next().await.unwrap().unwrap().unwrap()
}

async fn patient_world() -> World {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25");
    setup.build().await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_21_foreign_submission_succeeds_with_its_transaction() {
    let world = patient_world().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 71);
    let answer = settle_while(&world, &purchase, async || {
        world.chain.submit(&purchase).await;
    })
    .await;
    assert!(answer.succeeded(), "{answer:?}");
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(
        transfers[0]["transactionHash"],
        answer.transaction().as_str()
    );
    let again = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(again.reason(), "duplicate_settlement");
    assert_eq!(again.transaction(), answer.transaction());
}

#[tokio::test(flavor = "multi_thread")]
async fn nonce_used_for_another_transfer_fails_for_good() {
    let world = patient_world().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 72);
    let mut other = purchase.clone();
    other.authorization.to = OTHER_ACCOUNT;
    let answer = settle_while(&world, &purchase, async || world.chain.submit(&other).await).await;
    assert_eq!(answer.reason(), "invalid_exact_evm_nonce_already_used");
    let again = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(again.reason(), "invalid_exact_evm_nonce_already_used");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    assert_eq!(world.transactions(1).await, 1, "not tried again");
    let row = world.facilitator.payment(&answer).await;
    assert_eq!(row["state"], "failed", "{row}");
}

/// Nothing was transferred and the authorization is unused: the payment is refused, not failed, and settles once there is money.
#[tokio::test(flavor = "multi_thread")]
async fn payer_spending_first_is_refused_and_can_pay_later() {
    let world = patient_world().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 73);
    let everything = Purchase::new(&payer, OTHER_ACCOUNT, 100_000_000);
    let answer = settle_while(&world, &purchase, async || {
        world.chain.submit(&everything).await;
    })
    .await;
    assert_eq!(
        answer.reason(),
        "invalid_exact_evm_insufficient_balance",
        "{answer:?}"
    );
    assert_eq!(answer.transaction(), "");
    world.chain.fund(payer.address(), 73).await;
    let suspended = world.facilitator.verify(&purchase.body()).await;
    assert_eq!(suspended.reason(), "payer_suspended", "{suspended:?}");
    let minute = Duration::from_secs(90);
    eventually("the end of its suspension", minute, async || {
        let verdict = world.facilitator.verify(&purchase.body()).await;
        verdict.is_valid().then_some(())
    })
    .await;
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(73));
    assert_eq!(
        world.transactions(1).await,
        2,
        "one without effect, one settled"
    );
}

/// A payment in the ledger is not refused before the chain was asked: neither by its window nor for a balance that its own transfer
/// reduced.
#[tokio::test(flavor = "multi_thread")]
async fn refused_payment_submitted_elsewhere_succeeds_after_window() {
    let world = patient_world().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 76);
    let everything = Purchase::new(&payer, OTHER_ACCOUNT, 100_000_000);
    let refused = settle_while(&world, &purchase, async || {
        world.chain.submit(&everything).await;
    })
    .await;
    let code = "invalid_exact_evm_insufficient_balance";
    assert_eq!(refused.reason(), code, "{refused:?}");
    world.chain.fund(payer.address(), 76).await;
    world.chain.submit(&purchase).await;
    world.chain.call("evm_increaseTime", json!([3_600])).await;
    // Once this one is settled, the facilitator has seen blocks after the window.
    let mut other = Purchase::new(&world.payer().await, OTHER_ACCOUNT, 1);
    let later = U256::from(SystemClock.now().unix_timestamp() + 4_200);
    other.authorization.valid_before = Amount::from_atomic(later);
    let other = world.facilitator.settle(&other.body()).await;
    assert!(other.succeeded(), "{other:?}");
    let advice = world.facilitator.verify(&purchase.body()).await;
    assert!(advice.is_valid(), "{advice:?}");
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    let hash = answer.transaction();
    assert_eq!(transfers[0]["transactionHash"], hash.as_str());
    let row = world.facilitator.payment(&answer).await;
    assert_eq!(row["reason"], serde_json::Value::Null, "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorization_expiring_inflight_fails_by_chain_time() {
    let world = patient_world().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 74);
    let answer = settle_while(&world, &purchase, async || {
        world.chain.call("evm_increaseTime", json!([3_600])).await;
    })
    .await;
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    assert_eq!(answer.reason(), code, "{answer:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    let row = world.facilitator.payment(&answer).await;
    assert_eq!(row["state"], "failed", "{row}");
}

/// A known payment needs no open window: its header stays valid after it has expired.
#[tokio::test(flavor = "multi_thread")]
async fn ungranted_payment_is_granted_after_its_window() {
    let world = patient_world().await;
    let mut purchase = Purchase::new(&world.payer().await, PAYEE, 75);
    let soon = U256::from(SystemClock.now().unix_timestamp() + 60);
    purchase.authorization.valid_before = Amount::from_atomic(soon);
    world.chain.automine(false).await;
    let ungranted = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    drop(ungranted);
    world.resume_mining().await;
    eventually("the block", Duration::from_secs(10), async || {
        (world.transactions(1).await == 1).then_some(())
    })
    .await;
    world.chain.call("evm_increaseTime", json!([3_600])).await;
    world.chain.mine(1).await;
    assert!(world.facilitator.verify(&purchase.body()).await.is_valid());
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    let fresh = Purchase::new(&world.payer().await, PAYEE, 76);
    let late = world.facilitator.settle(&fresh.body()).await;
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    assert_eq!(late.reason(), code, "the chain's clock counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_22_cancelled_authorization_fails_for_good() {
    let world = patient_world().await;
    let payer = world.payer().await;
    let never = Purchase::new(&payer, PAYEE, 221);
    world.chain.cancel(&never).await;
    let code = "invalid_exact_evm_nonce_already_used";
    assert_eq!(world.facilitator.verify(&never.body()).await.reason(), code);
    let answer = world.facilitator.settle(&never.body()).await;
    assert_eq!((answer.reason(), answer.transaction().as_str()), (code, ""));

    let late = Purchase::new(&payer, PAYEE, 222);
    let answer = settle_while(&world, &late, async || world.chain.cancel(&late).await).await;
    assert_eq!(answer.reason(), code, "{answer:?}");
    let row = world.facilitator.payment(&answer).await;
    assert_eq!(
        (&row["state"], &row["quarantine"]),
        (&json!("failed"), &json!(null))
    );
    let again = world.facilitator.settle(&late.body()).await;
    assert_eq!(again.reason(), code);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    assert_eq!(world.transactions(1).await, 1, "not tried again");
}

/// The facilitator has given the payment up, but its payer or another account can still submit the authorization.
#[tokio::test(flavor = "multi_thread")]
async fn refused_payment_submitted_elsewhere_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let setup = Setup::default().with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let setup = setup.with("X402D_SETTLE_WAIT", "2");
    let world = setup.shortened().build().await;
    let payer = world.payer().await;
    let [presented, forgotten] = [231, 232].map(|amount| Purchase::new(&payer, PAYEE, amount));
    let mut refused = Vec::new();
    for purchase in [&presented, &forgotten] {
        let answer = world.facilitator.settle(&purchase.body()).await;
        assert_eq!(answer.reason(), "unexpected_settle_error", "{answer:?}");
        world.chain.submit(purchase).await;
        refused.push(answer);
    }
    // One is presented again, at verify first, as sellers do.
    assert!(world.facilitator.verify(&presented.body()).await.is_valid());
    let told = world.facilitator.settle(&presented.body()).await;
    assert!(told.succeeded(), "{told:?}");
    // The other is not presented again, and the watch records it.
    let row = eventually("the watch", Duration::from_mins(1), async || {
        let row = world.facilitator.payment(&refused[1]).await;
        (row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(row["transaction"].as_str().unwrap().len(), 66);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(463));
    assert_eq!(
        world.transactions(1).await,
        0,
        "no transaction of ours was sent"
    );
}
