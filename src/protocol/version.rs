//! The two versions of the protocol.

use serde::{Deserialize, Serialize};

/// The protocol version of a message (`x402Version` on the wire, a number). Internally every message has the v2 form; the version
/// decides how a response names its network and which header carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum X402Version {
    /// Version 1, of 2025: network names such as `base`, header `X-PAYMENT`, the requirements in the 402's body.
    V1,
    /// Version 2, current: CAIP-2 network names, header `PAYMENT-SIGNATURE`, the requirements in a header of the 402.
    V2,
}

impl From<X402Version> for u8 {
    fn from(version: X402Version) -> Self {
        match version {
            X402Version::V1 => 1,
            X402Version::V2 => 2,
        }
    }
}

impl TryFrom<u8> for X402Version {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            other => Err(format!("x402Version is 1 or 2, got {other}")),
        }
    }
}
