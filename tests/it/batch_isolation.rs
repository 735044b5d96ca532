//! One payment of a batch changes between acceptance and the block: only that payment fails.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, hex};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::support::{
    Answer, Chain, Fault, Purchase, Setup, World, eventually, new_account, pauseCall,
};

const PAYEE: Address = Address::repeat_byte(0x9f);
const OTHER_ACCOUNT: Address = Address::repeat_byte(0xe1);
const WALLET: Address = Address::repeat_byte(0x3b);
/// Maximum number of open transactions of the lane.
const ROOM: u64 = 2;
const SEND: &str = "eth_sendRawTransaction";
const POOR: &str = "invalid_exact_evm_insufficient_balance";

/// Accepted payments that wait for room in the lane, to be sent in one batch.
struct Waiting {
    world: World,
    payments: Vec<JoinSet<Result<Answer, reqwest::Error>>>,
}

impl Waiting {
    async fn with(world: World, purchases: &[&Purchase]) -> Self {
        let payer = world.payer().await;
        world.chain.automine(false).await;
        for sent in 1..=ROOM {
            let before = Purchase::new(&payer, OTHER_ACCOUNT, sent).body();
            let ungranted = world.facilitator.spawn_settle(&before);
            world.wait_until_sent(sent).await;
            drop(ungranted);
        }
        let payments = purchases
            .iter()
            .map(|purchase| world.facilitator.spawn_settle(&purchase.body()))
            .collect();
        eventually("the queue", Duration::from_secs(20), async || {
            let queued = world.facilitator.get("/payments?state=queued").await.body;
            let queued = queued["payments"].as_array().unwrap().len();
            (queued == purchases.len()).then_some(())
        })
        .await;
        Self { world, payments }
    }

    /// The batch is simulated and sent; its transaction reaches the node after `meanwhile`.
    async fn send_while(self, meanwhile: impl AsyncFnOnce(&World)) -> (World, Vec<Answer>) {
        self.world.proxy.on(SEND, Fault::Hold);
        let sends = self.world.proxy.calls(SEND);
        self.world.resume_mining().await;
        self.world.proxy.called(SEND, sends).await;
        meanwhile(&self.world).await;
        self.world.proxy.on(SEND, Fault::None);
        self.answers().await
    }

    /// Makes room in the lane.
    async fn send(self) -> (World, Vec<Answer>) {
        self.world.resume_mining().await;
        self.answers().await
    }

    async fn answers(self) -> (World, Vec<Answer>) {
        let mut answers = Vec::new();
        for mut payment in self.payments {
            answers.push(payment.join_next().await.unwrap().unwrap().unwrap());
        }
        (self.world, answers)
    }
}

async fn world() -> World {
    let setup = Setup {
        toml: format!("[networks.base-sepolia]\ninflight_max = {ROOM}\n"),
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "25").build().await
}

/// Three payers with one payment each; the tests let the second one fail.
async fn three_payers(world: &World) -> [(PrivateKeySigner, Purchase); 3] {
    let [one, two, three] = [10, 20, 40].map(async |amount| {
        let payer = world.payer().await;
        let purchase = Purchase::new(&payer, PAYEE, amount);
        (payer, purchase)
    });
    [one.await, two.await, three.await]
}

