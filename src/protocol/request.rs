//! The body of `/verify` and `/settle`: read once, strictly, from either dialect into one shape.
//!
//! Two kinds of trouble are told apart. What is no envelope at all is an [`EnvelopeError`] (HTTP 400). What is an envelope
//! with something wrong inside is a [`Refusal`] with a stable code (HTTP 200), because Python and Go SDKs throw the reason
//! away on any other status.

use alloy::primitives::Address;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::protocol::header::decode_base64;
use crate::protocol::session::{PROOF_TYPE, SessionProof};
use crate::protocol::{
    ExactPayload, GasSponsoring, Network, PaymentRequirements, Permit2Payload, Reason, Scheme,
    X402Version, field, v1,
};

/// A payment and what it is meant to pay, parsed; not yet checked against each other.
#[derive(Debug, Clone, PartialEq)]
pub struct PaymentRequest<P = Payload> {
    /// The dialect that the answer must use.
    pub version: X402Version,
    /// The network as the request names it; answers echo it.
    pub network_name: String,
    /// The scheme that the buyer accepted.
    pub accepted_scheme: Scheme,
    /// The network that the buyer accepted.
    pub accepted_network: Network,
    /// What pays.
    pub payload: P,
    /// What the seller asks for.
    pub requirements: PaymentRequirements,
    /// What the payer adds for Permit2's sake.
    pub sponsoring: GasSponsoring,
    /// What is being sold, as far as anybody said; advice, for the history.
    pub resource: Option<String>,
}

/// What pays: leave to move money, or the proof that the payer has moved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// An authorization.
    Authorization(AuthorizationPayload),
    /// A transfer of the payer's own, claimed for a session.
    Proof(SessionProof),
}

/// Leave to move money, as the payer gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationPayload {
    /// By EIP-3009: the token itself is asked.
    Eip3009(ExactPayload),
    /// By Permit2.
    Permit2(Permit2Payload),
}

impl AuthorizationPayload {
    /// Who pays.
    pub const fn payer(&self) -> Address {
        match self {
            Self::Eip3009(payload) => payload.authorization.from,
            Self::Permit2(payload) => payload.permit2_authorization.from,
        }
    }
}

/// A payment is refused: a stable code, and a message that says what was expected and what came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub reason: Reason,
    /// For people; never holds a signature.
    pub message: String,
    /// Who would have paid, when that could be read.
    pub payer: Option<Address>,
    /// The network as the request names it, empty when it could not be read.
    pub network_name: String,
}

/// The body is no x402 request at all.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not JSON, or not of the expected outer shape.
    #[error("expected a JSON object with x402Version, paymentPayload and paymentRequirements: {0}")]
    Shape(String),
    /// `paymentPayload` or `paymentRequirements` is not an object.
    #[error("{0}: expected a JSON object, got {1}")]
    NotAnObject(&'static str, &'static str),
    /// No version in either place.
    #[error("x402Version is missing; expected the number 1 or 2")]
    VersionMissing,
    /// The version is no number.
    #[error("{0}")]
    Version(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Envelope<'a> {
    x402_version: Option<Value>,
    #[serde(borrow)]
    payment_payload: Option<&'a RawValue>,
    /// The same as the buyer's header had it: how the first specification and the official Java SDK say it.
    payment_header: Option<String>,
    #[serde(borrow)]
    payment_requirements: &'a RawValue,
}

/// What is read of the payment before anything is judged, so that a refusal can name network and payer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct Glance {
    x402_version: Option<Value>,
    scheme: Option<String>,
    network: Option<String>,
    accepted: Option<Accepted>,
    resource: Option<Value>,
    extensions: Option<Value>,
}

/// The same of the requirement.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct RequirementGlance {
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
struct PayloadMember<'a> {
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// The members by which the payloads of other schemes and methods are recognised.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct PayloadMarks {
    #[serde(rename = "type")]
    kind: Option<Value>,
    permit2_authorization: Option<AuthorizationGlance>,
    permission_context: Option<serde::de::IgnoredAny>,
    authorization: Option<AuthorizationGlance>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct AuthorizationGlance {
    from: Option<String>,
}

