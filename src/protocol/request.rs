//! The body of `/verify` and `/settle`: parsed once, strictly, from either protocol version into one type (x402 v2 specification §7).
//!
//! There are two kinds of [`RequestError`]. A body that is not an x402 request is answered with HTTP 400. A request with a wrong part is
//! rejected with a stable code and HTTP 200, because the Python and Go SDKs drop the reason on any other status.

use alloy::primitives::Address;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::protocol::header::decode_base64;
use crate::protocol::session::{PROOF_TYPE, SessionProof};
use crate::protocol::{
    ExactPayload, GasSponsoring, Network, PaymentRequirements, Permit2Payload, Reason, Rejection,
    Scheme, X402Version, field, v1,
};

/// A payment and the requirements that it should satisfy. Both are parsed, but not yet checked against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentRequest<P = Payload> {
    /// The protocol version, which the response must use.
    pub version: X402Version,
    /// The network name as the request spells it. Responses echo it.
    pub network_name: String,
    /// The scheme that the buyer accepted.
    pub accepted_scheme: Scheme,
    /// The network that the buyer accepted.
    pub accepted_network: Network,
    /// The scheme's payload: an authorization or a session proof.
    pub payload: P,
    /// The seller's requirements.
    pub requirements: PaymentRequirements,
    /// The gas sponsoring extensions, for an allowance to Permit2.
    pub sponsoring: GasSponsoring,
    /// The URL of the resource, if the request names one. Stored in the history; no check depends on it.
    pub resource: Option<String>,
}

/// The payload of a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A signed authorization, which the facilitator settles.
    Authorization(AuthorizationPayload),
    /// A proof that the payer made the transfer of a session.
    Proof(SessionProof),
}

impl Payload {
    /// The payer, if the payload names it. The payer of a proof is that of its session.
    pub const fn payer(&self) -> Option<Address> {
        match self {
            Self::Authorization(payload) => Some(payload.payer()),
            Self::Proof(_) => None,
        }
    }
}

/// A payload with a signed authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationPayload {
    /// EIP-3009: settled by a call of the token contract.
    Eip3009(ExactPayload),
    /// Permit2: settled by a call of the scheme's proxy.
    Permit2(Permit2Payload),
}

impl AuthorizationPayload {
    /// The payer named in the authorization.
    pub const fn payer(&self) -> Address {
        match self {
            Self::Eip3009(payload) => payload.authorization.from,
            Self::Permit2(payload) => payload.permit2_authorization.from,
        }
    }
}

/// Why a body could not be read as a payment request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The body is not JSON, or not an object with the expected members.
    #[error("expected a JSON object with x402Version, paymentPayload and paymentRequirements: {0}")]
    Shape(String),
    /// `paymentPayload` or `paymentRequirements` is not an object.
    #[error("{0}: expected a JSON object, got {1}")]
    NotAnObject(&'static str, &'static str),
    /// Neither the request nor its payment has `x402Version`.
    #[error("x402Version is missing; expected the number 1 or 2")]
    VersionMissing,
    /// The request's `x402Version` is not a number.
    #[error("{0}")]
    Version(String),
    /// The body is an x402 request, and a part of it is wrong.
    #[error("{}", .rejection.message)]
    Rejected {
        /// The stable code, and what is wrong.
        rejection: Rejection,
        /// The payer, when it could be read.
        payer: Option<Address>,
        /// The network name as the request spells it; empty when it could not be read.
        network_name: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Envelope<'a> {
    x402_version: Option<Value>,
    #[serde(borrow)]
    payment_payload: Option<&'a RawValue>,
    /// The buyer's header value instead of `paymentPayload`: the form of the first specification and the official Java SDK.
    payment_header: Option<String>,
    #[serde(borrow)]
    payment_requirements: &'a RawValue,
}

/// The members of a payment that are read before any check, so that a rejection can name network and payer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct PaymentHead {
    x402_version: Option<Value>,
    scheme: Option<String>,
    network: Option<String>,
    accepted: Option<Accepted>,
    resource: Option<Value>,
    extensions: Option<Value>,
}

