//! Programs that x402d runs itself: a private Postgres cluster and a local chain.
//!
//! Handles installed binaries, accounts, folders, locks, child processes and signals, and the contracts of an empty chain. Must not know
//! payments, configuration or HTTP handlers, and imports no other module. Callers get two URLs and use them like configured ones.
//!
//! Always:
//! - The cluster belongs to its data directory. An x402d that finds a running server there shares it, and the last x402d that stops in
//!   order stops it. After `kill -9` the server keeps running, and the next x402d uses it.
//! - The private server lets in root and the user that runs x402d, by the kernel's word. As root it never runs as `nobody`.
//! - A child process never gets the environment of x402d, because signer keys may be in it.
//! - Every wait has a time limit, and every error says what the operator can do.

mod account;
mod anvil;
mod anvil_binary;
mod binaries;
mod cluster;
mod data_dir;
mod database;
mod error;
mod genesis;
mod handover;
mod json_rpc;
mod locks;
mod postgres;
mod postmaster;
mod scratch;
mod sockets;

pub use anvil::{LocalChain, LocalChainOptions};
pub use binaries::postgres_program;
pub use data_dir::{default_data_dir, running_as_root};
pub use error::EmbeddedError;
pub use genesis::{CHAIN_ID, DevAccount, SMART_WALLET_FACTORY, TEST_USDC};
pub use postgres::EmbeddedPostgres;
pub use scratch::ScratchDatabase;
