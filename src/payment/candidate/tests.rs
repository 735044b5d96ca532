//! Each refusal of `docs/architecture.md#order-of-checks` that needs no chain, in both dialects.

use alloy::primitives::U256;
use alloy::sol_types::SolValue;
use serde_json::{Value, json};
use time::Duration;

use super::*;
use crate::payment::specimen::{
    DIGEST, PAYEE, PAYER, SIGNATURE, USDC, VALID_BEFORE, body, candidate, now, policy, request,
};
use crate::protocol::Amount;

const VERSIONS: [X402Version; 2] = [X402Version::V1, X402Version::V2];
const STRANGER: Address = Address::repeat_byte(0x55);

/// The good body of a dialect with one place changed.
fn changed(version: X402Version, pointer: &str, value: Value) -> Value {
    let mut body = body(version);
    *body.pointer_mut(pointer).unwrap() = value;
    body
}

fn shape_of(body: &Value) -> Result<Candidate, Refusal> {
    Candidate::from_request(request(body), &policy(), Purpose::Settle)
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, Refusal>) -> Reason {
    outcome.unwrap_err().reason
}

fn amount_member(version: X402Version) -> &'static str {
    match version {
        X402Version::V1 => "/paymentRequirements/maxAmountRequired",
        X402Version::V2 => "/paymentRequirements/amount",
    }
}

/// An ERC-6492 signature that names a factory.
fn wrapped(factory: Address) -> Value {
    let inner = SIGNATURE.parse::<Bytes>().unwrap();
    let mut bytes = (factory, Bytes::from_static(&[9]), inner).abi_encode_params();
    bytes.extend([0x64, 0x92].repeat(16));
    json!(Bytes::from(bytes))
}

const SIGNATURE_MEMBER: &str = "/paymentPayload/payload/signature";

#[test]
fn the_published_payment_passes_every_local_check_in_both_dialects() {
    for version in VERSIONS {
        let candidate = shape_of(&body(version)).unwrap();
        assert_eq!(candidate.version, version);
        assert_eq!(candidate.digest, DIGEST);
        assert_eq!(candidate.signed_by, SignedBy::Payer);
        assert_eq!(candidate.wallet, None);
        candidate.pays_what_is_required().unwrap();
        candidate.is_allowed(&policy(), now()).unwrap();
    }
}

#[test]
fn answers_name_the_network_as_the_request_does_and_the_payer() {
    for (version, name) in [
        (X402Version::V1, "base-sepolia"),
        (X402Version::V2, "eip155:84532"),
    ] {
        let refusal = shape_of(&changed(version, amount_member(version), json!("0")))
            .err()
            .unwrap();
        assert_eq!(refusal.network_name, name);
        assert_eq!(refusal.payer, Some(PAYER));
    }
}

#[test]
fn v2_needs_the_domain_in_the_requirement() {
    for (pointer, value) in [
        ("/paymentRequirements/extra", Value::Null),
        ("/paymentRequirements/extra", json!({})),
        ("/paymentRequirements/extra/name", json!("")),
        ("/paymentRequirements/extra/version", Value::Null),
        ("/paymentRequirements/extra/version", json!(2)),
    ] {
        let body = changed(X402Version::V2, pointer, value.clone());
        assert_eq!(
            reason(shape_of(&body)),
            Reason::ExactMissingDomain,
            "{pointer} {value}"
        );
    }
}

#[test]
fn v1_may_leave_out_the_domain_of_a_token_that_we_know() {
    let pointer = "/paymentRequirements/extra";
    let mut body = changed(X402Version::V1, pointer, Value::Null);
    assert_eq!(shape_of(&body).unwrap().digest, DIGEST);
    body["paymentRequirements"]["asset"] = json!(STRANGER);
    assert_eq!(reason(shape_of(&body)), Reason::ExactMissingDomain);
}

#[test]
fn the_accepted_network_must_be_the_required_one() {
    let v1 = changed(X402Version::V1, "/paymentPayload/network", json!("base"));
    let v2 = changed(
        X402Version::V2,
        "/paymentPayload/accepted/network",
        json!("eip155:8453"),
    );
    for body in [v1, v2] {
        assert_eq!(reason(shape_of(&body)), Reason::ExactNetworkMismatch);
    }
}

