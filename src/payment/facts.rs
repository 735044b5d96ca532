//! The chain's facts about a payment, and the checks that depend on them.

use alloy::primitives::{Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Permit2, Sponsored};
use crate::payment::{Candidate, Method, PaymentTerms, revert};
use crate::protocol::{Reason, Rejection};

/// The shortest remaining validity of an EIP-2612 permit, in seconds: it is submitted with the payment. The reference uses 6 as well.
const PERMIT_VALIDITY_MIN_S: i64 = 6;

/// The message for a nonce that is used, whether the chain says so now or has said so before.
pub const NONCE_USED: &str = "the authorization's nonce was used or cancelled on the chain";

/// The facts about one payment, all read at the same block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not states"
)]
pub struct ChainFacts {
    /// The block at which the facts were read.
    pub block_number: u64,
    /// The time of that block.
    pub block_time: OffsetDateTime,
    pub token_has_code: bool,
    /// Whether the payer's address has code: a contract wallet or an EIP-7702 account.
    pub payer_has_code: bool,
    /// Whether the authorization's nonce is used; `None` if the token has no `authorizationState` (EIP-3009).
    pub nonce_used: Option<bool>,
    /// The payer's token balance; `None` if the token has no `balanceOf`.
    pub balance: Option<U256>,
    /// Whether the contract that settles has code: the token, or the proxy of the scheme.
    pub settler_has_code: bool,
    /// The payer's allowance to Permit2; `None` if the token has no `allowance`, or Permit2 is not used.
    pub allowance: Option<U256>,
    /// Whether the payer's code accepts the signature (ERC-1271).
    pub signature_accepted: bool,
    /// Whether the simulated transfer succeeded.
    pub transfer_succeeds: bool,
    /// The revert data of the simulated transfer, at most 512 bytes.
    pub revert: Bytes,
    /// The gas used by the simulated transfer call.
    pub gas_used: u64,
}

/// A payment that passed every check. The ledger accepts nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    candidate: Candidate,
    facts: ChainFacts,
}

impl Verified {
    pub const fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// The facts that the payment was checked against.
    pub const fn facts(&self) -> &ChainFacts {
        &self.facts
    }

    /// The payer's allowance to Permit2, if the payment depends on it and the token has one. It does not depend on it if an approval is
    /// submitted first, or the charge is 0.
    pub fn allowance(&self) -> Option<U256> {
        let permit = self.candidate.terms.method.permit2()?;
        let has_approval = matches!(permit.sponsored, Some(Sponsored::Approval(_)));
        let moves_nothing = self.candidate.terms.value.is_zero();
        self.facts
            .allowance
            .filter(|_| !has_approval && !moves_nothing)
    }
}

impl Candidate {
    /// Checks a payment against the chain's facts, after its local checks have passed.
    pub fn verified(self, facts: ChainFacts) -> Result<Verified, Rejection> {
        self.check_signature(&facts)?;
        if let Some(fault) = self.sponsoring_fault {
            return Err(fault);
        }
        self.check_permit_deadline(&facts)?;
        // A charge of 0 needs no transfer, so there is nothing to simulate. The nonce must still be unused.
        let zero_charge = self.terms.value.is_zero() && facts.nonce_used == Some(false);
        if zero_charge {
            self.check_maximum(&facts)?;
        }
        let may_wait =
            self.terms.needs_approval_first(&facts) || self.terms.fails_only_because_early(&facts);
        if !facts.transfer_succeeds && !zero_charge && !may_wait {
            return Err(self.terms.diagnose(&facts));
        }
        Ok(Verified {
            candidate: self,
            facts,
        })
    }

    /// The rejection of a payment whose payer has promised more than it has.
    pub fn lacks_balance(&self, facts: &ChainFacts, promised: U256) -> Rejection {
        let balance = facts.balance.unwrap_or_default();
        let why = self.too_little(&format!("the payer has {balance}"), promised);
        self.terms.rejection(Fault::Balance, why)
    }

