//! The chain's facts about a payment, and the checks that depend on them.

use alloy::primitives::{Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Permit2, Signed, Sponsored};
use crate::payment::state::Rejection;
use crate::payment::{Candidate, Method, Payment, SignedBy, revert};
use crate::protocol::{Reason, Refusal, X402Version};

/// The shortest remaining validity of an EIP-2612 permit, in seconds: it is submitted with the payment. The reference uses 6 as well.
const PERMIT_VALIDITY_MIN_S: i64 = 6;

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
    block_number: u64,
    balance: Option<U256>,
    allowance: Option<U256>,
}

impl Verified {
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// The block at which the payment was checked.
    pub const fn block_number(&self) -> u64 {
        self.block_number
    }

    /// The payer's balance at that block, in atomic units; `None` if the token has no `balanceOf`.
    pub const fn balance(&self) -> Option<U256> {
        self.balance
    }

    /// The payer's allowance to Permit2 at that block. `None` if the payment does not depend on it, or the token has no `allowance`.
    pub const fn allowance(&self) -> Option<U256> {
        self.allowance
    }
}

impl Candidate {
    /// Checks a payment against the chain's facts, after its local checks have passed.
    pub fn verified(self, facts: &ChainFacts) -> Result<Verified, Refusal> {
        self.check_signature(facts)?;
        if let Some((reason, why)) = &self.sponsoring_fault {
            return Err(self.refuse(*reason, why.clone()));
        }
        self.check_permit_deadline(facts)?;
        // A charge of 0 needs no transfer, so there is nothing to simulate. The nonce must still be unused.
        let zero_charge = self.authorization.value.is_zero() && facts.nonce_used == Some(false);
        let may_wait = self.signed().needs_approval_first(facts);
        let may_wait = may_wait || self.signed().fails_only_because_early(facts);
        if !facts.transfer_succeeds && !zero_charge && !may_wait {
            let (reason, message) = diagnose(self.version, self.signed(), facts);
            return Err(self.refuse(reason, message));
        }
        Ok(Verified {
            block_number: facts.block_number,
            balance: facts.balance,
            allowance: self.required_allowance(facts),
            candidate: self,
        })
    }

    /// The payer's allowance to Permit2, if the payment depends on it. It does not if an approval is submitted first, or the charge is 0.
    fn required_allowance(&self, facts: &ChainFacts) -> Option<U256> {
        let permit = self.method.permit2()?;
        let has_approval = matches!(permit.sponsored, Some(Sponsored::Approval(_)));
        facts
            .allowance
            .filter(|_| !has_approval && !self.authorization.value.is_zero())
    }

    fn check_permit_deadline(&self, facts: &ChainFacts) -> Result<(), Refusal> {
        let permit = self
            .method
            .permit2()
            .and_then(|permit| permit.sponsored.as_ref());
        let Some(Sponsored::Permit { deadline, .. }) = permit else {
            return Ok(());
        };
        let least = facts.block_time.unix_timestamp() + PERMIT_VALIDITY_MIN_S;
        if i64::try_from(deadline.atomic()).unwrap_or(i64::MAX) >= least {
            return Ok(());
        }
        let why = format!("expected the permit's deadline at {least} or later, got {deadline}");
        Err(self.refuse(Reason::Eip2612DeadlineExpired, why))
    }

    /// Checks the signature by the rules of the tokens. For an address with code the contract decides (ERC-1271), unless the token accepts
    /// a signature of the address's key.
    pub fn check_signature(&self, facts: &ChainFacts) -> Result<(), Refusal> {
        if !facts.token_has_code {
            let why = format!("there is no contract at the asset's address {}", self.asset);
            return Err(self.refuse(Reason::AssetNotDeployedContract, why));
        }
        let payer = self.authorization.from;
        if facts.payer_has_code {
            // Some tokens recover the signer even if the payer has code. The simulated transfer shows whether this token does.
            let recovered = self.signed_by == SignedBy::Payer && facts.transfer_succeeds;
            if !facts.signature_accepted && !recovered {
                let why = format!(
                    "{payer} has code, and its isValidSignature does not accept the signature"
                );
                return Err(self.refuse_for(Fault::Signature, why));
            }
        } else if self.wallet.is_some() {
            let why = format!("the factory's call does not deploy a wallet at {payer}");
            return Err(self.refuse(Reason::WalletDeploymentFailed, why));
        } else if self.signed_by == SignedBy::Unknown {
            let why = format!(
                "{payer} has no code, and the signature was not made with its key over this authorization and domain"
            );
            return Err(self.refuse_for(Fault::Signature, why));
        }
        Ok(())
    }
}

