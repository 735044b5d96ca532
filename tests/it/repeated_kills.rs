//! Many payments, and a service that is killed repeatedly among them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Chain, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x57);
const PAYMENTS: u64 = 60;
const SEND: &str = "eth_sendRawTransaction";

type Asking = JoinSet<Result<Answer, reqwest::Error>>;

#[tokio::test(flavor = "multi_thread")]
async fn sixty_payments_settle_once_through_three_kills() {
    let setup = Setup {
        signers: 3,
        block_time_s: Some(1),
        ..Setup::default()
    };
    let mut world = setup.shortened().build().await;
    let payer = world.payer().await;
    let mut open: HashMap<u64, _> = (0..PAYMENTS)
        .map(|number| (number, Purchase::new(&payer, PAYEE, 1_000 + number).body()))
        .collect();
    let all = open.clone();
    let mut told = HashSet::new();
    for life in 1..=3 {
        let before = world.proxy.calls(SEND);
        // New payments in each round, so that each process has something to send when it is killed.
        let mut presented = open.clone();
        presented.retain(|number, _| *number < life * PAYMENTS / 3);
        let mut asking = ask(&world, &presented);
        world.proxy.called(SEND, before + 1).await;
        world.facilitator.kill();
        for (number, one) in &mut asking {
            let answer_or_error = one.join_next().await.unwrap().unwrap();
            if answer_or_error.is_ok_and(|answer| answer.succeeded()) {
                told.insert(*number);
            }
        }
        world.facilitator.restart(None).await;
    }
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut hashes = HashMap::new();
    while !open.is_empty() && Instant::now() < deadline {
        for (number, mut one) in ask(&world, &open) {
            let answer = one.join_next().await.unwrap().unwrap().unwrap();
            if answer.succeeded() {
                told.insert(number);
            }
            if answer.succeeded() || answer.reason() == "duplicate_settlement" {
                hashes.insert(number, answer.transaction());
                open.remove(&number);
            }
        }
    }
    assert!(open.is_empty(), "never decided: {:?}", open.keys());
    assert_eq!(hashes.len(), 60, "each has a transaction");
    assert_eq!(told.len(), 60, "each success was reported");
    for (number, mut one) in ask(&world, &all) {
        let again = one.join_next().await.unwrap().unwrap().unwrap();
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
        assert_eq!(again.transaction(), hashes[&number]);
    }
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 60);
    for transfer in transfers {
        let amount: U256 = transfer["data"].as_str().unwrap().parse().unwrap();
        let number = amount.to::<u64>() - 1_000;
        let hash = transfer["transactionHash"].as_str();
        assert_eq!(
            hash,
            hashes.remove(&number).as_deref(),
            "its own hash, once"
        );
    }
    for signer in Chain::signers(3) {
        let mined = world.chain.transaction_count(signer.address).await;
        assert_eq!(mined, world.chain.pending_count(signer.address).await);
    }
}

/// Presents payments concurrently.
fn ask(world: &World, payments: &HashMap<u64, Value>) -> Vec<(u64, Asking)> {
    let ask = |(number, body): (&u64, &Value)| (*number, world.facilitator.spawn_settle(body));
    payments.iter().map(ask).collect()
}
