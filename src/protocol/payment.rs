//! The payment that a buyer puts into a request header, in both dialects (`docs/architecture.md#versions`).

use std::fmt;

use alloy::primitives::Address;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::protocol::challenge::{Offer, Resource, network_name};
use crate::protocol::header::{self, HeaderError};
use crate::protocol::{Network, PaymentRequired, PaymentRequirements, X402Version, field};

/// A payment, ready to be sent. Whoever holds it can have the money moved, so that it shows itself nowhere.
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
    /// Pays `offer`, an entry of `challenge`, with the scheme's payload: in v2 the entry, the resource and the extensions go back
    /// as they came. A buyer that has something to add to an extension adds it to the challenge first ([`PaymentRequired::fill`]).
    ///
    /// # Errors
    /// When the payment has no JSON form, which a parsed challenge always has.
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

    /// A payment that was made before, from its dialect and its value.
    pub const fn kept(version: X402Version, value: String) -> Self {
        let name = match version {
            X402Version::V1 => header::X_PAYMENT,
            X402Version::V2 => header::PAYMENT_SIGNATURE,
        };
        Self { name, value }
    }

    /// The request header that carries it.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its value. Keep it out of logs.
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

/// A payment as a seller receives it. It stays raw, because it goes to the facilitator as it came; JSON that says a member
/// twice has become unambiguous here.
#[derive(Clone, PartialEq)]
pub struct PresentedPayment {
    /// The dialect, from the header that carried it.
    pub version: X402Version,
    raw: Value,
}

impl PresentedPayment {
    /// Reads the value of `PAYMENT-SIGNATURE` (v2) or `X-PAYMENT` (v1).
    ///
    /// # Errors
    /// [`HeaderError`] when it is too long or holds no JSON object.
    pub fn read(version: X402Version, text: &str) -> Result<Self, HeaderError> {
        let object: Map<String, Value> = header::decode(text)?;
        Ok(Self {
            version,
            raw: Value::Object(object),
        })
    }

    /// The payment as it came.
    pub const fn raw(&self) -> &Value {
        &self.raw
    }

    /// Who pays according to the authorization; nobody has checked the signature yet.
    pub fn payer(&self) -> Option<Address> {
        let from = [
            "/payload/authorization/from",
            "/payload/permit2Authorization/from",
        ]
        .into_iter()
        .find_map(|member| self.raw.pointer(member)?.as_str())?;
        field::parse_address(from).ok()
    }

    /// Whether the payment says that it is for `offered`: in v2 every core field is equal and what we put into `extra` is
    /// still there (sellers and buyers may add to it); v1 names scheme and network alone.
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
    // Else an offer by EIP-3009 would be found in the same one by Permit2, which says more.
    let same_means = accepted.means() == offered.means();
    extra_kept
        && same_means
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
    fn a_v2_payment_echoes_entry_resource_and_extensions_verbatim() {
        let payment = sent(&entry());
        assert_eq!(payment.raw()["accepted"], entry());
        assert_eq!(payment.raw()["resource"]["tags"], json!(["x"]));
        assert_eq!(payment.raw()["extensions"], json!({"bazaar": {"info": {}}}));
        assert_eq!(payment.raw()["payload"]["authorization"]["value"], "10000");
        assert_eq!(payment.payer(), Some(Address::repeat_byte(0x11)));
        assert!(!format!("{payment:?}").contains("0x"));
    }

    #[test]
    fn an_altered_entry_is_not_the_one_that_was_offered_and_an_enriched_one_is() {
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
            "it accepts the same offer by other means"
        );
    }
}
