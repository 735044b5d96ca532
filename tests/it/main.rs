//! The whole service against real parts: Postgres, a local chain, a faulty RPC, and processes that are killed.
//!
//!     cargo test --features failpoints --test it
//!
//! With `DATABASE_URL` set, each test gets a fresh database on that server; without it, each runs x402d's private Postgres.

#[cfg(test)]
mod alarms;
#[cfg(test)]
mod approvals;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod batching;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod broken_connections;
#[cfg(test)]
mod buyer;
#[cfg(test)]
mod chains;
#[cfg(test)]
mod claims;
#[cfg(test)]
mod clocks;
#[cfg(test)]
mod database_failures;
#[cfg(test)]
mod database_poolers;
#[cfg(test)]
mod database_troubles;
#[cfg(test)]
mod database_words;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod dying_tasks;
#[cfg(test)]
mod empty_signers;
#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fees;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod foreign_nonces;
#[cfg(test)]
mod forgiving_edges;
#[cfg(test)]
mod forks;
#[cfg(test)]
mod four_kinds;
#[cfg(test)]
mod gas_money;
#[cfg(test)]
mod handed_over;
#[cfg(test)]
mod history;
#[cfg(test)]
mod history_questions;
#[cfg(test)]
mod history_tables;
#[cfg(test)]
mod holds;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod interop_permit2;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod lanes;
#[cfg(test)]
mod ledger_statements;
#[cfg(test)]
mod lost_grants;
#[cfg(test)]
mod lost_sends;
#[cfg(test)]
mod lying_endpoints;
#[cfg(test)]
mod networks;
#[cfg(test)]
mod odd_bodies;
#[cfg(test)]
mod odd_rows;
#[cfg(test)]
mod odd_tokens;
#[cfg(test)]
mod odd_wallets;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod permission_attacks;
#[cfg(test)]
mod permission_codes;
#[cfg(test)]
mod permissions;
#[cfg(test)]
mod preflight;
#[cfg(test)]
mod providers;
#[cfg(test)]
mod races;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod reorganisations;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod restored;
#[cfg(test)]
mod rotated_keys;
#[cfg(test)]
mod rpc_pool;
#[cfg(test)]
mod seller;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod stuck;
#[cfg(test)]
mod support;
#[cfg(test)]
mod surface;
#[cfg(test)]
mod transfers;
#[cfg(test)]
mod two_replicas;
#[cfg(test)]
mod unreadable_rows;
#[cfg(test)]
mod validity;
#[cfg(test)]
mod wallets;
#[cfg(test)]
mod wrapped_permissions;
