//! Payers that make transactions fail: what they can waste is bounded, and nobody else waits for it.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    Answer, Chain, Permit2Purchase, Purchase, Setup, World, eventually, new_account,
};

const PAYEE: Address = Address::repeat_byte(0xc4);
const HONEST: Address = Address::repeat_byte(0xc5);
const BURNER: Address = Address::repeat_byte(0x3c);
const SUSPENDED: &str = "payer_suspended";

/// A payer with this code and money.
pub(crate) async fn wallet(world: &World, contract: &str, address: Address) -> Address {
    world.chain.place(contract, address).await;
    world.chain.fund(address, 1_000).await;
    address
}

pub(crate) fn paid_by(wallet: Address) -> Purchase {
    Purchase::new(&new_account(), PAYEE, 1).paid_by(wallet)
}

/// Presents each payment in each round; returns the answers of the last.
async fn present(world: &World, purchases: &[Purchase], rounds: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    for _ in 0..rounds {
        let bodies = purchases.iter().map(Purchase::body);
        answers = world.facilitator.settle_all(bodies.collect()).await;
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn wallet_that_notices_calls_and_calculations_wastes_no_transaction() {
    let world = World::new().await;
    let wallet = wallet(&world, "SimulationAwareWallet", Address::repeat_byte(0x61)).await;
    let purchases: Vec<_> = (0..10).map(|_| paid_by(wallet)).collect();
    let answers = present(&world, &purchases, 6).await;
    assert!(
        answers.iter().all(|answer| !answer.succeeded()),
        "{answers:?}"
    );
    assert_eq!(world.transactions(1).await, 0, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wallet_that_fails_in_blocks_alone_wastes_two_transactions_and_is_suspended() {
    let world = World::new().await;
    let wallet = wallet(&world, "BlockParityWallet", Address::repeat_byte(0x62)).await;
    let head = world.chain.call("eth_blockNumber", json!([])).await;
    let head: U64 = serde_json::from_value(head).unwrap();
    world.chain.mine(head.to::<u64>() % 2).await;
    let purchases: Vec<_> = (0..10).map(|_| paid_by(wallet)).collect();
    present(&world, &purchases[..1], 1).await;
    let answers = present(&world, &purchases, 6).await;
    let mined = world.transactions(1).await;
    assert!(
        (1..=2).contains(&mined),
        "{mined} transactions, {answers:?}"
    );
    for answer in &answers {
        assert_eq!(answer.reason(), SUSPENDED, "{answer:?}");
        let message = answer.body["errorMessage"].as_str().unwrap();
        assert!(message.contains("taken again from 20"), "{message}");
    }
    let verdict = world.facilitator.verify(&purchases[3].body()).await;
    assert_eq!(verdict.reason(), SUSPENDED, "{verdict:?}");
    // Others are served, and a new process knows of it.
    let honest = Purchase::new(&world.payer().await, HONEST, 1);
    assert!(world.facilitator.settle(&honest.body()).await.succeeded());
    let replica = world.replica().await;
    let told = replica.settle(&purchases[0].body()).await;
    assert_eq!(told.reason(), SUSPENDED, "{told:?}");
}

/// Code by EIP-7702 that takes all gas of the check.
async fn flip(chain: &Chain, payer: Address) {
    let code = Bytes::from([&[0xef, 0x01, 0x00], BURNER.as_slice()].concat());
    chain.set_storage(payer, 0, B256::with_last_byte(1)).await;
    chain.call("anvil_setCode", json!([payer, code])).await;
}

async fn balance(world: &World) -> U256 {
    let signer = Chain::signers(1)[0].address;
    let balance = world
        .chain
        .call("eth_getBalance", json!([signer, "latest"]))
        .await;
    serde_json::from_value(balance).unwrap()
}

async fn height(chain: &Chain) -> u64 {
    let head = chain.call("eth_blockNumber", json!([])).await;
    serde_json::from_value::<U64>(head).unwrap().to()
}

/// What strangers present in a storm.
async fn hostile(world: &World) -> (Vec<Value>, Vec<Address>) {
    let mut bodies = Vec::new();
    for _ in 0..10 {
        let payer = world.payer().await;
        bodies.extend((0..95).map(|_| Purchase::new(&payer, PAYEE, 1).body()));
    }
    for number in 1..=12_u8 {
        let code = ["SimulationAwareWallet", "BlockParityWallet"][usize::from(number % 2)];
        let wallet = wallet(world, code, Address::with_last_byte(0x80 + number)).await;
        bodies.extend((0..3).map(|_| paid_by(wallet).body()));
    }
    let mut flipping = Vec::new();
    for _ in 0..4 {
        let payer = world.payer().await;
        flipping.push(payer.address());
        bodies.extend((0..4).map(|_| Purchase::new(&payer, PAYEE, 1).body()));
    }
    for _ in 0..4 {
        let payment = Permit2Purchase::exact(&world.payer().await, PAYEE, 1);
        bodies.push(payment.clone().with_approval(&payment.approval()).body());
    }
    (bodies, flipping)
}

#[tokio::test(flavor = "multi_thread")]
async fn storm_of_strangers_costs_what_is_configured_and_delays_nobody() {
    const PER_PAYEE: u64 = 5_000_000_000_000_000;
    let setup = Setup {
        toml: format!(
            "[networks.base-sepolia]\npriority_fee_wei = 1000000000\nmax_fee_wei = 20000000000\n\
            [networks.base-sepolia.budget]\nwei_per_day = \"0.05eth\"\nwei_per_day_per_payee = {PER_PAYEE}\n\
            [networks.base-sepolia.approvals]\nwei_per_payer = 600000000000000\nwei_per_day = 2000000000000000\n"
        ),
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    world.chain.place("GasBurningWallet", BURNER).await;
    let (bodies, flipping) = hostile(&world).await;
    let payer = world.payer().await;
    let before = balance(&world).await;
    world.chain.call("evm_setAutomine", json!([false])).await;
    world.chain.call("evm_setIntervalMining", json!([2])).await;
    let mut storm = JoinSet::new();
    for body in bodies {
        let caller = (*world.facilitator).clone();
        storm.spawn(async move { caller.settle(&body).await });
    }
    // From here on the storm is answered; its requests arrive together.
    storm.join_next().await.unwrap().unwrap();
    let mut blocks = Vec::new();
    for number in 0..8_usize {
        let sent = height(&world.chain).await;
        let body = Purchase::new(&payer, HONEST, 7).body();
        // Presented again as sellers do, because the first ones may wait for the processor longer than a request waits.
        let answer = eventually("an honest payment", Duration::from_mins(2), async || {
            let answer = world.facilitator.settle(&body).await;
            answer.succeeded().then_some(answer)
        })
        .await;
        let receipt = world.chain.receipt(&answer.transaction()).await;
        let block: U64 = serde_json::from_value(receipt["blockNumber"].clone()).unwrap();
        blocks.push(block.to::<u64>() - sent);
        if let Some(payer) = flipping.get(number) {
            flip(&world.chain, *payer).await;
        }
    }
    let mut reasons = std::collections::BTreeMap::<String, usize>::new();
    while let Some(answer) = storm.join_next().await {
        let answer = answer.unwrap();
        let reason = if answer.succeeded() {
            "success"
        } else {
            answer.reason()
        };
        *reasons.entry(reason.to_owned()).or_default() += 1;
        if [SUSPENDED, "sponsorship_exhausted"].contains(&answer.reason()) {
            let message = answer.body["errorMessage"].as_str().unwrap();
            assert!(message.contains("taken again from 20"), "{message}");
        }
    }
    eventually("the last receipts", Duration::from_secs(20), async || {
        let open = world.facilitator.get("/payments?state=inflight").await.body;
        open["payments"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    })
    .await;
    let spent = before - balance(&world).await;
    println!("{spent} wei spent, {reasons:?}, honest payments mined after {blocks:?} blocks");
    let honest = world.chain.usdc(HONEST).await;
    assert_eq!(honest, U256::from(8 * 7));
    // Alone on a machine all of them do. Beside other tests the first ones wait for the processor with a thousand requests of the storm.
    let in_time = blocks.iter().filter(|blocks| **blocks <= 3).count();
    assert!(in_time >= 6, "{blocks:?}");
    // The honest payee has its own budget of the same size.
    assert!(spent <= U256::from(2 * PER_PAYEE), "{spent}");
    assert!(reasons["sponsorship_exhausted"] > 500, "{reasons:?}");
}
