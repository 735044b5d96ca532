//! The tokens that SDK buyers pay with by default, as data. Source: `DEFAULT_ASSETS` of the TypeScript SDK 2.27 and the chains.

use std::fmt;

use alloy::primitives::{Address, U256, address};
use serde::{Deserialize, Serialize};

use crate::protocol::{Amount, Network};

/// The contract that transfers the token: `extra.assetTransferMethod` of scheme `exact` on EVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferMethod {
    /// The token itself, with an EIP-3009 authorization that the payer signed.
    #[default]
    Eip3009,
    /// Permit2. The payer needs a token allowance to it.
    Permit2,
}

impl TransferMethod {
    /// The value in `extra.assetTransferMethod`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eip3009 => "eip3009",
            Self::Permit2 => "permit2",
        }
    }
}

impl fmt::Display for TransferMethod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// A default token of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultAsset {
    /// The EIP-155 chain id.
    pub chain_id: u64,
    /// The token contract.
    pub address: Address,
    /// The symbol shown to people.
    pub symbol: &'static str,
    /// The `name` of the token's EIP-712 domain.
    pub name: &'static str,
    /// The `version` of the token's EIP-712 domain.
    pub version: &'static str,
    /// Decimals for display: 1 token is 10^decimals atomic units.
    pub decimals: u8,
    /// The transfer method when a seller names none.
    pub method: TransferMethod,
    /// Whether the token has EIP-2612, so that a signature can replace an `approve` transaction.
    pub eip2612: bool,
    /// Whether the token is in the table of SDK 2.27. Buyers of that SDK refuse any other token unless configured to accept it.
    pub in_sdk: bool,
}

/// Circle's own USDC, and USDC bridged by Circle's standard: the same code, with EIP-3009 and EIP-2612.
const fn usdc(chain_id: u64, address: Address, name: &'static str) -> DefaultAsset {
    DefaultAsset {
        chain_id,
        address,
        symbol: "USDC",
        name,
        version: "2",
        decimals: 6,
        method: TransferMethod::Eip3009,
        eip2612: true,
        in_sdk: true,
    }
}

const fn bridged(chain_id: u64, address: Address, name: &'static str) -> DefaultAsset {
    DefaultAsset {
        symbol: "USDC.e",
        ..usdc(chain_id, address, name)
    }
}

/// Tether's newer tokens have EIP-3009 and EIP-2612 as well.
const fn tether(
    chain_id: u64,
    address: Address,
    symbol: &'static str,
    name: &'static str,
) -> DefaultAsset {
    DefaultAsset {
        symbol,
        version: "1",
        ..usdc(chain_id, address, name)
    }
}

/// A token without EIP-3009, but with EIP-2612.
const fn by_permit2(
    chain_id: u64,
    address: Address,
    symbol: &'static str,
    name: &'static str,
    decimals: u8,
) -> DefaultAsset {
    DefaultAsset {
        symbol,
        version: "1",
        decimals,
        method: TransferMethod::Permit2,
        ..usdc(chain_id, address, name)
    }
}

const fn without_permit(asset: DefaultAsset) -> DefaultAsset {
    DefaultAsset {
        eip2612: false,
        ..asset
    }
}

const fn not_in_sdk(asset: DefaultAsset) -> DefaultAsset {
    DefaultAsset {
        in_sdk: false,
        ..asset
    }
}

