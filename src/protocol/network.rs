//! Networks by their CAIP-2 names. What is known of some of them is in [`crate::protocol::networks`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An EVM network, written `eip155:<chain id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(u64);

/// The text names no EVM network in CAIP-2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a CAIP-2 network such as eip155:8453, got {text:?}{}", hint(.meant))]
pub struct UnknownNetwork {
    text: String,
    /// The network that has this name elsewhere.
    meant: Option<Network>,
}

fn hint(meant: &Option<Network>) -> String {
    meant.map_or_else(String::new, |network| format!("; write {network}"))
}

impl Network {
    /// The network with this chain id.
    pub const fn from_chain_id(chain_id: u64) -> Self {
        Self(chain_id)
    }

    /// The EIP-155 chain id.
    pub const fn chain_id(self) -> u64 {
        self.0
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
        let shown = || UnknownNetwork {
            text: text.chars().take(40).collect(),
            meant: Self::listed(text),
        };
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
    fn a_name_of_a_network_is_answered_with_its_id() {
        let said = "base-sepolia".parse::<Network>().unwrap_err().to_string();
        assert_eq!(
            said,
            "expected a CAIP-2 network such as eip155:8453, got \"base-sepolia\"; write eip155:84532"
        );
        let said = "bsae".parse::<Network>().unwrap_err().to_string();
        assert!(said.ends_with("got \"bsae\""), "{said}");
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
