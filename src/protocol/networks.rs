//! The table of networks that x402d knows by name. Any other EVM network can be served under its CAIP-2 name.

use crate::protocol::Network;

/// The facts about one known network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownNetwork {
    /// The EIP-155 chain id.
    pub chain_id: u64,
    /// The name shown to people.
    pub name: &'static str,
    /// The names accepted in configuration and on the command line; the first one is displayed.
    pub names: &'static [&'static str],
    /// Whether shipped v1 clients know the first of the names. A v1 client rejects a whole 402 when one entry has a network name
    /// that it does not know.
    pub in_v1: bool,
    /// Whether this is a test network, whose tokens have no value.
    pub test: bool,
    /// The symbol of the native currency, in which gas is paid.
    pub native_symbol: &'static str,
    /// The approximate block time, in milliseconds.
    pub block_time_ms: u32,
    /// Default number of confirmations for a settled payment; 1 = in a canonical block.
    pub confirmations: u32,
    /// The URL of a block explorer, without a trailing slash.
    pub explorer: Option<&'static str>,
}

/// Default confirmations of a network that is not in the table: its reorg behaviour is unknown, and it counts as a mainnet.
const UNKNOWN_CONFIRMATIONS: u32 = 3;

const V1: bool = true;
const V2: bool = false;
const MAIN: bool = false;
const TEST: bool = true;

macro_rules! networks {
    ($($chain_id:literal $name:literal $names:tt $in_v1:ident $test:ident $native:literal $block:literal $confirmations:literal $explorer:literal;)*) => {
        &[$(KnownNetwork {
            chain_id: $chain_id,
            name: $name,
            names: &$names,
            in_v1: $in_v1,
            test: $test,
            native_symbol: $native,
            block_time_ms: $block,
            confirmations: $confirmations,
            explorer: if $explorer.is_empty() { None } else { Some($explorer) },
        },)*]
    };
}

