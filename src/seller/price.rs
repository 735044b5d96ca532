//! Prices: dollars of a network's default token, or atomic units of any.

use alloy::primitives::Address;
use serde_json::{Map, Value};

use crate::protocol::amount::AmountError;
use crate::protocol::assets::{TransferMethod, default_assets};
use crate::protocol::{Amount, Means, Network};
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
    /// What a requirement says about it, and about how it is taken.
    pub(super) fn extra(&self, means: Means, flow: Flow) -> Map<String, Value> {
        let mut extra = Map::new();
        extra.insert("name".to_owned(), self.name.clone().into());
        extra.insert("version".to_owned(), self.version.clone().into());
        if let Some(method) = means.transfer_method() {
            extra.insert("assetTransferMethod".to_owned(), method.into());
        }
        if flow == Flow::Upfront {
            extra.insert("paymentFlow".to_owned(), "upfront".into());
        }
        extra
    }
}

/// What a resource costs: exactly this, taken by the token's own authorization (EIP-3009), unless it is said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    kind: Kind,
    means: Means,
}

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
        Ok(Self::of(Kind::Dollars(text.to_owned())))
    }

    /// Atomic units of the network's default token: 10 000 are a cent of USDC.
    pub const fn atomic(amount: Amount) -> Self {
        Self::of(Kind::Atomic(amount))
    }

    /// Atomic units of `token`.
    pub const fn in_token(amount: Amount, token: Token) -> Self {
        Self::of(Kind::Token(amount, token))
    }

    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            means: Means::Authorization,
        }
    }

    /// At most this much: the handler says how much of it with a [`crate::seller::Charge`], and all of it when it says nothing. Scheme
    /// `upto`: such a payment is always settled after the handler, whose answer is held back until then, and taken by Permit2, which
    /// the buyer has to have approved for the token (see [`crate::seller::Paywall::sponsors_gas`]). Version 2 of x402 alone.
    #[must_use]
    pub const fn metered(mut self) -> Self {
        self.means = Means::Metered;
        self
    }

    /// Exactly this much, but taken by Permit2: for tokens without EIP-3009. The buyer has to have approved Permit2 for the token (see
    /// [`crate::seller::Paywall::sponsors_gas`]). Version 2 of x402 alone. A metered price is taken by Permit2 anyway.
    #[must_use]
    pub const fn by_permit2(mut self) -> Self {
        if matches!(self.means, Means::Authorization) {
            self.means = Means::Permit2;
        }
        self
    }

    /// The price on a network, for the route `spec`: how much of which token, and by what leave of the buyer's. A default token that
    /// does not speak EIP-3009 is taken by Permit2.
    pub(super) fn on(
        &self,
        network: Network,
        spec: &str,
    ) -> Result<(Amount, Token, Means), PaywallError> {
        if let Kind::Token(amount, token) = &self.kind {
            return Ok((*amount, token.clone(), self.means));
        }
        let asset = default_assets(network)
            .next()
            .ok_or(PaywallError::NoDefaultToken(network))?;
        let means = match (self.means, asset.method) {
            (Means::Authorization, TransferMethod::Permit2) => Means::Permit2,
            (means, TransferMethod::Eip3009 | TransferMethod::Permit2) => means,
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
        Ok((amount, token, means))
    }
}