/// Every default token.
///
/// A wrong `name` is the most common x402 configuration error, so the server compares these entries with the chain at start-up and refuses
/// those that differ. The second group is not in SDK 2.27's table. Its names come from the v1 SDK and x402-rs; those of World Chain and
/// XRPL EVM come from third parties.
#[rustfmt::skip]
pub const DEFAULT_ASSETS: &[DefaultAsset] = &[
    usdc(1, address!("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"), "USD Coin"),
    usdc(8453, address!("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"), "USD Coin"),
    usdc(84_532, address!("036CbD53842c5426634e7929541eC2318f3dCF7e"), "USDC"),
    usdc(137, address!("3c499c542cEF5E3811e1192ce70d8cC03d5c3359"), "USD Coin"),
    usdc(42_161, address!("af88d065e77c8cC2239327C5EDb3A432268e5831"), "USD Coin"),
    usdc(421_614, address!("75faf114eafb1BDbe2F0316DF893fd58CE46AA4d"), "USD Coin"),
    usdc(43_114, address!("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"), "USD Coin"),
    usdc(42_220, address!("cebA9300f2b948710d2653dD7B07f33A8B32118C"), "USDC"),
    tether(42_220, address!("48065fbBE25f71C9282ddf5e1cD6D6A887483D5e"), "USDT", "Tether USD"),
    tether(42_220, address!("D2ab3C9A02DBBAB236BfEC45D1d755DF4267F771"), "USAT", "Tether America USD"),
    usdc(11_142_220, address!("01C5C0122039549AD1493B8220cABEdD739BC44E"), "USDC"),
    usdc(1329, address!("e15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392"), "USDC"),
    usdc(1328, address!("4fCF1784B31630811181f670Aea7A7bEF803eaED"), "USDC"),
    usdc(143, address!("754704Bc059F8C67012fEd69BC8A327a5aafb603"), "USDC"),
    usdc(50, address!("fA2958CB79b0491CC627c1557F441eF849Ca8eb1"), "USDC"),
    usdc(51, address!("b5AB69F7bBada22B28e79C8FFAECe55eF1c771D4"), "USDC"),
    bridged(36_900, address!("9cb8142aEBBcdc60AF7c97Af897A67A8f3CA71C2"), "USDC.e"),
    bridged(190_415, address!("401eCb1D350407f13ba348573E5630B83638E30D"), "Bridged USDC"),
    bridged(181_228, address!("401eCb1D350407f13ba348573E5630B83638E30D"), "Bridged USDC"),
    tether(988, address!("779Ded0c9e1022225f8E0630b35a9b54bE713736"), "USDT0", "USDT0"),
    tether(2201, address!("78Cf24370174180738C5B8E352B6D14c83a6c9A9"), "USDT0", "USDT0"),
    tether(14, address!("e7cd86e13AC4309349F30B3435a9d337750fC82D"), "USDT0", "USD\u{20ae}0"),
    by_permit2(4326, address!("FAfDdbb3FC7688494971a79cc65DCa3EF82079E7"), "MegaUSD", "MegaUSD", 18),
    by_permit2(31_612, address!("dD468A1DDc392dcdbEf6db6e34E89AA338F9F186"), "mUSD", "Mezo USD", 18),
    by_permit2(31_611, address!("118917a40FAF1CD7a13dB0Ef56C86De7973Ac503"), "mUSD", "Mezo USD", 18),
    by_permit2(723_487, address!("33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb"), "SBC", "Stable Coin", 6),
    by_permit2(72_344, address!("33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb"), "SBC", "Stable Coin", 6),
    without_permit(by_permit2(38_833, address!("A5b8BF902b2844dA17d4506cc827F7F1681735E7"), "USDC", "USDC", 6)),

    not_in_sdk(usdc(43_113, address!("5425890298aed601595a70AB815c96711a31Bc65"), "USD Coin")),
    not_in_sdk(usdc(80_002, address!("41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582"), "USDC")),
    not_in_sdk(usdc(480, address!("79A02482A880bCE3F13e09Da970dC34db4CD24d1"), "USDC")),
    not_in_sdk(usdc(4801, address!("66145f38cBAC35Ca6F1Dfb4914dF98F1614aeA88"), "USDC")),
    not_in_sdk(bridged(4689, address!("cdf79194c6c285077a58da47641d4dbe51f63542"), "Bridged USDC")),
    not_in_sdk(usdc(3338, address!("bbA60da06c2c5424f03f7434542280FCAd453d10"), "USDC")),
    not_in_sdk(bridged(2741, address!("84a71ccd554cc1b02749b35d22f684cc8ec987e1"), "Bridged USDC")),
    not_in_sdk(bridged(11_124, address!("e4C7fBB0a626ed208021ccabA6Be1566905E2dFc"), "Bridged USDC")),
    not_in_sdk(bridged(1514, address!("F1815bd50389c46847f0Bda824eC8da914045D14"), "Bridged USDC")),
    not_in_sdk(bridged(41_923, address!("12a272A581feE5577A5dFa371afEB4b2F3a8C2F8"), "Bridged USDC (Stargate)")),
    not_in_sdk(bridged(324_705_682, address!("2e08028E3C4c2356572E096d8EF835cD5C6030bD"), "Bridged USDC (SKALE Bridge)")),
    not_in_sdk(without_permit(by_permit2(1_440_000, address!("DaF4556169c4F3f2231d8ab7BC8772Ddb7D4c84C"), "USDC", "USDC", 15))),
];

