//! What a route costs.

use crate::protocol::Amount;
use crate::protocol::amount::AmountError;

/// A price, in dollars of the network's default token or in atomic units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Price {
    /// A decimal fraction of a dollar, such as `0.01`; becomes atomic units with the token's decimals.
    Dollars(String),
    /// Atomic units.
    Atomic(Amount),
}

impl Price {
    /// A price such as `0.01` or `$0.01`.
    ///
    /// # Errors
    /// When the text is not a positive decimal fraction; one that is finer than the token is refused with the route.
    pub fn dollars(text: &str) -> Result<Self, AmountError> {
        // Eighteen decimals are the most that any token here has.
        match Amount::from_dollars(text, 18) {
            Ok(amount) if !amount.is_zero() => Ok(Self::Dollars(text.to_owned())),
            Ok(_) | Err(_) => Err(AmountError::NotDecimal),
        }
    }

    pub(super) fn amount(&self, decimals: u8) -> Result<Amount, AmountError> {
        match self {
            Self::Dollars(text) => Amount::from_dollars(text, decimals),
            Self::Atomic(amount) => Ok(*amount),
        }
    }
}
