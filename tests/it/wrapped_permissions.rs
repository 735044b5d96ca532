//! Payments by Permit2 that a stranger settles first, through a contract of their own: the money has moved, so the payment counts.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::sol;
use alloy::sol_types::{SolCall, SolValue};
use serde_json::json;
use tokio::task::JoinSet;
use x402d::embedded::LocalChain;
use x402d::protocol::permit2::PERMIT2;

use crate::support::{Answer, Chain, Permission, Setup, World, eventually};

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

/// The calls of these payments, spelled out in one transaction to the stranger's contract.
fn forwarding(payments: &[&Permission]) -> (Address, Bytes) {
    let call = |(target, data)| Call { target, data };
    let calls = payments.iter().map(|payment| call(payment.call()));
    let forward = forwardCall {
        calls: calls.collect(),
    };
    (FORWARDER, forward.abi_encode().into())
}

/// A stranger's contract keeps the call of a payment, so that the transaction that settles it does not name it.
async fn keep(world: &World, payment: &Permission) -> (Address, Bytes) {
    let (target, data) = payment.call();
    world.chain.send(FORWARDER, keepCall { target, data }).await;
    (FORWARDER, forwardKeptCall {}.abi_encode().into())
}

/// Settles payments while strangers make these calls, which pay better, in the same block.
async fn settled_after(
    world: &World,
    payments: &[&Permission],
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
        world.chain.call_dearly(call.clone()).await;
    }
    world.mine_on().await;
    settling.join_all().await
}

async fn was_sent_by_a_stranger(world: &World, answer: &Answer) {
    let receipt = world.chain.receipt(&answer.transaction()).await;
    let stranger = LocalChain::funded_keys()[0].address;
    assert_eq!(receipt["from"], json!(stranger), "{receipt}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_settled_through_a_strangers_contract_is_granted_with_that_transaction() {
    let world = world(Setup::default()).await;
    let payer = world.permitting_payer().await;
    let spelled_out = Permission::exact(&payer, PAYEE, 6_000);
    let forward = forwarding(&[&spelled_out]);
    let answers = settled_after(&world, &[&spelled_out], &[forward]).await;
    world.moved_once(PAYEE, &answers[0], 6_000).await;
    was_sent_by_a_stranger(&world, &answers[0]).await;
    world
        .buys_nothing_twice(&spelled_out.body(), &answers[0])
        .await;

    let kept = Permission::exact(&payer, OTHER_PAYEE, 7_000);
    let forward = keep(&world, &kept).await;
    let answers = settled_after(&world, &[&kept], &[forward]).await;
    world.moved_once(OTHER_PAYEE, &answers[0], 7_000).await;
    was_sent_by_a_stranger(&world, &answers[0]).await;
    world.buys_nothing_twice(&kept.body(), &answers[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_that_look_alike_are_told_apart_in_one_transaction_and_in_one_block() {
    let world = world(Setup::default()).await;
    let payer = world.permitting_payer().await;
    let payments: Vec<_> = (0..4)
        .map(|_| Permission::exact(&payer, PAYEE, 1_000))
        .collect();
    let payments: Vec<&Permission> = payments.iter().collect();
    let calls = [
        forwarding(&payments[..2]),
        forwarding(&payments[2..3]),
        forwarding(&payments[3..]),
    ];
    let answers = settled_after(&world, &payments, &calls).await;
    let mut transactions = Vec::new();
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
        was_sent_by_a_stranger(&world, answer).await;
        transactions.push(answer.transaction());
    }
    transactions.sort();
    transactions.dedup();
    assert_eq!(transactions.len(), 3, "{answers:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(4_000));
}

/// Nobody but the facilitator can settle `upto`, whatever the call goes through.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_settles_a_metered_payment_through_a_contract() {
    let world = world(Setup::default()).await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 6_000).charging(2_000);
    let forward = forwarding(&[&payment]);
    let answers = settled_after(&world, &[&payment], &[forward]).await;
    world.moved_once(PAYEE, &answers[0], 2_000).await;
    let receipt = world.chain.receipt(&answers[0].transaction()).await;
    let signer = Chain::signers(1)[0].address;
    assert_eq!(receipt["from"], json!(signer), "{receipt}");
}

/// The money of one payment is no proof for another that looks alike, whose nonce was used in another block.
#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_that_was_used_without_a_trace_gets_nobody_elses_money() {
    let world = world(Setup::default().with("X402D_SETTLE_WAIT", "3")).await;
    let payer = world.permitting_payer().await;
    let (paid, burned) = (
        Permission::exact(&payer, PAYEE, 1_000),
        Permission::exact(&payer, PAYEE, 1_000),
    );
    let call = keep(&world, &paid).await;
    world.chain.call_dearly(call).await;
    // What is put into storage counts from the newest block on.
    world.chain.mine(2).await;

    world.chain.automine(false).await;
    let mut settling = world.facilitator.settling(&burned.body());
    world.has_sent(1).await;
    let nonce = burned.authorization.nonce.atomic();
    let of_payer = keccak256((payer.address(), U256::ZERO).abi_encode());
    let slot = keccak256((nonce >> 8_usize, of_payer).abi_encode());
    let used = B256::from(U256::ONE << usize::from(nonce.byte(0)));
    let params = json!([PERMIT2, slot, used]);
    world.chain.call("anvil_setStorageAt", params).await;
    world.mine_on().await;
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
