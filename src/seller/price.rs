//! Prices: dollars of a network's default token, or atomic units of any.

use alloy::primitives::Address;
use serde_json::{Map, Value};

use crate::protocol::amount::AmountError;
use crate::protocol::assets::{TransferMethod, default_assets};
use crate::protocol::{Amount, Network};
use crate::seller::{Flow, PaywallError};

/// The decimals of every default token that moves by EIP-3009; a price is checked against them before its network is known.
const DOLLAR_DECIMALS: u8 = 6;

/// A token to be paid in. Its name and version are those of its EIP-712 domain: a wrong one makes every payment fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The contract.
    pub address: Address,
    /// Its EIP-712 name.
    pub name: String,
    /// Its EIP-712 version.
    pub version: String,
}

impl Token {
    /// What a requirement says about it.
    pub(super) fn extra(&self, flow: Flow) -> Map<String, Value> {
        let mut extra = Map::new();
        extra.insert("name".to_owned(), self.name.clone().into());
        extra.insert("version".to_owned(), self.version.clone().into());
        if flow == Flow::Upfront {
            extra.insert("paymentFlow".to_owned(), "upfront".into());
        }
        extra
    }
}

/// What a resource costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Dollars(String),
    Atomic(Amount),
    Token(Amount, Token),
}

impl Price {
    /// Dollars, such as `0.01` or `$0.01`, in the default token of the network.
    ///
    /// # Errors
    /// [`AmountError`] when the text is no plain decimal number, or finer than a millionth of a dollar.
    pub fn dollars(text: &str) -> Result<Self, AmountError> {
        Amount::from_dollars(text, DOLLAR_DECIMALS)?;
        Ok(Self(Kind::Dollars(text.to_owned())))
    }

    /// Atomic units of the network's default token: 10 000 are a cent of USDC.
    pub const fn atomic(amount: Amount) -> Self {
        Self(Kind::Atomic(amount))
    }

    /// Atomic units of `token`.
    pub const fn in_token(amount: Amount, token: Token) -> Self {
        Self(Kind::Token(amount, token))
    }

    /// The price on a network, for the route `spec`.
    pub(super) fn on(&self, network: Network, spec: &str) -> Result<(Amount, Token), PaywallError> {
        if let Kind::Token(amount, token) = &self.0 {
            return Ok((*amount, token.clone()));
        }
        let asset = default_assets(network)
            .find(|asset| asset.method == TransferMethod::Eip3009)
            .ok_or(PaywallError::NoDefaultToken(network))?;
        let token = Token {
            address: asset.address,
            name: asset.name.to_owned(),
            version: asset.version.to_owned(),
        };
        let amount = match &self.0 {
            Kind::Dollars(text) => {
                Amount::from_dollars(text, asset.decimals).map_err(|source| {
                    PaywallError::Price {
                        route: spec.to_owned(),
                        source,
                    }
                })?
            }
            Kind::Atomic(amount) | Kind::Token(amount, _) => *amount,
        };
        Ok((amount, token))
    }
}
