//! What x402d runs for an operator who has none: a private Postgres cluster and a local chain.
//!
//! The room knows operating-system things: where binaries are installed, users, folders, locks, child processes and
//! their signals, and how a test token gets onto an empty chain. It must not know payments, configuration or HTTP
//! handlers, and it imports no other room. Whoever uses it gets two URLs, and those go where an operator's own would.
//!
//! What always holds:
//! - The cluster belongs to its data directory. Whoever finds a living postmaster there shares it, and it is stopped
//!   by the last x402d that leaves in order. One that dies by `kill -9` leaves a cluster that the next one adopts.
//! - A child process never sees the environment of x402d, because signer keys may be in it.
//! - Each wait has a time limit, and each error says what the operator can do about it.

mod account;
mod anvil;
mod anvil_binary;
mod binaries;
mod cluster;
mod database;
mod error;
mod genesis;
mod json_rpc;
mod locks;
mod place;
mod postgres;
mod postmaster;
mod scratch;
mod sockets;

pub use anvil::{LocalChain, LocalChainOptions};
pub use error::EmbeddedError;
pub use genesis::{CHAIN_ID, DevAccount, SMART_WALLET_FACTORY, TEST_USDC};
pub use place::{default_data_dir, running_as_root};
pub use postgres::EmbeddedPostgres;
pub use scratch::ScratchDatabase;