impl PaymentRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// [`EnvelopeError`] for what is no request; the inner [`Refusal`] for a request that can be answered with a code.
    pub fn parse(body: &[u8]) -> Result<Result<Self, Refusal>, EnvelopeError> {
        let envelope: Envelope<'_> = field::read_text(body).map_err(EnvelopeError::Shape)?;
        let required = object("paymentRequirements", envelope.payment_requirements)?;
        let outer_version = version_number("x402Version", envelope.x402_version.as_ref())
            .map_err(EnvelopeError::Version)?;
        let glance = field::read_part::<RequirementGlance>("paymentRequirements", required);
        let network_name = glance
            .as_ref()
            .ok()
            .and_then(|glance| glance.network.as_deref());
        let mut reader = Reader {
            place: "paymentPayload",
            payment: "",
            required,
            outer_version,
            network_name: bounded(network_name.unwrap_or_default()),
            payer: None,
        };
        let decoded;
        reader.payment = match (envelope.payment_payload, &envelope.payment_header) {
            (Some(payment), _) => object("paymentPayload", payment)?,
            (None, Some(header)) => {
                reader.place = "paymentHeader";
                decoded = match text_of_header(header) {
                    Ok(decoded) => decoded,
                    Err(why) => return Ok(Err(reader.refuse(Reason::InvalidPayload, &why))),
                };
                &decoded
            }
            (None, None) => {
                let why = "missing field `paymentPayload`".to_owned();
                return Err(EnvelopeError::Shape(why));
            }
        };
        let payment: Glance = match field::read_part(reader.place, reader.payment) {
            Ok(payment) => payment,
            Err(why) => return Ok(Err(reader.refuse(Reason::InvalidPayload, &why))),
        };
        if payment.x402_version.is_none() && outer_version.is_none() {
            return Err(EnvelopeError::VersionMissing);
        }
        Ok(reader.read(payment, glance))
    }
}

/// The text of a member that has to be an object.
fn object<'a>(name: &'static str, raw: &'a RawValue) -> Result<&'a str, EnvelopeError> {
    let found = match raw.get().as_bytes().first() {
        Some(b'{') => return Ok(raw.get()),
        Some(b'[') => "a list",
        Some(b'"') => "a text",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        Some(_) | None => "a number",
    };
    Err(EnvelopeError::NotAnObject(name, found))
}

/// The JSON in a `paymentHeader`.
fn text_of_header(header: &str) -> Result<String, String> {
    let expected =
        "paymentHeader: expected the value of the buyer's header, base64 of a JSON object";
    let bytes = decode_base64(header).map_err(|error| format!("{expected}; {error}"))?;
    String::from_utf8(bytes)
        .ok()
        .filter(|text| text.starts_with('{'))
        .ok_or_else(|| format!("{expected}; it holds something else"))
}

/// The number in a member `x402Version`.
fn version_number(place: &str, value: Option<&Value>) -> Result<Option<u64>, String> {
    let Some(value) = value else {
        return Ok(None);
    };
    let number = value.as_u64().ok_or_else(|| {
        let kind = if value.is_string() { "the text " } else { "" };
        format!(
            "{place}: expected the number 1 or 2, got {kind}{}",
            bounded(&value.to_string())
        )
    });
    number.map(Some)
}

impl<P> PaymentRequest<P> {
    /// The same request with another payload in place of this one, which comes back too.
    pub fn replace<Q>(self, payload: Q) -> (PaymentRequest<Q>, P) {
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
    /// The member that the payment came in.
    place: &'static str,
    payment: &'a str,
    required: &'a str,
    outer_version: Option<u64>,
    network_name: String,
    payer: Option<Address>,
}

impl Reader<'_> {
    fn refuse(&self, reason: Reason, why: &dyn std::fmt::Display) -> Refusal {
        let message = bounded(&why.to_string());
        Refusal {
            reason,
            message,
            payer: self.payer,
            network_name: self.network_name.clone(),
        }
    }