/// The members of the requirements that are read before any check.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct RequirementsHead {
    scheme: Option<String>,
    network: Option<String>,
    resource: Option<Value>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object, an entry of the seller's accepts")]
struct Accepted {
    scheme: String,
    network: String,
}

#[derive(Deserialize)]
struct PayloadHolder<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The members that distinguish the payloads of schemes and transfer methods.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct PayloadMembers {
    #[serde(rename = "type")]
    kind: Option<Value>,
    permit2_authorization: Option<AuthorizationHead>,
    permission_context: Option<serde::de::IgnoredAny>,
    authorization: Option<AuthorizationHead>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct AuthorizationHead {
    from: Option<String>,
}

impl PaymentRequest {
    /// Parses a request body.
    ///
    /// # Errors
    /// [`RequestError::Rejected`] if a part of the request is wrong. Another [`RequestError`] if the body is not an x402 request.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let envelope: Envelope<'_> = field::read_text(body).map_err(RequestError::Shape)?;
        let required = object("paymentRequirements", envelope.payment_requirements)?;
        let outer_version = version_number("x402Version", envelope.x402_version.as_ref())
            .map_err(RequestError::Version)?;
        let required_head = field::read_part::<RequirementsHead>("paymentRequirements", required);
        let network_name = required_head
            .as_ref()
            .ok()
            .and_then(|head| head.network.as_deref());
        let mut reader = Reader {
            member: "paymentPayload",
            payment: "",
            required,
            outer_version,
            network_name: truncate(network_name.unwrap_or_default()),
            payer: None,
        };
        let decoded;
        reader.payment = match (envelope.payment_payload, &envelope.payment_header) {
            (Some(payment), _) => object("paymentPayload", payment)?,
            (None, Some(header)) => {
                reader.member = "paymentHeader";
                decoded = decode_header(header)
                    .map_err(|why| reader.refuse(Reason::InvalidPayload, &why))?;
                &decoded
            }
            (None, None) => {
                let why = "missing field `paymentPayload`".to_owned();
                return Err(RequestError::Shape(why));
            }
        };
        let payment: PaymentHead = field::read_part(reader.member, reader.payment)
            .map_err(|why| reader.refuse(Reason::InvalidPayload, &why))?;
        if payment.x402_version.is_none() && outer_version.is_none() {
            return Err(RequestError::VersionMissing);
        }
        reader.read(payment, required_head)
    }
}

/// The JSON text of a member that must be an object.
fn object<'a>(name: &'static str, raw: &'a RawValue) -> Result<&'a str, RequestError> {
    let found = match raw.get().as_bytes().first() {
        Some(b'{') => return Ok(raw.get()),
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(_) | None => "a number",
    };
    Err(RequestError::NotAnObject(name, found))
}

/// Decodes the JSON text in `paymentHeader`.
fn decode_header(header: &str) -> Result<String, String> {
    let expected =
        "paymentHeader: expected the value of the buyer's header, base64 of a JSON object";
    let bytes = decode_base64(header).map_err(|error| format!("{expected}; {error}"))?;
    String::from_utf8(bytes)
        .ok()
        .filter(|text| text.starts_with('{'))
        .ok_or_else(|| format!("{expected}; it decodes to something else"))
}

/// Reads the number in a member `x402Version`.
fn version_number(place: &str, value: Option<&Value>) -> Result<Option<u64>, String> {
    let Some(value) = value else {
        return Ok(None);
    };
    let number = value.as_u64().ok_or_else(|| {
        let kind = if value.is_string() { "the string " } else { "" };
        format!(
            "{place}: expected the number 1 or 2, got {kind}{}",
            truncate(&value.to_string())
        )
    });
    number.map(Some)
}

impl<P> PaymentRequest<P> {
    /// Replaces the payload. Returns the new request and the old payload.
    pub fn with_payload<Q>(self, payload: Q) -> (PaymentRequest<Q>, P) {
        let request = PaymentRequest {
            version: self.version,
            network_name: self.network_name,
            accepted_scheme: self.accepted_scheme,
            accepted_network: self.accepted_network,
            payload,
            requirements: self.requirements,
            sponsoring: self.sponsoring,
            resource: self.resource,
        };
        (request, self.payload)
    }
}

