//! The domain: what a payment is, when it is valid, which states it has. Pure functions and values.
//!
//! Knows the types of [`protocol`](crate::protocol). Must not know SQL, RPC, HTTP or tokio; nothing here is async.
//!
//! Invariants: a [`Candidate`] is well-formed, and its signature is either recovered to the payer's key or left for the chain to check. A
//! [`Verified`] payment has passed every check, and the ledger accepts nothing else.

mod caller;
pub mod candidate;
mod deny_list;
pub mod facts;
#[cfg(test)]
pub(crate) mod fixture;
mod key;
pub mod method;
mod new_key;
pub mod policy;
pub mod record;
mod revert;
pub mod session;
pub mod signature;
mod sponsoring;
pub mod state;
pub mod terms;

pub use caller::{InvalidKeyId, KeyId, Who};
pub use candidate::{Candidate, Purpose, SignedBy, Wallet};
pub use deny_list::{DenyList, DenyListError};
pub use facts::{ChainFacts, Verified};
pub use key::{Key, PresentedKey, Scope};
pub use method::{Method, Permit2, Sponsored};
pub use new_key::{key_name, native_wei};
pub use policy::{AccessMode, ApprovalLimits, Asset, GasBudget, NetworkPolicy, Proxies};
pub use record::{Payment, PaymentId};
pub use session::Session;
pub use sponsoring::Approval;
pub use state::{Location, PaymentState};
pub use terms::{PaymentTerms, UnixSeconds};
