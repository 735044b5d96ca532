//! The published attacks that payments by Permit2 are open to (`docs/architecture.md#permit2`), each with the test that shows the answer.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::protocol::Amount;

use crate::support::{Permission, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x2f);
/// How a payment of each scheme is made.
const SCHEMES: [fn(&PrivateKeySigner, Address, u64) -> Permission; 2] =
    [Permission::exact, Permission::upto];

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_two_payments_in_parallel_over_one_allowance_never_take_more_than_it() {
    for build in SCHEMES {
        let world = World::new().await;
        let payer = world.payer().await;
        world
            .chain
            .approve(TEST_USDC, payer.address(), U256::from(10_000))
            .await;
        let payments = [build(&payer, PAYEE, 8_000), build(&payer, PAYEE, 8_000)];
        for payment in &payments {
            assert!(world.facilitator.verify(&payment.body()).await.is_valid());
        }
        let bodies = payments.iter().map(Permission::body).collect();
        let answers = world.facilitator.settle_at_once(bodies).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.succeeded());
        assert_eq!((good.len(), bad.len()), (1, 1), "{answers:?}");
        assert_eq!(bad[0].reason(), "permit2_allowance_required", "{bad:?}");
        assert_eq!(world.chain.usdc(PAYEE).await, U256::from(8_000));
        assert_eq!(
            world.transactions(1).await,
            1,
            "nothing was spent on the other"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_09_a_settlement_that_somebody_else_submits_through_the_proxy_ends_as_settled_once()
{
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::exact(&payer, PAYEE, 6_000);
    world.chain.automine(false).await;
    let mut settling = world.facilitator.settling(&payment.body());
    world.has_sent(1).await;
    world.chain.call_dearly(payment.call()).await;
    world.mine_on().await;
    let settled = settling.join_next().await.unwrap().unwrap().unwrap();
    world.moved_once(PAYEE, &settled, 6_000).await;
    let receipt = world.chain.receipt(&settled.transaction()).await;
    let stranger = LocalChain::funded_keys()[0].address;
    assert_eq!(
        receipt["from"],
        json!(stranger),
        "their transaction: {receipt}"
    );
    world.buys_nothing_twice(&payment.body(), &settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_the_nonce_of_another_payer_or_of_another_payment_yields_no_success() {
    let world = World::new().await;
    let (mine, theirs) = (
        world.permitting_payer().await,
        world.permitting_payer().await,
    );
    let first = Permission::upto(&mine, PAYEE, 5_000);
    let nonce = first.authorization.nonce;
    let settled = world
        .facilitator
        .settle(&first.charging(1_000).body())
        .await;
    world.moved_once(PAYEE, &settled, 1_000).await;

    let other = Permission::upto(&mine, PAYEE, 6_000).with(|signed| signed.nonce = nonce);
    for answer in [
        world.facilitator.verify(&other.body()).await,
        world.facilitator.settle(&other.body()).await,
    ] {
        assert_eq!(answer.reason(), "permit2_invalid_nonce", "{answer:?}");
        assert_eq!(
            answer.transaction(),
            "",
            "no content of the other: {answer:?}"
        );
    }
    let stolen = Permission {
        signer: theirs.clone(),
        ..first.clone()
    };
    let stolen = world.facilitator.settle(&stolen.body()).await;
    assert_eq!(stolen.reason(), "invalid_permit2_signature", "{stolen:?}");
    assert_eq!(stolen.transaction(), "");

    let own = Permission::upto(&theirs, PAYEE, 5_000).with(|signed| signed.nonce = nonce);
    let own = world.facilitator.settle(&own.charging(2_000).body()).await;
    assert!(own.succeeded(), "nonces are per payer: {own:?}");
    assert_ne!(own.transaction(), settled.transaction());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_10_one_header_at_two_sellers_of_one_payee_buys_one_resource() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 5_000);
    let dear = payment.charging(5_000);
    let bodies = vec![payment.charging(1_000).body(), dear.body()];
    let answers = world.facilitator.settle_at_once(bodies).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.succeeded());
    assert_eq!((good.len(), bad.len()), (1, 1), "{answers:?}");
    assert_eq!(bad[0].reason(), "duplicate_settlement");
    // Who asks for more than the other does not wait for the other's transaction.
    let named = bad[0].transaction();
    assert!(
        named.is_empty() || named == good[0].transaction(),
        "{answers:?}"
    );
    let moved = good[0].body["amount"].as_str().unwrap();
    assert_eq!(world.chain.usdc(PAYEE).await.to_string(), moved);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_charge_that_the_buyer_has_settled_itself_is_no_success_to_who_charges_more() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 500_000);
    for charge in [0, 1] {
        let payment = payment.clone().with(|signed| {
            signed.nonce = Amount::from_atomic(U256::from(charge + 77));
        });
        let own = world
            .facilitator
            .settle(&payment.charging(charge).body())
            .await;
        assert!(own.succeeded(), "{own:?}");
        let seller = world
            .facilitator
            .settle(&payment.charging(5_000).body())
            .await;
        assert_eq!(seller.reason(), "duplicate_settlement", "{seller:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ONE);
}

/// The code for a payment that has bought something is told of none that has not.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_charge_under_way_is_pending_to_who_charges_more() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "2");
    let world = setup.build().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 500_000);
    world.chain.automine(false).await;
    let dear = payment.charging(5_000).body();
    let small = world
        .facilitator
        .settle(&payment.charging(1_000).body())
        .await;
    assert_eq!(small.reason(), "settlement_pending", "{small:?}");
    let seller = world.facilitator.settle(&dear).await;
    assert_eq!(seller.reason(), "settlement_pending", "{seller:?}");
    world.mine_on().await;
    let told = eventually("the outcome", Duration::from_secs(30), async || {
        let told = world.facilitator.settle(&dear).await;
        (told.reason() != "settlement_pending").then_some(told)
    })
    .await;
    assert_eq!(told.reason(), "duplicate_settlement", "{told:?}");
    assert_eq!(told.transaction(), small.transaction());
}

/// Here the buyer's own settlement is one that nobody was told of, so that the next presenter may be.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_charge_that_nobody_was_told_of_is_no_success_to_who_charges_more() {
    for charge in [0, 1] {
        let setup = Setup {
            failpoint: Some("granted"),
            ..Setup::default()
        };
        let mut world = setup.build().await;
        let payer = world.permitting_payer().await;
        let payment = Permission::upto(&payer, PAYEE, 500_000);
        let body = payment.charging(charge).body();
        assert!(world.facilitator.try_settle(&body).await.is_err());
        world.facilitator.wait_for_end().await;
        world.facilitator.restart(None).await;
        let seller = world
            .facilitator
            .settle(&payment.charging(5_000).body())
            .await;
        assert_eq!(seller.reason(), "duplicate_settlement", "{seller:?}");
        assert_eq!(seller.body["amount"], charge.to_string());
        let told = world.facilitator.settle(&body).await;
        assert!(told.succeeded(), "who asks for no more is told: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_permit_of_the_tokens_own_backs_one_payment_at_a_time() {
    let world = World::new().await;
    let payer = world.payer().await;
    let payments =
        [8_000, 7_000].map(|amount| Permission::upto(&payer, PAYEE, amount).with_permit(0));
    for payment in &payments {
        assert!(world.facilitator.verify(&payment.body()).await.is_valid());
    }
    world.chain.automine(false).await;
    let mut first = world.facilitator.settling(&payments[0].body());
    world.has_sent(1).await;
    let second = world.facilitator.settle(&payments[1].body()).await;
    assert_eq!(second.reason(), "permit2_allowance_required", "{second:?}");
    world.mine_on().await;
    let first = first.join_next().await.unwrap().unwrap().unwrap();
    world.moved_once(PAYEE, &first, 8_000).await;
    assert_eq!(
        world.transactions(1).await,
        1,
        "nothing was spent on the other"
    );
}
