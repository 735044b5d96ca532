//! Payments by Permit2: `exact` and `upto`, from the payer's signature to the Transfer, through repetitions, kills and strangers.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use serde_json::json;
use x402d::embedded::TEST_USDC;
use x402d::protocol::permit2::{EXACT_PROXY, PERMIT2};

use crate::support::{
    Chain, Fault, Permission, Setup, World, eventually, invalidateUnorderedNoncesCall, pauseCall,
};

const PAYEE: Address = Address::repeat_byte(0x2c);
const SIGKILL: i32 = 9;
/// How a payment of each scheme is made.
const SCHEMES: [fn(&PrivateKeySigner, Address, u64) -> Permission; 2] =
    [Permission::exact, Permission::upto];

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_payment_by_permit2_is_settled_once_and_stands_in_the_history() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::exact(&payer, PAYEE, 123_456);
    let verdict = world.facilitator.verify(&payment.body()).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let settled = world.facilitator.settle(&payment.body()).await;
    world.moved_once(PAYEE, &settled, 123_456).await;
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["scheme"], "exact", "{row}");
    assert_eq!(row["method"], "permit2", "{row}");
    world.buys_nothing_twice(&payment.body(), &settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upto_payment_charges_what_the_seller_says_and_never_more_than_was_permitted() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 500_000);
    assert!(world.facilitator.verify(&payment.body()).await.is_valid());

    let above = world
        .facilitator
        .settle(&payment.charging(500_001).body())
        .await;
    let code = "invalid_upto_evm_payload_settlement_exceeds_amount";
    assert_eq!(above.reason(), code, "{above:?}");
    assert_eq!(world.transactions(1).await, 0, "nothing was sent");

    let settled = world
        .facilitator
        .settle(&payment.charging(1_234).body())
        .await;
    world.moved_once(PAYEE, &settled, 1_234).await;
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["scheme"], "upto", "{row}");
    assert_eq!(row["permitted"], "500000", "{row}");
    world.buys_nothing_twice(&payment.body(), &settled).await;
    let dearer = world
        .facilitator
        .settle(&payment.charging(2_000).body())
        .await;
    assert_eq!(dearer.reason(), "duplicate_settlement");
    assert_eq!(
        dearer.body["amount"], "1234",
        "what was charged: {dearer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_of_nothing_is_settled_without_a_transaction_and_uses_the_authorization_up() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 500_000);
    let free = world.facilitator.settle(&payment.charging(0).body()).await;
    assert!(free.succeeded(), "{free:?}");
    assert_eq!(free.body["transaction"], "");
    assert_eq!(free.body["amount"], "0");
    let row = world.facilitator.payment(&free).await;
    assert_eq!(
        (&row["state"], &row["amount"]),
        (&json!("settled"), &json!("0"))
    );

    for charge in [0, 1, 500_000] {
        let again = world
            .facilitator
            .settle(&payment.charging(charge).body())
            .await;
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
        assert_eq!(again.transaction(), "");
    }
    let verdict = world.facilitator.verify(&payment.body()).await;
    assert_eq!(verdict.reason(), "duplicate_settlement", "{verdict:?}");
    assert_eq!(world.transactions(1).await, 0);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_of_the_tokens_own_takes_the_place_of_an_approval_in_both_schemes() {
    let world = World::new().await;
    for (charge, build) in [7_000, 3_000].into_iter().zip(SCHEMES) {
        let payer = world.payer().await;
        let bare = build(&payer, PAYEE, 7_000);
        let refused = world
            .facilitator
            .settle(&bare.charging(charge).body())
            .await;
        assert_eq!(
            refused.reason(),
            "permit2_allowance_required",
            "{refused:?}"
        );
        let payment = bare.with_permit(0);
        let verdict = world.facilitator.verify(&payment.body()).await;
        assert!(verdict.is_valid(), "{verdict:?}");
        let settled = world
            .facilitator
            .settle(&payment.charging(charge).body())
            .await;
        assert!(settled.succeeded(), "{settled:?}");
        assert_eq!(settled.body["amount"], charge.to_string());
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(10_000));
    let supported = world.facilitator.get("/supported").await.body;
    let extensions = supported["extensions"].as_array().unwrap();
    assert!(
        extensions.contains(&json!("eip2612GasSponsoring")),
        "{supported}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_somebody_submitted_first_does_no_harm() {
    let world = World::new().await;
    let payer = world.payer().await;
    let payment = Permission::exact(&payer, PAYEE, 7_000).with_permit(0);
    assert!(world.facilitator.verify(&payment.body()).await.is_valid());
    world.chain.submit_permit(&payment.permit(0)).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    world.moved_once(PAYEE, &settled, 7_000).await;
}

/// Kills the service at `step` of a payment of each kind, and presents it again: with the same body, then with another charge.
async fn each_kind_settles_once_though_killed_at(step: &'static str) {
    for kind in ["exact", "upto", "permit"] {
        let setup = Setup {
            failpoint: Some(step),
            ..Setup::default()
        };
        let mut world = setup.build().await;
        let payer = world.payer().await;
        let payment = match kind {
            "exact" => Permission::exact(&payer, PAYEE, 9_000),
            "upto" => Permission::upto(&payer, PAYEE, 500_000).charging(9_000),
            _ => Permission::upto(&payer, PAYEE, 500_000)
                .with_permit(0)
                .charging(9_000),
        };
        if kind != "permit" {
            world
                .chain
                .approve(TEST_USDC, payer.address(), U256::MAX)
                .await;
        }
        let broken = world.facilitator.try_settle(&payment.body()).await;
        assert!(broken.is_err(), "{kind} at {step}: {broken:?}");
        let ended = world.facilitator.wait_for_end().await;
        assert_eq!(ended.signal(), Some(SIGKILL));
        world.facilitator.restart(None).await;
        let again = if kind == "exact" {
            payment.clone()
        } else {
            payment.charging(8_000)
        };
        let settled = world.facilitator.settle(&again.body()).await;
        world.moved_once(PAYEE, &settled, 9_000).await;
        let second = world.facilitator.settle(&payment.body()).await;
        assert_eq!(second.reason(), "duplicate_settlement", "{kind} at {step}");
        assert_eq!(
            world.transactions(1).await,
            1,
            "{kind} at {step}: one nonce, no gap"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_when_a_lane_took_it_each_kind_settles_once_at_the_amount_first_asked_for() {
    each_kind_settles_once_though_killed_at("picked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_when_the_bytes_are_committed_each_kind_settles_once_at_the_amount_first_asked_for()
{
    each_kind_settles_once_though_killed_at("recorded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_when_the_receipt_was_seen_each_kind_settles_once_at_the_amount_first_asked_for() {
    each_kind_settles_once_though_killed_at("mined").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_grant_and_answer_a_charge_of_nothing_is_told_to_the_next_presenter_once() {
    let setup = Setup {
        failpoint: Some("granted"),
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::upto(&payer, PAYEE, 500_000).charging(0);
    assert!(world.facilitator.try_settle(&payment.body()).await.is_err());
    world.facilitator.wait_for_end().await;
    world.facilitator.restart(None).await;
    let told = world.facilitator.settle(&payment.body()).await;
    assert!(told.succeeded(), "{told:?}");
    let again = world.facilitator.settle(&payment.body()).await;
    assert_eq!(again.reason(), "duplicate_settlement");
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_payment_that_somebody_else_submits_afterwards_is_settled_and_granted_once() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::exact(&payer, PAYEE, 6_000);
    // Sent, mined without effect, and refused: the token was paused just before.
    world.chain.automine(false).await;
    let mut settling = world.facilitator.settling(&payment.body());
    world.has_sent(1).await;
    let pause = |on| (TEST_USDC, pauseCall { on }.abi_encode().into());
    world.chain.call_dearly(pause(true)).await;
    world.mine_on().await;
    let refused = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(refused.reason(), "permit2_simulation_failed", "{refused:?}");

    world.chain.call_dearly(pause(false)).await;
    world.chain.call_dearly(payment.call()).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    world.moved_once(PAYEE, &settled, 6_000).await;
    world.buys_nothing_twice(&payment.body(), &settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_moved_elsewhere_before_it_was_ever_presented_here_buys_nothing() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let payment = Permission::exact(&payer, PAYEE, 6_000);
    world.chain.call_dearly(payment.call()).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    assert_eq!(settled.reason(), "permit2_invalid_nonce", "{settled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_that_is_invalidated_before_or_after_it_was_sent_fails_and_says_so() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let invalidation = |payment: &Permission| {
        let nonce: U256 = payment.authorization.nonce.atomic();
        let bit = usize::try_from(nonce & U256::from(255)).unwrap();
        invalidateUnorderedNoncesCall {
            word: nonce >> 8,
            mask: U256::ONE << bit,
        }
    };
    let before = Permission::exact(&payer, PAYEE, 6_000);
    world
        .chain
        .send_as(payer.address(), PERMIT2, invalidation(&before))
        .await;
    for answer in [
        world.facilitator.verify(&before.body()).await,
        world.facilitator.settle(&before.body()).await,
    ] {
        assert_eq!(answer.reason(), "permit2_invalid_nonce", "{answer:?}");
    }
    assert_eq!(world.transactions(1).await, 0);

    let after = Permission::exact(&payer, PAYEE, 6_000);
    world.chain.automine(false).await;
    let mut settling = world.facilitator.settling(&after.body());
    world.has_sent(1).await;
    let call = (PERMIT2, invalidation(&after).abi_encode().into());
    world.chain.call_dearly_as(payer.address(), call).await;
    world.mine_on().await;
    let failed = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(failed.reason(), "permit2_invalid_nonce", "{failed:?}");
    let row = world.facilitator.payment(&failed).await;
    assert_eq!(row["state"], "failed", "the proof is on the chain: {row}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_wallet_pays_by_permit2_in_both_schemes() {
    let world = World::new().await;
    let owner = world.payer().await;
    let wallet = world.chain.wallet_of(owner.address()).await;
    world.chain.fund(wallet, 100_000).await;
    world.chain.approve(TEST_USDC, wallet, U256::MAX).await;
    for build in SCHEMES {
        let payment = build(&owner, PAYEE, 4_000).paid_by(wallet);
        let settled = world.facilitator.settle(&payment.body()).await;
        assert!(settled.succeeded(), "{settled:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(8_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn upto_payments_are_settled_by_the_signer_that_they_name_and_twins_settle_once_each() {
    let setup = Setup {
        signers: 3,
        block_time_s: Some(1),
        ..Setup::default()
    };
    let world = setup.build().await;
    let mut bodies = Vec::new();
    for index in 0..3_usize {
        let payer = world.permitting_payer().await;
        let named = Chain::signers(3)[index].address;
        let metered = Permission::upto(&payer, PAYEE, 5_000)
            .with(|signed| signed.witness.facilitator = Some(named));
        bodies.push(metered.charging(1_000).body());
        // Twins: the same payer, payee, token and amount.
        bodies.push(Permission::exact(&payer, PAYEE, 2_000).body());
        bodies.push(Permission::exact(&payer, PAYEE, 2_000).body());
    }
    let answers = world.facilitator.settle_at_once(bodies).await;
    for answer in &answers {
        assert!(answer.succeeded(), "{answer:?}");
    }
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 9);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(15_000));
    for signer in Chain::signers(3) {
        assert!(world.chain.transaction_count(signer.address).await > 0);
    }
    let supported = world.facilitator.get("/supported").await.body;
    let upto = supported["kinds"]
        .as_array()
        .unwrap()
        .iter()
        .find(|kind| kind["scheme"] == "upto");
    let announced = &upto.unwrap()["extra"]["facilitatorAddress"];
    assert_eq!(*announced, Chain::signers(1)[0].address.to_checksum(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_without_the_proxies_announces_neither_scheme_nor_sponsoring() {
    let chain = Chain::start().await;
    for place in [PERMIT2, EXACT_PROXY] {
        chain.call("anvil_setCode", json!([place, "0x"])).await;
    }
    let world = Setup::default().on(chain).await;
    let supported = world.facilitator.get("/supported").await.body;
    let kinds = supported["kinds"].as_array().unwrap();
    assert!(
        kinds.iter().all(|kind| kind["scheme"] == "exact"),
        "{supported}"
    );
    assert_eq!(supported["extensions"], json!(["payment-session"]));
    let payer = world.payer().await;
    let payment = Permission::exact(&payer, PAYEE, 1_000);
    let verdict = world.facilitator.verify(&payment.body()).await;
    assert_eq!(
        verdict.reason(),
        "permit2_proxy_not_deployed",
        "{verdict:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_outlives_an_rpc_that_does_not_answer_at_the_start() {
    let mut world = World::new().await;
    let before = world.facilitator.get("/supported").await.body;
    assert!(before.to_string().contains("upto"), "{before}");
    world.facilitator.kill();
    world.proxy.all(Fault::Unavailable);
    world.facilitator.spawn(None).await;
    let limit = Duration::from_secs(20);
    let after = eventually("an answer", limit, async || {
        world.facilitator.try_get("/supported").await.ok()
    })
    .await;
    assert_eq!(after.body, before);
}
