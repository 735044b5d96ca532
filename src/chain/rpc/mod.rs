//! JSON-RPC over HTTP (`docs/architecture.md`, RPC endpoints).
//!
//! `client` has every method with its typed result (`answers`). `pool` chooses the endpoints for a call, repeats it and
//! compares answers; `endpoint` has the health of one endpoint, `budget` the limits on calls, `error` the meaning of errors.

mod answers;
mod budget;
mod client;
mod endpoint;
mod error;
mod pool;

pub(super) use answers::MinedTransaction;
pub use answers::{Head, Log, Receipt};
pub use error::{RpcError, RpcResult};
pub use pool::{Endpoints, Rpc};

pub(super) use client::LogFilter;
pub(super) use endpoint::{Chain, Endpoint, is_near, outliers};
pub(super) use error::ErrorKind;
pub(super) use pool::{Errors, retry_rounds};
