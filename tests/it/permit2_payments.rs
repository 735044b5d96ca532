//! Payments by Permit2 in `exact` and `upto`, from the payer's signature to the Transfer, including repetitions, kills and foreign
//! submissions.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use serde_json::json;
use x402d::embedded::TEST_USDC;
use x402d::protocol::permit2::{EXACT_PROXY, PERMIT2};

use crate::support::{
    Chain, Fault, Permit2Purchase, Setup, World, eventually, invalidateUnorderedNoncesCall,
    pauseCall,
};

const PAYEE: Address = Address::repeat_byte(0x2c);
const SIGKILL: i32 = 9;
/// Constructors of a payment of each scheme.
const SCHEMES: [fn(&PrivateKeySigner, Address, u64) -> Permit2Purchase; 2] =
    [Permit2Purchase::exact, Permit2Purchase::upto];

#[tokio::test(flavor = "multi_thread")]
async fn exact_by_permit2_settles_once_and_is_in_the_history() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 123_456);
    let verdict = world.facilitator.verify(&payment.body()).await;
    assert!(verdict.is_valid(), "{verdict:?}");
    let settled = world.facilitator.settle(&payment.body()).await;
    world
        .assert_transferred_once(PAYEE, &settled, 123_456)
        .await;
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["scheme"], "exact", "{row}");
    assert_eq!(row["method"], "permit2", "{row}");
    world
        .assert_duplicate_rejected(&payment.body(), &settled)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upto_charges_the_asked_amount_within_the_maximum() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000);
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
    world.assert_transferred_once(PAYEE, &settled, 1_234).await;
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["scheme"], "upto", "{row}");
    assert_eq!(row["permitted"], "500000", "{row}");
    world
        .assert_duplicate_rejected(&payment.body(), &settled)
        .await;
    let dearer = world
        .facilitator
        .settle(&payment.charging(2_000).body())
        .await;
    assert_eq!(dearer.reason(), "duplicate_settlement");
    assert_eq!(
        dearer.body["amount"], "1234",
        "the amount charged: {dearer:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_charge_settles_without_a_transaction() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000);
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
async fn eip2612_permit_replaces_approval_in_both_schemes() {
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
async fn permit_already_submitted_does_no_harm() {
    let world = World::new().await;
    let payer = world.payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 7_000).with_permit(0);
    assert!(world.facilitator.verify(&payment.body()).await.is_valid());
    world.chain.submit_permit(&payment.permit(0)).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    world.assert_transferred_once(PAYEE, &settled, 7_000).await;
}

/// Kills the service at `step` of a payment of each kind, and presents it again: with the same body, then with another charge.
async fn assert_each_kind_settles_once_after_kill_at(step: &'static str) {
    for kind in ["exact", "upto", "permit"] {
        let setup = Setup {
            failpoint: Some(step),
            ..Setup::default()
        };
        let mut world = setup.shortened().build().await;
        let payer = world.payer().await;
        let payment = match kind {
            "exact" => Permit2Purchase::exact(&payer, PAYEE, 9_000),
            "upto" => Permit2Purchase::upto(&payer, PAYEE, 500_000).charging(9_000),
            _ => Permit2Purchase::upto(&payer, PAYEE, 500_000)
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
        world.assert_transferred_once(PAYEE, &settled, 9_000).await;
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
async fn kill_after_claim_settles_each_kind_at_first_amount() {
    assert_each_kind_settles_once_after_kill_at("picked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_commit_settles_each_kind_at_first_amount() {
    assert_each_kind_settles_once_after_kill_at("recorded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_receipt_settles_each_kind_at_first_amount() {
    assert_each_kind_settles_once_after_kill_at("mined").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_after_grant_tells_zero_charge_to_next_caller_once() {
    let setup = Setup {
        failpoint: Some("granted"),
        ..Setup::default()
    };
    let mut world = setup.shortened().build().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::upto(&payer, PAYEE, 500_000).charging(0);
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
async fn refused_payment_submitted_elsewhere_is_granted_once() {
    let world = Setup::default().shortened().build().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 6_000);
    // The token is paused just before: the transaction is mined without a transfer and the payment is refused.
    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&payment.body());
    world.wait_until_sent(1).await;
    let pause = |on| (TEST_USDC, pauseCall { on }.abi_encode().into());
    world.chain.call_with_high_fee(pause(true)).await;
    world.resume_mining().await;
    let refused = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(refused.reason(), "permit2_simulation_failed", "{refused:?}");

    world.chain.call_with_high_fee(pause(false)).await;
    world.chain.call_with_high_fee(payment.call()).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    world.assert_transferred_once(PAYEE, &settled, 6_000).await;
    world
        .assert_duplicate_rejected(&payment.body(), &settled)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_before_first_presentation_buys_nothing() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 6_000);
    world.chain.call_with_high_fee(payment.call()).await;
    let settled = world.facilitator.settle(&payment.body()).await;
    assert_eq!(settled.reason(), "permit2_invalid_nonce", "{settled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalidated_nonce_fails_with_its_code() {
    let world = World::new().await;
    let payer = world.approved_payer().await;
    let invalidation = |payment: &Permit2Purchase| {
        let nonce: U256 = payment.authorization.nonce.atomic();
        let bit = usize::try_from(nonce & U256::from(255)).unwrap();
        invalidateUnorderedNoncesCall {
            word: nonce >> 8,
            mask: U256::ONE << bit,
        }
    };
    let before = Permit2Purchase::exact(&payer, PAYEE, 6_000);
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

    let after = Permit2Purchase::exact(&payer, PAYEE, 6_000);
    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&after.body());
    world.wait_until_sent(1).await;
    let call = (PERMIT2, invalidation(&after).abi_encode().into());
    world
        .chain
        .call_with_high_fee_as(payer.address(), call)
        .await;
    world.resume_mining().await;
    let failed = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(failed.reason(), "permit2_invalid_nonce", "{failed:?}");
    let row = world.facilitator.payment(&failed).await;
    assert_eq!(row["state"], "failed", "the proof is on the chain: {row}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn contract_wallet_pays_by_permit2_in_both_schemes() {
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
async fn upto_uses_its_named_signer_and_twins_settle_once_each() {
    let setup = Setup {
        signers: 3,
        block_time_s: Some(1),
        ..Setup::default()
    };
    let world = setup.build().await;
    let mut bodies = Vec::new();
    for index in 0..3_usize {
        let payer = world.approved_payer().await;
        let named = Chain::signers(3)[index].address;
        let metered = Permit2Purchase::upto(&payer, PAYEE, 5_000)
            .with(|signed| signed.witness.facilitator = Some(named));
        bodies.push(metered.charging(1_000).body());
        // Twins: the same payer, payee, token and amount.
        bodies.push(Permit2Purchase::exact(&payer, PAYEE, 2_000).body());
        bodies.push(Permit2Purchase::exact(&payer, PAYEE, 2_000).body());
    }
    let answers = world.facilitator.settle_all(bodies).await;
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
async fn network_without_proxies_announces_no_permit2() {
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
    let payment = Permit2Purchase::exact(&payer, PAYEE, 1_000);
    let verdict = world.facilitator.verify(&payment.body()).await;
    assert_eq!(
        verdict.reason(),
        "permit2_proxy_not_deployed",
        "{verdict:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_survive_a_silent_rpc_at_start() {
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
