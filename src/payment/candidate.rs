//! A payment before it is accepted: all checks that need neither the chain nor the ledger.

mod payload;

use alloy::primitives::{Address, Bytes};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Sponsored};
use crate::payment::{Asset, Method, NetworkPolicy, Payment, PaymentTerms, signature, sponsoring};
use crate::protocol::session::SessionId;
use crate::protocol::{AuthorizationPayload, PaymentRequirements, Reason, Rejection, Scheme};
use payload::{ParsedPayload, PayloadParser};

/// A request that carries an authorization.
type PaymentRequest = crate::protocol::PaymentRequest<AuthorizationPayload>;

/// The deployment of a wallet that has no code yet (ERC-6492).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wallet {
    /// The contract that deploys the wallet.
    pub factory: Address,
    /// The calldata for the factory.
    pub call: Bytes,
}

/// The signer of a payment, as far as it can be determined without the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedBy {
    /// The payer's own key. Sufficient unless the payer's address has code.
    Payer,
    /// Not the payer's key. Only the payer's contract can accept the signature (ERC-1271).
    Unknown,
}

/// The endpoint of the request. In scheme `upto` the required amount is the maximum charge at `/verify`, and the charge at `/settle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `POST /verify`.
    Verify,
    /// `POST /settle`.
    Settle,
}

/// A well-formed payment. Its signature was recovered, if it is an ECDSA signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The terms; `value` is the amount to transfer.
    pub terms: PaymentTerms,
    /// The session that the payload names.
    pub session: Option<SessionId>,
    /// The URL of the resource, if the request names one. No check depends on it.
    pub resource: Option<String>,
    /// The token's EIP-712 domain as the requirement gives it (EIP-3009 only).
    domain: Option<(String, String)>,
    /// The token in the signed data.
    token: Address,
    purpose: Purpose,
    /// The first error in the gas sponsoring extensions. Reported after the signature check, see [`Self::verified`].
    pub(super) sponsoring_fault: Option<Rejection>,
    /// The seller's requirements.
    pub requirements: PaymentRequirements,
}

impl Candidate {
    /// Checks scheme, domain, network, amount and form of the signature.
    ///
    /// # Errors
    /// A [`Rejection`] with the code of the first check that failed. The order of the checks is that of the reference implementation.
    pub fn from_request(
        request: PaymentRequest,
        policy: &NetworkPolicy,
        purpose: Purpose,
    ) -> Result<Self, Rejection> {
        let parser = PayloadParser {
            request: &request,
            policy,
            purpose,
        };
        let ParsedPayload {
            authorization,
            mut method,
            token,
            digest,
            domain,
            signature,
        } = parser.parse()?;
        let bad_signature = |why: &str| method.rejection(request.version, Fault::Signature, why);
        let (signature, wallet) = signature::unwrap_erc6492(&signature)
            .map_err(|error| bad_signature(&error.to_string()))?;
        if signature.is_empty() {
            return Err(bad_signature("the signature is empty"));
        }
        let own = signature::normalised(&signature)
            .filter(|normal| signature::recover_signer(normal, digest) == Some(authorization.from));
        let session = match &request.payload {
            AuthorizationPayload::Eip3009(payload) => payload.session_id.clone(),
            AuthorizationPayload::Permit2(_) => None,
        };
        let sponsoring_fault = sponsoring::attach(&mut method, &request, policy).err();
        let terms = PaymentTerms {
            version: request.version,
            network: request.requirements.network,
            asset: request.requirements.asset,
            from: authorization.from,
            to: authorization.to,
            value: authorization.value,
            valid_after: authorization.valid_after.into(),
            valid_before: authorization.valid_before.into(),
            nonce: authorization.nonce,
            digest,
            signed_by: Some(if own.is_some() {
                SignedBy::Payer
            } else {
                SignedBy::Unknown
            }),
            signature: own.map_or(signature, |normal| Bytes::copy_from_slice(&normal)),
            // Permit2 cannot settle for a wallet that is not deployed yet.
            wallet: wallet.filter(|_| method == Method::Eip3009),
            method,
        };
        Ok(Self {
            terms,
            session,
            domain,
            token,
            purpose,
            sponsoring_fault,
            resource: request.resource,
            requirements: request.requirements,
        })
    }

    /// Whether an EIP-2612 permit is submitted together with the payment.
    pub fn has_token_permit(&self) -> bool {
        matches!(
            self.terms.method.sponsored(),
            Some(Sponsored::Permit { .. })
        )
    }

    /// Whether the payer has signed, as far as that is known without the chain: by its key, or as in the stored payment.
    pub fn is_proven_by(&self, stored: &Payment) -> bool {
        self.terms.is_signed_by_payer_key() || self.terms.signature == stored.terms.signature
    }

    /// Checks that the authorization matches the requirement: payee, amount, token. Applies to payments already in the ledger too,
    /// because the requirement comes from the seller and the payload from the buyer.
    pub fn check_payee_and_amount(&self) -> Result<(), Rejection> {
        self.check_payee()?;
        self.check_amount()
    }

