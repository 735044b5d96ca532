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
}

impl Verified {
    /// The payment.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
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
        Ok(Verified { candidate: self })
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