/// Every known network by its chain id.
///
/// Confirmations:
/// - 1 for test networks, for chains with instant finality (`CometBFT`, Snowman, Roll-DPoS) and for rollups, where one sequencer orders
///   the blocks.
/// - 2 for Ethereum, where single blocks are orphaned every day; for peaq, whose blocks can be orphaned until its relay chain includes
///   them; and for Polygon, which recommends one block on top.
/// - 3 for Monad, whose `latest` block is only proposed and becomes final two blocks later, and for XDC, where it is the same.
/// - 10 for Igra, which is ordered by proof of work; its makers recommend ten blocks for small amounts.
///
/// Higher numbers would make a settlement take longer than callers wait. Names, currencies, explorers and most block times are from viem.
pub const NETWORKS: &[KnownNetwork] = networks! {
//  chain id  name                    names                                               version worth  gas    ms    confs explorer
    1         "Ethereum"              ["ethereum"]                                             V1 MAIN "ETH"    12_000  2 "https://etherscan.io";
    10        "OP Mainnet"            ["optimism", "op-mainnet"]                               V2 MAIN "ETH"     2_000  1 "https://optimistic.etherscan.io";
    14        "Flare"                 ["flare"]                                                V1 MAIN "FLR"     1_800  1 "https://flare-explorer.flare.network";
    50        "XDC Network"           ["xdc"]                                                  V1 MAIN "XDC"     2_000  3 "https://xdcscan.com";
    51        "XDC Apothem"           ["xdc-apothem"]                                          V2 TEST "TXDC"    2_000  1 "https://testnet.xdcscan.com";
    137       "Polygon"               ["polygon"]                                              V1 MAIN "POL"     2_000  2 "https://polygonscan.com";
    143       "Monad"                 ["monad"]                                                V1 MAIN "MON"       300  3 "https://monadscan.com";
    480       "World Chain"           ["world", "world-chain"]                                 V2 MAIN "ETH"     2_000  1 "https://worldscan.org";
    988       "Stable"                ["stable"]                                               V1 MAIN "USDT0"     700  1 "https://stablescan.xyz";
    1328      "Sei Testnet"           ["sei-testnet"]                                          V1 TEST "SEI"       400  1 "https://testnet.seiscan.io";
    1329      "Sei"                   ["sei"]                                                  V1 MAIN "SEI"       400  1 "https://seiscan.io";
    1514      "Data Network (Story)"  ["story"]                                                V1 MAIN "DATA"    2_300  1 "https://datanetscan.io";
    2201      "Stable Testnet"        ["stable-testnet"]                                       V1 TEST "USDT0"     700  1 "https://testnet.stablescan.xyz";
    2741      "Abstract"              ["abstract"]                                             V1 MAIN "ETH"       200  1 "https://abscan.org";
    3338      "peaq"                  ["peaq"]                                                 V1 MAIN "PEAQ"    6_000  2 "https://peaq.subscan.io";
    4326      "MegaETH"               ["megaeth"]                                              V1 MAIN "ETH"     1_000  1 "https://mega.etherscan.io";
    4689      "IoTeX"                 ["iotex"]                                                V1 MAIN "IOTX"    2_500  1 "https://iotexscan.io";
    4801      "World Chain Sepolia"   ["world-sepolia", "world-chain-sepolia"]                 V2 TEST "ETH"     2_000  1 "https://sepolia.worldscan.org";
    8453      "Base"                  ["base"]                                                 V1 MAIN "ETH"     2_000  1 "https://basescan.org";
    11_124    "Abstract Testnet"      ["abstract-testnet"]                                     V1 TEST "ETH"       200  1 "https://sepolia.abscan.org";
    31_337    "Local chain"           ["local", "anvil"]                                       V2 TEST "ETH"     1_000  1 "";
    31_611    "Mezo Testnet"          ["mezo-testnet"]                                         V2 TEST "BTC"     4_000  1 "https://explorer.test.mezo.org";
    31_612    "Mezo"                  ["mezo"]                                                 V2 MAIN "BTC"     4_000  1 "https://explorer.mezo.org";
    36_900    "ADI Chain"             ["adi"]                                                  V2 MAIN "ADI"     1_000  1 "https://explorer.adifoundation.ai";
    38_833    "Igra"                  ["igra"]                                                 V2 MAIN "iKAS"    1_000 10 "https://explorer.igralabs.com";
    41_923    "EDU Chain"             ["educhain"]                                             V1 MAIN "EDU"     1_000  1 "https://explorer.educhain.xyz";
    42_161    "Arbitrum One"          ["arbitrum", "arbitrum-one"]                             V2 MAIN "ETH"       250  1 "https://arbiscan.io";
    42_220    "Celo"                  ["celo"]                                                 V1 MAIN "CELO"    1_000  1 "https://celoscan.io";
    43_113    "Avalanche Fuji"        ["avalanche-fuji"]                                       V1 TEST "AVAX"    1_700  1 "https://testnet.snowtrace.io";
    43_114    "Avalanche C-Chain"     ["avalanche"]                                            V1 MAIN "AVAX"    1_700  1 "https://snowtrace.io";
    72_344    "Radius Testnet"        ["radius-testnet"]                                       V1 TEST "RUSD"    1_000  1 "https://testnet.radiustech.xyz";
    80_002    "Polygon Amoy"          ["polygon-amoy"]                                         V1 TEST "POL"     2_000  1 "https://amoy.polygonscan.com";
    84_532    "Base Sepolia"          ["base-sepolia"]                                         V1 TEST "ETH"     2_000  1 "https://sepolia.basescan.org";
    181_228   "HPP Sepolia"           ["hpp-sepolia"]                                          V2 TEST "ETH"       250  1 "https://sepolia-explorer.hpp.io";
    190_415   "HPP"                   ["hpp"]                                                  V2 MAIN "ETH"       250  1 "https://explorer.hpp.io";
    421_614   "Arbitrum Sepolia"      ["arbitrum-sepolia"]                                     V2 TEST "ETH"       250  1 "https://sepolia.arbiscan.io";
    723_487   "Radius"                ["radius"]                                               V1 MAIN "RUSD"    1_000  1 "https://network.radiustech.xyz";
    1_440_000 "XRPL EVM"              ["xrpl-evm"]                                             V1 MAIN "XRP"     4_000  1 "https://explorer.xrplevm.org";
    11_142_220 "Celo Sepolia"         ["celo-sepolia"]                                         V1 TEST "CELO"    1_000  1 "https://celo-sepolia.blockscout.com";
    11_155_111 "Sepolia"              ["sepolia", "ethereum-sepolia"]                          V1 TEST "ETH"    12_000  1 "https://sepolia.etherscan.io";
    324_705_682 "SKALE Base Sepolia"  ["skale-base-sepolia"]                                   V1 TEST "CREDIT"  1_000  1 "https://base-sepolia-testnet-explorer.skalenodes.com";
};

