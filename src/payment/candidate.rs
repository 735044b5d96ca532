//! A payment on its way to the ledger: everything that can be judged without asking anybody.

mod reading;

use alloy::primitives::{Address, B256, Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Permit2, Signed, Sponsored};
use crate::payment::{Asset, Method, NetworkPolicy, signature, sponsoring};
use crate::protocol::{
    Authorization, AuthorizationPayload, Network, PaymentRequirements, Reason, Refusal, Scheme,
    X402Version,
};
use reading::{Draft, Reading};

/// A request that carries an authorization.
type PaymentRequest = crate::protocol::PaymentRequest<AuthorizationPayload>;

/// How to deploy a wallet that has no code yet (ERC-6492).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wallet {
    /// The contract to call.
    pub factory: Address,
    /// With which data.
    pub call: Bytes,
}

/// Whose signature it is, as far as that can be told without the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedBy {
    /// The payer's own key. Good enough unless the payer turns out to have code.
    Payer,
    /// Nobody that we recognise: only the payer's contract can tell.
    Unknown,
}

/// What a request is about. In scheme `upto` the required amount is the most that may be charged at `/verify`, and the charge at `/settle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Advice.
    Verify,
    /// The money.
    Settle,
}

/// A payment of strict shape. Its signature is recovered as far as that goes without the chain.
#[derive(Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The dialect to answer in.
    pub version: X402Version,
    /// The network as the request names it.
    pub network_name: String,
    /// The network.
    pub network: Network,
    /// The token.
    pub asset: Address,
    /// Who pays whom, when, under which nonce; and how much is to be moved.
    pub authorization: Authorization,
    /// By which contract.
    pub method: Method,
    /// The 32 signed bytes.
    pub digest: B256,
    /// The signature without wrapper, `v` normalised when it is the payer's.
    pub signature: Bytes,
    /// The deployment that an ERC-6492 wrapper named.
    pub wallet: Option<Wallet>,
    /// Who signed.
    pub signed_by: SignedBy,
    /// What was bought, as somebody said.
    pub resource: Option<String>,
    /// The token's domain as the requirement gives it; EIP-3009 signs in it.
    domain: Option<(String, String)>,
    /// The token that the payer signed.
    token: Address,
    purpose: Purpose,
    /// What is wrong with what the payer adds for Permit2's sake. Said once everything that comes before is good.
    pub(super) sponsoring_fault: Option<(Reason, String)>,
    /// What the seller asks for.
    pub requirements: PaymentRequirements,
}

impl Candidate {
    /// Checks the shape: scheme, domain, network, amount, signature.
    ///
    /// # Errors
    /// A [`Refusal`] with the code of the first check that failed, in the order of `docs/architecture.md#order-of-checks`.
    pub fn from_request(
        request: PaymentRequest,
        policy: &NetworkPolicy,
        purpose: Purpose,
    ) -> Result<Self, Refusal> {
        let draft = Draft {
            request: &request,
            policy,
            purpose,
        };
        let Reading {
            terms,
            mut method,
            token,
            digest,
            domain,
            signature,
        } = draft.read()?;
        let bad_signature =
            |why: String| draft.refuse(method.reason(request.version, Fault::Signature), why);
        let (signature, wallet) =
            signature::unwrapped(&signature).map_err(|error| bad_signature(error.to_string()))?;
        if signature.is_empty() {
            return Err(bad_signature("the signature is empty".to_owned()));
        }
        let own = signature::normalised(&signature)
            .filter(|normal| signature::signer(normal, digest) == Some(terms.from));
        let sponsoring_fault = sponsoring::accept(&mut method, &request, policy).err();
        Ok(Self {
            version: request.version,
            network: request.requirements.network,
            asset: request.requirements.asset,
            authorization: terms,
            digest,
            signed_by: if own.is_some() {
                SignedBy::Payer
            } else {
                SignedBy::Unknown
            },
            signature: own.map_or(signature, |normal| Bytes::copy_from_slice(&normal)),
            // Permit2 knows no wallet that is not there yet.
            wallet: wallet.filter(|_| method == Method::Eip3009),
            method,
            domain,
            token,
            purpose,
            sponsoring_fault,
            network_name: request.network_name,
            resource: request.resource,
            requirements: request.requirements,
        })
    }

