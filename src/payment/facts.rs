//! What the chain knows about a payment, and the verdict that follows from it.

use alloy::primitives::{Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Permit2, Signed, Sponsored};
use crate::payment::state::Exit;
use crate::payment::{Candidate, Method, Payment, SignedBy, revert};
use crate::protocol::{Reason, Refusal, X402Version};

/// A permit has to last this much longer, in seconds: it is submitted with the payment (`docs/architecture.md#gas-sponsoring`).
const PERMIT_LASTS_S: i64 = 6;

/// One look at the chain, all at the same block.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not states"
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
    /// Whether the contract that settles has code.
    pub settler_has_code: bool,
    /// What Permit2 may take of the payer's token; `None` when the token does not say, or Permit2 is not asked.
    pub allowance: Option<U256>,
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
    allowance: Option<U256>,
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

    /// What Permit2 might take of it then, where the payment depends on that; `None` where it does not, or the token does not tell.
    pub const fn allowance(&self) -> Option<U256> {
        self.allowance
    }
}

impl Candidate {
    /// The verdict on a payment whose local checks have passed.
    ///
    /// # Errors
    /// The code of what the chain objects to.
    pub fn verified(self, facts: &ChainFacts) -> Result<Verified, Refusal> {
        self.signature_holds(facts)?;
        if let Some((reason, why)) = &self.sponsoring_fault {
            return Err(self.refuse(*reason, why.clone()));
        }
        self.permit_lasts(facts)?;
        // A charge of nothing moves nothing: there is nothing to simulate, but the nonce must be there to be consumed.
        let moves_nothing = self.authorization.value.is_zero() && facts.nonce_used == Some(false);
        let may_wait = self.signed().awaits_approval(facts);
        let may_wait = may_wait || self.signed().waits_for_its_time(facts);
        if !facts.transfer_succeeds && !moves_nothing && !may_wait {
            let (reason, message) = diagnosis(self.version, self.signed(), facts);
            return Err(self.refuse(reason, message));
        }
        Ok(Verified {
            block_number: facts.block_number,
            balance: facts.balance,
            allowance: self.own_allowance(facts),
            candidate: self,
        })
    }

    /// What the payer has allowed Permit2, where a payment may depend on it. An approval allows everything.
    fn own_allowance(&self, facts: &ChainFacts) -> Option<U256> {
        let permit = self.method.permit2()?;
        let approving = matches!(permit.sponsored, Some(Sponsored::Approval(_)));
        facts
            .allowance
            .filter(|_| !approving && !self.authorization.value.is_zero())
    }

    fn permit_lasts(&self, facts: &ChainFacts) -> Result<(), Refusal> {
        let permit = self
            .method
            .permit2()
            .and_then(|permit| permit.sponsored.as_ref());
        let Some(Sponsored::Permit { deadline, .. }) = permit else {
            return Ok(());
        };
        let least = facts.block_time.unix_timestamp() + PERMIT_LASTS_S;
        if i64::try_from(deadline.atomic()).unwrap_or(i64::MAX) >= least {
            return Ok(());
        }
        let why = format!("expected the permit's deadline at {least} or later, got {deadline}");
        Err(self.refuse(Reason::Eip2612DeadlineExpired, why))
    }

    /// Mirrors the tokens' own rules: an address with code answers for itself (ERC-1271), whatever its key may have signed, unless the
    /// token takes the key's word.
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
            // A token of the first form recovers the signature whatever code there is: its own word, the simulation, decides.
            let recovered = self.signed_by == SignedBy::Payer && facts.transfer_succeeds;
            if !facts.signature_accepted && !recovered {
                let why = format!(
                    "{payer} has code, and its isValidSignature does not accept the signature"
                );
                return Err(self.object(Fault::Signature, why));
            }
        } else if self.wallet.is_some() {
            let why = format!("the factory's call leaves no code at {payer}");
            return Err(self.refuse(Reason::WalletDeploymentFailed, why));
        } else if self.signed_by == SignedBy::Unknown {
            let why = format!(
                "{payer} has no code, and the signature was not made with its key over this authorization and domain"
            );
            return Err(self.object(Fault::Signature, why));
        }
        Ok(())
    }
}

