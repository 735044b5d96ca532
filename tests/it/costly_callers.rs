//! Callers that cause cost without paying: bounded cost for the operator and no effect on other callers.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::{
    Caller, Chain, Fault, OpenSession, Purchase, Setup, World, eventually, new_account,
};

const PAYEE: Address = Address::repeat_byte(0xf8);
/// RPC methods used to look up a used nonce.
const LOOKUP_METHODS: [&str; 4] = [
    "eth_call",
    "eth_getLogs",
    "eth_getTransactionReceipt",
    "eth_getTransactionCount",
];

fn nonce_lookups(world: &World) -> usize {
    LOOKUP_METHODS
        .iter()
        .map(|method| world.proxy.calls(method))
        .sum()
}

async fn assert_refused_as_used(world: &World, body: &Value) {
    let answer = world.facilitator.verify(body).await;
    assert_eq!(
        answer.reason(),
        "invalid_exact_evm_nonce_already_used",
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_used_nonce_costs_one_lookup() {
    let world = Setup::default().build().await;
    let payer = world.payer().await;
    let used = Purchase::new(&payer, PAYEE, 1);
    world.chain.submit(&used).await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ONE);
    let body = used.body();
    let before = nonce_lookups(&world);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (caller, body) = ((*world.facilitator).clone(), body.clone());
        asking.spawn(async move { caller.verify(&body).await });
    }
    for answer in asking.join_all().await {
        assert!(!answer.is_valid(), "{answer:?}");
    }
    for _ in 0..150 {
        assert_refused_as_used(&world, &body).await;
    }
    let cost = nonce_lookups(&world) - before;
    assert!(cost <= 20, "{cost} calls for 200 verifies");

    // Other terms under the same nonce cost nothing either: the nonce is used for good.
    let before = nonce_lookups(&world);
    for amount in 2..20 {
        let mut other = Purchase::new(&payer, PAYEE, amount);
        other.authorization.nonce = used.authorization.nonce;
        assert_refused_as_used(&world, &other.body()).await;
    }
    // The engine makes some of these calls by itself.
    let cost = nonce_lookups(&world) - before;
    assert!(cost < 6, "{cost} calls for 18 verifies");

    // A reorg may have undone the use, so the chain is asked again.
    world.chain.reorg(1).await;
    world.chain.mine(3).await;
    let signer = Chain::signers(1)[0].address;
    crate::support::eventually(
        "the nonce is free again",
        std::time::Duration::from_secs(30),
        async || {
            let answer = world.facilitator.settle(&body).await;
            answer.succeeded().then_some(())
        },
    )
    .await;
    assert_eq!(world.chain.transaction_count(signer).await, 1);
}

/// Nodes bound the gas of one call; each of these wallets burns a million of it.
#[tokio::test(flavor = "multi_thread")]
async fn gas_burning_wallets_fail_no_other_caller() {
    let world = Setup::default().build().await;
    let payer = world.payer().await;
    let mut bodies = Vec::new();
    for number in 1..=48_u8 {
        let wallet = Address::repeat_byte(number);
        world.chain.place("GasBurningWallet", wallet).await;
        let burning = B256::with_last_byte(1);
        world.chain.set_storage(wallet, 0, burning).await;
        let evil = Purchase::new(&new_account(), PAYEE, 1).paid_by(wallet);
        bodies.push(evil.body());
    }
    world.proxy.on("eth_call", Fault::CallGasCap(20_000_000));
    for round in 0..3 {
        let mut burning = tokio::task::JoinSet::new();
        let mut verifies = tokio::task::JoinSet::new();
        for (number, body) in bodies.iter().enumerate() {
            let (caller, body) = ((*world.facilitator).clone(), body.clone());
            burning.spawn(async move { caller.verify(&body).await });
            if number % 8 == 7 {
                let body = Purchase::new(&payer, PAYEE, 1).body();
                let caller = (*world.facilitator).clone();
                verifies.spawn(async move { caller.verify(&body).await });
            }
        }
        for answer in verifies.join_all().await {
            assert!(answer.is_valid(), "round {round}: {answer:?}");
        }
        for answer in burning.join_all().await {
            assert!(answer.status == 200 && !answer.is_valid(), "{answer:?}");
        }
    }
}

/// What is known already, and reads of sessions, cost a statement each.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_every_kind_are_counted_together() {
    let world = World::new().await;
    let payer = world.payer().await;
    let known = Purchase::new(&payer, PAYEE, 1).body();
    let told = world.facilitator.settle(&known).await;
    assert!(told.succeeded(), "{told:?}");
    let session = OpenSession::open(&world.facilitator, &payer, "transfer", PAYEE, 2).await;
    let path = format!("/sessions/{}", session.id);
    // Twelve a second.
    let slow = "verify_lease_s = 120\n[limits]\nverify_per_second = 1\nsettle_per_second = 1\nsessions_per_second = 1\n";
    let limited = world.replica_with(slow).await;
    let fresh = Purchase::new(&payer, PAYEE, 3).body();
    assert!(limited.verify(&fresh).await.is_valid());
    let cancel = format!("{path}/cancel");
    let token = json!({"cancelToken": "ct_of_nobody"});
    let kinds = [
        ("/verify", Some(&known)),
        ("/settle", Some(&known)),
        (path.as_str(), None),
        (cancel.as_str(), Some(&token)),
    ];
    for (path, body) in kinds {
        let mut asked = JoinSet::new();
        for _ in 0..150 {
            let (caller, path, body) = (Caller::clone(&limited), path.to_owned(), body.cloned());
            asked.spawn(async move {
                match body {
                    Some(body) => caller.post(&path, &body).await.unwrap(),
                    None => caller.get(&path).await,
                }
            });
        }
        let answers = asked.join_all().await;
        let refused = answers.iter().filter(|answer| answer.status == 429);
        assert!(refused.clone().count() > 0, "{path}: {answers:?}");
        assert!(refused.clone().all(|answer| answer.retry_after.is_some()));
    }
    // A settle after a verify is not refused, and one that is repeated at a sensible pace is answered.
    let settled = limited.settle(&fresh).await;
    assert!(settled.succeeded(), "{settled:?}");
    eventually("an answer", Duration::from_secs(20), async || {
        let answer = limited.settle(&known).await;
        (answer.reason() == "duplicate_settlement").then_some(())
    })
    .await;
}
