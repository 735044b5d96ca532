//! The checks of Permit2 payments that do not need the chain.

use serde_json::{Value, json};

use super::*;
use crate::payment::fixture::{
    AMOUNT, FACILITATOR, PAYEE, PAYER, VALID_BEFORE, candidate_of, facts, now, permit2_body,
    policy, request,
};
use crate::payment::method::{Permit2, Sponsored};
use crate::protocol::permit2::PERMIT2;

const SCHEMES: [Scheme; 2] = [Scheme::Exact, Scheme::Upto];
const PURPOSES: [Purpose; 2] = [Purpose::Verify, Purpose::Settle];

/// The result of all local checks for a scheme's payment with one value of its body changed.
fn check_changed(
    scheme: Scheme,
    pointer: &str,
    value: Value,
    purpose: Purpose,
) -> Result<(), Reason> {
    let mut body = permit2_body(scheme);
    *body.pointer_mut(pointer).unwrap() = value;
    let candidate = Candidate::from_request(request(&body), &policy(), purpose);
    let checked = candidate.and_then(|candidate| {
        candidate.check_payee()?;
        candidate.check_policy(&policy(), now())
    });
    checked.map_err(|refusal| refusal.reason)
}

fn permitted(method: &Method) -> &Permit2 {
    method.permit2().unwrap()
}

#[test]
fn published_vectors_pass_every_local_check() {
    for scheme in SCHEMES {
        for purpose in PURPOSES {
            let candidate = candidate_of(&permit2_body(scheme), purpose);
            assert_eq!(
                candidate.terms.signed_by,
                Some(SignedBy::Payer),
                "{scheme:?}"
            );
            assert_eq!(candidate.terms.from, PAYER);
            assert_eq!(candidate.terms.to, PAYEE);
            assert_eq!(candidate.terms.method.scheme(), scheme);
            assert_eq!(
                candidate.terms.method.nonce_domain(candidate.terms.asset),
                PERMIT2
            );
            candidate.check_payee_and_amount().unwrap();
            candidate.check_policy(&policy(), now()).unwrap();
        }
    }
}

#[test]
fn upto_amount_is_maximum_at_verify_and_charge_at_settle() {
    let charge = |amount: u64, purpose| {
        let mut body = permit2_body(Scheme::Upto);
        body["paymentRequirements"]["amount"] = json!(amount.to_string());
        Candidate::from_request(request(&body), &policy(), purpose).unwrap()
    };
    for amount in [0, 1, AMOUNT] {
        let candidate = charge(amount, Purpose::Settle);
        candidate.check_payee_and_amount().unwrap();
        let charged = candidate.terms.value.to_string();
        assert_eq!(charged, amount.to_string());
        let maximum = permitted(&candidate.terms.method).permitted.to_string();
        assert_eq!(maximum, AMOUNT.to_string());
    }
    let above = charge(AMOUNT + 1, Purpose::Settle).check_payee_and_amount();
    assert_eq!(above.unwrap_err().reason, Reason::UptoExceedsAmount);
    for amount in [1, AMOUNT + 1] {
        let other = charge(amount, Purpose::Verify).check_payee_and_amount();
        assert_eq!(other.unwrap_err().reason, Reason::Permit2AmountMismatch);
    }
}

#[test]
fn each_fault_has_its_permit2_code() {
    let signed = "/paymentPayload/payload/permit2Authorization";
    let other = json!(Address::repeat_byte(0x66));
    let late = (VALID_BEFORE + 1_000_000).to_string();
    for scheme in SCHEMES {
        for purpose in PURPOSES {
            let fault = |place: &str, value: Value| {
                check_changed(scheme, &format!("{signed}{place}"), value, purpose).unwrap_err()
            };
            assert_eq!(fault("/spender", other.clone()), Reason::Permit2Spender);
            assert_eq!(
                fault("/witness/to", other.clone()),
                Reason::Permit2RecipientMismatch
            );
            for deadline in ["0", &late] {
                let found = fault("/deadline", json!(deadline));
                assert_eq!(found, Reason::Permit2DeadlineExpired);
            }
            let early = fault("/witness/validAfter", json!(VALID_BEFORE.to_string()));
            assert_eq!(early, Reason::Permit2NotYetValid);
            let token = fault("/permitted/token", other.clone());
            assert_eq!(token, Reason::Permit2TokenMismatch);
        }
    }
    let unknown = check_changed(
        Scheme::Upto,
        &format!("{signed}/witness/facilitator"),
        other,
        Purpose::Settle,
    );
    assert_eq!(unknown, Err(Reason::UptoFacilitatorMismatch));
    let absent = check_changed(
        Scheme::Upto,
        &format!("{signed}/witness/facilitator"),
        Value::Null,
        Purpose::Settle,
    );
    assert_eq!(absent, Err(Reason::UnsupportedPayloadType));
    assert!(policy().signers.contains(&FACILITATOR));
}

#[test]
fn signature_for_another_scheme_is_rejected() {
    let mut body = permit2_body(Scheme::Exact);
    let other = permit2_body(Scheme::Upto);
    let place = "/paymentPayload/payload/signature";
    *body.pointer_mut(place).unwrap() = other.pointer(place).unwrap().clone();
    let candidate = candidate_of(&body, Purpose::Settle);
    assert_eq!(candidate.terms.signed_by, Some(SignedBy::Unknown));
    let refusal = candidate.verified(facts()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Permit2Signature);
}

#[test]
fn eip2612_faults_are_reported_after_the_signature_check() {
    let signature = format!("0x{}1b", "11".repeat(64));
    let info = json!({
        "from": PAYER, "asset": crate::payment::fixture::USDC, "spender": PERMIT2, "amount": AMOUNT.to_string(), "nonce": "0",
        "deadline": VALID_BEFORE.to_string(), "signature": signature, "version": "1",
    });
    let with = |info: Value| {
        let mut body = permit2_body(Scheme::Exact);
        body["paymentPayload"]["extensions"] = json!({"eip2612GasSponsoring": {"info": info}});
        candidate_of(&body, Purpose::Settle)
    };
    let good = with(info.clone());
    let sponsored = permitted(&good.terms.method).sponsored.clone();
    assert!(matches!(sponsored, Some(Sponsored::Permit { .. })));
    let verified = good.verified(facts()).unwrap();
    assert_eq!(
        verified.allowance(),
        None,
        "the payment does not depend on the allowance"
    );

    let mut wrong_owner = info.clone();
    wrong_owner["from"] = json!(PAYEE);
    let faulty = with(wrong_owner.clone());
    let refusal = faulty.clone().verified(facts()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Eip2612FromMismatch);
    let mut forged = faulty;
    forged.terms.signed_by = Some(SignedBy::Unknown);
    let refusal = forged.verified(facts()).unwrap_err();
    assert_eq!(
        refusal.reason,
        Reason::Permit2Signature,
        "the signature comes first"
    );

    let mut expired = info;
    expired["deadline"] = json!(now().unix_timestamp().to_string());
    let refusal = with(expired).verified(facts()).unwrap_err();
    assert_eq!(refusal.reason, Reason::Eip2612DeadlineExpired);
}