    /// The same for what Permit2 may take.
    pub fn lacks_allowance(&self, facts: &ChainFacts, promised: U256) -> Rejection {
        let allowance = facts.allowance.unwrap_or_default();
        let has = format!("the payer lets Permit2 take {allowance}");
        let why = self.too_little(&has, promised);
        Rejection::new(Reason::Permit2AllowanceRequired, why)
    }

    fn too_little(&self, has: &str, promised: U256) -> String {
        let value = self.terms.value;
        format!(
            "{has} and promised {promised} of it to payments under way, which leaves too little for {value}"
        )
    }

    /// Checks that the payer could pay the maximum that it has permitted. Otherwise accounts without money could have any number of charges
    /// of 0 recorded.
    fn check_maximum(&self, facts: &ChainFacts) -> Result<(), Rejection> {
        let Some(permit) = self.terms.method.permit2() else {
            return Ok(());
        };
        let most = permit.permitted;
        if let Some(balance) = facts.balance.filter(|balance| *balance < most.atomic()) {
            let why = format!("balance {balance} below the permitted {most}");
            return Err(self.terms.rejection(Fault::Balance, why));
        }
        let too_low = |allowance: &U256| *allowance < most.atomic();
        let allowance = facts.allowance.filter(too_low);
        // A permit or approval that comes with the payment is not submitted for a charge of 0, so it is not seen on the chain.
        if let Some(allowance) = allowance.filter(|_| permit.sponsored.is_none()) {
            let payer = self.terms.from;
            let why = format!(
                "{payer} allows Permit2 to take {allowance} of {}, which is below the permitted {most}; it has to approve Permit2 once",
                self.terms.asset
            );
            return Err(Rejection::new(Reason::Permit2AllowanceRequired, why));
        }
        Ok(())
    }

    fn check_permit_deadline(&self, facts: &ChainFacts) -> Result<(), Rejection> {
        let Some(Sponsored::Permit { deadline, .. }) = self.terms.method.sponsored() else {
            return Ok(());
        };
        let least = facts.block_time.unix_timestamp() + PERMIT_VALIDITY_MIN_S;
        if deadline.timestamp() >= least {
            return Ok(());
        }
        let why = format!("expected the permit's deadline at {least} or later, got {deadline}");
        Err(Rejection::new(Reason::Eip2612DeadlineExpired, why))
    }

    /// Checks the signature by the rules of the tokens. For an address with code the contract decides (ERC-1271), unless the token accepts
    /// a signature of the address's key.
    pub fn check_signature(&self, facts: &ChainFacts) -> Result<(), Rejection> {
        if !facts.token_has_code {
            let why = format!(
                "there is no contract at the asset's address {}",
                self.terms.asset
            );
            return Err(Rejection::new(Reason::AssetNotDeployedContract, why));
        }
        let payer = self.terms.from;
        let by_payer_key = self.terms.is_signed_by_payer_key();
        if facts.payer_has_code {
            // Some tokens recover the signer even if the payer has code. The simulated transfer shows whether this token does.
            let recovered = by_payer_key && facts.transfer_succeeds;
            if !facts.signature_accepted && !recovered {
                let why = format!(
                    "{payer} has code, and its isValidSignature does not accept the signature"
                );
                return Err(self.terms.rejection(Fault::Signature, why));
            }
        } else if self.terms.wallet.is_some() {
            let why = format!("the factory's call does not deploy a wallet at {payer}");
            return Err(Rejection::new(Reason::WalletDeploymentFailed, why));
        } else if !by_payer_key {
            return Err(self.refuse_foreign_signature());
        }
        Ok(())
    }

    /// The rejection of a signature that is not the payer's, whose account has no code.
    pub fn refuse_foreign_signature(&self) -> Rejection {
        let payer = self.terms.from;
        let why = format!(
            "{payer} has no code, and the signature was not made with its key over this authorization and domain"
        );
        self.terms.rejection(Fault::Signature, why)
    }
}

