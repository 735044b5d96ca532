//! Payments by Permit2 that another account settles first, through its own contract: the transfer counts.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol;
use alloy::sol_types::{SolCall, SolValue};
use serde_json::json;
use tokio::task::JoinSet;
use x402d::embedded::LocalChain;
use x402d::protocol::permit2::PERMIT2;

use crate::support::{Answer, Chain, Permit2Purchase, Setup, World, eventually};

sol! {
    struct Call { address target; bytes data; }
    function forward(Call[] calls);
    function keep(address target, bytes data);
    function forwardKept();
}

const PAYEE: Address = Address::repeat_byte(0x2f);
const OTHER_PAYEE: Address = Address::repeat_byte(0x3f);
const FORWARDER: Address = Address::repeat_byte(0xf0);
const LIMIT: Duration = Duration::from_secs(20);

async fn world(setup: Setup) -> World {
    let world = setup.build().await;
    world.chain.place("Forwarder", FORWARDER).await;
    world
}

/// The calls of these payments, in one transaction to the foreign contract.
fn forwarding(payments: &[&Permit2Purchase]) -> (Address, Bytes) {
    let call = |(target, data)| Call { target, data };
    let calls = payments.iter().map(|payment| call(payment.call()));
    let forward = forwardCall {
        calls: calls.collect(),
    };
    (FORWARDER, forward.abi_encode().into())
}

/// A foreign contract stores the call of a payment, so that the transaction that settles it does not contain it.
async fn store_call(world: &World, payment: &Permit2Purchase) -> (Address, Bytes) {
    let (target, data) = payment.call();
    world.chain.send(FORWARDER, keepCall { target, data }).await;
    (FORWARDER, forwardKeptCall {}.abi_encode().into())
}

/// Settles payments while other accounts make these calls with higher fees in the same block.
async fn settled_after(
    world: &World,
    payments: &[&Permit2Purchase],
    calls: &[(Address, Bytes)],
) -> Vec<Answer> {
    world.chain.automine(false).await;
    let mined = world.transactions(1).await;
    let mut settling = JoinSet::new();
    for payment in payments {
        let (facilitator, body) = (world.facilitator.clone(), payment.body());
        settling.spawn(async move { facilitator.settle(&body).await });
    }
    eventually("a transaction of ours", LIMIT, async || {
        (world.pending(1).await > mined).then_some(())
    })
    .await;
    for call in calls {
        world.chain.call_with_high_fee(call.clone()).await;
    }
    world.resume_mining().await;
    settling.join_all().await
}

async fn assert_sent_by_another_account(world: &World, answer: &Answer) {
    let receipt = world.chain.receipt(&answer.transaction()).await;
    let sender = LocalChain::funded_keys()[0].address;
    assert_eq!(receipt["from"], json!(sender), "{receipt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settlement_through_foreign_contract_is_granted() {
    let world = world(Setup::default()).await;
    let payer = world.approved_payer().await;
    let spelled_out = Permit2Purchase::exact(&payer, PAYEE, 6_000);
    let forward = forwarding(&[&spelled_out]);
    let answers = settled_after(&world, &[&spelled_out], &[forward]).await;
    world
        .assert_transferred_once(PAYEE, &answers[0], 6_000)
        .await;
    assert_sent_by_another_account(&world, &answers[0]).await;
    world
        .assert_duplicate_rejected(&spelled_out.body(), &answers[0])
        .await;

    let kept = Permit2Purchase::exact(&payer, OTHER_PAYEE, 7_000);
    let forward = store_call(&world, &kept).await;
    let answers = settled_after(&world, &[&kept], &[forward]).await;
    world
        .assert_transferred_once(OTHER_PAYEE, &answers[0], 7_000)
        .await;
    assert_sent_by_another_account(&world, &answers[0]).await;
    world
        .assert_duplicate_rejected(&kept.body(), &answers[0])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn similar_payments_are_told_apart_in_one_block() {
    let world = world(Setup::default()).await;
    let payer = world.approved_payer().await;
    let payments: Vec<_> = (0..4)
        .map(|_| Permit2Purchase::exact(&payer, PAYEE, 1_000))
        .collect();
    let payments: Vec<&Permit2Purchase> = payments.iter().collect();
    let calls = [
        forwarding(&payments[..2]),
        forwarding(&payments[2..3]),
        forwarding(&payments[3..]),
    ];
    let answers = settled_after(&world, &payments, &calls).await;
    let mut transactions = Vec::new();
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
        assert_sent_by_another_account(&world, answer).await;
        transactions.push(answer.transaction());
    }
    transactions.sort();
    transactions.dedup();
    assert_eq!(transactions.len(), 3, "{answers:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(4_000));
}

/// Only the named facilitator can settle `upto`, also through a contract.
#[tokio::test(flavor = "multi_thread")]
async fn upto_cannot_be_settled_through_a_contract() {
    let world = world(Setup::default()).await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 6_000).charging(2_000);
    let forward = forwarding(&[&payment]);
    let answers = settled_after(&world, &[&payment], &[forward]).await;
    world
        .assert_transferred_once(PAYEE, &answers[0], 2_000)
        .await;
    let receipt = world.chain.receipt(&answers[0].transaction()).await;
    let signer = Chain::signers(1)[0].address;
    assert_eq!(receipt["from"], json!(signer), "{receipt}");
}

/// A transfer of one payment does not prove another with equal terms, whose nonce was used in another block.
#[tokio::test(flavor = "multi_thread")]
async fn traceless_nonce_use_takes_no_other_transfer() {
    let world = world(Setup::default().with("X402D_SETTLE_WAIT", "3").shortened()).await;
    let payer = world.approved_payer().await;
    let (paid, burned) = (
        Permit2Purchase::exact(&payer, PAYEE, 1_000),
        Permit2Purchase::exact(&payer, PAYEE, 1_000),
    );
    let call = store_call(&world, &paid).await;
    world.chain.call_with_high_fee(call).await;
    // Storage set by `anvil_setStorageAt` is visible from the newest block on.
    world.chain.mine(2).await;

    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&burned.body());
    world.wait_until_sent(1).await;
    let nonce = burned.authorization.nonce.atomic();
    let of_payer = keccak256((payer.address(), U256::ZERO).abi_encode());
    let slot = keccak256((nonce >> 8_usize, of_payer).abi_encode());
    let used = B256::from(U256::ONE << usize::from(nonce.byte(0)));
    let params = json!([PERMIT2, slot, used]);
    world.chain.call("anvil_setStorageAt", params).await;
    world.resume_mining().await;
    let answer = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(answer.reason(), "settlement_pending", "{answer:?}");
    let verdict = eventually("a quarantine", Duration::from_mins(1), async || {
        let again = world.facilitator.settle(&burned.body()).await;
        let message = again.body["errorMessage"].as_str().unwrap_or_default();
        message.contains("operator").then_some(again)
    })
    .await;
    assert!(!verdict.succeeded(), "{verdict:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(1_000));
}
