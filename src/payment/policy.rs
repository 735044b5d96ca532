//! The operator's rules for a network. They apply to every scheme and every rail.

use alloy::primitives::{Address, U256};
use serde::Deserialize;
use time::Duration;

use crate::protocol::assets::{DefaultAsset, TransferMethod};
use crate::protocol::{Amount, DomainSeparator, Network, Reason, Rejection};

/// A token accepted for payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// The token contract.
    pub address: Address,
    /// The EIP-712 domain name, as the token contract has it.
    pub name: String,
    /// The EIP-712 domain version, as the token contract has it.
    pub version: String,
    /// Decimals for display: 1 token is 10^decimals atomic units.
    pub decimals: u8,
    /// The transfer method when a seller names none.
    pub method: TransferMethod,
    /// Whether the token has EIP-2612, so that a signature can replace an `approve` transaction.
    pub eip2612: bool,
    /// The smallest payment: the gas of a smaller one may cost more than it moves.
    pub minimum: Amount,
    /// The EIP-712 domain separator. Stored, because computing it costs four times as much as the digest itself.
    pub separator: DomainSeparator,
}

impl Asset {
    /// A token with EIP-3009. Version `2` is the code of USDC, so EIP-2612 is assumed for it as well; [`Self::paid_with`] overrides both.
    pub fn new(
        network: Network,
        address: Address,
        name: &str,
        version: &str,
        decimals: u8,
    ) -> Self {
        let separator = DomainSeparator::of_token(name, version, network, address);
        Self {
            address,
            name: name.to_owned(),
            version: version.to_owned(),
            decimals,
            method: TransferMethod::Eip3009,
            eip2612: version == "2",
            minimum: Amount::ZERO,
            separator,
        }
    }

    /// The same token with another transfer method and EIP-2612 support.
    #[must_use]
    pub fn paid_with(self, method: TransferMethod, eip2612: bool) -> Self {
        Self {
            method,
            eip2612,
            ..self
        }
    }

    /// The same token with a smallest payment.
    #[must_use]
    pub fn from_minimum(self, minimum: Amount) -> Self {
        Self { minimum, ..self }
    }

    /// Whether payers sign in the token's own EIP-712 domain: EIP-3009 authorizations or EIP-2612 permits.
    pub fn uses_own_domain(&self) -> bool {
        self.method == TransferMethod::Eip3009 || self.eip2612
    }
}

impl From<&DefaultAsset> for Asset {
    fn from(known: &DefaultAsset) -> Self {
        let network = Network::from_chain_id(known.chain_id);
        Self::new(
            network,
            known.address,
            known.name,
            known.version,
            known.decimals,
        )
        .paid_with(known.method, known.eip2612)
    }
}

/// Who may have payments verified and settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// Everybody.
    Open,
    /// Holders of a key, for its payees.
    Keys,
}

/// Limits for funding the gas of payers' approvals to Permit2. A payer receives the native currency that it lacks, and the facilitator
/// cannot get it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApprovalLimits {
    /// Wei sent to one payer in 24 hours.
    pub wei_per_payer: u64,
    /// Wei sent to all payers together in 24 hours.
    pub wei_per_day: u64,
}

/// Limits for what transactions may cost the operator in 24 hours, in wei. `None`: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GasBudget {
    /// All transactions of the network.
    pub wei_per_day: Option<U256>,
    /// Those for the payments to one payee.
    pub wei_per_day_per_payee: Option<U256>,
    /// Those for the payments of one payer.
    pub wei_per_day_per_payer: Option<U256>,
}

/// The schemes that work with Permit2 on a network: true where Permit2 and the scheme's proxy are deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proxies {
    pub exact: bool,
    pub upto: bool,
}

/// The rules of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    pub network: Network,
    /// Accepted tokens. Any other contract could waste the facilitator's gas.
    pub assets: Vec<Asset>,
    /// Accepted payees. Empty accepts all, which the configuration allows on test networks only.
    pub payees: Vec<Address>,
    /// The accounts that send settlements. An `upto` payment names one of them.
    pub signers: Vec<Address>,
    /// The domain separator of Permit2 on this network.
    pub permit2: DomainSeparator,
    /// The limits for submitting payers' approval transactions; `None`: they are not submitted.
    pub approvals: Option<ApprovalLimits>,
    /// The limits for gas.
    pub budget: GasBudget,
    /// Factories that may deploy a payer's wallet at the facilitator's cost (ERC-6492).
    pub factories: Vec<Address>,
    /// The shortest remaining validity of an authorization.
    pub validity_min: Duration,
    /// The longest remaining validity of an authorization. Its records are kept until then.
    pub validity_max: Duration,
    /// Confirmations that a payment needs to be settled; 1 = in a canonical block.
    pub confirmations: u32,
}

impl NetworkPolicy {
    /// The accepted token at `address`.
    pub fn asset(&self, address: Address) -> Option<&Asset> {
        self.assets.iter().find(|asset| asset.address == address)
    }

    /// The accepted token at `address`, or the rejection of a payment in any other.
    pub fn served_asset(&self, address: Address) -> Result<&Asset, Rejection> {
        self.asset(address).ok_or_else(|| {
            let served: Vec<_> = self.tokens().iter().map(Address::to_string).collect();
            let why = format!(
                "expected one of the assets served on {} ({}), got {address}",
                self.network,
                served.join(", ")
            );
            Rejection::new(Reason::InvalidPaymentRequirements, why)
        })
    }

    /// Checks asset, payee and amount of a new payment. An `upto` charge of 0 moves nothing, so no minimum applies.
    pub fn check_terms(
        &self,
        asset: Address,
        payee: Address,
        amount: Amount,
    ) -> Result<(), Rejection> {
        let asset = self.served_asset(asset)?;
        self.check_payee(payee)?;
        if amount >= asset.minimum || amount.is_zero() {
            return Ok(());
        }
        let why = format!(
            "expected an amount of at least {} of the token {} on {}, got {amount}: smaller payments are not settled here",
            asset.minimum, asset.address, self.network
        );
        Err(Rejection::new(Reason::AmountBelowMinimum, why))
    }

    /// The addresses of the accepted tokens.
    pub fn tokens(&self) -> Vec<Address> {
        self.assets.iter().map(|asset| asset.address).collect()
    }

    /// The account that sellers name in `upto` payments: the first signer, so it changes only when the operator reorders the keys.
    pub fn facilitator(&self) -> Option<Address> {
        self.signers.first().copied()
    }

    /// Rejects payees that the operator does not list.
    pub fn check_payee(&self, payee: Address) -> Result<(), Rejection> {
        if self.payees.is_empty() || self.payees.contains(&payee) {
            return Ok(());
        }
        let why = format!("{payee} is not among the payees that this facilitator serves");
        Err(Rejection::new(Reason::InvalidPaymentRequirements, why))
    }
}