impl PaymentTerms {
    /// Whether the simulation failed only because the authorization is not valid yet.
    pub fn fails_only_because_early(&self, facts: &ChainFacts) -> bool {
        let early = [
            self.reason(Fault::ValidAfter),
            Reason::Permit2PaymentTooEarly,
        ];
        !facts.transfer_succeeds
            && self.is_not_yet_valid_at(facts)
            && early.contains(&self.diagnose(facts).reason)
    }

    /// Whether the payer's contract accepts the signature, but the token does not support contract signatures.
    fn token_ignores_contract(&self, facts: &ChainFacts, revert: &str) -> bool {
        self.method == Method::Eip3009
            && facts.payer_has_code
            && facts.signature_accepted
            && !self.is_signed_by_payer_key()
            && (facts.revert.is_empty() || revert.to_lowercase().contains("signature"))
    }

    /// The most likely reason of a failed simulation: the first check that fails, in the order of the reference implementation.
    pub fn diagnose(&self, facts: &ChainFacts) -> Rejection {
        if let Some(found) = missing_contract(self, facts) {
            return found;
        }
        if facts.nonce_used == Some(true) {
            return self.rejection(Fault::NonceUsed, NONCE_USED);
        }
        let value = self.value;
        if let Some(balance) = facts.balance.filter(|balance| *balance < value.atomic()) {
            return self.rejection(Fault::Balance, format!("balance {balance} below {value}"));
        }
        if let Some(permit) = self.method.permit2() {
            let too_low = |allowance: &U256| *allowance < value.atomic();
            if let Some(allowance) = facts.allowance.filter(too_low) {
                let why = missing_allowance(allowance, permit, self);
                return Rejection::new(Reason::Permit2AllowanceRequired, why);
            }
            if let Some(known) = revert::permit2_rejection(&facts.revert) {
                return known;
            }
        }
        let text = revert::printable(&facts.revert);
        match self.method {
            Method::Eip3009 if text.contains("expired") => self.rejection(Fault::ValidBefore, text),
            Method::Eip3009 if text.contains("not yet valid") => {
                self.rejection(Fault::ValidAfter, text)
            }
            Method::Eip3009 if self.token_ignores_contract(facts, &text) => {
                let why = format!(
                    "the token {} takes plain accounts only: it has no transferWithAuthorization for the signature of the contract wallet {}",
                    self.asset, self.from
                );
                self.rejection(Fault::Simulation, why)
            }
            Method::Eip3009 | Method::Permit2(_) => {
                let why = format!("the simulated transfer reverted: {text}");
                self.rejection(Fault::Simulation, why)
            }
        }
    }
}

/// The rejection if a contract is not deployed, or lacks the required standard.
fn missing_contract(terms: &PaymentTerms, facts: &ChainFacts) -> Option<Rejection> {
    match terms.method {
        Method::Permit2(_) if !facts.settler_has_code => {
            let proxy = terms.method.settler(terms.asset);
            let why = format!("the proxy {proxy} has no code on this network");
            Some(Rejection::new(Reason::Permit2ProxyNotDeployed, why))
        }
        Method::Eip3009 if facts.nonce_used.is_none() => {
            let why = "the token has no authorizationState";
            Some(Rejection::new(Reason::ExactEip3009Unsupported, why))
        }
        Method::Eip3009 | Method::Permit2(_) => None,
    }
}

fn missing_allowance(allowance: U256, permit: &Permit2, terms: &PaymentTerms) -> String {
    let (payer, token, value) = (terms.from, terms.asset, terms.value);
    let mut why = format!(
        "{payer} allows Permit2 to take {allowance} of {token}, which is below {value}; it has to approve Permit2 once"
    );
    if permit.sponsored.is_some() {
        why.push_str("; the permit or approval signed for it is not usable: wrong nonce, wrong signer, or already used");
    }
    why
}

#[cfg(test)]
mod tests;
