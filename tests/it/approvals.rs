//! `erc20ApprovalGasSponsoring`: approvals of Permit2 are submitted for payers without native currency, within limits.

use std::time::Duration;

use alloy::consensus::TxEip1559;
use alloy::primitives::{Address, Bytes, TxKind, U64, U256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::SolCall;
use serde_json::json;
use x402d::embedded::TEST_USDC;
use x402d::protocol::permit2::PERMIT2;

use crate::support::{
    Permit2Purchase, Setup, World, approveCall, eventually, new_account, pauseCall, signed,
};

const PAYEE: Address = Address::repeat_byte(0x2e);
const OTHER: Address = Address::repeat_byte(0x66);
const PRICE: u64 = 10_000;
/// Maximum cost of one approval in wei: 70,000 gas at 5 gwei, plus half of that for rollup data fees.
const COST: u64 = 525_000_000_000_000;
const INFO: &str = "/paymentPayload/extensions/erc20ApprovalGasSponsoring/info";

/// Constructor of a payment of one scheme.
type Build = fn(&PrivateKeySigner, Address, u64) -> Permit2Purchase;

fn setup(per_payer: u64, per_day: u64) -> Setup {
    let toml = format!(
        "[networks.base-sepolia.approvals]\nwei_per_payer = {per_payer}\nwei_per_day = {per_day}\n"
    );
    Setup {
        toml,
        ..Setup::default()
    }
}

/// A world with a gas budget for one approval per payer and two per day.
async fn world() -> World {
    setup(COST, 2 * COST + COST / 2).build().await
}

fn approving(build: Build, payer: &PrivateKeySigner) -> Permit2Purchase {
    let payment = build(payer, PAYEE, PRICE);
    let approval = payment.approval();
    payment.with_approval(&approval)
}

async fn native_balance(world: &World, account: Address) -> U256 {
    let balance = world
        .chain
        .call("eth_getBalance", json!([account, "latest"]))
        .await;
    serde_json::from_value(balance).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn payer_without_gas_pays_by_permit2_after_sponsored_approval() {
    let world = world().await;
    let supported = world.facilitator.get("/supported").await.body;
    let extensions = supported["extensions"].as_array().unwrap();
    assert!(
        extensions.contains(&json!("erc20ApprovalGasSponsoring")),
        "{supported}"
    );
    let schemes: [Build; 2] = [Permit2Purchase::exact, Permit2Purchase::upto];
    for (index, build) in schemes.into_iter().enumerate() {
        let payer = world.payer().await;
        assert_eq!(native_balance(&world, payer.address()).await, U256::ZERO);
        let payment = approving(build, &payer);
        let verdict = world.facilitator.verify(&payment.body()).await;
        assert!(verdict.is_valid(), "{verdict:?}");
        let settled = world.facilitator.settle(&payment.body()).await;
        assert!(settled.succeeded(), "{settled:?}");
        let paid = world.chain.usdc(PAYEE).await;
        assert_eq!(paid, U256::from(PRICE) * U256::from(index + 1));
        assert!(native_balance(&world, payer.address()).await < U256::from(COST));
        // The allowance exists now, so the next payment needs no sponsoring.
        let next = world
            .facilitator
            .verify(&build(&payer, PAYEE, PRICE).body())
            .await;
        assert!(next.is_valid(), "{next:?}");
        let again = world.facilitator.settle(&payment.body()).await;
        assert_eq!(again.reason(), "duplicate_settlement");
    }
    assert_eq!(
        world.transactions(1).await,
        4,
        "gas money and settlement, twice"
    );

    let third = approving(Permit2Purchase::exact, &world.payer().await);
    world
        .assert_rejected_at_both(&third.body(), "erc20_approval_insufficient_eth_for_gas")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn funded_payer_gets_no_gas_and_excess_request_is_refused() {
    let world = world().await;
    let payer = world.payer().await;
    let rich = json!([payer.address(), U256::from(COST)]);
    world.chain.call("anvil_setBalance", rich).await;
    let settled = world
        .facilitator
        .settle(&approving(Permit2Purchase::exact, &payer).body())
        .await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(world.transactions(1).await, 1, "the settlement alone");

    let excessive = Permit2Purchase::exact(&world.payer().await, PAYEE, PRICE);
    let dear = TxEip1559 {
        max_fee_per_gas: 6_000_000_000,
        ..excessive.approval()
    };
    let code = "erc20_approval_insufficient_eth_for_gas";
    world
        .assert_rejected_at_both(&excessive.with_approval(&dear).body(), code)
        .await;
}

/// Approvals with one fault each, and the expected code.
fn invalid_approvals(plain: &TxEip1559) -> [(TxEip1559, &'static str); 10] {
    let approve = |spender, value| Bytes::from(approveCall { spender, value }.abi_encode());
    let with = |change: &dyn Fn(&mut TxEip1559)| {
        let mut changed = plain.clone();
        change(&mut changed);
        changed
    };
    [
        (
            with(&|tx| tx.chain_id = 1),
            "erc20_approval_tx_parse_failed",
        ),
        (
            with(&|tx| tx.to = TxKind::Call(OTHER)),
            "erc20_approval_tx_wrong_target",
        ),
        (
            with(&|tx| tx.input = Bytes::from_static(&[1, 2, 3, 4])),
            "erc20_approval_tx_wrong_selector",
        ),
        (
            with(&|tx| tx.input = approveCall::SELECTOR.into()),
            "erc20_approval_tx_invalid_calldata",
        ),
        (
            with(&|tx| tx.input = approve(PERMIT2, U256::ONE)),
            "erc20_approval_tx_invalid_calldata",
        ),
        (
            with(&|tx| tx.value = U256::ONE),
            "erc20_approval_tx_invalid_calldata",
        ),
        (
            with(&|tx| tx.input = approve(OTHER, U256::MAX)),
            "erc20_approval_tx_wrong_spender",
        ),
        (with(&|tx| tx.nonce = 1), "erc20_approval_tx_failed"),
        (
            with(&|tx| tx.gas_limit = 25_000),
            "erc20_approval_tx_failed",
        ),
        (
            with(&|tx| (tx.max_fee_per_gas, tx.max_priority_fee_per_gas) = (1, 1)),
            "erc20_approval_tx_failed",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_invalid_approval_has_its_code() {
    let world = world().await;
    let payer = world.payer().await;
    let good = approving(Permit2Purchase::exact, &payer);
    for (member, value, code) in [
        (
            "version",
            json!(1),
            "invalid_erc20_approval_extension_format",
        ),
        (
            "signedTransaction",
            json!("02"),
            "invalid_erc20_approval_extension_format",
        ),
        ("from", json!(OTHER), "erc20_approval_from_mismatch"),
        ("asset", json!(OTHER), "erc20_approval_asset_mismatch"),
        (
            "spender",
            json!(OTHER),
            "erc20_approval_spender_not_permit2",
        ),
        (
            "signedTransaction",
            json!("0x02c0"),
            "erc20_approval_tx_parse_failed",
        ),
    ] {
        let mut body = good.body();
        *body.pointer_mut(&format!("{INFO}/{member}")).unwrap() = value;
        world.assert_rejected_at_both(&body, code).await;
    }
    let plain = good.approval();
    for (transaction, code) in invalid_approvals(&plain) {
        let payment = good.clone().with_approval(&transaction);
        world.assert_rejected_at_both(&payment.body(), code).await;
    }
    let mut foreign = good.body();
    *foreign
        .pointer_mut(&format!("{INFO}/signedTransaction"))
        .unwrap() = json!(signed(&plain, &new_account()));
    world
        .assert_rejected_at_both(&foreign, "erc20_approval_tx_signer_mismatch")
        .await;
    let mut broken = signed(&plain, &payer).to_vec();
    let r = broken.len() - 65;
    broken[r..r + 32].fill(0xff);
    *foreign
        .pointer_mut(&format!("{INFO}/signedTransaction"))
        .unwrap() = json!(Bytes::from(broken));
    world
        .assert_rejected_at_both(&foreign, "erc20_approval_tx_invalid_signature")
        .await;
    assert_eq!(
        world.transactions(1).await,
        0,
        "no payer was given gas money"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn approvals_are_ignored_unless_enabled() {
    let world = World::new().await;
    let supported = world.facilitator.get("/supported").await.body;
    assert!(
        !supported.to_string().contains("erc20Approval"),
        "{supported}"
    );
    let payment = approving(Permit2Purchase::exact, &world.payer().await);
    world
        .assert_rejected_at_both(&payment.body(), "permit2_allowance_required")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_at_any_step_funds_once_and_pays_once() {
    for step in ["recorded", "broadcast", "mined"] {
        let mut world = Setup {
            failpoint: Some(step),
            ..setup(COST, COST)
        }
        .shortened()
        .build()
        .await;
        let payment = approving(Permit2Purchase::exact, &world.payer().await);
        let broken = world.facilitator.try_settle(&payment.body()).await;
        assert!(broken.is_err(), "{step}: {broken:?}");
        world.facilitator.wait_for_end().await;
        world.facilitator.restart(None).await;
        let settled = world.facilitator.settle(&payment.body()).await;
        assert!(settled.succeeded(), "{step}: {settled:?}");
        assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
        assert_eq!(world.transactions(1).await, 2, "{step}: gas money once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overtaken_or_reverted_approval_ends_with_its_code() {
    let world = world().await;
    let payer = world.payer().await;
    let payment = approving(Permit2Purchase::exact, &payer);
    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&payment.body());
    world.wait_until_sent(1).await;
    // The gas money is in flight. Pausing the token now makes the approval revert when it is mined.
    let pause = (TEST_USDC, pauseCall { on: true }.abi_encode().into());
    world.chain.call_with_high_fee(pause).await;
    world.resume_mining().await;
    let ended = settling.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(ended.reason(), "erc20_approval_tx_failed", "{ended:?}");
    let count = world
        .chain
        .call(
            "eth_getTransactionCount",
            json!([payer.address(), "latest"]),
        )
        .await;
    assert_eq!(count, json!(U64::from(1)), "it was mined");
    assert_eq!(world.transactions(1).await, 1, "the gas money");
}

#[tokio::test(flavor = "multi_thread")]
async fn approval_with_occupied_nonce_is_not_sent() {
    let world = world().await;
    let payer = world.payer().await;
    let payment = approving(Permit2Purchase::exact, &payer);
    let rich = json!([payer.address(), U256::from(10 * COST)]);
    world.chain.call("anvil_setBalance", rich).await;
    world.chain.automine(false).await;
    let other = TxEip1559 {
        max_fee_per_gas: 20_000_000_000,
        max_priority_fee_per_gas: 10_000_000_000,
        ..payment.approval()
    };
    let held = json!([signed(&other, &payer)]);
    world.chain.call("eth_sendRawTransaction", held).await;
    let ended = world.facilitator.settle(&payment.body()).await;
    assert_eq!(
        ended.reason(),
        "erc20_approval_broadcast_failed",
        "{ended:?}"
    );
    // The pending transaction is an approval too: once mined, the payment needs no other.
    world.resume_mining().await;
    let settled = world.facilitator.settle(&payment.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
}

/// As many payments of one payer as may wait in memory, and none of their approvals can be mined: they offer less than the base fee.
#[tokio::test(flavor = "multi_thread")]
async fn payer_whose_approvals_are_not_mined_delays_no_other_payer() {
    const PAYMENTS: usize = 64;
    let world = world().await;
    let rich = async |payer: &PrivateKeySigner| {
        let wei = U256::from(1_000 * u128::from(COST));
        let balance = json!([payer.address(), wei]);
        world.chain.call("anvil_setBalance", balance).await;
    };
    let (idle, honest) = (world.payer().await, world.payer().await);
    rich(&idle).await;
    rich(&honest).await;
    world.chain.automine(false).await;
    let mut waiting = Vec::new();
    for _ in 0..PAYMENTS {
        let payment = approving(Permit2Purchase::exact, &idle);
        waiting.push(world.facilitator.spawn_settle(&payment.body()));
    }
    let path = format!("/payments?state=queued&payer={}&limit=200", idle.address());
    eventually("all payments", Duration::from_secs(30), async || {
        let queued = world.facilitator.get(&path).await.body;
        (queued["payments"].as_array().unwrap().len() == PAYMENTS).then_some(())
    })
    .await;
    world.chain.next_base_fee(9).await;
    let payment = Permit2Purchase::exact(&honest, OTHER, PRICE);
    let dear = TxEip1559 {
        max_fee_per_gas: 18_000_000_000,
        ..payment.approval()
    };
    let body = payment.with_approval(&dear).body();
    world.chain.automine(true).await;
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::ZERO, "they still wait");
}
