//! The only door to RPC: reads, heads, signing, broadcasting.
//!
//! Knows alloy's types and transports and the domain's values. Must not know SQL or HTTP servers. What always holds: no call is
//! without a time limit; no error, log line or `Debug` shows an RPC URL or a key; a broadcast has three outcomes, and *unknown*
//! is one of them; hashes are computed here, never believed.

mod agreement;
pub mod authorization;
mod belief;
pub mod broadcast;
mod budget;
mod endpoint;
mod facts;
pub mod fees;
pub mod heads;
mod inspect;
mod lens;
pub mod nonces;
mod past_logs;
mod permit2;
mod reads;
pub mod receipt;
pub mod rpc;
pub mod signer;
pub mod token;
pub mod transfer;
mod trouble;

pub use broadcast::Broadcast;
pub use facts::{FactsReader, FactsTask};
pub use fees::{FeePolicy, Fees};
pub use heads::{Advance, Head, HeadTracker};
pub use inspect::TokenProblem;
pub use receipt::Receipt;
pub use rpc::{Endpoints, Rpc, RpcError};
pub use signer::SignerKey;
