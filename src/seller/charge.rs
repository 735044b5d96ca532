//! How much of a metered payment a handler charges.
//!
//! The handler says it once its work is done: with a [`Charge`] in front of its answer, or, like the handlers of official sellers, with the
//! header `Settlement-Overrides`. The header goes no farther than the paywall. What cannot be understood, and what is more than
//! the payer let go, is the seller's mistake: nothing is settled then.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use alloy::primitives::U256;
use axum::response::{IntoResponseParts, Response, ResponseParts};
use serde_json::{Map, Value};

use crate::protocol::amount::AmountError;
use crate::protocol::header::SETTLEMENT_OVERRIDES;
use crate::protocol::{Amount, Means, PaymentRequirements, assets};

/// All of a maximum, in hundredths of a percent.
const WHOLE: u16 = 10_000;

/// What a handler charges for a metered request, at most the price of its route ([`crate::seller::Price::metered`]); without one all of the
/// price is charged. It is answered in front of the body:
///
/// ```ignore
/// async fn generate(payment: Payment) -> impl IntoResponse {
///     let (text, tokens) = model().await;
///     (Charge::atomic(Amount::from_atomic(U256::from(20 * tokens))), text)
/// }
/// ```
///
/// To charge nothing is allowed: the payment is settled with 0, which uses it up without a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Atomic(Amount),
    /// In hundredths of a percent of the maximum.
    Share(u16),
    /// A plain decimal number.
    Dollars(String),
}

/// Why a charge cannot be made. Nothing is settled then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// The text is none of the three forms.
    #[error(
        "expected atomic units (\"1000\"), a share of at most 100 % with two decimals (\"12.5%\") or dollars (\"$0.05\")"
    )]
    Form,
    /// The header is given twice, or is no JSON object whose `amount` is a text.
    #[error("the header Settlement-Overrides is not {{\"amount\": \"…\"}}, once")]
    Header,
    /// Dollars of a token that is not a default token: how many of its units they are is not known.
    #[error("the token's decimals are not known: charge atomic units or a share")]
    Decimals,
    /// More than the payer let go.
    #[error("{charge} is more than the maximum of {maximum} atomic units")]
    AboveMaximum {
        /// What was to be charged.
        charge: Amount,
        /// The price of the route.
        maximum: Amount,
    },
    /// The route is not metered: its price is its price.
    #[error("the route costs {price} atomic units, which no charge can change")]
    NotMetered {
        /// The price of the route.
        price: Amount,
    },
}

impl Charge {
    /// This many atomic units of the token.
    pub const fn atomic(amount: Amount) -> Self {
        Self(Kind::Atomic(amount))
    }

    /// A share of the maximum in percent, such as `12.5`, with at most two decimals; what it comes to is rounded down.
    ///
    /// # Errors
    /// [`ChargeError::Form`] for any other text, and above 100.
    pub fn percent(text: &str) -> Result<Self, ChargeError> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || decimals.len() > 2 || !plain(whole) || !plain(decimals) {
            return Err(ChargeError::Form);
        }
        let hundredths = format!("{whole}{decimals:0<2}").parse().ok();
        hundredths
            .filter(|hundredths| *hundredths <= WHOLE)
            .map(|hundredths| Self(Kind::Share(hundredths)))
            .ok_or(ChargeError::Form)
    }

    /// Dollars, such as `0.05` or `$0.05`, in a network's default token; what is finer than its smallest unit is left out.
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

    /// What a handler's answer says, taken out of it: the buyer sees nothing of this.
    pub(super) fn taken_from(response: &mut Response) -> Result<Option<Self>, ChargeError> {
        let said = response.extensions_mut().remove::<Self>();
        let mut headers = response.headers().get_all(SETTLEMENT_OVERRIDES).iter();
        let header = headers.next().map(|first| {
            let text = first.to_str().map_err(|_| ChargeError::Header)?;
            let alone = headers.next().is_none();
            alone
                .then_some(text)
                .ok_or(ChargeError::Header)
                .and_then(from_header)
        });
        response.headers_mut().remove(SETTLEMENT_OVERRIDES);
        match (said, header) {
            (Some(said), _) => Ok(Some(said)),
            (None, Some(header)) => header,
            (None, None) => Ok(None),
        }
    }

    /// How many atomic units that is of what `terms` ask for.
    pub(super) fn on(&self, terms: &PaymentRequirements) -> Result<Amount, ChargeError> {
        let maximum = terms.amount;
        let charge = match &self.0 {
            Kind::Atomic(amount) => *amount,
            Kind::Share(hundredths) => share(maximum, *hundredths),
            Kind::Dollars(text) => {
                let token = assets::default_assets(terms.network)
                    .find(|known| known.address == terms.asset)
                    .ok_or(ChargeError::Decimals)?;
                dollars(text, token.decimals)?
            }
        };
        if terms.means() != Some(Means::Metered) && charge != maximum {
            return Err(ChargeError::NotMetered { price: maximum });
        }
        if charge > maximum {
            return Err(ChargeError::AboveMaximum { charge, maximum });
        }
        Ok(charge)
    }
}

