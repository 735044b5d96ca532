//! A payment before it is accepted: all checks that need neither the chain nor the ledger.

mod payload;

use alloy::primitives::{Address, B256, Bytes, U256};
use time::OffsetDateTime;

use crate::payment::method::{Fault, Permit2, Signed, Sponsored};
use crate::payment::{Asset, Method, NetworkPolicy, signature, sponsoring};
use crate::protocol::session::SessionId;
use crate::protocol::{
    Authorization, AuthorizationPayload, Network, PaymentRequirements, Reason, Rejection, Scheme,
    X402Version,
};
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
    /// The protocol version of the response.
    pub version: X402Version,
    pub network: Network,
    /// The required token.
    pub asset: Address,
    /// The signed terms; `value` is the amount to transfer.
    pub authorization: Authorization,
    /// The contract that makes the transfer.
    pub method: Method,
    /// The signed EIP-712 digest.
    pub digest: B256,
    /// The signature without ERC-6492 wrapper; `v` is 27 or 28 if the payer's key made it.
    pub signature: Bytes,
    /// The deployment named by an ERC-6492 wrapper.
    pub wallet: Option<Wallet>,
    pub signed_by: SignedBy,
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
            terms,
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
            .filter(|normal| signature::recover_signer(normal, digest) == Some(terms.from));
        let session = match &request.payload {
            AuthorizationPayload::Eip3009(payload) => payload.session_id.clone(),
            AuthorizationPayload::Permit2(_) => None,
        };
        let sponsoring_fault = sponsoring::attach(&mut method, &request, policy).err();
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
            session,
            // Permit2 cannot settle for a wallet that is not deployed yet.
            wallet: wallet.filter(|_| method == Method::Eip3009),
            method,
            domain,
            token,
            purpose,
            sponsoring_fault,
            resource: request.resource,
            requirements: request.requirements,
        })
    }

    /// Whether an EIP-2612 permit is submitted together with the payment.
    pub const fn has_token_permit(&self) -> bool {
        matches!(
            self.method,
            Method::Permit2(Permit2 {
                sponsored: Some(Sponsored::Permit { .. }),
                ..
            })
        )
    }

    /// The signed terms with everything needed to settle them.
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

    /// Checks that the authorization matches the requirement: payee, amount, token. Applies to payments already in the ledger too,
    /// because the requirement comes from the seller and the payload from the buyer.
    pub fn check_payee_and_amount(&self) -> Result<(), Rejection> {
        self.check_payee()?;
        self.check_amount()
    }

    /// Checks the payee, the first part of [`Self::check_payee_and_amount`]. For a new payment [`Self::check_policy`] checks the rest.
    pub fn check_payee(&self) -> Result<(), Rejection> {
        let (paid, required) = (self.authorization.to, self.requirements.pay_to);
        if paid == required {
            return Ok(());
        }
        let why = format!("expected the payee {required}, got an authorization that pays {paid}");
        Err(self.refuse_for(Fault::Payee, why))
    }

    fn check_amount(&self) -> Result<(), Rejection> {
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
            return Err(Rejection::new(Reason::UptoExceedsAmount, why));
        }
        if !charged && required != signed {
            let why = format!("expected exactly {required}, got an authorization of {signed}");
            return Err(self.refuse_for(Fault::Amount, why));
        }
        if self.token != self.asset {
            let why = format!(
                "expected the token {}, got a permit for {}",
                self.asset, self.token
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
            Rejection::new(Reason::InvalidPaymentRequirements, why)
        })?;
        policy.check_payee(self.authorization.to)?;
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
            self.wallet = None;
        }
        match &self.wallet {
            Some(wallet) if !policy.factories.contains(&wallet.factory) => {
                let why = format!(
                    "{} is not deployed, and the factory {} is not on this facilitator's list",
                    self.authorization.from, wallet.factory
                );
                Err(Rejection::new(Reason::FactoryNotAllowed, why))
            }
            Some(_) | None => Ok(self),
        }
    }

    fn check_facilitator(&self, policy: &NetworkPolicy) -> Result<(), Rejection> {
        let Some(named) = self.method.facilitator() else {
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
                "expected the authorization to expire between {} and {}, at least {} s and at most {} s from now ({}), it expires at {before}; a seller's maxTimeoutSeconds must not be more than {}",
                limits.0,
                limits.1,
                policy.validity_min.whole_seconds(),
                policy.validity_max.whole_seconds(),
                seconds(now),
                policy.validity_max.whole_seconds()
            );
            return Err(self.refuse_for(Fault::ValidBefore, why));
        }
        let ahead = after
            .atomic()
            .saturating_sub(U256::from(u64::try_from(seconds(now)).unwrap_or_default()));
        if !ahead.is_zero() {
            let why = format!(
                "expected validAfter of at most {} (now), got {after}: it begins {ahead} s from now, so the payer's clock is {ahead} s ahead, or it is meant for later",
                seconds(now)
            );
            return Err(self.refuse_for(Fault::ValidAfter, why));
        }
        Ok(())
    }

    /// A rejection with the code that the payment's method and version have for `fault`.
    pub fn refuse_for(&self, fault: Fault, message: impl Into<String>) -> Rejection {
        self.method.rejection(self.version, fault, message)
    }
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = formatter.debug_struct("Candidate");
        fields
            .field("network", &self.network)
            .field("authorization", &self.authorization);
        fields
            .field("signed_by", &self.signed_by)
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