    /// Checks the payee, the first part of [`Self::check_payee_and_amount`]. For a new payment [`Self::check_policy`] checks the rest.
    pub fn check_payee(&self) -> Result<(), Rejection> {
        let (paid, required) = (self.terms.to, self.requirements.pay_to);
        if paid == required {
            return Ok(());
        }
        let why = format!("expected the payee {required}, got an authorization that pays {paid}");
        Err(self.terms.rejection(Fault::Payee, why))
    }

    fn check_amount(&self) -> Result<(), Rejection> {
        let required = self.requirements.amount;
        let signed = match &self.terms.method {
            Method::Eip3009 => self.terms.value,
            Method::Permit2(permit) => permit.permitted,
        };
        let charged = self.purpose == Purpose::Settle && self.terms.method.scheme() == Scheme::Upto;
        if charged && required > signed {
            let why = format!(
                "expected a charge of at most {signed}, which the payer permitted, got {required}"
            );
            return Err(Rejection::new(Reason::UptoExceedsAmount, why));
        }
        if !charged && required != signed {
            let why = format!("expected exactly {required}, got an authorization of {signed}");
            return Err(self.terms.rejection(Fault::Amount, why));
        }
        if self.token != self.terms.asset {
            let why = format!(
                "expected the token {}, got a permit for {}",
                self.terms.asset, self.token
            );
            return Err(Rejection::new(Reason::Permit2TokenMismatch, why));
        }
        Ok(())
    }

    /// Checks a new payment against the operator's policy: asset, payee, domain, facilitator, validity window; then the amount.
    /// `now` is the later of the wall clock and the latest block's time.
    pub fn check_policy(
        &self,
        policy: &NetworkPolicy,
        now: OffsetDateTime,
    ) -> Result<(), Rejection> {
        let asset = policy.served_asset(self.terms.asset)?;
        policy.check_payee(self.terms.to)?;
        self.check_token_domain(asset)?;
        self.check_facilitator(policy)?;
        self.check_validity_window(policy, now)?;
        self.check_amount()
    }

    /// Resolves the ERC-6492 wrapper. A deployed wallet needs no factory, listed or not. An undeployed wallet must have a factory in the
    /// policy's list, because the facilitator pays for the deployment.
    pub fn with_wallet_deployed(
        mut self,
        policy: &NetworkPolicy,
        deployed: bool,
    ) -> Result<Self, Rejection> {
        if deployed {
            self.terms.wallet = None;
        }
        match &self.terms.wallet {
            Some(wallet) if !policy.factories.contains(&wallet.factory) => {
                let why = format!(
                    "{} is not deployed, and the factory {} is not on this facilitator's list",
                    self.terms.from, wallet.factory
                );
                Err(Rejection::new(Reason::FactoryNotAllowed, why))
            }
            Some(_) | None => Ok(self),
        }
    }

    fn check_facilitator(&self, policy: &NetworkPolicy) -> Result<(), Rejection> {
        let Some(named) = self.terms.settling_signer() else {
            return Ok(());
        };
        if policy.signers.contains(&named) {
            return Ok(());
        }
        let why = format!(
            "expected the witness to name this facilitator, {}, got {named}",
            policy.facilitator().unwrap_or_default()
        );
        Err(Rejection::new(Reason::UptoFacilitatorMismatch, why))
    }

    fn check_token_domain(&self, asset: &Asset) -> Result<(), Rejection> {
        let Some((name, version)) = &self.domain else {
            return Ok(());
        };
        if *name != asset.name {
            let why = format!(
                "expected extra.name {:?} as the token has it, got {:?}",
                asset.name,
                truncate(name)
            );
            return Err(Rejection::new(Reason::ExactTokenName, why));
        }
        if *version != asset.version {
            let why = format!(
                "expected extra.version {:?} as the token has it, got {:?}",
                asset.version,
                truncate(version)
            );
            return Err(Rejection::new(Reason::ExactTokenVersion, why));
        }
        Ok(())
    }

    fn check_validity_window(
        &self,
        policy: &NetworkPolicy,
        now: OffsetDateTime,
    ) -> Result<(), Rejection> {
        let (after, before) = (self.terms.valid_after, self.terms.valid_before);
        let seconds = |moment: OffsetDateTime| moment.unix_timestamp();
        let limits = (
            seconds(now + policy.validity_min),
            seconds(now + policy.validity_max),
        );
        if before.timestamp() < limits.0 || before.timestamp() > limits.1 {
            let why = format!(
                "expected the authorization to expire between {} and {}, at least {} s and at most {} s from now ({}), it expires at {before}; a seller's maxTimeoutSeconds must not be more than {}",
                limits.0,
                limits.1,
                policy.validity_min.whole_seconds(),
                policy.validity_max.whole_seconds(),
                seconds(now),
                policy.validity_max.whole_seconds()
            );
            return Err(self.terms.rejection(Fault::ValidBefore, why));
        }
        let ahead = after.timestamp().saturating_sub(seconds(now));
        if ahead > 0 {
            let why = format!(
                "expected validAfter of at most {} (now), got {after}: it begins {ahead} s from now, so the payer's clock is {ahead} s ahead, or it is meant for later",
                seconds(now)
            );
            return Err(self.terms.rejection(Fault::ValidAfter, why));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Candidate")
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

fn truncate(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod permit2_tests;
#[cfg(test)]
mod tests;
