//! From a payload to terms, method and digest: the shape of each way to pay.

use alloy::primitives::{Address, B256, Bytes};

use super::{PaymentRequest, Purpose};
use crate::payment::method::{Fault, Permit2};
use crate::payment::{Method, NetworkPolicy};
use crate::protocol::permit2::proxy_of;
use crate::protocol::{
    Authorization, AuthorizationPayload, DomainSeparator, ExactPayload, Permit2Payload, Reason,
    Refusal, Scheme, X402Version,
};

/// What is read of a payload before the signature.
pub(super) struct Reading {
    pub(super) terms: Authorization,
    pub(super) method: Method,
    pub(super) token: Address,
    pub(super) digest: B256,
    pub(super) domain: Option<(String, String)>,
    pub(super) signature: Bytes,
}

/// A request that is being read.
pub(super) struct Draft<'a> {
    pub(super) request: &'a PaymentRequest,
    pub(super) policy: &'a NetworkPolicy,
    pub(super) purpose: Purpose,
}

impl Draft<'_> {
    pub(super) fn refuse(&self, reason: Reason, message: String) -> Refusal {
        Refusal {
            reason,
            message,
            payer: Some(self.request.payload.payer()),
            network_name: self.request.network_name.clone(),
        }
    }

    pub(super) fn read(&self) -> Result<Reading, Refusal> {
        match &self.request.payload {
            AuthorizationPayload::Eip3009(payload) => self.read_eip3009(payload),
            AuthorizationPayload::Permit2(payload) => self.read_permit2(payload),
        }
    }

    fn read_eip3009(&self, payload: &ExactPayload) -> Result<Reading, Refusal> {
        let method = Method::Eip3009;
        self.is_of_one_scheme(&method)?;
        let domain = self.domain()?;
        self.is_of_one_network(&method)?;
        self.asks_for_something()?;
        Ok(Reading {
            terms: payload.authorization,
            method,
            token: self.request.requirements.asset,
            digest: payload
                .authorization
                .digest(separator(&domain, self.policy, self.request)),
            domain: Some(domain),
            signature: payload.signature.clone(),
        })
    }

    fn read_permit2(&self, payload: &Permit2Payload) -> Result<Reading, Refusal> {
        let signed = &payload.permit2_authorization;
        let required = &self.request.requirements;
        let facilitator = match (required.scheme, signed.witness.facilitator) {
            (Scheme::Exact, _) => None,
            (Scheme::Upto, Some(facilitator)) => Some(facilitator),
            (Scheme::Upto, None) => {
                let why = "expected a witness that names the facilitator".to_owned();
                return Err(self.refuse(Reason::UnsupportedPayloadType, why));
            }
        };
        let method = Method::Permit2(Permit2 {
            permitted: signed.permitted.amount,
            facilitator,
            sponsored: None,
        });
        if required.scheme == Scheme::Exact && self.request.accepted_scheme != Scheme::Exact {
            let why = "expected the accepted scheme to be exact as the required one is".to_owned();
            return Err(self.refuse(Reason::UnsupportedPayloadType, why));
        }
        self.is_of_one_scheme(&method)?;
        self.is_of_one_network(&method)?;
        let charged = required.scheme == Scheme::Upto && self.purpose == Purpose::Settle;
        if !charged {
            self.asks_for_something()?;
        }
        let proxy = proxy_of(required.scheme);
        if signed.spender != proxy {
            let why = format!("expected the spender {proxy}, got {}", signed.spender);
            return Err(self.refuse(Reason::Permit2Spender, why));
        }
        let value = if charged {
            required.amount
        } else {
            signed.permitted.amount
        };
        Ok(Reading {
            terms: signed.terms(value),
            method,
            token: signed.permitted.token,
            digest: signed.digest(required.scheme, self.policy.permit2),
            domain: None,
            signature: payload.signature.clone(),
        })
    }

    fn is_of_one_scheme(&self, method: &Method) -> Result<(), Refusal> {
        let (accepted, required) = (
            self.request.accepted_scheme,
            self.request.requirements.scheme,
        );
        if accepted == required {
            return Ok(());
        }
        let why = format!(
            "expected the required scheme {}, the buyer accepted {}",
            required.name(),
            accepted.name()
        );
        Err(self.refuse(method.reason(self.request.version, Fault::Scheme), why))
    }

    fn is_of_one_network(&self, method: &Method) -> Result<(), Refusal> {
        let (accepted, required) = (
            self.request.accepted_network,
            self.request.requirements.network,
        );
        if accepted == required {
            return Ok(());
        }
        let why =
            format!("expected the required network {required}, the buyer accepted {accepted}");
        Err(self.refuse(method.reason(self.request.version, Fault::Network), why))
    }

    fn asks_for_something(&self) -> Result<(), Refusal> {
        if !self.request.requirements.amount.is_zero() {
            return Ok(());
        }
        let why = "a payment of 0 moves nothing; expected a positive amount".to_owned();
        Err(self.refuse(Reason::InvalidPaymentRequirements, why))
    }

    /// v2 takes the domain from the requirement alone. v1 sellers may leave it out, and then the token's own counts.
    fn domain(&self) -> Result<(String, String), Refusal> {
        let required = &self.request.requirements;
        let asset = match self.request.version {
            X402Version::V1 => self.policy.asset(required.asset),
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
