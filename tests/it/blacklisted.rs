//! Accounts that the token itself has blacklisted: nothing is settled from or to them, and nobody else is affected.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::sol_types::SolCall;
use x402d::embedded::TEST_USDC;

use crate::support::{Permit2Purchase, Purchase, World, blacklistCall, eventually};

const PAYEE: Address = Address::repeat_byte(0xb1);
const BLACKLISTED_PAYEE: Address = Address::repeat_byte(0xb2);

async fn blacklist(world: &World, account: Address) {
    world
        .chain
        .send(TEST_USDC, blacklistCall { account, on: true })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blacklisted_payers_and_payees_are_refused_before_anything_is_sent() {
    let world = World::new().await;
    let (payer, blacklisted) = (world.approved_payer().await, world.approved_payer().await);
    blacklist(&world, blacklisted.address()).await;
    blacklist(&world, BLACKLISTED_PAYEE).await;
    for (from, to) in [(&blacklisted, PAYEE), (&payer, BLACKLISTED_PAYEE)] {
        let own = Purchase::new(from, to, 7).body();
        world
            .assert_rejected_at_both(&own, "invalid_exact_evm_transaction_simulation_failed")
            .await;
        for payment in [
            Permit2Purchase::exact(from, to, 7),
            Permit2Purchase::upto(from, to, 7),
        ] {
            let code = "permit2_simulation_failed";
            world.assert_rejected_at_both(&payment.body(), code).await;
        }
    }
    assert_eq!(world.transactions(1).await, 0);
    let settled = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 7).body())
        .await;
    world.assert_transferred_once(PAYEE, &settled, 7).await;
}

/// The blacklisting is mined in the same block, before the settlement.
#[tokio::test(flavor = "multi_thread")]
async fn blacklisting_after_the_check_moves_nothing_and_spares_the_others() {
    let world = World::new().await;
    let payers = [
        world.payer().await,
        world.payer().await,
        world.payer().await,
    ];
    world.chain.automine(false).await;
    let mut settling = tokio::task::JoinSet::new();
    for (index, payer) in payers.iter().enumerate() {
        let (caller, body) = (
            (*world.facilitator).clone(),
            Purchase::new(payer, PAYEE, 10).body(),
        );
        settling.spawn(async move { (index, caller.settle(&body).await) });
    }
    eventually(
        "a transaction of ours",
        Duration::from_secs(20),
        async || (world.pending(1).await > 0).then_some(()),
    )
    .await;
    let call = blacklistCall {
        account: payers[0].address(),
        on: true,
    };
    let call = (TEST_USDC, call.abi_encode().into());
    world.chain.call_with_high_fee(call).await;
    world.resume_mining().await;
    for (index, answer) in settling.join_all().await {
        assert_eq!(answer.succeeded(), index != 0, "{index}: {answer:?}");
        if index == 0 {
            let code = "invalid_exact_evm_transaction_simulation_failed";
            assert_eq!(answer.reason(), code, "{answer:?}");
        }
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(20));
}