impl Signed<'_> {
    /// Whether the simulation failed only because the authorization is not valid yet.
    pub fn fails_only_because_early(&self, facts: &ChainFacts) -> bool {
        // Any version will do: it affects only the spelling of other codes.
        let version = X402Version::V2;
        let early = [
            self.method.reason(version, Fault::ValidAfter),
            Reason::Permit2PaymentTooEarly,
        ];
        !facts.transfer_succeeds
            && self.is_not_yet_valid_at(facts)
            && early.contains(&diagnose(version, *self, facts).0)
    }

    /// Whether the authorization becomes valid only after the block of `facts`.
    pub fn is_not_yet_valid_at(&self, facts: &ChainFacts) -> bool {
        let time = u64::try_from(facts.block_time.unix_timestamp()).unwrap_or_default();
        self.valid_from() > U256::from(time)
    }

    /// Whether the payer's contract accepts the signature, but the token does not support contract signatures.
    fn token_ignores_contract(&self, facts: &ChainFacts, revert: &str) -> bool {
        *self.method == Method::Eip3009
            && facts.payer_has_code
            && facts.signature_accepted
            && !self.is_signed_by_payer_key()
            && (facts.revert.is_empty() || revert.to_lowercase().contains("signature"))
    }
}

impl Payment {
    /// Why an accepted payment is not sent, given the facts of a failed simulation.
    pub fn rejection_for(&self, facts: &ChainFacts) -> Rejection {
        let (reason, message) = diagnose(self.version, self.signed(), facts);
        Rejection { reason, message }
    }
}

/// The most likely reason of a failed simulation: the first check that fails, in the order of the reference implementation.
fn diagnose(version: X402Version, signed: Signed<'_>, facts: &ChainFacts) -> (Reason, String) {
    let reason = |fault| signed.method.reason(version, fault);
    if let Some(found) = missing_contract(signed, facts) {
        return found;
    }
    if facts.nonce_used == Some(true) {
        let why = "the authorization's nonce was used or cancelled on the chain".to_owned();
        return (reason(Fault::NonceUsed), why);
    }
    let value = signed.terms.value;
    if let Some(balance) = facts.balance.filter(|balance| *balance < value.atomic()) {
        let why = format!("balance {balance} below {value}");
        return (reason(Fault::Balance), why);
    }
    if let (Some(allowance), Some(permit)) = (facts.allowance, signed.method.permit2())
        && allowance < value.atomic()
    {
        return (
            Reason::Permit2AllowanceRequired,
            missing_allowance(allowance, permit, signed),
        );
    }
    if let Some(known) = signed
        .method
        .permit2()
        .and_then(|_| revert::permit2_reason(&facts.revert))
    {
        return known;
    }
    let text = revert::printable(&facts.revert);
    match signed.method {
        Method::Eip3009 if text.contains("expired") => (reason(Fault::ValidBefore), text),
        Method::Eip3009 if text.contains("not yet valid") => (reason(Fault::ValidAfter), text),
        Method::Eip3009 if signed.token_ignores_contract(facts, &text) => (
            reason(Fault::Simulation),
            format!(
                "the token {} takes plain accounts only: it has no transferWithAuthorization for the signature of the contract wallet {}",
                signed.asset, signed.terms.from
            ),
        ),
        Method::Eip3009 | Method::Permit2(_) => (
            reason(Fault::Simulation),
            format!("the simulated transfer reverted: {text}"),
        ),
    }
}

/// The rejection if a contract is not deployed, or lacks the required standard.
fn missing_contract(signed: Signed<'_>, facts: &ChainFacts) -> Option<(Reason, String)> {
    match signed.method {
        Method::Permit2(_) if !facts.settler_has_code => {
            let proxy = signed.method.settler(signed.asset);
            let why = format!("the proxy {proxy} has no code on this network");
            Some((Reason::Permit2ProxyNotDeployed, why))
        }
        Method::Eip3009 if facts.nonce_used.is_none() => {
            let why = "the token has no authorizationState".to_owned();
            Some((Reason::ExactEip3009Unsupported, why))
        }
        Method::Eip3009 | Method::Permit2(_) => None,
    }
}

fn missing_allowance(allowance: U256, permit: &Permit2, signed: Signed<'_>) -> String {
    let (payer, token, value) = (signed.terms.from, signed.asset, signed.terms.value);
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
