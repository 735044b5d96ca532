//! The two versions of the protocol.

use serde::{Deserialize, Serialize};

/// Which dialect a message is written in. Inside the crate everything is v2; the version decides how an answer names its
/// network and which header carries it (`x402Version` on the wire, a number).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum X402Version {
    /// 2025's dialect: friendly network names, `X-PAYMENT`, the challenge in the body.
    V1,
    /// The current dialect: CAIP-2 networks, `PAYMENT-SIGNATURE`, the challenge in a header.
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
