//! The tokens that SDK buyers pay with by default, as data (`protocol.md` §7.1).

use alloy::primitives::{Address, address};

use crate::protocol::Network;

/// A default token of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultAsset {
    /// Its chain.
    pub chain_id: u64,
    /// The contract.
    pub address: Address,
    /// Its EIP-712 name.
    pub name: &'static str,
    /// Its EIP-712 version.
    pub version: &'static str,
    /// How many decimals people see.
    pub decimals: u8,
}

const fn usdc(chain_id: u64, address: Address, name: &'static str) -> DefaultAsset {
    DefaultAsset {
        chain_id,
        address,
        name,
        version: "2",
        decimals: 6,
    }
}

const fn other(chain_id: u64, address: Address, name: &'static str) -> DefaultAsset {
    DefaultAsset {
        chain_id,
        address,
        name,
        version: "1",
        decimals: 6,
    }
}

/// Every default token that moves by EIP-3009. A wrong name is the commonest configuration error of the field: a server compares
/// these with the chain when it starts.
pub const DEFAULT_ASSETS: &[DefaultAsset] = &[
    usdc(
        1,
        address!("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"),
        "USD Coin",
    ),
    usdc(
        8453,
        address!("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
        "USD Coin",
    ),
    usdc(
        84_532,
        address!("036CbD53842c5426634e7929541eC2318f3dCF7e"),
        "USDC",
    ),
    usdc(
        137,
        address!("3c499c542cEF5E3811e1192ce70d8cC03d5c3359"),
        "USD Coin",
    ),
    usdc(
        80_002,
        address!("41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582"),
        "USDC",
    ),
    usdc(
        42_161,
        address!("af88d065e77c8cC2239327C5EDb3A432268e5831"),
        "USD Coin",
    ),
    usdc(
        421_614,
        address!("75faf114eafb1BDbe2F0316DF893fd58CE46AA4d"),
        "USD Coin",
    ),
    usdc(
        43_114,
        address!("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"),
        "USD Coin",
    ),
    usdc(
        43_113,
        address!("5425890298aed601595a70AB815c96711a31Bc65"),
        "USD Coin",
    ),
    usdc(
        42_220,
        address!("cebA9300f2b948710d2653dD7B07f33A8B32118C"),
        "USDC",
    ),
    other(
        42_220,
        address!("48065fbBE25f71C9282ddf5e1cD6D6A887483D5e"),
        "Tether USD",
    ),
    other(
        42_220,
        address!("D2ab3C9A02DBBAB236BfEC45D1d755DF4267F771"),
        "Tether America USD",
    ),
    usdc(
        11_142_220,
        address!("01C5C0122039549AD1493B8220cABEdD739BC44E"),
        "USDC",
    ),
    usdc(
        1329,
        address!("e15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392"),
        "USDC",
    ),
    usdc(
        1328,
        address!("4fCF1784B31630811181f670Aea7A7bEF803eaED"),
        "USDC",
    ),
    usdc(
        143,
        address!("754704Bc059F8C67012fEd69BC8A327a5aafb603"),
        "USDC",
    ),
    usdc(
        50,
        address!("fA2958CB79b0491CC627c1557F441eF849Ca8eb1"),
        "USDC",
    ),
    usdc(
        51,
        address!("b5AB69F7bBada22B28e79C8FFAECe55eF1c771D4"),
        "USDC",
    ),
    usdc(
        36_900,
        address!("9cb8142aEBBcdc60AF7c97Af897A67A8f3CA71C2"),
        "USDC.e",
    ),
    usdc(
        190_415,
        address!("401eCb1D350407f13ba348573E5630B83638E30D"),
        "Bridged USDC",
    ),
    usdc(
        181_228,
        address!("401eCb1D350407f13ba348573E5630B83638E30D"),
        "Bridged USDC",
    ),
    other(
        988,
        address!("779Ded0c9e1022225f8E0630b35a9b54bE713736"),
        "USDT0",
    ),
    other(
        2201,
        address!("78Cf24370174180738C5B8E352B6D14c83a6c9A9"),
        "USDT0",
    ),
    other(
        14,
        address!("e7cd86e13AC4309349F30B3435a9d337750fC82D"),
        "USD\u{20ae}0",
    ),
];

/// Chains whose money is worth nothing. A chain that is not listed counts as a mainnet.
const TEST_CHAINS: &[u64] = &[
    51,
    1328,
    2201,
    4801,
    11_124,
    31_337,
    31_611,
    43_113,
    72_344,
    80_002,
    84_532,
    181_228,
    421_614,
    11_142_220,
    11_155_111,
    324_705_682,
];

/// The default tokens of a network; the first one is what a price in dollars means there.
pub fn default_assets(network: Network) -> impl Iterator<Item = &'static DefaultAsset> {
    DEFAULT_ASSETS
        .iter()
        .filter(move |asset| asset.chain_id == network.chain_id())
}

/// Whether a network is known to be a test network.
pub fn is_test_network(network: Network) -> bool {
    TEST_CHAINS.contains(&network.chain_id())
}
