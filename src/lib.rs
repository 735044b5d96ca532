//! x402d.
#[cfg(feature = "server")]
pub mod embedded;
