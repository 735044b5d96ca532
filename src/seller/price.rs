//! Prices: dollars in a network's default token, or atomic units of any token.

use alloy::primitives::Address;
use serde_json::{Map, Value};

use crate::protocol::amount::AmountError;
use crate::protocol::assets::{TransferMethod, default_assets};
use crate::protocol::{Amount, Network, PaymentMethod};
use crate::seller::{Flow, PaywallError};

/// The decimals of every default token with EIP-3009. A price in dollars is checked against them before its network is known.
const DOLLAR_DECIMALS: u8 = 6;

/// A token that prices can be given in. Name and version are those of its EIP-712 domain; with a wrong one every payment fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The token contract.
    pub address: Address,
    /// The name in its EIP-712 domain.
    pub name: String,
    /// The version in its EIP-712 domain.
    pub version: String,
}

impl Token {
    /// The members of `extra` in an offer: the token's domain, transfer method and flow.
    pub(super) fn extra(&self, method: PaymentMethod, flow: Flow) -> Map<String, Value> {
        let mut extra = Map::new();
        extra.insert("name".to_owned(), self.name.clone().into());
        extra.insert("version".to_owned(), self.version.clone().into());
        if let Some(method) = method.transfer_method() {
            extra.insert("assetTransferMethod".to_owned(), method.into());
        }
        if flow == Flow::Upfront {
            extra.insert("paymentFlow".to_owned(), "upfront".into());
        }
        extra
    }
}

/// The price of a resource. By default the buyer pays exactly this amount with an EIP-3009 authorization; see [`Price::metered`] and
/// [`Price::by_permit2`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    kind: Kind,
    method: PaymentMethod,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Dollars(String),
    Atomic(Amount),
    Token(Amount, Token),
}

impl Price {
    /// A price in dollars, such as `0.01` or `$0.01`, paid in the default token of the network.
    ///
    /// # Errors
    /// [`AmountError`] when the text is not a plain decimal number, or has more than six decimals.
    pub fn dollars(text: &str) -> Result<Self, AmountError> {
        Amount::from_dollars(text, DOLLAR_DECIMALS)?;
        Ok(Self::of(Kind::Dollars(text.to_owned())))
    }

    /// A price in atomic units of the network's default token: 10 000 are a cent of USDC.
    pub const fn atomic(amount: Amount) -> Self {
        Self::of(Kind::Atomic(amount))
    }

    /// A price in atomic units of `token`.
    pub const fn in_token(amount: Amount, token: Token) -> Self {
        Self::of(Kind::Token(amount, token))
    }

    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            method: PaymentMethod::Authorization,
        }
    }

    /// Makes this the maximum (scheme `upto`): the handler sets the charge with a [`crate::seller::Charge`]; without one the maximum is
    /// charged. The payment is always settled after the handler, whose response is held back until then. It uses Permit2, so the buyer
    /// needs an allowance to Permit2 for the token (see [`crate::seller::Paywall::sponsors_gas`]). Offered in x402 v2 only.
    #[must_use]
    pub const fn metered(mut self) -> Self {
        self.method = PaymentMethod::Metered;
        self
    }

    /// Uses Permit2 instead of EIP-3009, for tokens without EIP-3009. The buyer needs an allowance to Permit2 for the token (see
    /// [`crate::seller::Paywall::sponsors_gas`]). Offered in x402 v2 only. A metered price always uses Permit2.
    #[must_use]
    pub const fn by_permit2(mut self) -> Self {
        if matches!(self.method, PaymentMethod::Authorization) {
            self.method = PaymentMethod::Permit2;
        }
        self
    }

    /// Amount, token and payment method of the price on a network, for the route `spec`. A default token without EIP-3009 uses Permit2.
    pub(super) fn resolve(
        &self,
        network: Network,
        spec: &str,
    ) -> Result<(Amount, Token, PaymentMethod), PaywallError> {
        if let Kind::Token(amount, token) = &self.kind {
            return Ok((*amount, token.clone(), self.method));
        }
        let asset = default_assets(network)
            .next()
            .ok_or(PaywallError::NoDefaultToken(network))?;
        let method = match (self.method, asset.method) {
            (PaymentMethod::Authorization, TransferMethod::Permit2) => PaymentMethod::Permit2,
            (method, TransferMethod::Eip3009 | TransferMethod::Permit2) => method,
        };
        let token = Token {
            address: asset.address,
            name: asset.name.to_owned(),
            version: asset.version.to_owned(),
        };
        let amount = match &self.kind {
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
        Ok((amount, token, method))
    }
}
