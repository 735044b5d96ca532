//! Published attacks on payments by Permit2, each with a test.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::protocol::Amount;

use crate::support::{Permit2Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x2f);
/// Constructors of a payment of each scheme.
const SCHEMES: [fn(&PrivateKeySigner, Address, u64) -> Permit2Purchase; 2] =
    [Permit2Purchase::exact, Permit2Purchase::upto];

#[tokio::test(flavor = "multi_thread")]
async fn parallel_payments_never_exceed_one_allowance() {
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
        let bodies = payments.iter().map(Permit2Purchase::body).collect();
        let answers = world.facilitator.settle_all(bodies).await;
        let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.succeeded());
        assert_eq!((good.len(), bad.len()), (1, 1), "{answers:?}");
        assert_eq!(bad[0].reason(), "permit2_allowance_required", "{bad:?}");
        assert_eq!(world.chain.usdc(PAYEE).await, U256::from(8_000));
        assert_eq!(
            world.transactions(1).await,
            1,
            "no gas was spent on the other"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_settlement_through_proxy_is_settled_once() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 6_000);
    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&payment.body());
    world.wait_until_sent(1).await;
    world.chain.call_with_high_fee(payment.call()).await;
    world.resume_mining().await;
    let settled = settling.join_next().await.unwrap().unwrap().unwrap();
    world.assert_transferred_once(PAYEE, &settled, 6_000).await;
    let receipt = world.chain.receipt(&settled.transaction()).await;
    let sender = LocalChain::funded_keys()[0].address;
    assert_eq!(
        receipt["from"],
        json!(sender),
        "their transaction: {receipt}"
    );
    world
        .assert_duplicate_rejected(&payment.body(), &settled)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonce_of_another_payment_yields_no_success() {
    let world = World::new().await;
    let (mine, theirs) = (world.approved_payer().await, world.approved_payer().await);
    let first = Permit2Purchase::upto(&mine, PAYEE, 5_000);
    let nonce = first.authorization.nonce;
    let settled = world
        .facilitator
        .settle(&first.charging(1_000).body())
        .await;
    world.assert_transferred_once(PAYEE, &settled, 1_000).await;

    let other = Permit2Purchase::upto(&mine, PAYEE, 6_000).with(|signed| signed.nonce = nonce);
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
    let stolen = Permit2Purchase {
        signer: theirs.clone(),
        ..first.clone()
    };
    let stolen = world.facilitator.settle(&stolen.body()).await;
    assert_eq!(stolen.reason(), "invalid_permit2_signature", "{stolen:?}");
    assert_eq!(stolen.transaction(), "");

    let own = Permit2Purchase::upto(&theirs, PAYEE, 5_000).with(|signed| signed.nonce = nonce);
    let own = world.facilitator.settle(&own.charging(2_000).body()).await;
    assert!(own.succeeded(), "nonces are per payer: {own:?}");
    assert_ne!(own.transaction(), settled.transaction());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(3_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_header_at_two_sellers_buys_one_resource() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 5_000);
    let dear = payment.charging(5_000);
    let bodies = vec![payment.charging(1_000).body(), dear.body()];
    let answers = world.facilitator.settle_all(bodies).await;
    let (good, bad): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.succeeded());
    assert_eq!((good.len(), bad.len()), (1, 1), "{answers:?}");
    assert_eq!(bad[0].reason(), "duplicate_settlement");
    // A request for a larger charge does not wait for the smaller charge's transaction.
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
async fn self_settled_small_charge_does_not_pay_a_larger_one() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000);
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

/// `duplicate_settlement` is answered only for payments that have bought something.
#[tokio::test(flavor = "multi_thread")]
async fn inflight_small_charge_is_pending_for_a_larger_one() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "2");
    let world = setup.build().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000);
    world.chain.automine(false).await;
    let dear = payment.charging(5_000).body();
    let small = world
        .facilitator
        .settle(&payment.charging(1_000).body())
        .await;
    assert_eq!(small.reason(), "settlement_pending", "{small:?}");
    let seller = world.facilitator.settle(&dear).await;
    assert_eq!(seller.reason(), "settlement_pending", "{seller:?}");
    world.resume_mining().await;
    let told = eventually("the outcome", Duration::from_secs(30), async || {
        let told = world.facilitator.settle(&dear).await;
        (told.reason() != "settlement_pending").then_some(told)
    })
    .await;
    assert_eq!(told.reason(), "duplicate_settlement", "{told:?}");
    assert_eq!(told.transaction(), small.transaction());
}

/// The buyer's own settlement was not granted, so the next presenter may be.
#[tokio::test(flavor = "multi_thread")]
async fn ungranted_small_charge_does_not_pay_a_larger_one() {
    for charge in [0, 1] {
        let setup = Setup {
            failpoint: Some("granted"),
            ..Setup::default()
        };
        let mut world = setup.shortened().build().await;
        let payer = world.approved_payer().await;
        let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000);
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
        assert!(told.succeeded(), "an equal charge is granted: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_eip2612_permit_backs_one_payment_at_a_time() {
    let world = World::new().await;
    let payer = world.payer().await;
    let payments =
        [8_000, 7_000].map(|amount| Permit2Purchase::upto(&payer, PAYEE, amount).with_permit(0));
    for payment in &payments {
        assert!(world.facilitator.verify(&payment.body()).await.is_valid());
    }
    world.chain.automine(false).await;
    let mut first = world.facilitator.spawn_settle(&payments[0].body());
    world.wait_until_sent(1).await;
    let second = world.facilitator.settle(&payments[1].body()).await;
    assert_eq!(second.reason(), "permit2_allowance_required", "{second:?}");
    world.resume_mining().await;
    let first = first.join_next().await.unwrap().unwrap().unwrap();
    world.assert_transferred_once(PAYEE, &first, 8_000).await;
    assert_eq!(
        world.transactions(1).await,
        1,
        "no gas was spent on the other"
    );
}