#[test]
fn an_exact_payment_of_nothing_is_refused() {
    for version in VERSIONS {
        let body = changed(version, amount_member(version), json!("0"));
        assert_eq!(reason(shape_of(&body)), Reason::InvalidPaymentRequirements);
    }
}

#[test]
fn a_signature_that_is_empty_or_a_broken_wrapper_is_refused_at_once() {
    let magic = Bytes::from([0x64, 0x92].repeat(16));
    for signature in [json!("0x"), json!(magic)] {
        for version in VERSIONS {
            let body = changed(version, SIGNATURE_MEMBER, signature.clone());
            assert_eq!(reason(shape_of(&body)), Reason::ExactSignature);
        }
    }
}

#[test]
fn what_comes_first_in_the_list_of_checks_is_what_is_said() {
    let mut body = body(X402Version::V2);
    body["paymentPayload"]["payload"]["signature"] = json!("0x");
    assert_eq!(reason(shape_of(&body)), Reason::ExactSignature);
    body["paymentPayload"]["accepted"]["network"] = json!("eip155:1");
    assert_eq!(reason(shape_of(&body)), Reason::ExactNetworkMismatch);
    body["paymentRequirements"]["extra"] = Value::Null;
    assert_eq!(reason(shape_of(&body)), Reason::ExactMissingDomain);
}

#[test]
fn a_signature_over_anything_else_is_nobodys_until_the_chain_was_asked() {
    for (pointer, value) in [
        ("/paymentPayload/payload/authorization/value", json!("9999")),
        (
            "/paymentPayload/payload/authorization/from",
            json!(STRANGER),
        ),
        ("/paymentPayload/payload/authorization/to", json!(STRANGER)),
        (
            "/paymentPayload/payload/authorization/validAfter",
            json!("1"),
        ),
        ("/paymentRequirements/extra/name", json!("USD Coin")),
        ("/paymentRequirements/asset", json!(STRANGER)),
        (SIGNATURE_MEMBER, json!("0x1234")),
    ] {
        let candidate = shape_of(&changed(X402Version::V2, pointer, value)).unwrap();
        assert_eq!(candidate.signed_by, SignedBy::Unknown, "{pointer}");
    }
}

#[test]
fn the_payers_signature_is_kept_with_v_as_27_or_28() {
    let zero = format!("{}00", SIGNATURE.strip_suffix("1b").unwrap());
    let candidate = shape_of(&changed(X402Version::V2, SIGNATURE_MEMBER, json!(zero))).unwrap();
    assert_eq!(candidate.signature, SIGNATURE.parse::<Bytes>().unwrap());
    assert_eq!(candidate.signed_by, SignedBy::Payer);
}

#[test]
fn the_authorization_must_pay_the_payee_of_the_requirement() {
    for version in VERSIONS {
        let body = changed(version, "/paymentRequirements/payTo", json!(STRANGER));
        let candidate = shape_of(&body).unwrap();
        assert_eq!(
            reason(candidate.pays_what_is_required()),
            Reason::ExactRecipientMismatch
        );
    }
}

#[test]
fn more_and_less_than_the_amount_are_refused_with_the_code_of_the_dialect() {
    for amount in ["9999", "10001"] {
        for (version, expected) in [
            (X402Version::V1, Reason::ExactValueV1),
            (X402Version::V2, Reason::ExactValueMismatch),
        ] {
            let body = changed(version, amount_member(version), json!(amount));
            let candidate = shape_of(&body).unwrap();
            assert_eq!(reason(candidate.pays_what_is_required()), expected);
        }
    }
}

#[test]
fn tokens_and_payees_outside_the_policy_are_refused() {
    let body = changed(
        X402Version::V2,
        "/paymentRequirements/asset",
        json!(STRANGER),
    );
    let foreign = shape_of(&body).unwrap();
    assert_eq!(
        reason(foreign.is_allowed(&policy(), now())),
        Reason::InvalidPaymentRequirements
    );
    let mut strict = policy();
    strict.payees = vec![STRANGER];
    assert_eq!(
        reason(candidate().is_allowed(&strict, now())),
        Reason::InvalidPaymentRequirements
    );
    strict.payees.push(PAYEE);
    candidate().is_allowed(&strict, now()).unwrap();
}

