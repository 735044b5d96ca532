use alloy::primitives::Address;
use alloy::sol_types::{Revert, SolError};

use super::*;
use crate::payment::specimen::{AMOUNT, candidate, facts, payment};
use crate::payment::{PaymentState, Wallet};
use crate::protocol::Amount;

fn reverted(text: &str) -> ChainFacts {
    ChainFacts {
        transfer_succeeds: false,
        revert: Revert::from(text).abi_encode().into(),
        ..facts()
    }
}

fn verdict(candidate: Candidate, facts: &ChainFacts) -> Result<(), Reason> {
    candidate
        .verified(facts)
        .map(drop)
        .map_err(|refusal| refusal.reason)
}

fn unrecognised() -> Candidate {
    let mut candidate = candidate();
    candidate.signed_by = SignedBy::Unknown;
    candidate
}

fn undeployed() -> Candidate {
    let mut candidate = unrecognised();
    candidate.wallet = Some(Wallet {
        factory: Address::repeat_byte(0x55),
        call: Bytes::new(),
    });
    candidate
}

#[test]
fn a_payment_that_nothing_speaks_against_is_verified() {
    let verified = candidate().verified(&facts()).unwrap();
    assert_eq!(*verified.candidate(), candidate());
}

#[test]
fn a_token_without_code_is_named_before_any_other_trouble() {
    let nowhere = ChainFacts {
        token_has_code: false,
        nonce_used: None,
        ..reverted("no code")
    };
    let expected = Err(Reason::AssetNotDeployedContract);
    assert_eq!(verdict(candidate(), &nowhere), expected);
    assert_eq!(verdict(unrecognised(), &nowhere), expected);
}

#[test]
fn a_plain_account_signs_with_its_own_key() {
    assert_eq!(
        verdict(unrecognised(), &facts()),
        Err(Reason::ExactSignature)
    );
    let said = ChainFacts {
        signature_accepted: true,
        ..facts()
    };
    assert_eq!(
        verdict(unrecognised(), &said),
        Err(Reason::ExactSignature),
        "nobody can accept it where there is no code"
    );
}

#[test]
fn an_account_with_code_answers_for_itself_whatever_its_key_signed() {
    let silent = ChainFacts {
        payer_has_code: true,
        ..facts()
    };
    let accepting = ChainFacts {
        signature_accepted: true,
        ..silent.clone()
    };
    let refusing = ChainFacts {
        transfer_succeeds: false,
        ..silent.clone()
    };
    for candidate in [candidate(), unrecognised()] {
        assert_eq!(
            verdict(candidate.clone(), &refusing),
            Err(Reason::ExactSignature)
        );
        assert_eq!(verdict(candidate, &accepting), Ok(()));
    }
    // Unless the token takes the key's word.
    assert_eq!(verdict(candidate(), &silent), Ok(()));
    assert_eq!(
        verdict(unrecognised(), &silent),
        Err(Reason::ExactSignature)
    );
}

#[test]
fn what_fails_for_nothing_but_its_time_waits_for_it() {
    let early = "FiatTokenV2: authorization is not yet valid";
    let mut young = candidate();
    young.authorization.valid_after =
        Amount::from_atomic(U256::from(facts().block_time.unix_timestamp()));
    assert_eq!(verdict(young.clone(), &reverted(early)), Ok(()));
    assert_eq!(
        verdict(candidate(), &reverted(early)),
        Err(Reason::ExactValidAfter),
        "it has begun"
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
        assert_eq!(verdict(young.clone(), &facts), Err(expected));
    }
}

#[test]
fn a_contract_wallet_hears_that_its_token_takes_plain_accounts_only() {
    let unheard = ChainFacts {
        payer_has_code: true,
        signature_accepted: true,
        transfer_succeeds: false,
        ..facts()
    };
    let refusal = unrecognised().verified(&unheard).unwrap_err();
    assert_eq!(refusal.reason, Reason::ExactSimulationFailed);
    assert!(refusal.message.contains("plain accounts only"));
    let paused = ChainFacts {
        revert: Revert::from("paused").abi_encode().into(),
        ..unheard
    };
    let refusal = unrecognised().verified(&paused).unwrap_err();
    assert!(refusal.message.contains("paused"), "{}", refusal.message);
}

#[test]
fn a_wallet_that_its_factory_does_not_deploy_is_refused_as_such() {
    assert_eq!(
        verdict(undeployed(), &facts()),
        Err(Reason::WalletDeploymentFailed)
    );
    let deployed = ChainFacts {
        payer_has_code: true,
        signature_accepted: true,
        ..facts()
    };
    assert_eq!(verdict(undeployed(), &deployed), Ok(()));
}

#[test]
fn a_failed_simulation_is_explained_by_the_first_cause_that_fits() {
    let poor = Some(U256::from(AMOUNT - 1));
    let base = reverted("FiatTokenV2: invalid signature");
    let cases = [
        (None, None, Reason::ExactEip3009Unsupported),
        (Some(true), poor, Reason::ExactNonceUsed),
        (Some(false), poor, Reason::ExactInsufficientBalance),
        (Some(false), facts().balance, Reason::ExactSimulationFailed),
        (Some(false), None, Reason::ExactSimulationFailed),
    ];
    for (nonce_used, balance, expected) in cases {
        let facts = ChainFacts {
            nonce_used,
            balance,
            ..base.clone()
        };
        assert_eq!(verdict(candidate(), &facts), Err(expected));
        let queued = payment(PaymentState::Queued);
        assert_eq!(queued.objection(&facts).reason, expected, "before sending");
    }
}

#[test]
fn the_tokens_own_words_about_time_become_the_codes_for_time() {
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
        assert_eq!(verdict(candidate(), &reverted(text)), Err(expected));
    }
}

#[test]
fn a_simulation_that_goes_through_outweighs_what_the_token_does_not_answer() {
    let mute = ChainFacts {
        nonce_used: None,
        balance: None,
        ..facts()
    };
    assert_eq!(verdict(candidate(), &mute), Ok(()));
}

#[test]
fn what_a_token_reverts_with_is_cut_and_cleaned_before_it_is_shown() {
    let long = format!("a\u{7}\nb{}", "x".repeat(1000));
    let exit = payment(PaymentState::Queued).objection(&reverted(&long));
    assert!(exit.message.chars().count() < 200, "{}", exit.message);
    assert!(!exit.message.contains(char::is_control));
    let raw = ChainFacts {
        revert: Bytes::from_static(&[0xff, 0xad]),
        ..reverted("")
    };
    let exit = payment(PaymentState::Queued).objection(&raw);
    assert!(exit.message.contains("0xffad"), "{}", exit.message);
}