/// The default tokens of a network. A price in dollars means the first one.
pub fn default_assets(network: Network) -> impl Iterator<Item = &'static DefaultAsset> {
    DEFAULT_ASSETS
        .iter()
        .filter(move |asset| asset.chain_id == network.chain_id())
}

/// A token of the table.
#[must_use]
pub fn known_token(network: Network, address: &str) -> Option<&'static DefaultAsset> {
    let address: Address = address.parse().ok()?;
    default_assets(network).find(|known| known.address == address)
}

/// An amount of a token, such as `0.01 USDC`; in atomic units for a token that is not in the table.
#[must_use]
pub fn money(network: &str, token: &str, units: &str) -> String {
    let known = network.parse().ok();
    let known = known.and_then(|network| known_token(network, token));
    match (known, units.parse()) {
        (Some(known), Ok(amount)) => {
            format!("{} {}", decimal(amount, known.decimals), known.symbol)
        }
        _ => format!("{units} units"),
    }
}

/// An amount in millionths of a dollar, rounded down; every token of the table is worth one. `None` for other tokens.
#[must_use]
pub fn micro_dollars(network: &str, token: &str, units: &str) -> Option<U256> {
    const PLACES: u8 = 6;
    let known = known_token(network.parse().ok()?, token)?;
    let units = U256::from_str_radix(units, 10).ok()?;
    let power = |places: u8| U256::from(10).pow(U256::from(places));
    match known.decimals.checked_sub(PLACES) {
        Some(finer) => units.checked_div(power(finer)),
        None => units.checked_mul(power(PLACES - known.decimals)),
    }
}

