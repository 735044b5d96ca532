//! The engine: moves accepted payments to the chain and back into the ledger, exactly once.
//!
//! Knows the ledger and the chain. Must not know HTTP or who asked. What always holds: bytes, hash and nonce are committed before
//! anything is sent; a nonce is never used for two contents by two owners (the lane's epoch fences); an unknown outcome stays open
//! and the same bytes are sent again; success is read from logs, never inferred. Everything here can be killed at any instruction:
//! what counts is in the ledger, memory is a cache of it.

mod approvals;
mod chain_view;
mod expired;
pub mod failpoint;
mod gas;
mod lane;
mod load;
mod pickup;
mod prepare;
mod queue;
mod sending;
mod site;
mod supervisor;
mod transfers;
mod undecided;
mod unmoved;
pub mod waiters;
mod watch;

pub use approvals::{Approvals, Approver, approval_objection};
pub use chain_view::ChainView;
pub use gas::{BatchLimits, EMPTY_PAYMENTS, payment_cost};
pub use lane::{Lane, Unconfigured};
pub use pickup::Pickup;
pub use queue::{Place, Queue, Queued};
pub use sending::{CannotSend, SenderWatch, Senders, native_amount};
pub use site::{Health, Site, SiteParts};
pub use supervisor::{Ailing, EngineFailed, Supervisor, Task};
pub use transfers::Transfers;
pub use unmoved::Unmoved;
pub use waiters::Waiters;
pub use watch::Watch;

use crate::chain::RpcError;
use crate::ledger::LedgerError;

/// Something cannot be looked at now; it will be again.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    /// The chain cannot be asked.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The ledger cannot be asked.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
