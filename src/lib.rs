//! x402d: the facilitator people run themselves.
#[cfg(feature = "buyer")]
pub mod buyer;
#[cfg(feature = "server")]
pub mod chain;
pub mod clock;
#[cfg(feature = "server")]
pub mod command;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod embedded;
#[cfg(feature = "server")]
pub mod facilitator;
#[cfg(feature = "server")]
pub mod http;
#[cfg(feature = "server")]
pub mod ledger;
#[cfg(test)]
#[cfg(all(feature = "buyer", feature = "seller"))]
mod market_tests;
#[cfg(feature = "server")]
pub mod payment;
pub mod protocol;
#[cfg(feature = "seller")]
pub mod seller;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod settlement;
#[cfg(feature = "server")]
pub mod telemetry;
