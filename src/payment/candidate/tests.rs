//! The checks of EIP-3009 payments that do not need the chain, in both protocol versions.

use alloy::primitives::U256;
use alloy::sol_types::SolValue;
use serde_json::{Value, json};
use time::Duration;

use super::*;
use crate::payment::UnixSeconds;
use crate::payment::fixture::{
    DIGEST, PAYEE, SIGNATURE, USDC, VALID_BEFORE, body, candidate, now, policy, request,
};
use crate::protocol::X402Version;

const VERSIONS: [X402Version; 2] = [X402Version::V1, X402Version::V2];
const OTHER_ACCOUNT: Address = Address::repeat_byte(0x55);

/// The good body of a protocol version with one value changed.
fn changed(version: X402Version, pointer: &str, value: Value) -> Value {
    let mut body = body(version);
    *body.pointer_mut(pointer).unwrap() = value;
    body
}

fn parse(body: &Value) -> Result<Candidate, Rejection> {
    Candidate::from_request(request(body), &policy(), Purpose::Settle)
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, Rejection>) -> Reason {
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
fn published_payment_passes_every_local_check_in_both_versions() {
    for version in VERSIONS {
        let candidate = parse(&body(version)).unwrap();
        assert_eq!(candidate.terms.version, version);
        assert_eq!(candidate.terms.digest, DIGEST);
        assert_eq!(candidate.terms.signed_by, Some(SignedBy::Payer));
        assert_eq!(candidate.terms.wallet, None);
        candidate.check_payee_and_amount().unwrap();
        candidate.check_policy(&policy(), now()).unwrap();
    }
}

#[test]
fn v2_requires_the_domain_in_the_requirement() {
    for (pointer, value) in [
        ("/paymentRequirements/extra", Value::Null),
        ("/paymentRequirements/extra", json!({})),
        ("/paymentRequirements/extra/name", json!("")),
        ("/paymentRequirements/extra/version", Value::Null),
        ("/paymentRequirements/extra/version", json!(2)),
    ] {
        let body = changed(X402Version::V2, pointer, value.clone());
        assert_eq!(
            reason(parse(&body)),
            Reason::ExactMissingDomain,
            "{pointer} {value}"
        );
    }
}

#[test]
fn v1_may_omit_the_domain_of_a_configured_token() {
    let pointer = "/paymentRequirements/extra";
    let mut body = changed(X402Version::V1, pointer, Value::Null);
    assert_eq!(parse(&body).unwrap().terms.digest, DIGEST);
    body["paymentRequirements"]["asset"] = json!(OTHER_ACCOUNT);
    assert_eq!(reason(parse(&body)), Reason::ExactMissingDomain);
}

#[test]
fn accepted_network_must_be_the_required_one() {
    let v1 = changed(X402Version::V1, "/paymentPayload/network", json!("base"));
    let v2 = changed(
        X402Version::V2,
        "/paymentPayload/accepted/network",
        json!("eip155:8453"),
    );
    for body in [v1, v2] {
        assert_eq!(reason(parse(&body)), Reason::ExactNetworkMismatch);
    }
}

#[test]
fn exact_payment_of_zero_is_rejected() {
    for version in VERSIONS {
        let body = changed(version, amount_member(version), json!("0"));
        assert_eq!(reason(parse(&body)), Reason::InvalidPaymentRequirements);
    }
}

#[test]
fn empty_or_malformed_signature_is_rejected_without_the_chain() {
    let magic = Bytes::from([0x64, 0x92].repeat(16));
    for signature in [json!("0x"), json!(magic)] {
        for version in VERSIONS {
            let body = changed(version, SIGNATURE_MEMBER, signature.clone());
            assert_eq!(reason(parse(&body)), Reason::ExactSignature);
        }
    }
}

#[test]
fn first_failed_check_determines_the_code() {
    let mut body = body(X402Version::V2);
    body["paymentPayload"]["payload"]["signature"] = json!("0x");
    assert_eq!(reason(parse(&body)), Reason::ExactSignature);
    body["paymentPayload"]["accepted"]["network"] = json!("eip155:1");
    assert_eq!(reason(parse(&body)), Reason::ExactNetworkMismatch);
    body["paymentRequirements"]["extra"] = Value::Null;
    assert_eq!(reason(parse(&body)), Reason::ExactMissingDomain);
}

#[test]
fn signature_over_other_data_is_left_for_the_chain_to_check() {
    for (pointer, value) in [
        ("/paymentPayload/payload/authorization/value", json!("9999")),
        (
            "/paymentPayload/payload/authorization/from",
            json!(OTHER_ACCOUNT),
        ),
        (
            "/paymentPayload/payload/authorization/to",
            json!(OTHER_ACCOUNT),
        ),
        (
            "/paymentPayload/payload/authorization/validAfter",
            json!("1"),
        ),
        ("/paymentRequirements/extra/name", json!("USD Coin")),
        ("/paymentRequirements/asset", json!(OTHER_ACCOUNT)),
        (SIGNATURE_MEMBER, json!("0x1234")),
    ] {
        let candidate = parse(&changed(X402Version::V2, pointer, value)).unwrap();
        assert_eq!(
            candidate.terms.signed_by,
            Some(SignedBy::Unknown),
            "{pointer}"
        );
    }
}

#[test]
fn payer_signature_is_stored_with_v_27_or_28() {
    let zero = format!("{}00", SIGNATURE.strip_suffix("1b").unwrap());
    let candidate = parse(&changed(X402Version::V2, SIGNATURE_MEMBER, json!(zero))).unwrap();
    assert_eq!(
        candidate.terms.signature,
        SIGNATURE.parse::<Bytes>().unwrap()
    );
    assert_eq!(candidate.terms.signed_by, Some(SignedBy::Payer));
}

#[test]
fn authorization_must_pay_the_required_payee() {
    for version in VERSIONS {
        let body = changed(version, "/paymentRequirements/payTo", json!(OTHER_ACCOUNT));
        let candidate = parse(&body).unwrap();
        assert_eq!(
            reason(candidate.check_payee_and_amount()),
            Reason::ExactRecipientMismatch
        );
    }
}

#[test]
fn wrong_amount_has_the_code_of_the_protocol_version() {
    for amount in ["9999", "10001"] {
        for (version, expected) in [
            (X402Version::V1, Reason::ExactValueV1),
            (X402Version::V2, Reason::ExactValueMismatch),
        ] {
            let body = changed(version, amount_member(version), json!(amount));
            let candidate = parse(&body).unwrap();
            assert_eq!(reason(candidate.check_payee_and_amount()), expected);
        }
    }
}

#[test]
fn tokens_and_payees_outside_the_policy_are_rejected() {
    let body = changed(
        X402Version::V2,
        "/paymentRequirements/asset",
        json!(OTHER_ACCOUNT),
    );
    let other_token = parse(&body).unwrap();
    assert_eq!(
        reason(other_token.check_policy(&policy(), now())),
        Reason::InvalidPaymentRequirements
    );
    let mut strict = policy();
    strict.payees = vec![OTHER_ACCOUNT];
    assert_eq!(
        reason(candidate().check_policy(&strict, now())),
        Reason::InvalidPaymentRequirements
    );
    strict.payees.push(PAYEE);
    candidate().check_policy(&strict, now()).unwrap();
}

#[test]
fn domain_must_match_that_of_the_token() {
    for version in VERSIONS {
        for (member, expected) in [
            ("name", Reason::ExactTokenName),
            ("version", Reason::ExactTokenVersion),
        ] {
            let pointer = format!("/paymentRequirements/extra/{member}");
            let candidate = parse(&changed(version, &pointer, json!("other"))).unwrap();
            assert_eq!(reason(candidate.check_policy(&policy(), now())), expected);
        }
    }
}

#[test]
fn only_listed_factories_may_deploy_a_wallet() {
    for version in VERSIONS {
        let body = changed(version, SIGNATURE_MEMBER, wrapped(OTHER_ACCOUNT));
        let candidate = parse(&body).unwrap();
        assert_eq!(
            candidate.terms.wallet.as_ref().map(|wallet| wallet.factory),
            Some(OTHER_ACCOUNT)
        );
        let mut policy = policy();
        let deploying = candidate.clone().with_wallet_deployed(&policy, false);
        assert_eq!(reason(deploying.map(drop)), Reason::FactoryNotAllowed);
        let deployed = candidate.clone().with_wallet_deployed(&policy, true);
        assert_eq!(deployed.unwrap().terms.wallet, None, "no factory is needed");
        policy.factories.push(OTHER_ACCOUNT);
        let deploying = candidate.with_wallet_deployed(&policy, false).unwrap();
        assert!(deploying.terms.wallet.is_some());
        assert_eq!(
            deploying
                .with_wallet_deployed(&policy, true)
                .unwrap()
                .terms
                .wallet,
            None,
            "listed or not"
        );
    }
}

#[test]
fn expiry_must_be_within_the_validity_limits() {
    let candidate = candidate();
    let end = OffsetDateTime::from_unix_timestamp(VALID_BEFORE).unwrap();
    for (before_end, good) in [
        (Duration::seconds(5), false),
        (Duration::seconds(6), true),
        (Duration::days(1), true),
        (Duration::days(1) + Duration::SECOND, false),
        (Duration::seconds(-1), false),
    ] {
        let outcome = candidate.check_policy(&policy(), end - before_end);
        assert_eq!(outcome.is_ok(), good, "{before_end}");
        if let Err(refusal) = outcome {
            assert_eq!(refusal.reason, Reason::ExactValidBefore);
        }
    }
}

#[test]
fn authorization_must_already_be_valid() {
    let mut candidate = candidate();
    for (after_s, good) in [(0, true), (1, false)] {
        let after = now() + Duration::seconds(after_s);
        candidate.terms.valid_after = UnixSeconds::from_moment(after).unwrap();
        let outcome = candidate.check_policy(&policy(), now());
        assert_eq!(outcome.is_ok(), good, "{after_s} s");
        if let Err(refusal) = outcome {
            assert_eq!(refusal.reason, Reason::ExactValidAfter);
        }
    }
}

#[test]
fn times_beyond_64_bits_are_rejected_without_overflow() {
    let maximum = UnixSeconds::from(U256::MAX);
    let mut endless = candidate();
    endless.terms.valid_before = maximum;
    assert_eq!(
        reason(endless.check_policy(&policy(), now())),
        Reason::ExactValidBefore
    );
    let mut never = candidate();
    never.terms.valid_after = maximum;
    assert_eq!(
        reason(never.check_policy(&policy(), now())),
        Reason::ExactValidAfter
    );
}

#[test]
fn no_accepted_payment_has_a_time_that_the_ledger_cannot_store() {
    const YEAR_10_000: u64 = 253_402_300_800;
    let terms_with = |after: u64, before: U256| {
        let mut candidate = candidate();
        candidate.terms.valid_after = U256::from(after).into();
        candidate.terms.valid_before = before.into();
        candidate
    };
    let last = terms_with(YEAR_10_000 - 1, U256::from(YEAR_10_000 - 1));
    assert!(last.terms.has_storable_times());
    for (after, before) in [
        (0, U256::from(YEAR_10_000)),
        (0, U256::MAX),
        (YEAR_10_000, U256::from(VALID_BEFORE)),
    ] {
        let candidate = terms_with(after, before);
        assert!(!candidate.terms.has_storable_times(), "{after} {before}");
        assert!(candidate.check_policy(&policy(), now()).is_err());
    }
}

#[test]
fn debug_output_and_rejections_contain_no_signature() {
    let candidate = candidate();
    let digits = SIGNATURE.trim_start_matches("0x");
    assert!(!format!("{candidate:?}").contains(digits));
    let refusal = candidate.terms.rejection(Fault::Signature, "why");
    assert!(!format!("{refusal:?}").contains(digits));
    assert_eq!(candidate.terms.asset, USDC);
}