/// An amount in whole tokens, without zeros at the end.
#[must_use]
pub fn decimal(amount: Amount, decimals: u8) -> String {
    let places = usize::from(decimals);
    let digits = format!("{:0>width$}", amount.to_string(), width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() {
        whole.to_owned()
    } else {
        format!("{whole}.{fraction}")
    }
}

/// Whether the table lists the network as a test network; false for networks that are not in the table.
pub fn is_test_network(network: Network) -> bool {
    network.is_test()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::protocol::DomainSeparator;

    #[test]
    fn amounts_are_shown_in_whole_tokens() {
        for (units, decimals, expected) in [
            ("10000", 6, "0.01"),
            ("0", 6, "0"),
            ("1", 6, "0.000001"),
            ("1000000", 6, "1"),
            ("123456789", 6, "123.456789"),
            ("42", 0, "42"),
        ] {
            assert_eq!(
                decimal(units.parse().unwrap(), decimals),
                expected,
                "{units}"
            );
        }
        let usdc = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
        assert_eq!(money("eip155:84532", usdc, "10000"), "0.01 USDC");
        assert_eq!(money("eip155:8453", usdc, "10000"), "10000 units");
    }

    #[test]
    fn tokens_are_unique_and_their_chains_are_known() {
        let mut seen = HashSet::new();
        for asset in DEFAULT_ASSETS {
            assert!(seen.insert((asset.chain_id, asset.address)), "{asset:?}");
            let network = Network::from_chain_id(asset.chain_id);
            assert!(network.known().is_some(), "{asset:?}");
            assert!(default_assets(network).any(|known| known == asset));
        }
    }

    /// The expected values were read from the token contracts (`DOMAIN_SEPARATOR()`).
    #[test]
    fn domain_separators_match_the_chains() {
        for (chain_id, separator) in [
            (
                8453,
                "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f",
            ),
            (
                84_532,
                "0x71f17a3b2ff373b803d70a5a07c046c1a2bc8e89c09ef722fcb047abe94c9818",
            ),
            (
                1,
                "0x06c37168a7db5138defc7866392bb87a741f9b3d104deb5094588ce041cae335",
            ),
            (
                137,
                "0xcaa2ce1a5703ccbe253a34eb3166df60a705c561b44b192061e28f2a985be2ca",
            ),
            (
                42_161,
                "0x08d11903f8419e68b1b8721bcbe2e9fc68569122a77ef18c216f10b3b5112c78",
            ),
            (
                43_114,
                "0xbbea200329a938bc3438984a49cb0732e66d66d7bd59c127abacc1710e77f7b3",
            ),
        ] {
            let network = Network::from_chain_id(chain_id);
            let asset = default_assets(network).next().unwrap();
            let computed =
                DomainSeparator::of_token(asset.name, asset.version, network, asset.address);
            assert_eq!(computed.0.to_string(), separator, "{network}");
        }
    }

    #[test]
    fn tokens_without_eip_3009_use_permit2() {
        let only = |chain_id| {
            let mut assets = default_assets(Network::from_chain_id(chain_id));
            (*assets.next().unwrap(), assets.next())
        };
        for (chain_id, decimals, eip2612) in [
            (4326, 18, true),
            (31_612, 18, true),
            (31_611, 18, true),
            (723_487, 6, true),
            (72_344, 6, true),
            (38_833, 6, false),
            (1_440_000, 15, false),
        ] {
            let (asset, further) = only(chain_id);
            assert_eq!(further, None);
            assert_eq!(asset.method, TransferMethod::Permit2, "{asset:?}");
            assert_eq!(
                (asset.decimals, asset.eip2612),
                (decimals, eip2612),
                "{asset:?}"
            );
        }
        let others = DEFAULT_ASSETS.iter();
        let others = others.filter(|asset| asset.method == TransferMethod::Eip3009);
        assert!(
            others
                .clone()
                .all(|asset| asset.decimals == 6 && asset.eip2612)
        );
        assert_eq!(others.count(), DEFAULT_ASSETS.len() - 7);
    }

    #[test]
    fn dollars_of_tokens_are_compared_in_one_unit() {
        for (network, decimals, units) in [
            ("eip155:8453", 6, "1500000"),
            ("eip155:4326", 18, "1500000000000000001"),
            ("eip155:1440000", 15, "1500000000000000"),
        ] {
            let known: Network = network.parse().unwrap();
            let token = default_assets(known).next().unwrap();
            assert_eq!(token.decimals, decimals);
            let token = token.address.to_string();
            let dollars = micro_dollars(network, &token, units);
            assert_eq!(dollars, Some(U256::from(1_500_000)), "{network}");
        }
        let unknown = Address::ZERO.to_string();
        assert_eq!(micro_dollars("eip155:8453", &unknown, "1"), None);
    }

    #[test]
    fn transfer_methods_round_trip_through_json() {
        for method in [TransferMethod::Eip3009, TransferMethod::Permit2] {
            let written = serde_json::to_value(method).unwrap();
            assert_eq!(written, method.name());
            let read: TransferMethod = serde_json::from_value(written).unwrap();
            assert_eq!(read, method);
        }
    }
}
