//! x402d: the facilitator people run themselves.
pub mod protocol;
