//! Where accepted payments wait for a lane: the queue in memory, the search for those that only the ledger has, and payments whose payer's
//! approval has to be mined first.

mod approvals;
mod pickup;
mod queue;

pub use approvals::{Approvals, Approver, approval_rejection};
pub use pickup::Pickup;
pub use queue::{NoPlace, Place, Queue, Queued};
