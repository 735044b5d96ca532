//! The engine: moves accepted payments to the chain and records the results in the ledger, exactly once.
//!
//! Knows the ledger and the chain. Must not know HTTP or which client sent a request. Invariants: bytes, hash and nonce are committed
//! before anything is sent. Two owners never use one nonce for different contents: each write checks the lane's epoch. A broadcast with an
//! unknown outcome stays open, and the same bytes are sent again. Success is read from event logs, never inferred. The process can be
//! killed at any instruction: the ledger holds the truth, memory is a cache of it.

mod budgets;
pub mod failpoint;
mod gas;
mod intake;
mod lane;
mod levels;
mod reconcile;
mod senders;
mod served_network;
mod steps;
mod supervisor;
mod suspensions;
mod turns;
pub mod waiters;
mod watch;

pub use budgets::{BudgetFigures, BudgetWatch, Budgets, GasParties, NetworkBudget};
pub use gas::{BatchLimits, GAS_RESERVE_PAYMENTS, PAYMENTS_LOW, payment_cost};
pub use intake::{Approvals, Approver, NoPlace, Pickup, Place, Queue, Queued, approval_rejection};
pub use lane::{Lane, UnconfiguredSigners};
pub use levels::Levels;
pub use reconcile::{Reconciler, Transfers};
pub use senders::{CannotSend, SenderFigures, SenderWatch, Senders, native_amount};
pub use served_network::{Health, ServedNetwork, ServedNetworkParts};
pub use steps::{Named, log_step};
pub use supervisor::{EngineFailed, FailingTask, Supervisor, Task};
pub use suspensions::Suspensions;
pub use waiters::Waiters;
pub use watch::{ChainTick, ChainView, Watch};

use crate::chain::RpcError;
use crate::ledger::LedgerError;

/// A read failed for now; the caller tries again later.
#[derive(Debug, thiserror::Error)]
pub enum DependencyError {
    /// The RPC did not answer.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The database did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