#[test]
fn the_domain_must_be_the_one_that_the_token_has() {
    for version in VERSIONS {
        for (member, expected) in [
            ("name", Reason::ExactTokenName),
            ("version", Reason::ExactTokenVersion),
        ] {
            let pointer = format!("/paymentRequirements/extra/{member}");
            let candidate = shape_of(&changed(version, &pointer, json!("other"))).unwrap();
            assert_eq!(reason(candidate.is_allowed(&policy(), now())), expected);
        }
    }
}

#[test]
fn a_wallet_is_deployed_only_by_a_listed_factory() {
    for version in VERSIONS {
        let body = changed(version, SIGNATURE_MEMBER, wrapped(STRANGER));
        let candidate = shape_of(&body).unwrap();
        assert_eq!(
            candidate.wallet.as_ref().map(|wallet| wallet.factory),
            Some(STRANGER)
        );
        let mut policy = policy();
        let deploying = candidate.clone().with_wallet_deployed(&policy, false);
        assert_eq!(reason(deploying.map(drop)), Reason::FactoryNotAllowed);
        let deployed = candidate.clone().with_wallet_deployed(&policy, true);
        assert_eq!(deployed.unwrap().wallet, None, "no factory is needed");
        policy.factories.push(STRANGER);
        let deploying = candidate.with_wallet_deployed(&policy, false).unwrap();
        assert!(deploying.wallet.is_some());
        assert_eq!(
            deploying
                .with_wallet_deployed(&policy, true)
                .unwrap()
                .wallet,
            None,
            "listed or not"
        );
    }
}

#[test]
fn the_end_of_the_window_is_neither_too_near_nor_too_far() {
    let candidate = candidate();
    let end = OffsetDateTime::from_unix_timestamp(VALID_BEFORE).unwrap();
    for (before_end, good) in [
        (Duration::seconds(5), false),
        (Duration::seconds(6), true),
        (Duration::days(1), true),
        (Duration::days(1) + Duration::SECOND, false),
        (Duration::seconds(-1), false),
    ] {
        let outcome = candidate.is_allowed(&policy(), end - before_end);
        assert_eq!(outcome.is_ok(), good, "{before_end}");
        if let Err(refusal) = outcome {
            assert_eq!(refusal.reason, Reason::ExactValidBefore);
        }
    }
}

#[test]
fn the_window_must_be_open_already() {
    let mut candidate = candidate();
    for (after_s, good) in [(0, true), (1, false)] {
        let after = now() + Duration::seconds(after_s);
        candidate.authorization.valid_after =
            Amount::from_atomic(U256::from(after.unix_timestamp()));
        let outcome = candidate.is_allowed(&policy(), now());
        assert_eq!(outcome.is_ok(), good, "{after_s} s");
        if let Err(refusal) = outcome {
            assert_eq!(refusal.reason, Reason::ExactValidAfter);
        }
    }
}

#[test]
fn times_beyond_every_calendar_are_refused_and_do_not_overflow() {
    let forever = Amount::from_atomic(U256::MAX);
    let mut endless = candidate();
    endless.authorization.valid_before = forever;
    assert_eq!(
        reason(endless.is_allowed(&policy(), now())),
        Reason::ExactValidBefore
    );
    let mut never = candidate();
    never.authorization.valid_after = forever;
    assert_eq!(
        reason(never.is_allowed(&policy(), now())),
        Reason::ExactValidAfter
    );
}

#[test]
fn neither_debug_nor_a_refusal_shows_a_signature() {
    let candidate = candidate();
    let digits = SIGNATURE.trim_start_matches("0x");
    assert!(!format!("{candidate:?}").contains(digits));
    let refusal = candidate.refuse(Reason::ExactSignature, "why".to_owned());
    assert!(!format!("{refusal:?}").contains(digits));
    assert_eq!(candidate.asset, USDC);
}