struct Reader<'a> {
    /// The member that holds the payment: `paymentPayload` or `paymentHeader`.
    member: &'static str,
    payment: &'a str,
    required: &'a str,
    outer_version: Option<u64>,
    network_name: String,
    payer: Option<Address>,
}

impl Reader<'_> {
    fn refuse(&self, reason: Reason, why: &dyn std::fmt::Display) -> RequestError {
        RequestError::Rejected {
            rejection: Rejection::new(reason, truncate(&why.to_string())),
            payer: self.payer,
            network_name: self.network_name.clone(),
        }
    }

    fn read(
        &mut self,
        head: PaymentHead,
        required: Result<RequirementsHead, String>,
    ) -> Result<PaymentRequest, RequestError> {
        let version = self.version(&head)?;
        let holder: PayloadHolder<'_> = field::read_part(self.member, self.payment)
            .map_err(|why| self.refuse(Reason::InvalidPayload, &why))?;
        let members: PayloadMembers = field::read_part(&self.payload_place(), holder.payload.get())
            .map_err(|why| self.refuse(Reason::InvalidPayload, &why))?;
        self.payer = [&members.authorization, &members.permit2_authorization]
            .into_iter()
            .flatten()
            .find_map(|authorization| field::parse_address(authorization.from.as_deref()?).ok());

        let (scheme, network) = match version {
            X402Version::V1 => (head.scheme, head.network),
            X402Version::V2 => head
                .accepted
                .map(|accepted| (accepted.scheme, accepted.network))
                .unzip(),
        };
        let (Some(scheme), Some(network)) = (scheme, network) else {
            let expected = match version {
                X402Version::V1 => "a v1 paymentPayload carries scheme and network",
                X402Version::V2 => "a v2 paymentPayload carries accepted, with scheme and network",
            };
            return Err(self.refuse(Reason::InvalidPayload, &expected));
        };
        let accepted_scheme = self.scheme(version, &scheme)?;
        let accepted_network = self.network(version, &network)?;
        let required =
            required.map_err(|why| self.refuse(Reason::InvalidPaymentRequirements, &why))?;
        self.scheme(version, required.scheme.as_deref().unwrap_or_default())?;
        self.network(version, required.network.as_deref().unwrap_or_default())?;
        let requirements = self.requirements(version)?;
        let resource = [head.resource, required.resource];
        let extensions = head.extensions.as_ref().and_then(Value::as_object);
        Ok(PaymentRequest {
            version,
            network_name: self.network_name.clone(),
            accepted_scheme,
            accepted_network,
            payload: self.payload(version, &members, (holder.payload, &requirements))?,
            requirements,
            sponsoring: extensions.map_or(GasSponsoring::NONE, GasSponsoring::read),
            resource: resource.iter().flatten().find_map(resource_url),
        })
    }

    fn payload_place(&self) -> String {
        format!("{}.payload", self.member)
    }

    fn version(&self, head: &PaymentHead) -> Result<X402Version, RequestError> {
        let place = format!("{}.x402Version", self.member);
        let inner = version_number(&place, head.x402_version.as_ref())
            .map_err(|why| self.refuse(Reason::InvalidX402Version, &why))?;
        let inner = inner.or(self.outer_version).unwrap_or_default();
        let outer = self.outer_version.unwrap_or(inner);
        if outer != inner {
            let why = format!("x402Version is {outer} in the request and {inner} in its payment");
            return Err(self.refuse(Reason::InvalidX402Version, &why));
        }
        let number = u8::try_from(inner).unwrap_or_default();
        X402Version::try_from(number).map_err(|_| {
            self.refuse(
                Reason::InvalidX402Version,
                &format!("x402Version is 1 or 2, got {inner}"),
            )
        })
    }

    fn scheme(&self, version: X402Version, name: &str) -> Result<Scheme, RequestError> {
        let served = match version {
            X402Version::V1 => "exact in version 1",
            X402Version::V2 => "exact and upto",
        };
        Scheme::from_name(name)
            .filter(|scheme| version == X402Version::V2 || *scheme == Scheme::Exact)
            .ok_or_else(|| {
                let why = format!("this facilitator serves {served}, got {:?}", truncate(name));
                self.refuse(Reason::UnsupportedScheme, &why)
            })
    }

    fn network(&self, version: X402Version, name: &str) -> Result<Network, RequestError> {
        match version {
            X402Version::V1 => Network::from_v1_name(name).ok_or_else(|| {
                self.refuse(Reason::InvalidNetwork, &v1::UnknownV1Name(truncate(name)))
            }),
            X402Version::V2 => name
                .parse()
                .map_err(|error| self.refuse(Reason::InvalidNetwork, &error)),
        }
    }

    fn requirements(&self, version: X402Version) -> Result<PaymentRequirements, RequestError> {
        let invalid =
            |why: &dyn std::fmt::Display| self.refuse(Reason::InvalidPaymentRequirements, why);
        match version {
            X402Version::V1 => {
                let entry: v1::PaymentRequirementsV1 =
                    field::read_part("paymentRequirements", self.required)
                        .map_err(|why| invalid(&why))?;
                entry
                    .translate()
                    .map_err(|error| self.refuse(Reason::InvalidNetwork, &error))
            }
            X402Version::V2 => {
                field::read_part("paymentRequirements", self.required).map_err(|why| invalid(&why))
            }
        }
    }

    /// Parses the payload. Its members decide the transfer method, as in the reference implementation; a contradicting
    /// `assetTransferMethod` is rejected.
    fn payload(
        &self,
        version: X402Version,
        members: &PayloadMembers,
        (raw, requirements): (&RawValue, &PaymentRequirements),
    ) -> Result<Payload, RequestError> {
        let method = requirements.transfer_method();
        let invalid = |why: String| self.refuse(Reason::InvalidPayload, &why);
        let place = self.payload_place();
        let by_permit2 = members.permit2_authorization.is_some();
        let fits = match (requirements.scheme, version) {
            (Scheme::Exact, _) if !by_permit2 => method.is_none_or(|method| method == "eip3009"),
            (Scheme::Exact | Scheme::Upto, X402Version::V2) => {
                by_permit2 && method.is_none_or(|method| method == "permit2")
            }
            (Scheme::Exact | Scheme::Upto, X402Version::V1) => false,
        };
        let kind = members
            .kind
            .as_ref()
            .map(|kind| kind.as_str().unwrap_or_default());
        match kind {
            _ if !fits || members.permission_context.is_some() => {}
            None if by_permit2 => {
                return field::read_part(&place, raw.get())
                    .map(|payload| Payload::Authorization(AuthorizationPayload::Permit2(payload)))
                    .map_err(invalid);
            }
            None => {
                return field::read_part(&place, raw.get())
                    .map(|payload| Payload::Authorization(AuthorizationPayload::Eip3009(payload)))
                    .map_err(invalid);
            }
            Some(PROOF_TYPE) if !by_permit2 => {
                return field::read_part(&place, raw.get())
                    .map(Payload::Proof)
                    .map_err(invalid);
            }
            Some(_) => {}
        }
        let why = format!(
            "expected an EIP-3009 payload {{signature, authorization}} or a {PROOF_TYPE} in exact, or {{signature, permit2Authorization}} in exact \
             and upto of version 2; the scheme is {} and assetTransferMethod {:?}",
            requirements.scheme.name(),
            truncate(method.unwrap_or("not given"))
        );
        Err(self.refuse(Reason::UnsupportedPayloadType, &why))
    }
}

/// The URL in a `resource`: a string in v1, an object with `url` in v2. Anything else reads as absent, because no check depends on it.
///
/// Control characters are removed, because Postgres cannot store all of them, and the URL is cut at 2048 characters.
pub fn resource_url(resource: &Value) -> Option<String> {
    let url = resource
        .as_str()
        .or_else(|| resource.get("url")?.as_str())?;
    let printable = url.chars().filter(|letter| !letter.is_control());
    Some(printable.take(2048).collect())
}

/// Cuts a text of a request at 200 characters, before it is returned or stored.
fn truncate(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