impl Signed<'_> {
    /// Whether a simulation failed for nothing but its time: it was made before the authorization begins.
    pub fn waits_for_its_time(&self, facts: &ChainFacts) -> bool {
        // The version decides about the code's spelling alone.
        let version = X402Version::V2;
        let early = [
            self.method.reason(version, Fault::Begins),
            Reason::Permit2PaymentTooEarly,
        ];
        !facts.transfer_succeeds
            && self.is_early_for(facts)
            && early.contains(&diagnosis(version, *self, facts).0)
    }

    /// Whether the authorization begins after the time at which the chain was looked at.
    pub fn is_early_for(&self, facts: &ChainFacts) -> bool {
        let time = u64::try_from(facts.block_time.unix_timestamp()).unwrap_or_default();
        self.begins() > U256::from(time)
    }

    /// Whether a token has no ear for the signature that the payer's contract accepts.
    fn is_not_heard(&self, facts: &ChainFacts, revert: &str) -> bool {
        *self.method == Method::Eip3009
            && facts.payer_has_code
            && facts.signature_accepted
            && !self.is_by_payers_key()
            && (facts.revert.is_empty() || revert.to_lowercase().contains("signature"))
    }
}

impl Payment {
    /// Why an accepted payment whose simulation fails now should not be sent.
    pub fn objection(&self, facts: &ChainFacts) -> Exit {
        let (reason, message) = diagnosis(self.version, self.signed(), facts);
        Exit { reason, message }
    }
}

/// The likeliest reason of a failed simulation: the first hit (`docs/architecture.md#order-of-checks`).
fn diagnosis(version: X402Version, signed: Signed<'_>, facts: &ChainFacts) -> (Reason, String) {
    let reason = |objection| signed.method.reason(version, objection);
    if let Some(found) = deployment(signed, facts) {
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
            lacking(allowance, permit, signed),
        );
    }
    if let Some(known) = signed
        .method
        .permit2()
        .and_then(|_| revert::of_permit2(&facts.revert))
    {
        return known;
    }
    let text = revert::text(&facts.revert);
    match signed.method {
        Method::Eip3009 if text.contains("expired") => (reason(Fault::Ends), text),
        Method::Eip3009 if text.contains("not yet valid") => (reason(Fault::Begins), text),
        Method::Eip3009 if signed.is_not_heard(facts, &text) => (
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

/// A contract that is not there, or does not speak what is needed.
fn deployment(signed: Signed<'_>, facts: &ChainFacts) -> Option<(Reason, String)> {
    match signed.method {
        Method::Permit2(_) if !facts.settler_has_code => {
            let proxy = signed.method.settler(signed.asset);
            let why = format!("the proxy {proxy} has no code on this network");
            Some((Reason::Permit2ProxyNotDeployed, why))
        }
        Method::Eip3009 if facts.nonce_used.is_none() => {
            let why = "the token does not answer authorizationState".to_owned();
            Some((Reason::ExactEip3009Unsupported, why))
        }
        Method::Eip3009 | Method::Permit2(_) => None,
    }
}

fn lacking(allowance: U256, permit: &Permit2, signed: Signed<'_>) -> String {
    let (payer, token, value) = (signed.terms.from, signed.asset, signed.terms.value);
    let mut why = format!(
        "{payer} allows Permit2 to take {allowance} of {token}, which is below {value}; it has to approve Permit2 once"
    );
    if permit.sponsored.is_some() {
        why.push_str("; what was signed in place of that is not good: another nonce, another signer, or used already");
    }
    why
}

#[cfg(test)]
mod tests;
