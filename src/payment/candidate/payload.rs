//! Extracts terms, method and digest from the payload of each transfer method.

use alloy::primitives::{Address, B256, Bytes};

use super::{PaymentRequest, Purpose};
use crate::payment::method::{Fault, Permit2};
use crate::payment::{Method, NetworkPolicy};
use crate::protocol::permit2::proxy_of;
use crate::protocol::{
    Authorization, AuthorizationPayload, DomainSeparator, ExactPayload, Permit2Payload, Reason,
    Rejection, Scheme, X402Version,
};

/// The parts of a payload, before the signature is recovered.
pub(super) struct ParsedPayload {
    pub(super) authorization: Authorization,
    pub(super) method: Method,
    /// The token in the signed data; in Permit2 it can differ from the required asset.
    pub(super) token: Address,
    pub(super) digest: B256,
    /// EIP-712 name and version of the token (EIP-3009 only).
    pub(super) domain: Option<(String, String)>,
    pub(super) signature: Bytes,
}

/// Parses the payload of one request.
pub(super) struct PayloadParser<'a> {
    pub(super) request: &'a PaymentRequest,
    pub(super) policy: &'a NetworkPolicy,
    pub(super) purpose: Purpose,
}

impl PayloadParser<'_> {
    pub(super) fn parse(&self) -> Result<ParsedPayload, Rejection> {
        match &self.request.payload {
            AuthorizationPayload::Eip3009(payload) => self.parse_eip3009(payload),
            AuthorizationPayload::Permit2(payload) => self.parse_permit2(payload),
        }
    }

    fn parse_eip3009(&self, payload: &ExactPayload) -> Result<ParsedPayload, Rejection> {
        let method = Method::Eip3009;
        self.check_scheme(&method)?;
        let domain = self.domain()?;
        self.check_network(&method)?;
        self.check_positive_amount()?;
        Ok(ParsedPayload {
            authorization: payload.authorization,
            method,
            token: self.request.requirements.asset,
            digest: payload
                .authorization
                .digest(separator(&domain, self.policy, self.request)),
            domain: Some(domain),
            signature: payload.signature.clone(),
        })
    }

    fn parse_permit2(&self, payload: &Permit2Payload) -> Result<ParsedPayload, Rejection> {
        let signed = &payload.permit2_authorization;
        let required = &self.request.requirements;
        let facilitator = match (required.scheme, signed.witness.facilitator) {
            (Scheme::Exact, _) => None,
            (Scheme::Upto, Some(facilitator)) => Some(facilitator),
            (Scheme::Upto, None) => {
                let why = "expected a witness with the facilitator's address";
                return Err(Rejection::new(Reason::UnsupportedPayloadType, why));
            }
        };
        let method = Method::Permit2(Permit2 {
            permitted: signed.permitted.amount,
            facilitator,
            sponsored: None,
        });
        if required.scheme == Scheme::Exact && self.request.accepted_scheme != Scheme::Exact {
            let why = "expected the accepted scheme to be exact, like the required one";
            return Err(Rejection::new(Reason::UnsupportedPayloadType, why));
        }
        self.check_scheme(&method)?;
        self.check_network(&method)?;
        // In `upto` the required amount of `/settle` is the charge, which may be 0.
        let charged = required.scheme == Scheme::Upto && self.purpose == Purpose::Settle;
        if !charged {
            self.check_positive_amount()?;
        }
        let proxy = proxy_of(required.scheme);
        if signed.spender != proxy {
            let why = format!("expected the spender {proxy}, got {}", signed.spender);
            return Err(Rejection::new(Reason::Permit2Spender, why));
        }
        let value = if charged {
            required.amount
        } else {
            signed.permitted.amount
        };
        Ok(ParsedPayload {
            authorization: signed.terms(value),
            method,
            token: signed.permitted.token,
            digest: signed.digest(required.scheme, self.policy.permit2),
            domain: None,
            signature: payload.signature.clone(),
        })
    }

    fn check_scheme(&self, method: &Method) -> Result<(), Rejection> {
        let (accepted, required) = (
            self.request.accepted_scheme,
            self.request.requirements.scheme,
        );
        if accepted == required {
            return Ok(());
        }
        let why = format!(
            "expected the required scheme {}, got the accepted scheme {}",
            required.name(),
            accepted.name()
        );
        Err(method.rejection(self.request.version, Fault::Scheme, why))
    }

    fn check_network(&self, method: &Method) -> Result<(), Rejection> {
        let (accepted, required) = (
            self.request.accepted_network,
            self.request.requirements.network,
        );
        if accepted == required {
            return Ok(());
        }
        let why = format!(
            "expected the required network {required}, got the accepted network {accepted}"
        );
        Err(method.rejection(self.request.version, Fault::Network, why))
    }

    fn check_positive_amount(&self) -> Result<(), Rejection> {
        if !self.request.requirements.amount.is_zero() {
            return Ok(());
        }
        let why = "a payment of 0 moves nothing; expected a positive amount";
        Err(Rejection::new(Reason::InvalidPaymentRequirements, why))
    }

    /// The token's EIP-712 domain. v2 requires it in `extra`; v1 sellers may omit it, and then the configured token's domain applies.
    fn domain(&self) -> Result<(String, String), Rejection> {
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
        let why = "expected extra.name and extra.version, the token's EIP-712 domain";
        Err(Rejection::new(Reason::ExactMissingDomain, why))
    }
}

/// The stored separator of the configured token if the requirement names its domain, else a newly computed one.
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
