use alloy::primitives::Address;
use alloy::sol_types::{Revert, SolError};

use super::*;
use crate::payment::fixture::{AMOUNT, candidate, facts, payment};
use crate::payment::{PaymentState, SignedBy, UnixSeconds, Wallet};

fn reverted(text: &str) -> ChainFacts {
    ChainFacts {
        transfer_succeeds: false,
        revert: Revert::from(text).abi_encode().into(),
        ..facts()
    }
}

fn check(candidate: Candidate, facts: &ChainFacts) -> Result<(), Reason> {
    candidate
        .verified(facts.clone())
        .map(drop)
        .map_err(|refusal| refusal.reason)
}

fn with_unknown_signer() -> Candidate {
    let mut candidate = candidate();
    candidate.terms.signed_by = Some(SignedBy::Unknown);
    candidate
}

fn with_undeployed_wallet() -> Candidate {
    let mut candidate = with_unknown_signer();
    candidate.terms.wallet = Some(Wallet {
        factory: Address::repeat_byte(0x55),
        call: Bytes::new(),
    });
    candidate
}

#[test]
fn payment_that_passes_every_check_is_verified() {
    let verified = candidate().verified(facts()).unwrap();
    assert_eq!(*verified.candidate(), candidate());
}

#[test]
fn missing_token_contract_is_reported_first() {
    let no_code = ChainFacts {
        token_has_code: false,
        nonce_used: None,
        ..reverted("no code")
    };
    let expected = Err(Reason::AssetNotDeployedContract);
    assert_eq!(check(candidate(), &no_code), expected);
    assert_eq!(check(with_unknown_signer(), &no_code), expected);
}

#[test]
fn plain_account_must_sign_with_its_own_key() {
    assert_eq!(
        check(with_unknown_signer(), &facts()),
        Err(Reason::ExactSignature)
    );
    let accepted = ChainFacts {
        signature_accepted: true,
        ..facts()
    };
    assert_eq!(
        check(with_unknown_signer(), &accepted),
        Err(Reason::ExactSignature),
        "an account without code cannot accept a signature"
    );
}

#[test]
fn contract_of_the_payer_decides_over_the_signature() {
    let with_code = ChainFacts {
        payer_has_code: true,
        ..facts()
    };
    let accepting = ChainFacts {
        signature_accepted: true,
        ..with_code.clone()
    };
    let refusing = ChainFacts {
        transfer_succeeds: false,
        ..with_code.clone()
    };
    for candidate in [candidate(), with_unknown_signer()] {
        assert_eq!(
            check(candidate.clone(), &refusing),
            Err(Reason::ExactSignature)
        );
        assert_eq!(check(candidate, &accepting), Ok(()));
    }
    // The token accepts a signature of the payer's key although the payer has code.
    assert_eq!(check(candidate(), &with_code), Ok(()));
    assert_eq!(
        check(with_unknown_signer(), &with_code),
        Err(Reason::ExactSignature)
    );
}

#[test]
fn simulation_that_fails_only_because_early_is_accepted() {
    let early = "FiatTokenV2: authorization is not yet valid";
    let mut early_payment = candidate();
    early_payment.terms.valid_after = UnixSeconds::from_moment(facts().block_time).unwrap();
    assert_eq!(check(early_payment.clone(), &reverted(early)), Ok(()));
    assert_eq!(
        check(candidate(), &reverted(early)),
        Err(Reason::ExactValidAfter),
        "its validAfter has passed"
    );
    for (facts, expected) in [
        (reverted("paused"), Reason::ExactSimulationFailed),
        (
            ChainFacts {
                balance: Some(U256::ZERO),
                ..reverted(early)
            },
            Reason::ExactInsufficientBalance,
        ),
    ] {
        assert_eq!(check(early_payment.clone(), &facts), Err(expected));
    }
}

#[test]
fn message_explains_tokens_without_contract_signatures() {
    let ignored = ChainFacts {
        payer_has_code: true,
        signature_accepted: true,
        transfer_succeeds: false,
        ..facts()
    };
    let refusal = with_unknown_signer().verified(ignored.clone()).unwrap_err();
    assert_eq!(refusal.reason, Reason::ExactSimulationFailed);
    assert!(refusal.message.contains("plain accounts only"));
    let paused = ChainFacts {
        revert: Revert::from("paused").abi_encode().into(),
        ..ignored
    };
    let refusal = with_unknown_signer().verified(paused).unwrap_err();
    assert!(refusal.message.contains("paused"), "{}", refusal.message);
}

#[test]
fn wallet_that_stays_undeployed_has_its_own_code() {
    assert_eq!(
        check(with_undeployed_wallet(), &facts()),
        Err(Reason::WalletDeploymentFailed)
    );
    let deployed = ChainFacts {
        payer_has_code: true,
        signature_accepted: true,
        ..facts()
    };
    assert_eq!(check(with_undeployed_wallet(), &deployed), Ok(()));
}

#[test]
fn first_failed_check_explains_a_failed_simulation() {
    let too_low = Some(U256::from(AMOUNT - 1));
    let base = reverted("FiatTokenV2: invalid signature");
    let cases = [
        (None, None, Reason::ExactEip3009Unsupported),
        (Some(true), too_low, Reason::ExactNonceUsed),
        (Some(false), too_low, Reason::ExactInsufficientBalance),
        (Some(false), facts().balance, Reason::ExactSimulationFailed),
        (Some(false), None, Reason::ExactSimulationFailed),
    ];
    for (nonce_used, balance, expected) in cases {
        let facts = ChainFacts {
            nonce_used,
            balance,
            ..base.clone()
        };
        assert_eq!(check(candidate(), &facts), Err(expected));
        let queued = payment(PaymentState::Queued);
        assert_eq!(
            queued.terms.diagnose(&facts).reason,
            expected,
            "before sending"
        );
    }
}

#[test]
fn revert_texts_about_time_map_to_the_codes_for_time() {
    for (text, expected) in [
        (
            "FiatTokenV2: authorization is expired",
            Reason::ExactValidBefore,
        ),
        (
            "FiatTokenV2: authorization is not yet valid",
            Reason::ExactValidAfter,
        ),
    ] {
        assert_eq!(check(candidate(), &reverted(text)), Err(expected));
    }
}

#[test]
fn successful_simulation_outweighs_missing_token_views() {
    let no_views = ChainFacts {
        nonce_used: None,
        balance: None,
        ..facts()
    };
    assert_eq!(check(candidate(), &no_views), Ok(()));
}

#[test]
fn revert_text_is_cut_and_without_control_characters() {
    let long = format!("a\u{7}\nb{}", "x".repeat(1000));
    let rejection = payment(PaymentState::Queued)
        .terms
        .diagnose(&reverted(&long));
    assert!(
        rejection.message.chars().count() < 200,
        "{}",
        rejection.message
    );
    assert!(!rejection.message.contains(char::is_control));
    let raw = ChainFacts {
        revert: Bytes::from_static(&[0xff, 0xad]),
        ..reverted("")
    };
    let rejection = payment(PaymentState::Queued).terms.diagnose(&raw);
    assert!(
        rejection.message.contains("0xffad"),
        "{}",
        rejection.message
    );
}
