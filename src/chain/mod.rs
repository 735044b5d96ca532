//! All access to RPC endpoints: reads, following the chain, signing, broadcasting.
//!
//! `rpc` has the endpoints and every JSON-RPC method. `eip3009`, `permit2`, `multicall` and `transfer` have one way to move money each;
//! `authorization` chooses among them, `nonce_use` and `permit2_use` tell afterwards which transaction moved the money. `heads` follows
//! the chain, `account_nonces` the signers' nonces. `simulated` makes simulations look like transactions.
//!
//! Uses alloy's types and transports and the types of `payment`. Must not use SQL or an HTTP server. Invariants: every call has a
//! time limit; no error, log line or `Debug` output contains an RPC URL or a key; a broadcast has three outcomes, of which *unknown*
//! is one; transaction hashes are computed here and never taken from an endpoint.

mod account_nonces;
pub mod authorization;
#[cfg(feature = "aws")]
pub mod aws_kms;
pub mod broadcast;
mod eip3009;
mod facts;
pub mod fees;
mod heads;
mod inspect;
mod lens;
mod multicall;
mod nonce_use;
mod permit2;
mod permit2_use;
mod rpc;
pub mod signer;
mod simulated;
pub mod transfer;

pub use account_nonces::FUNDING_GAS;
pub use broadcast::Broadcast;
pub use facts::{FactsReader, FactsTask};
pub use fees::{FeePolicy, Fees};
pub use heads::{Advance, Comparison, HeadTracker};
pub use inspect::TokenProblem;
pub use multicall::{CallOutcome, MULTICALL3};
pub use nonce_use::AuthorizationUse;
pub use rpc::{Endpoints, Head, Log, Receipt, Rpc, RpcError, RpcResult};
pub use signer::SignerKey;
pub use simulated::SimulatedSender;
