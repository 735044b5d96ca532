//! Every refusal code (`docs/architecture.md#refusal-codes`) for Permit2, `upto` and gas sponsoring, at verify and at settle.

use alloy::primitives::{Address, Bytes, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;
use x402d::protocol::Amount;
use x402d::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

use crate::support::{Chain, Permission, World, new_account, pauseCall};

const PAYEE: Address = Address::repeat_byte(0x2d);
const OTHER: Address = Address::repeat_byte(0x66);
const PRICE: u64 = 10_000;

/// How a payment of a scheme is made.
type Build = fn(&PrivateKeySigner, Address, u64) -> Permission;
const SCHEMES: [Build; 2] = [Permission::exact, Permission::upto];

/// One place of a body changed.
fn changed(payment: &Permission, pointer: &str, value: Value) -> Value {
    let mut body = payment.body();
    *body
        .pointer_mut(pointer)
        .unwrap_or_else(|| panic!("no {pointer}")) = value;
    body
}

fn seconds(text: &str) -> Amount {
    text.parse().unwrap()
}

/// Payments of a scheme that each have one fault, with its code.
fn faulty(build: Build, payer: &PrivateKeySigner) -> [(Permission, &'static str); 9] {
    let good = || build(payer, PAYEE, PRICE);
    [
        (
            good().with(|signed| signed.spender = OTHER),
            "invalid_permit2_spender",
        ),
        (
            good().with(|signed| signed.witness.to = OTHER),
            "invalid_permit2_recipient_mismatch",
        ),
        (
            good().with(|signed| signed.deadline = seconds("1")),
            "permit2_deadline_expired",
        ),
        (
            good().with(|signed| signed.deadline = seconds("9999999999")),
            "permit2_deadline_expired",
        ),
        (
            good().with(|signed| signed.witness.valid_after = seconds("9999999999")),
            "permit2_not_yet_valid",
        ),
        (
            good().with(|signed| signed.permitted.token = OTHER),
            "permit2_token_mismatch",
        ),
        (
            Permission {
                signer: new_account(),
                ..good()
            },
            "invalid_permit2_signature",
        ),
        (
            Permission {
                signature: Some(Bytes::from_static(&[1; 64])),
                ..good()
            },
            "invalid_permit2_signature",
        ),
        (
            build(payer, PAYEE, 200_000_000),
            "permit2_insufficient_balance",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_permission_is_said_by_its_code() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let good = |build: Build| build(&payer, PAYEE, PRICE);
    for build in SCHEMES {
        for (payment, code) in faulty(build, &payer) {
            world.is_refused_at_both(&payment.body(), code).await;
        }
        let poor = build(&world.payer().await, PAYEE, PRICE);
        world
            .is_refused_at_both(&poor.body(), "permit2_allowance_required")
            .await;
        let elsewhere = Permission {
            asset: OTHER,
            ..good(build)
        };
        world
            .is_refused_at_both(&elsewhere.body(), "invalid_payment_requirements")
            .await;
    }
    let dearer = Permission {
        amount: U256::from(PRICE + 1),
        ..good(Permission::exact)
    };
    world
        .is_refused_at_both(&dearer.body(), "permit2_amount_mismatch")
        .await;
    let cheaper = Permission {
        amount: U256::from(PRICE - 1),
        ..good(Permission::upto)
    };
    let verdict = world.facilitator.verify(&cheaper.body()).await;
    assert_eq!(
        verdict.reason(),
        "permit2_amount_mismatch",
        "at verify the most is asked for"
    );
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn schemes_networks_facilitators_and_charges_that_do_not_fit_have_codes_of_their_own() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    let (exact, upto) = (
        Permission::exact(&payer, PAYEE, PRICE),
        Permission::upto(&payer, PAYEE, PRICE),
    );
    let scheme = "/paymentPayload/accepted/scheme";
    let network = "/paymentPayload/accepted/network";
    let authorization = "/paymentPayload/payload/permit2Authorization";
    for (body, code) in [
        (
            changed(&exact, scheme, json!("upto")),
            "unsupported_payload_type",
        ),
        (
            changed(&upto, scheme, json!("exact")),
            "invalid_upto_evm_scheme",
        ),
        (
            changed(&exact, network, json!("eip155:8453")),
            "invalid_exact_evm_network_mismatch",
        ),
        (
            changed(&upto, network, json!("eip155:8453")),
            "invalid_upto_evm_network_mismatch",
        ),
        (
            changed(
                &exact,
                "/paymentRequirements/extra/assetTransferMethod",
                json!("eip3009"),
            ),
            "unsupported_payload_type",
        ),
        (changed(&upto, authorization, json!({})), "invalid_payload"),
        (
            changed(
                &upto,
                &format!("{authorization}/witness/facilitator"),
                Value::Null,
            ),
            "unsupported_payload_type",
        ),
        (
            changed(&upto, &format!("{authorization}/nonce"), json!("0x7")),
            "invalid_payload",
        ),
    ] {
        world.is_refused_at_both(&body, code).await;
    }
    let strange = upto
        .clone()
        .with(|signed| signed.witness.facilitator = Some(OTHER));
    world
        .is_refused_at_both(&strange.body(), "upto_facilitator_mismatch")
        .await;
    let above = world
        .facilitator
        .settle(&upto.charging(PRICE + 1).body())
        .await;
    let code = "invalid_upto_evm_payload_settlement_exceeds_amount";
    assert_eq!(above.reason(), code, "{above:?}");
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_permit_of_the_tokens_own_is_said_by_its_code() {
    let world = World::new().await;
    let payer = world.payer().await;
    let info = "/paymentPayload/extensions/eip2612GasSponsoring/info";
    for build in SCHEMES {
        let good = build(&payer, PAYEE, PRICE).with_permit(0);
        assert!(world.facilitator.verify(&good.body()).await.is_valid());
        for (member, value, code) in [
            ("amount", json!(10_000), "invalid_eip2612_extension_format"),
            (
                "signature",
                json!("0x1234"),
                "invalid_eip2612_extension_format",
            ),
            ("version", json!("one"), "invalid_eip2612_extension_format"),
            ("from", json!(OTHER), "eip2612_from_mismatch"),
            ("asset", json!(OTHER), "eip2612_asset_mismatch"),
            ("spender", json!(OTHER), "eip2612_spender_not_permit2"),
            ("deadline", json!("1"), "eip2612_deadline_expired"),
            ("amount", json!("9999"), "permit2_2612_amount_mismatch"),
        ] {
            let body = changed(&good, &format!("{info}/{member}"), value);
            world.is_refused_at_both(&body, code).await;
        }
        // A permit that the token does not take: another nonce than the payer's next.
        let used = build(&payer, PAYEE, PRICE).with_permit(7);
        world
            .is_refused_at_both(&used.body(), "permit2_allowance_required")
            .await;
        // What the seller declared alone is no permit, and an unfilled one is nothing.
        let mut declared = good.body();
        *declared.pointer_mut(info).unwrap() = json!({"description": "gas", "version": "1"});
        world
            .is_refused_at_both(&declared, "permit2_allowance_required")
            .await;
    }
}

/// Code that reverts with these four bytes, whatever it is called with.
fn reverting_with(error: &str) -> Bytes {
    let selector = &keccak256(error)[..4];
    [
        &[0x63],
        selector,
        &[0x60, 0x00, 0x52, 0x60, 0x04, 0x60, 0x1c, 0xfd],
    ]
    .concat()
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_proxies_revert_with_is_decoded_into_its_code() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    for (error, code) in [
        ("InvalidAmount()", "permit2_invalid_amount"),
        ("InvalidDestination()", "permit2_invalid_destination"),
        ("InvalidOwner()", "permit2_invalid_owner"),
        ("PaymentTooEarly()", "permit2_payment_too_early"),
        ("Permit2612AmountMismatch()", "permit2_2612_amount_mismatch"),
        ("InvalidSigner()", "invalid_permit2_signature"),
        ("SignatureExpired(uint256)", "permit2_deadline_expired"),
        ("AmountExceedsPermitted()", "upto_amount_exceeds_permitted"),
        ("UnauthorizedFacilitator()", "upto_unauthorized_facilitator"),
        ("SomethingElse()", "permit2_simulation_failed"),
    ] {
        for proxy in [EXACT_PROXY, UPTO_PROXY] {
            let code = json!([proxy, reverting_with(error)]);
            world.chain.call("anvil_setCode", code).await;
        }
        for build in SCHEMES {
            world
                .is_refused_at_both(&build(&payer, PAYEE, PRICE).body(), code)
                .await;
        }
    }
    for proxy in [EXACT_PROXY, UPTO_PROXY] {
        world
            .chain
            .call("anvil_setCode", json!([proxy, "0x"]))
            .await;
    }
    for build in SCHEMES {
        let payment = build(&payer, PAYEE, PRICE);
        world
            .is_refused_at_both(&payment.body(), "permit2_proxy_not_deployed")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_token_a_token_without_code_and_a_used_nonce_are_told_apart() {
    let world = World::new().await;
    let payer = world.permitting_payer().await;
    for build in SCHEMES {
        let first = build(&payer, PAYEE, PRICE);
        assert!(world.facilitator.settle(&first.body()).await.succeeded());
        let nonce = first.authorization.nonce;
        let second = build(&payer, OTHER, PRICE).with(|signed| signed.nonce = nonce);
        world
            .is_refused_at_both(&second.body(), "permit2_invalid_nonce")
            .await;
    }
    world.chain.send(TEST_USDC, pauseCall { on: true }).await;
    let payment = Permission::exact(&payer, PAYEE, PRICE);
    world
        .is_refused_at_both(&payment.body(), "permit2_simulation_failed")
        .await;
    world
        .chain
        .call("anvil_setCode", json!([TEST_USDC, "0x"]))
        .await;
    let payment = Permission::exact(&payer, PAYEE, PRICE);
    world
        .is_refused_at_both(&payment.body(), "asset_not_deployed_contract")
        .await;
    let signer = Chain::signers(1)[0].address;
    assert_eq!(
        world.chain.transaction_count(signer).await,
        2,
        "nothing but the two"
    );
}
