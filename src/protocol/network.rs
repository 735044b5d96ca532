//! EVM networks, named by CAIP-2. The table of known networks is in [`crate::protocol::networks`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An EVM network, written `eip155:<chain id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(u64);

/// The text is not the CAIP-2 name of an EVM network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a CAIP-2 network such as eip155:8453, got {text:?}{}", hint(.suggestion.as_ref()))]
pub struct UnknownNetwork {
    text: String,
    /// The known network of this name, such as `base`.
    suggestion: Option<Network>,
}

fn hint(suggestion: Option<&Network>) -> String {
    suggestion.map_or_else(String::new, |network| format!("; write {network}"))
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

    /// Accepts `eip155:` and a decimal chain id without leading zeros, as SDK 2.27 does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownNetwork {
            text: text.chars().take(40).collect(),
            suggestion: Self::from_listed_name(text),
        };
        let digits = text.strip_prefix("eip155:").ok_or_else(unknown)?;
        let plain = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if !plain {
            return Err(unknown());
        }
        digits.parse().map(Self).map_err(|_| unknown())
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
    fn error_for_a_known_name_suggests_the_caip_2_name() {
        let error = "base-sepolia".parse::<Network>().unwrap_err().to_string();
        assert_eq!(
            error,
            "expected a CAIP-2 network such as eip155:8453, got \"base-sepolia\"; write eip155:84532"
        );
        let error = "bsae".parse::<Network>().unwrap_err().to_string();
        assert!(error.ends_with("got \"bsae\""), "{error}");
    }

    #[test]
    fn parse_rejects_loose_spellings() {
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
