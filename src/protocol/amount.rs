//! Amounts of money: integers in the token's smallest unit, never fractions.
//!
//! The other integers of the wire (timestamps, Permit2 nonces) use the same type, because they follow the same syntax.

use std::fmt;
use std::str::FromStr;

use alloy::primitives::U256;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount in atomic units of its token (1 USDC = 1 000 000). A decimal string on the wire and in SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(U256);

/// Why a text is not an amount. Every integer of the wire, timestamps included, is parsed by the same rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Empty, signed, hexadecimal, exponential, fractional or padded text.
    #[error("expected a decimal integer without sign, point, exponent or leading zeros")]
    NotDecimal,
    /// More than 2^256 - 1.
    #[error("the number does not fit into 256 bits")]
    TooLarge,
}

impl Amount {
    /// Zero. An `exact` payment of zero is refused.
    pub const ZERO: Self = Self(U256::ZERO);

    /// Converts an integer of atomic units.
    pub const fn from_atomic(units: U256) -> Self {
        Self(units)
    }

    /// The integer of atomic units.
    pub const fn atomic(self) -> U256 {
        self.0
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Converts a price such as `$0.01` or `0.01` to atomic units of a token with `decimals` decimals.
    ///
    /// # Errors
    /// [`AmountError::NotDecimal`] when the text is not a plain decimal fraction or is finer than the token's smallest unit,
    /// [`AmountError::TooLarge`] beyond 256 bits.
    pub fn from_dollars(text: &str, decimals: u8) -> Result<Self, AmountError> {
        let text = text.trim().trim_start_matches('$');
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let places = usize::from(decimals);
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || fraction.len() > places || !digits(whole) || !digits(fraction) {
            return Err(AmountError::NotDecimal);
        }
        let joined = format!("{whole}{fraction:0<places$}");
        let trimmed = joined.trim_start_matches('0');
        if trimmed.is_empty() {
            Ok(Self::ZERO)
        } else {
            trimmed.parse()
        }
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    /// Accepts `0` or `[1-9][0-9]*`. `U256::from_str` would also accept `0x10`, `1_0` and the empty text.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !plain || (text.len() > 1 && text.starts_with('0')) {
            return Err(AmountError::NotDecimal);
        }
        U256::from_str_radix(text, 10)
            .map(Self)
            .map_err(|_| AmountError::TooLarge)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, formatter)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::protocol::field::parse_text(
            deserializer,
            "a decimal string of atomic units",
            |text| {
                text.parse().map_err(|error: AmountError| match error {
                    AmountError::NotDecimal => "plain digits, without leading zeros".to_owned(),
                    AmountError::TooLarge => error.to_string(),
                })
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_accepts_only_plain_decimal_integers() {
        for text in [
            "", "-1", "+1", "1.0", "1e6", "0x10", "1_0", " 1", "1 ", "01", "00", "１",
        ] {
            assert_eq!(
                text.parse::<Amount>(),
                Err(AmountError::NotDecimal),
                "{text:?}"
            );
        }
        let too_large = format!("{}0", U256::MAX);
        assert_eq!(too_large.parse::<Amount>(), Err(AmountError::TooLarge));
        assert_eq!(
            U256::MAX.to_string().parse::<Amount>(),
            Ok(Amount(U256::MAX))
        );
        assert_eq!("0".parse::<Amount>(), Ok(Amount::ZERO));
    }

    #[test]
    fn dollars_convert_to_atomic_units_without_rounding() {
        let cent = Amount::from_dollars("$0.01", 6).unwrap();
        assert_eq!(cent.to_string(), "10000");
        assert_eq!(Amount::from_dollars("1", 6).unwrap().to_string(), "1000000");
        assert_eq!(
            Amount::from_dollars("0.0000001", 6),
            Err(AmountError::NotDecimal)
        );
        assert_eq!(Amount::from_dollars("1e3", 6), Err(AmountError::NotDecimal));
        assert_eq!(Amount::from_dollars("-1", 6), Err(AmountError::NotDecimal));
    }
}
