//! The domain: what a payment is, when it is good, how it may change. Pure functions and values.
//!
//! Knows the wire's types. Must not know SQL, RPC, HTTP or tokio; nothing here is async. What always holds: a [`Candidate`]
//! has a strict shape and a recovered or still open signature; a [`Verified`] payment has passed every check, and only it can be
//! accepted into the ledger.

pub mod approval;
pub mod candidate;
pub mod facts;
pub mod method;
pub mod policy;
pub mod record;
mod revert;
pub mod session;
pub mod signature;
#[cfg(test)]
pub(crate) mod specimen;
mod sponsoring;
pub mod state;

pub use approval::Approval;
pub use candidate::{Candidate, Purpose, SignedBy, Wallet};
pub use facts::{ChainFacts, Verified};
pub use method::{Method, Permit2, Signed, Sponsored};
pub use policy::{ApprovalLimits, Asset, NetworkPolicy, Proxies};
pub use record::{Payment, PaymentId};
pub use session::Session;
pub use state::{Location, PaymentState};
