//! x402d: the facilitator people run themselves.
#[cfg(feature = "server")]
pub mod chain;
pub mod clock;
#[cfg(feature = "server")]
pub mod embedded;
#[cfg(feature = "server")]
pub mod facilitator;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod ledger;
#[cfg(feature = "server")]
pub mod payment;
pub mod protocol;
#[cfg(feature = "server")]
pub mod settlement;