/// All succeeded in one transaction except the second, which ended with `code` and without a hash.
async fn assert_all_but_second_succeed(world: &World, answers: &[Answer], code: &str) {
    assert!(
        answers[0].succeeded() && answers[2].succeeded(),
        "{answers:?}"
    );
    assert_eq!(answers[0].transaction(), answers[2].transaction());
    assert_eq!(
        (answers[1].reason(), answers[1].transaction().as_str()),
        (code, "")
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_19_payer_spending_before_send_is_left_out() {
    let world = world().await;
    let [(_, one), (spender, two), (_, last)] = three_payers(&world).await;
    let waiting = Waiting::with(world, &[&one, &two, &last]).await;
    let everything = Purchase::new(&spender, OTHER_ACCOUNT, 100_000_000);
    let spend = json!([Chain::submission(&everything)]);
    waiting.world.chain.call("eth_sendTransaction", spend).await;
    let (world, answers) = waiting.send().await;
    assert_all_but_second_succeed(&world, &answers, POOR).await;
    assert_eq!(
        world.transactions(1).await,
        ROOM + 1,
        "no transaction was wasted"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_20_payer_spending_after_simulation_fails_alone() {
    let world = world().await;
    let [(_, one), (spender, two), (_, last)] = three_payers(&world).await;
    let waiting = Waiting::with(world, &[&one, &two, &last]).await;
    let everything = Purchase::new(&spender, OTHER_ACCOUNT, 100_000_000);
    let spend = async |world: &World| world.chain.submit(&everything).await;
    let (world, answers) = waiting.send_while(spend).await;
    assert_all_but_second_succeed(&world, &answers, POOR).await;
    let row = world.facilitator.payment(&answers[1]).await;
    assert_eq!(row["state"], "refused", "its authorization is still valid");
    assert_eq!(row["attempts"][0]["mined"]["outcome"], "without_effect");
    assert_eq!(
        world.transactions(1).await,
        ROOM + 1,
        "and was not retried without effect"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_32_payer_becoming_a_wallet_is_checked_again() {
    let world = world().await;
    let [(_, one), (payer, two), (_, last)] = three_payers(&world).await;
    let waiting = Waiting::with(world, &[&one, &two, &last]).await;
    // A wallet of another owner, which rejects the account's own signature.
    waiting.world.chain.place("SmartWallet", WALLET).await;
    let code = Bytes::from([hex!("ef0100").as_slice(), WALLET.as_slice()].concat());
    let params = json!([payer.address(), code]);
    waiting.world.chain.call("anvil_setCode", params).await;
    let owner = new_account().address().into_word();
    waiting
        .world
        .chain
        .set_storage(payer.address(), 0, owner)
        .await;
    let (world, answers) = waiting.send().await;
    let code = "invalid_exact_evm_transaction_simulation_failed";
    assert_all_but_second_succeed(&world, &answers, code).await;
    assert_eq!(world.transactions(1).await, ROOM + 1);
}

/// The new wallet accepts its signature. It is sent alone, because its code could use up the gas of the other payments in a batch.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_32_payer_becoming_agreeing_wallet_is_sent_alone() {
    let world = world().await;
    let [(_, one), (payer, two), (_, last)] = three_payers(&world).await;
    let waiting = Waiting::with(world, &[&one, &two, &last]).await;
    waiting.world.chain.place("SmartWallet", WALLET).await;
    let code = Bytes::from([hex!("ef0100").as_slice(), WALLET.as_slice()].concat());
    let params = json!([payer.address(), code]);
    waiting.world.chain.call("anvil_setCode", params).await;
    let owner = payer.address().into_word();
    waiting
        .world
        .chain
        .set_storage(payer.address(), 0, owner)
        .await;
    let (world, answers) = waiting.send().await;
    assert!(answers.iter().all(Answer::succeeded), "{answers:?}");
    assert_eq!(answers[0].transaction(), answers[2].transaction());
    assert_ne!(answers[0].transaction(), answers[1].transaction());
    assert_eq!(world.transactions(1).await, ROOM + 2);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(70));
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_31_gas_burning_wallet_burns_only_its_own_limit() {
    let world = world().await;
    let [(_, one), _, (_, last)] = three_payers(&world).await;
    world.chain.place("GasBurningWallet", WALLET).await;
    world.chain.fund(WALLET, 1_000).await;
    let evil = Purchase::new(&new_account(), PAYEE, 20).paid_by(WALLET);
    let waiting = Waiting::with(world, &[&one, &evil, &last]).await;
    let burn = async |world: &World| {
        world
            .chain
            .set_storage(WALLET, 0, B256::with_last_byte(1))
            .await;
    };
    let (world, answers) = waiting.send_while(burn).await;
    assert!(
        answers[0].succeeded() && answers[2].succeeded(),
        "{answers:?}"
    );
    assert_eq!(
        answers[0].transaction(),
        answers[2].transaction(),
        "one batch"
    );
    assert!(!answers[1].succeeded(), "{answers:?}");
    let row = world.facilitator.payment(&answers[1]).await;
    let attempt = &row["attempts"][0];
    assert_ne!(
        attempt["transaction"],
        answers[0].transaction().as_str(),
        "sent alone"
    );
    assert_eq!(
        row["attempts"].as_array().unwrap().len(),
        1,
        "and once: {row}"
    );
    let burned: u64 = attempt["mined"]["gasUsed"].as_u64().unwrap();
    assert!(burned <= 500_000, "{burned} gas");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(50));
}

/// An account gets code by EIP-7702 after the simulation and takes the gas of the whole batch.
#[tokio::test(flavor = "multi_thread")]
async fn payer_getting_code_after_the_simulation_burns_one_batch_once() {
    let world = world().await;
    world.chain.place("GasBurningWallet", WALLET).await;
    let mut payers = Vec::new();
    for _ in 0..16 {
        payers.push(world.payer().await);
    }
    let purchases: Vec<_> = payers
        .iter()
        .map(|payer| Purchase::new(payer, PAYEE, 3))
        .collect();
    let flipper = payers.iter().map(PrivateKeySigner::address).min().unwrap();
    let waiting = Waiting::with(world, &purchases.iter().collect::<Vec<_>>()).await;
    let flip = async |world: &World| {
        let code = Bytes::from([&[0xef, 0x01, 0x00], WALLET.as_slice()].concat());
        world
            .chain
            .set_storage(flipper, 0, B256::with_last_byte(1))
            .await;
        world
            .chain
            .call("anvil_setCode", json!([flipper, code]))
            .await;
    };
    let (world, answers) = waiting.send_while(flip).await;
    let mut transactions = std::collections::BTreeSet::new();
    for (purchase, answer) in purchases.iter().zip(&answers) {
        if purchase.authorization.from == flipper {
            // Its suspension, or its code, whichever is seen first.
            let codes = [
                "payer_suspended",
                "invalid_exact_evm_transaction_simulation_failed",
            ];
            assert!(codes.contains(&answer.reason()), "{answer:?}");
        } else {
            assert!(answer.succeeded(), "{answer:?}");
            transactions.insert(answer.transaction());
        }
    }
    assert!(transactions.len() <= 2, "{transactions:?}");
    let sent = world.transactions(1).await;
    assert!(sent <= ROOM + 1 + 2, "{sent} transactions");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(15 * 3));
    // The suspension outlives the process, and new payments of it are not looked at.
    let payer = payers
        .iter()
        .find(|payer| payer.address() == flipper)
        .unwrap();
    let again = Purchase::new(payer, PAYEE, 3).body();
    let refused = world.facilitator.settle(&again).await;
    assert_eq!(refused.reason(), "payer_suspended", "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_40_paused_token_is_invalid_and_not_retried() {
    let world = world().await;
    let [(payer, one), (_, two), (_, last)] = three_payers(&world).await;
    let waiting = Waiting::with(world, &[&one, &two, &last]).await;
    let pause = async |world: &World| {
        world.chain.send(TEST_USDC, pauseCall { on: true }).await;
    };
    let (world, answers) = waiting.send_while(pause).await;
    let code = "invalid_exact_evm_transaction_simulation_failed";
    for answer in &answers {
        assert_eq!((answer.reason(), answer.transaction().as_str()), (code, ""));
        assert!(
            answer.body["errorMessage"]
                .as_str()
                .unwrap()
                .contains("paused"),
            "{answer:?}"
        );
    }
    assert_eq!(
        world.transactions(1).await,
        ROOM + 1,
        "one transaction wasted, no retries"
    );
    let fresh = Purchase::new(&payer, PAYEE, 80);
    assert_eq!(world.facilitator.verify(&fresh.body()).await.reason(), code);
    assert_eq!(world.facilitator.settle(&fresh.body()).await.reason(), code);
    assert_eq!(world.transactions(1).await, ROOM + 1);

    world.chain.send(TEST_USDC, pauseCall { on: false }).await;
    for purchase in [&one, &two, &last, &fresh] {
        let answer = world.facilitator.settle(&purchase.body()).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(150));
}
