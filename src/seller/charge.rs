//! The amount that a handler charges for a metered request.
//!
//! The handler returns it with its response: as a [`Charge`], or in the header `Settlement-Overrides` of the official x402 SDKs. The
//! paywall removes the header before the response goes to the buyer. An unreadable charge, or one above the signed maximum, is an error of
//! the seller: nothing is settled then.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use alloy::primitives::U256;
use axum::response::{IntoResponseParts, Response, ResponseParts};
use serde_json::{Map, Value};

use crate::protocol::amount::AmountError;
use crate::protocol::header::SETTLEMENT_OVERRIDES;
use crate::protocol::{Amount, PaymentMethod, PaymentRequirements, assets};

/// The whole maximum, in hundredths of a percent.
const WHOLE: u16 = 10_000;

/// The amount that a handler charges for a metered request: at most the price of its route ([`crate::seller::Price::metered`]). Without a
/// `Charge` the whole price is charged. It is a response part, returned in front of the body:
///
/// ```ignore
/// async fn generate(payment: Payment) -> impl IntoResponse {
///     let (text, tokens) = model().await;
///     (Charge::atomic(Amount::from_atomic(U256::from(20 * tokens))), text)
/// }
/// ```
///
/// A charge of zero is allowed: the payment is settled with amount 0, so it cannot be used again, and has no transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Atomic(Amount),
    /// In hundredths of a percent of the maximum.
    Percent(u16),
    /// A plain decimal number, without `$`.
    Dollars(String),
}

/// Why a charge is invalid. Nothing is settled then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The text has none of the three forms.
    #[error(
        "expected atomic units (\"1000\"), a share of at most 100 % with two decimals (\"12.5%\") or dollars (\"$0.05\")"
    )]
    Form,
    /// The header occurs twice, or is not a JSON object whose `amount` is a string.
    #[error("expected one header Settlement-Overrides: {{\"amount\": \"…\"}}")]
    Header,
    /// A charge in dollars for a token that is not a default token, so that its decimals are unknown.
    #[error("the token's decimals are unknown: charge atomic units or a percentage")]
    Decimals,
    /// The charge exceeds the signed maximum.
    #[error("the charge of {charge} atomic units exceeds the maximum of {maximum}")]
    AboveMaximum {
        /// The charge in atomic units.
        charge: Amount,
        /// The signed maximum in atomic units: the price of the route.
        maximum: Amount,
    },
    /// The route is not metered, and the charge differs from its price.
    #[error("the route is not metered: its price is {price} atomic units")]
    NotMetered {
        /// The price of the route in atomic units.
        price: Amount,
    },
}

impl Charge {
    /// Charges atomic units of the token.
    pub const fn atomic(amount: Amount) -> Self {
        Self(Kind::Atomic(amount))
    }

    /// Charges a percentage of the maximum, such as `12.5`, with at most two decimals. The result is rounded down to atomic units.
    ///
    /// # Errors
    /// [`ChargeError::Form`] for any other text, and for a percentage above 100.
    pub fn percent(text: &str) -> Result<Self, ChargeError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || decimals.len() > 2 || !plain(whole) || !plain(decimals) {
            return Err(ChargeError::Form);
        }
        let hundredths = format!("{whole}{decimals:0<2}").parse().ok();
        hundredths
            .filter(|hundredths| *hundredths <= WHOLE)
            .map(|hundredths| Self(Kind::Percent(hundredths)))
            .ok_or(ChargeError::Form)
    }

    /// Charges dollars, such as `0.05` or `$0.05`, in a network's default token. The result is rounded down to atomic units.
    ///
    /// # Errors
    /// [`ChargeError::Form`] for any other text.
    pub fn dollars(text: &str) -> Result<Self, ChargeError> {
        let text = text.strip_prefix('$').unwrap_or(text);
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let plain = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !plain(whole) || !plain(decimals) {
            return Err(ChargeError::Form);
        }
        Ok(Self(Kind::Dollars(text.to_owned())))
    }

    /// Removes the charge from a handler's response, so that the buyer does not see it. A [`Charge`] wins over the header.
    pub(super) fn take_from(response: &mut Response) -> Result<Option<Self>, ChargeError> {
        let typed = response.extensions_mut().remove::<Self>();
        let mut headers = response.headers().get_all(SETTLEMENT_OVERRIDES).iter();
        let header = headers.next().map(|first| {
            let text = first.to_str().map_err(|_| ChargeError::Header)?;
            let is_single = headers.next().is_none();
            is_single
                .then_some(text)
                .ok_or(ChargeError::Header)
                .and_then(from_header)
        });
        response.headers_mut().remove(SETTLEMENT_OVERRIDES);
        match (typed, header) {
            (Some(typed), _) => Ok(Some(typed)),
            (None, Some(header)) => header,
            (None, None) => Ok(None),
        }
    }

    /// The charge in atomic units, checked against the offer `terms`.
    pub(super) fn resolve(&self, terms: &PaymentRequirements) -> Result<Amount, ChargeError> {
        let maximum = terms.amount;
        let charge = match &self.0 {
            Kind::Atomic(amount) => *amount,
            Kind::Percent(hundredths) => share(maximum, *hundredths),
            Kind::Dollars(text) => {
                let token = assets::default_assets(terms.network)
                    .find(|token| token.address == terms.asset)
                    .ok_or(ChargeError::Decimals)?;
                dollars(text, token.decimals)?
            }
        };
        if terms.payment_method() != Some(PaymentMethod::Metered) && charge != maximum {
            return Err(ChargeError::NotMetered { price: maximum });
        }
        if charge > maximum {
            return Err(ChargeError::AboveMaximum { charge, maximum });
        }
        Ok(charge)
    }
}