impl KnownNetwork {
    /// The network as [`Network`], which displays as the CAIP-2 name.
    pub const fn network(&self) -> Network {
        Network::from_chain_id(self.chain_id)
    }

    /// The name in v1 messages; `None` if v1 has none.
    pub fn v1_name(&self) -> Option<&'static str> {
        self.names.first().copied().filter(|_| self.in_v1)
    }
}

impl Network {
    /// The network's entry in the table.
    pub fn known(self) -> Option<&'static KnownNetwork> {
        NETWORKS
            .iter()
            .find(|known| known.chain_id == self.chain_id())
    }

    /// Finds a network by its CAIP-2 name, or by a name in the table such as `base` or `arbitrum`.
    pub fn from_name(text: &str) -> Option<Self> {
        text.parse().ok().or_else(|| Self::from_listed_name(text))
    }

    /// Finds a network by a name in the table.
    pub fn from_listed_name(name: &str) -> Option<Self> {
        let network = NETWORKS.iter().find(|known| known.names.contains(&name));
        network.map(KnownNetwork::network)
    }

    /// The name in v1 messages; `None` if v1 has none.
    pub fn v1_name(self) -> Option<&'static str> {
        self.known().and_then(KnownNetwork::v1_name)
    }

    /// Finds a network by its name in v1 messages.
    pub fn from_v1_name(name: &str) -> Option<Self> {
        let mut known = NETWORKS.iter();
        known
            .find(|known| known.v1_name() == Some(name))
            .map(KnownNetwork::network)
    }

    /// A lower bound, in seconds, for the time between two blocks. 0 where the block time is below two seconds or unknown.
    pub fn min_block_time_s(self) -> u64 {
        let block_time_ms = self.known().map_or(0, |known| known.block_time_ms);
        if block_time_ms >= 2_000 {
            u64::from(block_time_ms / 1_000)
        } else {
            0
        }
    }

    /// The symbol of the native currency, in which gas is paid. `None` if the network is not in the table.
    pub fn native_symbol(self) -> Option<&'static str> {
        self.known().map(|known| known.native_symbol)
    }

    /// Whether the table lists this as a test network. A network that is not in the table counts as a mainnet.
    pub fn is_test(self) -> bool {
        self.known().is_some_and(|known| known.test)
    }

    /// The number of confirmations for a settled payment when the operator configures none.
    pub fn default_confirmations(self) -> u32 {
        self.known()
            .map_or(UNKNOWN_CONFIRMATIONS, |known| known.confirmations)
    }

    /// The highest gas price to pay, in wei per gas, when the operator configures none.
    ///
    /// Several times the lowest price seen on the network, because no transaction is mined below that. On other networks 20 gwei: a higher
    /// price means a fault or an attack.
    pub const fn default_fee_cap_wei(self) -> u64 {
        let gwei = match self.chain_id() {
            // Ethereum has reached hundreds of gwei. Lowest prices: XDC 12.5, Story 16, Sei 1.
            1 | 50 | 51 | 1_328 | 1_329 | 1_514 => 200,
            43_113 | 43_114 => 300,
            // Celo: lowest price 25, 50 and more for days. Flare.
            14 | 42_220 | 11_142_220 => 500,
            // Cheap native currencies have high prices. Polygon: lowest 25, hundreds when blocks are full. Monad: lowest 100.
            137 | 143 | 3_338 | 80_002 => 1_000,
            // IoTeX: lowest price 1,000.
            4_689 => 5_000,
            38_833 | 1_440_000 => 10_000,
            _ => 20,
        };
        gwei * 1_000_000_000
    }

    /// Whether a transaction is charged for its gas limit instead of the gas used (Monad).
    pub const fn charges_gas_limit(self) -> bool {
        self.chain_id() == 143
    }

    /// The block explorer's page of a transaction; `None` if no explorer is known.
    pub fn explorer_url(self, transaction: impl std::fmt::Display) -> Option<String> {
        let explorer = self.known()?.explorer?;
        Some(format!("{explorer}/tx/{transaction}"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn chain_ids_are_sorted_and_names_are_unique() {
        assert!(NETWORKS.is_sorted_by(|one, next| one.chain_id < next.chain_id));
        let mut seen = HashSet::new();
        for known in NETWORKS {
            assert!(!known.names.is_empty(), "{}", known.name);
            for name in known.names {
                assert!(seen.insert(*name), "{name} is listed twice");
                let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
                assert!(name.bytes().all(plain), "{name}");
                assert_eq!(Network::from_name(name), Some(known.network()));
            }
            let caip_2 = known.network().to_string();
            assert_eq!(Network::from_name(&caip_2), Some(known.network()));
        }
        assert_eq!(Network::from_name("nowhere"), None);
    }

    #[test]
    fn v1_and_caip_2_names_give_the_same_network() {
        let base_sepolia: Network = "eip155:84532".parse().unwrap();
        assert_eq!(Network::from_v1_name("base-sepolia"), Some(base_sepolia));
        assert_eq!(base_sepolia.v1_name(), Some("base-sepolia"));
        assert_eq!(base_sepolia.to_string(), "eip155:84532");
        let arbitrum = Network::from_name("arbitrum").unwrap();
        assert_eq!(arbitrum.chain_id(), 42_161);
        assert_eq!(arbitrum.v1_name(), None, "Arbitrum never had a v1 name");
        assert_eq!(Network::from_v1_name("arbitrum"), None);
        assert_eq!(Network::from_v1_name("ethereum-sepolia"), None);
    }

    /// The names that shipped v1 clients know. A v1 client that reads any other name rejects the whole 402.
    #[test]
    fn v1_names_are_exactly_those_of_shipped_clients() {
        let names = NETWORKS.iter().filter_map(KnownNetwork::v1_name);
        let mut names: Vec<_> = names.collect();
        names.sort_unstable();
        let shipped = [
            "abstract",
            "abstract-testnet",
            "avalanche",
            "avalanche-fuji",
            "base",
            "base-sepolia",
            "celo",
            "celo-sepolia",
            "educhain",
            "ethereum",
            "flare",
            "iotex",
            "megaeth",
            "monad",
            "peaq",
            "polygon",
            "polygon-amoy",
            "radius",
            "radius-testnet",
            "sei",
            "sei-testnet",
            "sepolia",
            "skale-base-sepolia",
            "stable",
            "stable-testnet",
            "story",
            "xdc",
            "xrpl-evm",
        ];
        assert_eq!(names, shipped);
    }

    #[test]
    fn testnets_confirm_at_once_and_unknown_count_as_mainnets() {
        for known in NETWORKS {
            assert!((1..=10).contains(&known.confirmations), "{}", known.name);
            assert!(!known.test || known.confirmations == 1, "{}", known.name);
            assert!(
                (100..=12_000).contains(&known.block_time_ms),
                "{}",
                known.name
            );
        }
        let unknown = Network::from_chain_id(987_654_321);
        assert!(!unknown.is_test());
        assert_eq!(unknown.default_confirmations(), 3);
        assert_eq!(unknown.native_symbol(), None);
        assert!(Network::from_chain_id(84_532).is_test());
        assert!(!Network::from_chain_id(8453).is_test());
    }

    #[test]
    fn fee_caps_are_well_above_the_lowest_gas_prices() {
        let gwei = 1_000_000_000;
        let lowest = [
            (143, 100),
            (42_220, 25),
            (137, 25),
            (50, 13),
            (1514, 16),
            (4689, 1_000),
        ];
        for (chain_id, lowest) in lowest {
            let cap = Network::from_chain_id(chain_id).default_fee_cap_wei();
            assert!(cap >= 4 * lowest * gwei, "{chain_id}: {cap}");
        }
        assert_eq!(
            Network::from_chain_id(8453).default_fee_cap_wei(),
            20 * gwei
        );
    }

    #[test]
    fn explorer_url_is_given_where_an_explorer_is_known() {
        let base = Network::from_chain_id(8453);
        assert_eq!(
            base.explorer_url("0xab").as_deref(),
            Some("https://basescan.org/tx/0xab")
        );
        assert_eq!(Network::from_chain_id(31_337).explorer_url("0xab"), None);
        let explorers = NETWORKS.iter().filter_map(|known| known.explorer);
        for explorer in explorers {
            assert!(
                explorer.starts_with("https://") && !explorer.ends_with('/'),
                "{explorer}"
            );
        }
    }
}
