//! The domain: what a payment is, when it is valid, which states it has. Pure functions and values.
//!
//! Knows the types of [`protocol`](crate::protocol). Must not know SQL, RPC, HTTP or tokio; nothing here is async.
//!
//! Invariants: a [`Candidate`] is well-formed, and its signature is either recovered to the payer's key or left for the chain to check. A
//! [`Verified`] payment has passed every check, and the ledger accepts nothing else.

mod caller;
pub mod candidate;
pub mod facts;
#[cfg(test)]
pub(crate) mod fixture;
pub mod method;
pub mod policy;
pub mod record;
mod revert;
pub mod session;
pub mod signature;
mod sponsoring;
pub mod state;

pub use caller::{InvalidKeyId, KeyId, Who};
pub use candidate::{Candidate, Purpose, SignedBy, Wallet};
pub use facts::{ChainFacts, Verified};
pub use method::{Method, Permit2, Signed, Sponsored};
pub use policy::{ApprovalLimits, Asset, NetworkPolicy, Proxies};
pub use record::{Payment, PaymentId};
pub use session::Session;
pub use sponsoring::Approval;
pub use state::{Location, PaymentState};