/// `floor(maximum * hundredths / 10 000)`, computed without a 256-bit overflow.
fn share(maximum: Amount, hundredths: u16) -> Amount {
    let (whole, part) = (U256::from(WHOLE), U256::from(hundredths));
    let (quotient, rest) = maximum.atomic().div_rem(whole);
    Amount::from_atomic(quotient * part + rest * part / whole)
}

/// Converts dollars to atomic units, cutting decimals beyond the token's.
fn dollars(text: &str, decimals: u8) -> Result<Amount, ChargeError> {
    let places = usize::from(decimals);
    let kept = match text.split_once('.') {
        Some((whole, finer)) => format!("{whole}.{}", finer.get(..places).unwrap_or(finer)),
        None => text.to_owned(),
    };
    Amount::from_dollars(&kept, decimals).map_err(|error| match error {
        AmountError::NotDecimal | AmountError::TooLarge => ChargeError::Form,
    })
}

/// Parses the header `Settlement-Overrides`; `None` when it has no `amount`.
fn from_header(text: &str) -> Result<Option<Charge>, ChargeError> {
    let overrides: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| ChargeError::Header)?;
    match overrides.get("amount") {
        None => Ok(None),
        Some(amount) => {
            let amount = amount.as_str().ok_or(ChargeError::Header)?;
            amount.parse().map(Some)
        }
    }
}

impl FromStr for Charge {
    type Err = ChargeError;

    /// `1000`, `12.5%` or `$0.05`, as `Settlement-Overrides` spells it.
    fn from_str(text: &str) -> Result<Self, ChargeError> {
        if let Some(percent) = text.strip_suffix('%') {
            Self::percent(percent)
        } else if text.starts_with('$') {
            Self::dollars(text)
        } else {
            let amount = text.parse().map_err(|_| ChargeError::Form)?;
            Ok(Self::atomic(amount))
        }
    }
}

impl IntoResponseParts for Charge {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}

