//! What the chain knows about a payment, and the verdict that follows from it.

use alloy::primitives::{Bytes, U256};
use time::OffsetDateTime;

use crate::payment::state::Exit;
use crate::payment::{Candidate, Payment, SignedBy};
use crate::protocol::{Authorization, Reason, Refusal};

/// One look at the chain, all at the same block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent facts, not states"
)]
pub struct ChainFacts {
    /// The block that was looked at.
    pub block_number: u64,
    /// Its time.
    pub block_time: OffsetDateTime,
    /// Whether the token's address has code.
    pub token_has_code: bool,
    /// Whether the payer's address has code (a contract wallet, or an EIP-7702 account).
    pub payer_has_code: bool,
    /// `authorizationState`; `None` when the token does not answer it.
    pub nonce_used: Option<bool>,
    /// `balanceOf`; `None` when the token does not answer it.
    pub balance: Option<U256>,
    /// Whether the payer's code accepts the signature (ERC-1271).
    pub signature_accepted: bool,
    /// Whether the simulated transfer went through.
    pub transfer_succeeds: bool,
    /// What it reverted with, at most 512 bytes.
    pub revert: Bytes,
    /// Gas of the simulated inner call.
    pub gas_used: u64,
}

/// A payment that passed every check: the only thing that the ledger accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    candidate: Candidate,
    block_number: u64,
    balance: Option<U256>,
}

impl Verified {
    /// The payment.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// The block at which it was checked.
    pub const fn block_number(&self) -> u64 {
        self.block_number
    }

    /// What its payer had then, in atomic units; `None` when the token does not tell.
    pub const fn balance(&self) -> Option<U256> {
        self.balance
    }
}

impl Candidate {
    /// The verdict on a payment whose local checks have passed.
    ///
    /// # Errors
    /// The code of what the chain objects to.
    pub fn verified(self, facts: &ChainFacts) -> Result<Verified, Refusal> {
        self.signature_holds(facts)?;
        if !facts.transfer_succeeds {
            let (reason, message) = self.diagnosis(facts);
            return Err(self.refuse(reason, message));
        }
        Ok(Verified {
            candidate: self,
            block_number: facts.block_number,
            balance: facts.balance,
        })
    }

    /// Mirrors the token's own rule: an address with code answers for itself (ERC-1271), whatever its key may have signed.
    ///
    /// # Errors
    /// The code of a signature that the token would not accept.
    pub fn signature_holds(&self, facts: &ChainFacts) -> Result<(), Refusal> {
        if !facts.token_has_code {
            let why = format!("there is no contract at the asset's address {}", self.asset);
            return Err(self.refuse(Reason::AssetNotDeployedContract, why));
        }
        let payer = self.authorization.from;
        if facts.payer_has_code {
            if !facts.signature_accepted {
                let why = format!(
                    "{payer} has code, and its isValidSignature does not accept the signature"
                );
                return Err(self.refuse(Reason::ExactSignature, why));
            }
        } else if self.wallet.is_some() {
            let why = format!("the factory's call leaves no code at {payer}");
            return Err(self.refuse(Reason::WalletDeploymentFailed, why));
        } else if self.signed_by == SignedBy::Unknown {
            let why = format!(
                "{payer} has no code, and the signature was not made with its key over this authorization and domain"
            );
            return Err(self.refuse(Reason::ExactSignature, why));
        }
        Ok(())
    }

    /// The likeliest reason of a failed simulation.
    fn diagnosis(&self, facts: &ChainFacts) -> (Reason, String) {
        diagnosis(&self.authorization, facts)
    }
}

impl Payment {
    /// Why an accepted payment whose simulation fails now should not be sent.
    pub fn objection(&self, facts: &ChainFacts) -> Exit {
        let (reason, message) = diagnosis(&self.authorization, facts);
        Exit { reason, message }
    }
}

/// First hit wins (`protocol.md` §3.2).
fn diagnosis(signed: &Authorization, facts: &ChainFacts) -> (Reason, String) {
    let text = revert_text(&facts.revert);
    match (facts.nonce_used, facts.balance) {
        (None, _) => (
            Reason::ExactEip3009Unsupported,
            "the token does not answer authorizationState".to_owned(),
        ),
        (Some(true), _) => (
            Reason::ExactNonceUsed,
            "the authorization's nonce was used or cancelled on the chain".to_owned(),
        ),
        (Some(false), Some(balance)) if balance < signed.value.atomic() => {
            let why = format!("balance {balance} below {}", signed.value);
            (Reason::ExactInsufficientBalance, why)
        }
        (Some(false), _) if text.contains("expired") => (Reason::ExactValidBefore, text),
        (Some(false), _) if text.contains("not yet valid") => (Reason::ExactValidAfter, text),
        (Some(false), _) => (
            Reason::ExactSimulationFailed,
            format!("the simulated transfer reverted: {text}"),
        ),
    }
}

/// The text of `Error(string)`, or the first bytes of anything else.
fn revert_text(revert: &Bytes) -> String {
    let text = alloy::sol_types::decode_revert_reason(revert).unwrap_or_else(|| revert.to_string());
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(160)
        .collect()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::Address;
    use alloy::sol_types::{Revert, SolError};

    use super::*;
    use crate::payment::specimen::{AMOUNT, candidate, facts, payment};
    use crate::payment::{PaymentState, Wallet};

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
        for candidate in [candidate(), unrecognised()] {
            assert_eq!(
                verdict(candidate.clone(), &silent),
                Err(Reason::ExactSignature)
            );
            assert_eq!(verdict(candidate, &accepting), Ok(()));
        }
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
}
