//! The payment that a buyer puts into a request header, in both protocol versions (x402 v2 specification §5.2).

use std::fmt;

use alloy::primitives::Address;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::protocol::challenge::{Offer, Resource, network_name};
use crate::protocol::header::{self, HeaderError};
use crate::protocol::{Network, PaymentRequired, PaymentRequirements, X402Version, field};

/// A payment header, ready to be sent. Bearer value: anyone who holds it can settle it, so `Debug` redacts it.
#[derive(Clone, PartialEq, Eq)]
pub struct PaymentHeader {
    name: &'static str,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentV2<'a, P> {
    x402_version: X402Version,
    payload: &'a P,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a Resource>,
    accepted: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    extensions: Option<&'a Map<String, Value>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SentV1<'a, P> {
    x402_version: X402Version,
    scheme: &'static str,
    network: String,
    payload: &'a P,
}

impl PaymentHeader {
    /// Builds the header that pays `offer`, an entry of `challenge`, with the scheme's payload. In v2 the entry, the resource and
    /// the extensions are echoed verbatim. A buyer adds its own extension data to the challenge first ([`PaymentRequired::fill`]).
    ///
    /// # Errors
    /// `payload` has no JSON form. A parsed challenge always has one.
    pub fn present<P: Serialize>(
        challenge: &PaymentRequired,
        offer: &Offer,
        payload: &P,
    ) -> Result<Self, serde_json::Error> {
        match offer.version {
            X402Version::V2 => Ok(Self {
                name: header::PAYMENT_SIGNATURE,
                value: header::encode(&SentV2 {
                    x402_version: offer.version,
                    payload,
                    resource: challenge.resource.as_ref(),
                    accepted: &offer.raw,
                    extensions: challenge.extensions.as_ref(),
                })?,
            }),
            X402Version::V1 => Ok(Self {
                name: header::X_PAYMENT,
                value: header::encode(&SentV1 {
                    x402_version: offer.version,
                    scheme: offer.requirements.scheme.name(),
                    network: network_name(offer.version, offer.requirements.network)
                        .unwrap_or_default(),
                    payload,
                })?,
            }),
        }
    }

    /// Rebuilds a header from the stored protocol version and value of an earlier payment.
    pub const fn from_stored(version: X402Version, value: String) -> Self {
        let name = match version {
            X402Version::V1 => header::X_PAYMENT,
            X402Version::V2 => header::PAYMENT_SIGNATURE,
        };
        Self { name, value }
    }

    /// The name of the request header.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The value of the request header. Must not be logged.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Debug for PaymentHeader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PaymentHeader")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A payment as a seller receives it. It stays raw JSON, because the seller forwards it to the facilitator unchanged. Parsing
/// has removed duplicate members, so seller and facilitator read the same values.
#[derive(Clone, PartialEq)]
pub struct PresentedPayment {
    /// The protocol version, given by the header that carried the payment.
    pub version: X402Version,
    raw: Value,
}

impl PresentedPayment {
    /// Decodes the value of `PAYMENT-SIGNATURE` (v2) or `X-PAYMENT` (v1).
    ///
    /// # Errors
    /// A [`HeaderError`] when the value is too long, not base64, or not a JSON object.
    pub fn read(version: X402Version, text: &str) -> Result<Self, HeaderError> {
        let object: Map<String, Value> = header::decode(text)?;
        Ok(Self {
            version,
            raw: Value::Object(object),
        })
    }

    /// The payment as received.
    pub const fn raw(&self) -> &Value {
        &self.raw
    }

    /// The payer named in the authorization. The signature has not been verified.
    pub fn payer(&self) -> Option<Address> {
        let from = [
            "/payload/authorization/from",
            "/payload/permit2Authorization/from",
        ]
        .into_iter()
        .find_map(|member| self.raw.pointer(member)?.as_str())?;
        field::parse_address(from).ok()
    }

    /// Whether the payment was made for `offered`. In v2 every core field must be equal, and `extra` must still hold the offered
    /// members; more members are allowed. A v1 payment names only scheme and network, so only these are compared.
    pub fn accepts(&self, offered: &PaymentRequirements) -> bool {
        let version = self.raw.get("x402Version").and_then(Value::as_u64);
        if version != Some(u64::from(u8::from(self.version))) {
            return false;
        }
        match self.version {
            X402Version::V1 => {
                let text = |member: &str| self.raw.get(member).and_then(Value::as_str);
                text("scheme") == Some(offered.scheme.name())
                    && text("network").and_then(Network::from_v1_name) == Some(offered.network)
            }
            X402Version::V2 => self
                .raw
                .get("accepted")
                .and_then(|accepted| {
                    serde_json::from_value::<PaymentRequirements>(accepted.clone()).ok()
                })
                .is_some_and(|accepted| same_offer(&accepted, offered)),
        }
    }
}

impl fmt::Debug for PresentedPayment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PresentedPayment")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

fn same_offer(accepted: &PaymentRequirements, offered: &PaymentRequirements) -> bool {
    let extra_kept = offered.extra.iter().flatten().all(|(name, value)| {
        accepted
            .extra
            .as_ref()
            .is_some_and(|extra| extra.get(name) == Some(value))
    });
    // `extra` may have more members, so an EIP-3009 offer would otherwise match the same offer by Permit2.
    let same_method = accepted.payment_method() == offered.payment_method();
    extra_kept
        && same_method
        && accepted.scheme == offered.scheme
        && accepted.network == offered.network
        && accepted.amount == offered.amount
        && accepted.asset == offered.asset
        && accepted.pay_to == offered.pay_to
        && accepted.max_timeout_seconds == offered.max_timeout_seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Amount, Authorization, ExactPayload};
    use alloy::primitives::{B256, Bytes};
    use serde_json::json;

    fn entry() -> Value {
        json!({"scheme": "exact", "network": "eip155:84532", "amount": "10000", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2", "later": [1]}})
    }

    fn payload() -> ExactPayload {
        ExactPayload {
            signature: Bytes::from(vec![7; 65]),
            authorization: Authorization {
                from: Address::repeat_byte(0x11),
                to: Address::repeat_byte(0x22),
                value: "10000".parse().unwrap(),
                valid_after: Amount::ZERO,
                valid_before: "1900000000".parse().unwrap(),
                nonce: B256::repeat_byte(0xab),
            },
            session_id: None,
        }
    }

    fn sent(accepted: &Value) -> PresentedPayment {
        let challenge: PaymentRequired = serde_json::from_value(json!({"x402Version": 2, "accepts": [accepted],
            "resource": {"url": "https://a/b", "tags": ["x"]}, "extensions": {"bazaar": {"info": {}}}})).unwrap();
        let offer = challenge.offers().remove(0);
        let header = PaymentHeader::present(&challenge, &offer, &payload()).unwrap();
        assert_eq!(header.name(), "payment-signature");
        PresentedPayment::read(X402Version::V2, header.value()).unwrap()
    }

    #[test]
    fn v2_payment_echoes_entry_resource_and_extensions() {
        let payment = sent(&entry());
        assert_eq!(payment.raw()["accepted"], entry());
        assert_eq!(payment.raw()["resource"]["tags"], json!(["x"]));
        assert_eq!(payment.raw()["extensions"], json!({"bazaar": {"info": {}}}));
        assert_eq!(payment.raw()["payload"]["authorization"]["value"], "10000");
        assert_eq!(payment.payer(), Some(Address::repeat_byte(0x11)));
        assert!(!format!("{payment:?}").contains("0x"));
    }

    #[test]
    fn altered_entries_are_not_accepted_but_enriched_ones_are() {
        let mut offered: PaymentRequirements = serde_json::from_value(entry()).unwrap();
        offered.extra.as_mut().unwrap().remove("later");
        assert!(sent(&entry()).accepts(&offered));
        for (pointer, value) in [
            ("/amount", json!("9999")),
            ("/network", json!("eip155:8453")),
            (
                "/asset",
                json!("0x2222222222222222222222222222222222222222"),
            ),
            (
                "/payTo",
                json!("0x3333333333333333333333333333333333333333"),
            ),
            ("/maxTimeoutSeconds", json!(60)),
            ("/extra/name", json!("USD Coin")),
            ("/scheme", json!("upto")),
        ] {
            let mut altered = entry();
            *altered.pointer_mut(pointer).unwrap() = value;
            assert!(!sent(&altered).accepts(&offered), "{pointer}");
        }
        let mut by_permit2 = entry();
        by_permit2["extra"]["assetTransferMethod"] = json!("permit2");
        assert!(
            !sent(&by_permit2).accepts(&offered),
            "it accepts the same offer with another payment method"
        );
    }
}