    fn read(
        &mut self,
        glance: Glance,
        required: Result<RequirementGlance, String>,
    ) -> Result<PaymentRequest, Refusal> {
        let version = self.version(&glance)?;
        let member: PayloadMember<'_> = field::read_part(self.place, self.payment)
            .map_err(|why| self.refuse(Reason::InvalidPayload, &why))?;
        let marks: PayloadMarks = field::read_part(&self.payload_place(), member.payload.get())
            .map_err(|why| self.refuse(Reason::InvalidPayload, &why))?;
        self.payer = [&marks.authorization, &marks.permit2_authorization]
            .into_iter()
            .flatten()
            .find_map(|glance| field::parse_address(glance.from.as_deref()?).ok());

        let (scheme, network) = match version {
            X402Version::V1 => (glance.scheme, glance.network),
            X402Version::V2 => glance
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
        let resource = [glance.resource, required.resource];
        let extensions = glance.extensions.as_ref().and_then(Value::as_object);
        Ok(PaymentRequest {
            version,
            network_name: self.network_name.clone(),
            accepted_scheme,
            accepted_network,
            payload: self.payload(version, &marks, (member.payload, &requirements))?,
            requirements,
            sponsoring: extensions.map_or(GasSponsoring::NONE, GasSponsoring::read),
            resource: resource.iter().flatten().find_map(resource_url),
        })
    }

    fn payload_place(&self) -> String {
        format!("{}.payload", self.place)
    }

    fn version(&self, glance: &Glance) -> Result<X402Version, Refusal> {
        let place = format!("{}.x402Version", self.place);
        let inner = version_number(&place, glance.x402_version.as_ref())
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

    fn scheme(&self, version: X402Version, name: &str) -> Result<Scheme, Refusal> {
        let served = match version {
            X402Version::V1 => "exact in version 1",
            X402Version::V2 => "exact and upto",
        };
        Scheme::from_name(name)
            .filter(|scheme| version == X402Version::V2 || *scheme == Scheme::Exact)
            .ok_or_else(|| {
                let why = format!("this facilitator serves {served}, got {:?}", bounded(name));
                self.refuse(Reason::UnsupportedScheme, &why)
            })
    }

    fn network(&self, version: X402Version, name: &str) -> Result<Network, Refusal> {
        match version {
            X402Version::V1 => Network::from_v1_name(name).ok_or_else(|| {
                self.refuse(Reason::InvalidNetwork, &v1::UnknownV1Name(bounded(name)))
            }),
            X402Version::V2 => name
                .parse()
                .map_err(|error| self.refuse(Reason::InvalidNetwork, &error)),
        }
    }

    fn requirements(&self, version: X402Version) -> Result<PaymentRequirements, Refusal> {
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

    /// The reference decides by the payload's members which method is meant; a contradicting `assetTransferMethod` is refused.
    fn payload(
        &self,
        version: X402Version,
        marks: &PayloadMarks,
        (raw, requirements): (&RawValue, &PaymentRequirements),
    ) -> Result<Payload, Refusal> {
        let method = requirements.transfer_method();
        let invalid = |why: String| self.refuse(Reason::InvalidPayload, &why);
        let place = self.payload_place();
        let by_permit2 = marks.permit2_authorization.is_some();
        let fits = match (requirements.scheme, version) {
            (Scheme::Exact, _) if !by_permit2 => method.is_none_or(|method| method == "eip3009"),
            (Scheme::Exact | Scheme::Upto, X402Version::V2) => {
                by_permit2 && method.is_none_or(|method| method == "permit2")
            }
            (Scheme::Exact | Scheme::Upto, X402Version::V1) => false,
        };
        let kind = marks
            .kind
            .as_ref()
            .map(|kind| kind.as_str().unwrap_or_default());
        match kind {
            _ if !fits || marks.permission_context.is_some() => {}
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
            bounded(method.unwrap_or("not given"))
        );
        Err(self.refuse(Reason::UnsupportedPayloadType, &why))
    }
}

/// What a `resource` says is sold: a URL in v1, an object with one in v2. Anything else is passed over: nothing depends on it.
/// Without control characters, because the ledger cannot store all of them.
pub fn resource_url(resource: &Value) -> Option<String> {
    let url = resource
        .as_str()
        .or_else(|| resource.get("url")?.as_str())?;
    let shown = url.chars().filter(|letter| !letter.is_control());
    Some(shown.take(2048).collect())
}

/// Texts of requests are cut before they are shown or stored.
fn bounded(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
