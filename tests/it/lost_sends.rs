//! Sends with unknown outcome: the same bytes are sent again, and no second nonce is used.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::json;
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x10);
const SEND: &str = "eth_sendRawTransaction";

async fn patient_world() -> World {
    Setup::default()
        .with("X402D_SETTLE_WAIT", "25")
        .build()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_06_timed_out_but_accepted_send_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 31).body();
    world.chain.automine(false).await;
    world.proxy.on(SEND, Fault::AnswerLost);
    let mut waiting = world.facilitator.spawn_settle(&body);
    world.wait_until_sent(1).await;
    // Sent again after the first send timed out.
    world.proxy.called(SEND, 1).await;
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    assert_one_transfer(&world, 31).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_07_undelivered_send_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 32).body();
    world.proxy.on(SEND, Fault::RequestLost);
    let mut waiting = world.facilitator.spawn_settle(&body);
    world.proxy.called(SEND, 1).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
    world.proxy.on(SEND, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    assert_one_transfer(&world, 32).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn send_with_errors_and_invalid_answers_settles_once() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 33).body();
    let faults = [
        Fault::Unavailable,
        Fault::NotJson,
        Fault::Error("internal error"),
        Fault::Error("nonce too low"),
        Fault::Error("replacement transaction underpriced"),
    ];
    world.proxy.on(SEND, Fault::Hold);
    let mut waiting = world.facilitator.spawn_settle(&body);
    for (sends, fault) in faults.into_iter().enumerate() {
        world.proxy.called(SEND, sends).await;
        world.proxy.on(SEND, fault);
    }
    world.proxy.called(SEND, faults.len()).await;
    world.proxy.on(SEND, Fault::None);
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    assert_one_transfer(&world, 33).await;
}

/// Pending payments, each in its own transaction.
struct Pooled {
    world: World,
    /// In nonce order.
    hashes: Vec<B256>,
    waiting: Vec<JoinSet<Result<Answer, reqwest::Error>>>,
}

impl Pooled {
    async fn new(count: u64) -> Self {
        let world = patient_world().await;
        let payer = world.payer().await;
        world.chain.automine(false).await;
        let mut waiting = Vec::new();
        for number in 0..count {
            let body = Purchase::new(&payer, PAYEE, 1 << number).body();
            waiting.push(world.facilitator.spawn_settle(&body));
            world.wait_until_sent(number + 1).await;
        }
        let hashes = world.proxy.sent();
        assert_eq!(u64::try_from(hashes.len()).unwrap(), count);
        Self {
            world,
            hashes,
            waiting,
        }
    }

    /// All are sent again within `limit`, once each and in nonce order, and settle.
    async fn assert_settled_after_loss(mut self, limit: Duration) {
        let count = self.hashes.len();
        let again = eventually("the same bytes", limit, async || {
            let sent = self.world.proxy.sent();
            (sent.len() >= 2 * count).then(|| sent[count..2 * count].to_vec())
        })
        .await;
        assert_eq!(again, self.hashes, "in nonce order");
        self.world
            .wait_until_sent(u64::try_from(count).unwrap())
            .await;
        self.world.resume_mining().await;
        for mut waiting in self.waiting.drain(..) {
            let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
            assert!(answer.succeeded(), "{answer:?}");
        }
        let paid = U256::from((1_u64 << count) - 1);
        assert_eq!(self.world.chain.usdc(PAYEE).await, paid);
        let nonces = u64::try_from(count).unwrap();
        assert_eq!(self.world.transactions(1).await, nonces, "no further nonce");
    }
}

/// Two block times of the most used networks.
const TWO_BLOCKS: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn scenario_08_dropped_transaction_is_resent_within_two_blocks() {
    let pooled = Pooled::new(1).await;
    pooled.world.chain.drop_transaction(pooled.hashes[0]).await;
    pooled.assert_settled_after_loss(TWO_BLOCKS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_09_emptied_pool_is_refilled_in_nonce_order() {
    let pooled = Pooled::new(4).await;
    let forget = "anvil_dropAllTransactions";
    pooled.world.chain.call(forget, json!([])).await;
    pooled.assert_settled_after_loss(TWO_BLOCKS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_15_lowest_of_five_lost_nonces_is_resent_first() {
    let pooled = Pooled::new(5).await;
    pooled.world.chain.drop_transaction(pooled.hashes[0]).await;
    pooled.assert_settled_after_loss(TWO_BLOCKS).await;
}

/// The block's receipts are unreadable and the answer to the send was lost: only the attempt's own hash identifies it.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_13_nonce_too_low_finds_our_own_mined_transaction() {
    let world = patient_world().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 35).body();
    let receipts = world.proxy.calls("eth_getTransactionReceipt");
    world.proxy.on("eth_getBlockReceipts", Fault::Unavailable);
    world.proxy.on(SEND, Fault::AnswerLost);
    let mut waiting = world.facilitator.spawn_settle(&body);
    world.proxy.called(SEND, 0).await;
    world.proxy.on(SEND, Fault::Error("nonce too low"));
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    assert!(world.proxy.calls("eth_getTransactionReceipt") > receipts);
    assert_one_transfer(&world, 35).await;
}

async fn assert_one_transfer(world: &World, amount: u64) {
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(amount));
    assert_eq!(world.transactions(1).await, 1, "no second nonce");
}