impl fmt::Display for Charge {
    /// As `Settlement-Overrides` spells it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Atomic(amount) => amount.fmt(formatter),
            Kind::Percent(hundredths) => {
                write!(formatter, "{}.{:02}%", hundredths / 100, hundredths % 100)
            }
            Kind::Dollars(text) => write!(formatter, "${text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse as _;
    use serde_json::json;

    const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";

    fn terms(scheme: &str, asset: &str, amount: &str) -> PaymentRequirements {
        let entry = json!({"scheme": scheme, "network": "eip155:84532", "amount": amount, "asset": asset,
            "payTo": "0x2222222222222222222222222222222222222222", "maxTimeoutSeconds": 300, "extra": {}});
        serde_json::from_value(entry).unwrap()
    }

    fn charged(text: &str, maximum: &str) -> Result<String, ChargeError> {
        let charge: Charge = text.parse()?;
        assert_eq!(
            charge.to_string().parse::<Charge>().as_ref(),
            Ok(&charge),
            "Display and FromStr are inverse"
        );
        charge
            .resolve(&terms("upto", USDC, maximum))
            .map(|amount| amount.to_string())
    }

    #[test]
    fn units_percentages_and_dollars_become_atomic_units() {
        for (text, maximum, expected) in [
            ("0", "10000", "0"),
            ("1000", "10000", "1000"),
            ("10000", "10000", "10000"),
            ("50%", "10000", "5000"),
            ("0%", "10000", "0"),
            ("100%", "10001", "10001"),
            ("12.5%", "10000", "1250"),
            ("12.%", "10000", "1200"),
            ("33.33%", "10", "3"),
            ("0.01%", "9999", "0"),
            ("99.99%", "10001", "9999"),
            ("$0.005", "10000", "5000"),
            ("$0", "10000", "0"),
            ("$0.0000019", "10000", "1"),
        ] {
            assert_eq!(charged(text, maximum).as_deref(), Ok(expected), "{text}");
        }
        let most = U256::MAX.to_string();
        assert_eq!(charged("100%", &most), Ok(most));
    }

    #[test]
    fn invalid_forms_and_charges_above_maximum_are_rejected() {
        for text in [
            "",
            "%",
            ".5%",
            "-1",
            "01",
            "1.5",
            "1e3",
            "0x10",
            " 1",
            "$",
            "$.5",
            "$1.",
            "$-1",
            "$1e3",
            "12.345%",
            "100.01%",
            "1000%",
            "99999999%",
            "-5%",
            "5 %",
            "1,5%",
        ] {
            assert_eq!(charged(text, "10000"), Err(ChargeError::Form), "{text:?}");
        }
        for text in ["10001", "$0.010001", "$1"] {
            let error = charged(text, "10000").unwrap_err();
            assert!(
                matches!(error, ChargeError::AboveMaximum { .. }),
                "{text}: {error}"
            );
        }
        let unknown_token = terms(
            "upto",
            "0x4444444444444444444444444444444444444444",
            "10000",
        );
        let cent = Charge::dollars("0.01").unwrap();
        assert_eq!(cent.resolve(&unknown_token), Err(ChargeError::Decimals));
        let exact = terms("exact", USDC, "10000");
        assert_eq!(cent.resolve(&exact), Ok(exact.amount), "equal to the price");
        let half = Charge::percent("50").unwrap();
        assert!(matches!(
            half.resolve(&exact),
            Err(ChargeError::NotMetered { .. })
        ));
    }

    fn from_headers(headers: &[&str]) -> Result<Option<Charge>, ChargeError> {
        let mut response = "body".into_response();
        for value in headers {
            let value = value.parse().unwrap();
            response.headers_mut().append("Settlement-Overrides", value);
        }
        let charge = Charge::take_from(&mut response);
        assert!(!response.headers().contains_key("settlement-overrides"));
        charge
    }

    #[test]
    fn overrides_header_is_parsed_and_always_removed() {
        let thousand = Charge::atomic("1000".parse().unwrap());
        assert_eq!(from_headers(&[r#"{"amount":"1000"}"#]), Ok(Some(thousand)));
        assert_eq!(from_headers(&[]), Ok(None));
        assert_eq!(from_headers(&["{}"]), Ok(None));
        for header in ["", "1000", "null", "{\"amount\": 1000}", "[\"1000\"]"] {
            assert_eq!(
                from_headers(&[header]),
                Err(ChargeError::Header),
                "{header}"
            );
        }
        assert_eq!(
            from_headers(&[r#"{"amount":"all"}"#]),
            Err(ChargeError::Form)
        );
        let once = r#"{"amount":"1"}"#;
        assert_eq!(from_headers(&[once, once]), Err(ChargeError::Header));
    }

    #[test]
    fn typed_charge_wins_over_the_header() {
        let typed = Charge::percent("50").unwrap();
        let header = [("Settlement-Overrides", Value::from("junk").to_string())];
        let mut response = (typed.clone(), header, "body").into_response();
        assert_eq!(Charge::take_from(&mut response), Ok(Some(typed)));
        assert!(!response.headers().contains_key("settlement-overrides"));
        assert_eq!(Charge::take_from(&mut response), Ok(None));
    }
}