    /// Whether the token's own permit comes with it.
    pub const fn brings_a_permit(&self) -> bool {
        matches!(
            self.method,
            Method::Permit2(Permit2 {
                sponsored: Some(Sponsored::Permit { .. }),
                ..
            })
        )
    }

    /// What the payer signed, with all that settles it.
    pub const fn signed(&self) -> Signed<'_> {
        Signed {
            asset: self.asset,
            terms: &self.authorization,
            method: &self.method,
            digest: self.digest,
            signature: &self.signature,
            wallet: self.wallet.as_ref(),
            signed_by: Some(self.signed_by),
        }
    }

    /// Whether the authorization pays what is required: payee, amount, token. Asked of every payment, also of one that the ledger
    /// knows already, because the requirement is the seller's word and the header only the buyer's.
    ///
    /// # Errors
    /// The code of the first difference.
    pub fn pays_what_is_required(&self) -> Result<(), Refusal> {
        self.pays_the_payee()?;
        self.pays_the_amount()
    }

    /// The first part of [`Self::pays_what_is_required`]; [`Self::is_allowed`] asks the rest of a payment that is new.
    ///
    /// # Errors
    /// When somebody else is paid.
    pub fn pays_the_payee(&self) -> Result<(), Refusal> {
        let (paid, required) = (self.authorization.to, self.requirements.pay_to);
        if paid == required {
            return Ok(());
        }
        let why = format!("expected the payee {required}, the authorization pays {paid}");
        Err(self.object(Fault::Payee, why))
    }

    fn pays_the_amount(&self) -> Result<(), Refusal> {
        let required = self.requirements.amount;
        let signed = match &self.method {
            Method::Eip3009 => self.authorization.value,
            Method::Permit2(permit) => permit.permitted,
        };
        let charged = self.purpose == Purpose::Settle && self.method.scheme() == Scheme::Upto;
        if charged && required > signed {
            let why = format!(
                "expected a charge of at most {signed}, which the payer permitted, got {required}"
            );
            return Err(self.refuse(Reason::UptoExceedsAmount, why));
        }
        if !charged && required != signed {
            let why = format!("expected exactly {required}, the authorization moves {signed}");
            return Err(self.object(Fault::Amount, why));
        }
        if self.token != self.asset {
            let why = format!(
                "expected the token {}, the payer permitted {}",
                self.asset, self.token
            );
            return Err(self.refuse(Reason::Permit2TokenMismatch, why));
        }
        Ok(())
    }

    /// Whether the operator and the clock allow a new payment: asset, payee, domain, facilitator, window; and whether it pays the
    /// amount. `now` is the later of the wall clock and the newest block's time.
    ///
    /// # Errors
    /// The code of the first rule that is broken.
    pub fn is_allowed(&self, policy: &NetworkPolicy, now: OffsetDateTime) -> Result<(), Refusal> {
        let asset = policy.asset(self.asset).ok_or_else(|| {
            let known: Vec<_> = policy
                .assets
                .iter()
                .map(|asset| asset.address.to_string())
                .collect();
            let why = format!(
                "expected one of the assets served on {} ({}), got {}",
                self.network,
                known.join(", "),
                self.asset
            );
            self.refuse(Reason::InvalidPaymentRequirements, why)
        })?;
        if !policy.allows_payee(self.authorization.to) {
            let why = format!(
                "{} is not among the payees that this facilitator serves",
                self.authorization.to
            );
            return Err(self.refuse(Reason::InvalidPaymentRequirements, why));
        }
        self.names_the_domain_of(asset)?;
        self.names_a_facilitator_of(policy)?;
        self.is_in_its_window(policy, now)?;
        self.pays_the_amount()
    }

    /// The same payment, with what an ERC-6492 wrapper comes to. A wallet that is deployed needs no factory, listed or not; one that is
    /// not may be deployed at our cost by a listed factory alone.
    ///
    /// # Errors
    /// When the wallet is not deployed, and its factory is not listed.
    pub fn with_wallet_deployed(
        mut self,
        policy: &NetworkPolicy,
        deployed: bool,
    ) -> Result<Self, Refusal> {
        if deployed {
            self.wallet = None;
        }
        match &self.wallet {
            Some(wallet) if !policy.factories.contains(&wallet.factory) => {
                let why = format!(
                    "{} is not deployed, and the factory {} is not on this facilitator's list",
                    self.authorization.from, wallet.factory
                );
                Err(self.refuse(Reason::FactoryNotAllowed, why))
            }
            Some(_) | None => Ok(self),
        }
    }

    fn names_a_facilitator_of(&self, policy: &NetworkPolicy) -> Result<(), Refusal> {
        let Some(named) = self.method.facilitator() else {
            return Ok(());
        };
        if policy.signers.contains(&named) {
            return Ok(());
        }
        let why = format!(
            "expected the witness to name this facilitator, {}, it names {named}",
            policy.facilitator().unwrap_or_default()
        );
        Err(self.refuse(Reason::UptoFacilitatorMismatch, why))
    }

    fn names_the_domain_of(&self, asset: &Asset) -> Result<(), Refusal> {
        let Some((name, version)) = &self.domain else {
            return Ok(());
        };
        if *name != asset.name {
            let why = format!(
                "expected extra.name {:?} as the token has it, got {:?}",
                asset.name,
                shown(name)
            );
            return Err(self.refuse(Reason::ExactTokenName, why));
        }
        if *version != asset.version {
            let why = format!(
                "expected extra.version {:?} as the token has it, got {:?}",
                asset.version,
                shown(version)
            );
            return Err(self.refuse(Reason::ExactTokenVersion, why));
        }
        Ok(())
    }

    fn is_in_its_window(&self, policy: &NetworkPolicy, now: OffsetDateTime) -> Result<(), Refusal> {
        let (after, before) = (
            self.authorization.valid_after,
            self.authorization.valid_before,
        );
        let seconds = |moment: OffsetDateTime| moment.unix_timestamp();
        let limits = (
            seconds(now + policy.validity_min),
            seconds(now + policy.validity_max),
        );
        let before_s = i64::try_from(before.atomic()).unwrap_or(i64::MAX);
        if before_s < limits.0 || before_s > limits.1 {
            let why = format!(
                "expected the authorization to end between {} and {}, at least {} s and at most {} s from now ({}), it ends at {before}; a seller's maxTimeoutSeconds must not be more than {}",
                limits.0,
                limits.1,
                policy.validity_min.whole_seconds(),
                policy.validity_max.whole_seconds(),
                seconds(now),
                policy.validity_max.whole_seconds()
            );
            return Err(self.object(Fault::Ends, why));
        }
        let ahead = after
            .atomic()
            .saturating_sub(U256::from(u64::try_from(seconds(now)).unwrap_or_default()));
        if !ahead.is_zero() {
            let why = format!(
                "expected validAfter of at most {} (now), got {after}: it begins {ahead} s from now, so the payer's clock is {ahead} s ahead, or it is meant for later",
                seconds(now)
            );
            return Err(self.object(Fault::Begins, why));
        }
        Ok(())
    }

    /// A refusal with the code that the payment's method has for it.
    pub fn object(&self, fault: Fault, message: String) -> Refusal {
        self.refuse(self.method.reason(self.version, fault), message)
    }

    /// A refusal of this payment.
    pub fn refuse(&self, reason: Reason, message: String) -> Refusal {
        Refusal {
            reason,
            message,
            payer: Some(self.authorization.from),
            network_name: self.network_name.clone(),
        }
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = formatter.debug_struct("Candidate");
        shown
            .field("network", &self.network)
            .field("authorization", &self.authorization);
        shown
            .field("signed_by", &self.signed_by)
            .finish_non_exhaustive()
    }
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod permit2_tests;
#[cfg(test)]
mod tests;
