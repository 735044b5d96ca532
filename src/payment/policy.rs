//! What the operator allows on a network: the gate in front of every scheme and every rail.

use alloy::primitives::Address;
use time::Duration;

use crate::protocol::assets::{DefaultAsset, TransferMethod};
use crate::protocol::{DomainSeparator, Network};

/// A token that may be paid with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// The contract.
    pub address: Address,
    /// Its EIP-712 name, as the chain has it.
    pub name: String,
    /// Its EIP-712 version, as the chain has it.
    pub version: String,
    /// How many decimals people see.
    pub decimals: u8,
    /// How it is paid with unless a seller says otherwise.
    pub method: TransferMethod,
    /// Whether a signature is enough to allow somebody to take it (EIP-2612).
    pub eip2612: bool,
    /// Computed once: hashing it anew costs four times the digest itself.
    pub separator: DomainSeparator,
}

impl Asset {
    /// A token of `network` with its domain. It moves by EIP-3009; version 2 is the code of USDC, which has EIP-2612 as well.
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
            separator,
        }
    }

    /// The same token, paid with in another way.
    #[must_use]
    pub fn moved_by(self, method: TransferMethod, eip2612: bool) -> Self {
        Self {
            method,
            eip2612,
            ..self
        }
    }

    /// Whether somebody signs under its own domain, be it to pay or to permit.
    pub fn has_signatures(&self) -> bool {
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
        .moved_by(known.method, known.eip2612)
    }
}

/// What payers may cost us whose approvals of Permit2 we submit for them: they are given the native money that they lack for gas, and can
/// keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApprovalLimits {
    /// Wei that one payer is given in 24 hours.
    pub wei_per_payer: u64,
    /// Wei that all payers together are given in 24 hours.
    pub wei_per_day: u64,
}

/// Which ways by Permit2 a network has: Permit2 and the proxies are only where somebody deployed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Proxies {
    /// Scheme `exact`.
    pub exact: bool,
    /// Scheme `upto`.
    pub upto: bool,
}

/// The rules of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Which network.
    pub network: Network,
    /// Tokens that may be paid with; everything else could be a contract that burns our gas.
    pub assets: Vec<Asset>,
    /// Who may be paid; empty means anybody, which a mainnet configuration refuses.
    pub payees: Vec<Address>,
    /// The accounts that settle. An `upto` payment names one of them.
    pub signers: Vec<Address>,
    /// Permit2's domain separator, computed once.
    pub permit2: DomainSeparator,
    /// Whether approvals that payers have signed are submitted for them, and at what cost; `None`: they are not.
    pub approvals: Option<ApprovalLimits>,
    /// Factories that may deploy a payer's wallet at our cost (ERC-6492).
    pub factories: Vec<Address>,
    /// An authorization must stay valid for at least this long.
    pub validity_min: Duration,
    /// An authorization may not be valid for longer than this: records of it are kept until then.
    pub validity_max: Duration,
    /// Depth at which a payment counts as settled; 1 = in a canonical block.
    pub confirmations: u32,
}

impl NetworkPolicy {
    /// The allowed token at `address`.
    pub fn asset(&self, address: Address) -> Option<&Asset> {
        self.assets.iter().find(|asset| asset.address == address)
    }

    /// Where the allowed tokens are.
    pub fn tokens(&self) -> Vec<Address> {
        self.assets.iter().map(|asset| asset.address).collect()
    }

    /// The account that sellers are told to name in `upto`: the first, so that it stays the same for as long as the operator keeps the
    /// order of the keys.
    pub fn facilitator(&self) -> Option<Address> {
        self.signers.first().copied()
    }

    /// Whether `payee` may be paid.
    pub fn allows_payee(&self, payee: Address) -> bool {
        self.payees.is_empty() || self.payees.contains(&payee)
    }
}
