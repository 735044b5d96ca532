//! Networks by their CAIP-2 names, and the friendly names that v1 used for some of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An EVM network, written `eip155:<chain id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(u64);

/// The text names no EVM network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a network such as eip155:8453 or base, got {0:?}")]
pub struct UnknownNetwork(String);

/// The v1 names that shipped clients know (`protocol.md` §1.5). A v1 client refuses a whole 402 that holds any other name.
const V1_NAMES: &[(&str, u64)] = &[
    ("abstract", 2741),
    ("abstract-testnet", 11_124),
    ("avalanche", 43_114),
    ("avalanche-fuji", 43_113),
    ("base", 8453),
    ("base-sepolia", 84_532),
    ("celo", 42_220),
    ("celo-sepolia", 11_142_220),
    ("educhain", 41_923),
    ("ethereum", 1),
    ("flare", 14),
    ("iotex", 4689),
    ("megaeth", 4326),
    ("monad", 143),
    ("peaq", 3338),
    ("polygon", 137),
    ("polygon-amoy", 80_002),
    ("radius", 723_487),
    ("radius-testnet", 72_344),
    ("sei", 1329),
    ("sei-testnet", 1328),
    ("sepolia", 11_155_111),
    ("skale-base-sepolia", 324_705_682),
    ("stable", 988),
    ("stable-testnet", 2201),
    ("story", 1514),
    ("xdc", 50),
    ("xrpl-evm", 1_440_000),
];

/// The currencies in which gas is paid.
const NATIVE_SYMBOLS: &[(&str, &[u64])] = &[
    (
        "ETH",
        &[1, 10, 2741, 4326, 8453, 11_124, 42_161, 84_532, 11_155_111],
    ),
    ("AVAX", &[43_113, 43_114]),
    ("CELO", &[42_220, 11_142_220]),
    ("FLR", &[14]),
    ("IOTX", &[4689]),
    ("IP", &[1514]),
    ("MON", &[143]),
    ("PEAQ", &[3338]),
    ("POL", &[137, 80_002]),
    ("SEI", &[1328, 1329]),
    ("XDC", &[50]),
    ("XRP", &[1_440_000]),
];

impl Network {
    /// The network with this chain id.
    pub const fn from_chain_id(chain_id: u64) -> Self {
        Self(chain_id)
    }

    /// The EIP-155 chain id.
    pub const fn chain_id(self) -> u64 {
        self.0
    }

    /// The name that v1 messages use, where there is one.
    pub fn v1_name(self) -> Option<&'static str> {
        V1_NAMES
            .iter()
            .find(|(_, chain_id)| *chain_id == self.0)
            .map(|(name, _)| *name)
    }

    /// The symbol of the currency in which gas is paid, where it is known.
    pub fn native_symbol(self) -> Option<&'static str> {
        NATIVE_SYMBOLS
            .iter()
            .find(|(_, chains)| chains.contains(&self.0))
            .map(|(symbol, _)| *symbol)
    }

    /// The network of a v1 name.
    pub fn from_v1_name(name: &str) -> Option<Self> {
        V1_NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, chain_id)| Self(*chain_id))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "eip155:{}", self.0)
    }
}

impl FromStr for Network {
    type Err = UnknownNetwork;

    /// Strictly `eip155:` and a decimal chain id, as SDK 2.27 reads it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = || UnknownNetwork(text.chars().take(40).collect());
        let digits = text.strip_prefix("eip155:").ok_or_else(shown)?;
        let plain = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if !plain {
            return Err(shown());
        }
        digits.parse().map(Self).map_err(|_| shown())
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::protocol::field::parse_text(deserializer, "a CAIP-2 network", |text| {
            text.parse()
                .map_err(|error: UnknownNetwork| error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_versions_lead_to_the_same_network() {
        let base_sepolia: Network = "eip155:84532".parse().unwrap();
        assert_eq!(Network::from_v1_name("base-sepolia"), Some(base_sepolia));
        assert_eq!(base_sepolia.v1_name(), Some("base-sepolia"));
        assert_eq!(base_sepolia.to_string(), "eip155:84532");
        assert_eq!(
            Network::from_chain_id(42_161).v1_name(),
            None,
            "Arbitrum never had a v1 name"
        );
    }

    #[test]
    fn loose_spellings_of_a_network_are_refused() {
        for text in [
            "",
            "eip155:",
            "eip155:084532",
            "eip155:84532x",
            "eip155:-1",
            "eip155:*",
            "EIP155:1",
            "solana:1",
            "base",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text:?}");
        }
    }
}
