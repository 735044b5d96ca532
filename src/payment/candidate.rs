//! A payment on its way to the ledger: everything that can be judged without asking anybody.

use alloy::primitives::{Address, B256, Bytes};
use time::OffsetDateTime;

use crate::payment::{Asset, NetworkPolicy, signature};
use crate::protocol::{
    Authorization, DomainSeparator, ExactPayload, Network, PaymentRequirements, Reason, Refusal,
    X402Version,
};

/// A request that carries an authorization.
type PaymentRequest = crate::protocol::PaymentRequest<ExactPayload>;

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
    /// What was signed.
    pub authorization: Authorization,
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
    /// The token's domain as the requirement gives it.
    domain: (String, String),
    /// What the seller asks for.
    pub requirements: PaymentRequirements,
}

impl Candidate {
    /// Checks the shape: scheme, domain, network, amount, signature.
    ///
    /// # Errors
    /// A [`Refusal`] with the code of the first check that failed, in the order of `protocol.md` §3.2.
    pub fn from_request(request: PaymentRequest, policy: &NetworkPolicy) -> Result<Self, Refusal> {
        let draft = Draft { request: &request };
        if request.accepted_scheme != request.requirements.scheme {
            return Err(draft.refuse(
                Reason::ExactScheme,
                "the accepted scheme is not the required one".to_owned(),
            ));
        }
        let domain = draft.domain(policy)?;
        let (required, accepted) = (request.requirements.network, request.accepted_network);
        if accepted != required {
            let why =
                format!("expected the required network {required}, the buyer accepted {accepted}");
            return Err(draft.refuse(Reason::ExactNetworkMismatch, why));
        }
        if request.requirements.amount.is_zero() {
            let why = "an exact payment of 0 moves nothing; expected a positive amount".to_owned();
            return Err(draft.refuse(Reason::InvalidPaymentRequirements, why));
        }
        let (signature, wallet) = signature::unwrapped(&request.payload.signature)
            .map_err(|error| draft.refuse(Reason::ExactSignature, error.to_string()))?;
        if signature.is_empty() {
            return Err(draft.refuse(Reason::ExactSignature, "the signature is empty".to_owned()));
        }
        let digest = request
            .payload
            .authorization
            .digest(separator(&domain, policy, &request));
        let own = signature::normalised(&signature).filter(|normal| {
            signature::signer(normal, digest) == Some(request.payload.authorization.from)
        });
        Ok(Self {
            version: request.version,
            network: required,
            asset: request.requirements.asset,
            authorization: request.payload.authorization,
            digest,
            signed_by: if own.is_some() {
                SignedBy::Payer
            } else {
                SignedBy::Unknown
            },
            signature: own.map_or(signature, |normal| Bytes::copy_from_slice(&normal)),
            wallet,
            domain,
            network_name: request.network_name,
            resource: request.resource,
            requirements: request.requirements,
        })
    }

    /// Whether the authorization pays what is required: payee and amount. Asked of every payment, also of one that the ledger
    /// knows already, because the requirement is the seller's word and the header only the buyer's.
    ///
    /// # Errors
    /// The code of the first difference.
    pub fn pays_what_is_required(&self) -> Result<(), Refusal> {
        let (paid, required) = (self.authorization, &self.requirements);
        if paid.to != required.pay_to {
            let why = format!(
                "expected the payee {}, the authorization pays {}",
                required.pay_to, paid.to
            );
            return Err(self.refuse(Reason::ExactRecipientMismatch, why));
        }
        if paid.value != required.amount {
            let reason = match self.version {
                X402Version::V1 => Reason::ExactValueV1,
                X402Version::V2 => Reason::ExactValueMismatch,
            };
            let why = format!(
                "expected exactly {}, the authorization moves {}",
                required.amount, paid.value
            );
            return Err(self.refuse(reason, why));
        }
        Ok(())
    }

    /// Whether the operator and the clock allow it: asset, payee, domain, factory, window. `now` is the later of the wall clock and
    /// the newest block's time.
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
        if let Some(wallet) = self
            .wallet
            .as_ref()
            .filter(|wallet| !policy.factories.contains(&wallet.factory))
        {
            let why = format!(
                "the factory {} is not on this facilitator's list",
                wallet.factory
            );
            return Err(self.refuse(Reason::FactoryNotAllowed, why));
        }
        self.is_in_its_window(policy, now)
    }

    fn names_the_domain_of(&self, asset: &Asset) -> Result<(), Refusal> {
        let (name, version) = &self.domain;
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
                "expected validBefore between {} and {} (now is {}), got {before}",
                limits.0,
                limits.1,
                seconds(now)
            );
            return Err(self.refuse(Reason::ExactValidBefore, why));
        }
        if i64::try_from(after.atomic()).unwrap_or(i64::MAX) > seconds(now) {
            let why = format!(
                "expected validAfter of at most {}, got {after}",
                seconds(now)
            );
            return Err(self.refuse(Reason::ExactValidAfter, why));
        }
        Ok(())
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

struct Draft<'a> {
    request: &'a PaymentRequest,
}

impl Draft<'_> {
    fn refuse(&self, reason: Reason, message: String) -> Refusal {
        let payer = Some(self.request.payload.authorization.from);
        Refusal {
            reason,
            message,
            payer,
            network_name: self.request.network_name.clone(),
        }
    }

    /// v2 takes the domain from the requirement alone. v1 sellers may leave it out, and then the token's own counts.
    fn domain(&self, policy: &NetworkPolicy) -> Result<(String, String), Refusal> {
        let required = &self.request.requirements;
        let asset = match self.request.version {
            X402Version::V1 => policy.asset(required.asset),
            X402Version::V2 => None,
        };
        let name = required
            .domain_name()
            .or_else(|| asset.map(|asset| asset.name.as_str()));
        let version = required
            .domain_version()
            .or_else(|| asset.map(|asset| asset.version.as_str()));
        if let (Some(name), Some(version)) = (name, version) {
            return Ok((name.to_owned(), version.to_owned()));
        }
        let why = "expected extra.name and extra.version, the token's EIP-712 domain".to_owned();
        Err(self.refuse(Reason::ExactMissingDomain, why))
    }
}

/// The configured token's separator when the requirement names its domain, else one made for the occasion.
fn separator(
    domain: &(String, String),
    policy: &NetworkPolicy,
    request: &PaymentRequest,
) -> DomainSeparator {
    let (name, version) = domain;
    let known = policy.asset(request.requirements.asset);
    known
        .filter(|asset| asset.name == *name && asset.version == *version)
        .map_or_else(
            || {
                DomainSeparator::of_token(
                    name,
                    version,
                    request.requirements.network,
                    request.requirements.asset,
                )
            },
            |asset| asset.separator,
        )
}

fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
