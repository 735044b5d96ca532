//! Callers that cause cost without paying: bounded cost for the operator and no effect on other callers.

use alloy::primitives::{Address, B256, U256};
use serde_json::Value;

use crate::support::{Chain, Fault, Purchase, Setup, World, new_account};

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
