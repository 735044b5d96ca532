//! All access to RPC endpoints: reads, following the chain, signing, broadcasting.
//!
//! Uses alloy's types and transports and the types of `payment`. Must not use SQL or an HTTP server. Invariants: every call has a
//! time limit; no error, log line or `Debug` output contains an RPC URL or a key; a broadcast has three outcomes, of which *unknown*
//! is one; transaction hashes are computed here and never taken from an endpoint.

mod agreement;
pub mod authorization;
pub mod broadcast;
mod budget;
mod endpoint;
mod error_kind;
mod facts;
pub mod fees;
pub mod heads;
mod inspect;
mod lens;
pub mod nonces;
mod outliers;
mod past_logs;
mod permit2;
mod reads;
pub mod receipt;
pub mod rpc;
pub mod signer;
pub mod token;
pub mod transfer;

pub use broadcast::Broadcast;
pub use facts::{FactsReader, FactsTask};
pub use fees::{FeePolicy, Fees};
pub use heads::{Advance, Comparison, Head, HeadTracker};
pub use inspect::TokenProblem;
pub use receipt::Receipt;
pub use rpc::{Endpoints, Rpc, RpcError};
pub use signer::SignerKey;