/// Floor of the product, without a number beyond 256 bits on the way.
fn share(maximum: Amount, hundredths: u16) -> Amount {
    let (whole, part) = (U256::from(WHOLE), U256::from(hundredths));
    let (quotient, rest) = maximum.atomic().div_rem(whole);
    Amount::from_atomic(quotient * part + rest * part / whole)
}

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

/// The stock header. Without an `amount` it says nothing.
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
            Kind::Share(hundredths) => {
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
            "it is written as it is read"
        );
        charge
            .on(&terms("upto", USDC, maximum))
            .map(|amount| amount.to_string())
    }

    #[test]
    fn units_shares_and_dollars_come_to_atomic_units() {
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
    fn what_is_none_of_the_forms_or_more_than_the_maximum_is_no_charge() {
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
        let strange = terms(
            "upto",
            "0x4444444444444444444444444444444444444444",
            "10000",
        );
        let cent = Charge::dollars("0.01").unwrap();
        assert_eq!(cent.on(&strange), Err(ChargeError::Decimals));
        let exact = terms("exact", USDC, "10000");
        assert_eq!(cent.on(&exact), Ok(exact.amount), "it is the price");
        let half = Charge::percent("50").unwrap();
        assert!(matches!(
            half.on(&exact),
            Err(ChargeError::NotMetered { .. })
        ));
    }

    fn said(headers: &[&str]) -> Result<Option<Charge>, ChargeError> {
        let mut response = "body".into_response();
        for value in headers {
            let value = value.parse().unwrap();
            response.headers_mut().append("Settlement-Overrides", value);
        }
        let said = Charge::taken_from(&mut response);
        assert!(!response.headers().contains_key("settlement-overrides"));
        said
    }

    #[test]
    fn the_stock_header_is_read_and_taken_away_whatever_it_says() {
        let thousand = Charge::atomic("1000".parse().unwrap());
        assert_eq!(said(&[r#"{"amount":"1000"}"#]), Ok(Some(thousand)));
        assert_eq!(said(&[]), Ok(None));
        assert_eq!(said(&["{}"]), Ok(None));
        for header in ["", "1000", "null", "{\"amount\": 1000}", "[\"1000\"]"] {
            assert_eq!(said(&[header]), Err(ChargeError::Header), "{header}");
        }
        assert_eq!(said(&[r#"{"amount":"all"}"#]), Err(ChargeError::Form));
        let once = r#"{"amount":"1"}"#;
        assert_eq!(said(&[once, once]), Err(ChargeError::Header));
    }

    #[test]
    fn a_typed_charge_goes_before_the_header() {
        let typed = Charge::percent("50").unwrap();
        let header = [("Settlement-Overrides", Value::from("junk").to_string())];
        let mut response = (typed.clone(), header, "body").into_response();
        assert_eq!(Charge::taken_from(&mut response), Ok(Some(typed)));
        assert!(!response.headers().contains_key("settlement-overrides"));
        assert_eq!(Charge::taken_from(&mut response), Ok(None));
    }
}
