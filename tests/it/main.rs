//! The whole service against real parts: Postgres, a local chain, a faulty RPC, and processes that are killed.
//!
//!     cargo test --features failpoints --test it
//!
//! With `DATABASE_URL` set, each test gets a fresh database on that server; without it, each runs x402d's private Postgres.

#[cfg(test)]
mod approvals;
#[cfg(test)]
#[cfg(feature = "aws")]
mod aws_kms;
#[cfg(test)]
mod backup;
#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod batch_isolation;
#[cfg(test)]
mod batching;
#[cfg(test)]
mod blacklisted;
#[cfg(test)]
mod broken_connections;
#[cfg(test)]
mod buyer;
#[cfg(test)]
mod callers;
#[cfg(test)]
mod chain_variants;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod costly_callers;
#[cfg(test)]
mod database_failures;
#[cfg(test)]
mod database_messages;
#[cfg(test)]
mod database_poolers;
#[cfg(test)]
mod database_refusals;
#[cfg(test)]
mod demo;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod edge_flood;
#[cfg(test)]
mod edge_proxies;
#[cfg(test)]
mod events;
#[cfg(test)]
mod events_stream;
#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod failing_simulations;
#[cfg(test)]
mod faults_under_load;
#[cfg(test)]
mod fee_bumps;
#[cfg(test)]
mod foreign_nonces;
#[cfg(test)]
mod foreign_use_detection;
#[cfg(test)]
mod forging_endpoints;
#[cfg(test)]
mod forks;
#[cfg(test)]
mod gas_budgets;
#[cfg(test)]
mod gas_funding;
#[cfg(test)]
mod gate;
#[cfg(test)]
mod history;
#[cfg(test)]
mod history_csv;
#[cfg(test)]
mod history_queries;
#[cfg(test)]
mod holds;
#[cfg(test)]
mod init;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod interop_permit2;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod lane_claims;
#[cfg(test)]
mod lane_handover;
#[cfg(test)]
mod lanes;
#[cfg(test)]
#[cfg(test)]
mod lenient_requests;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod lost_commits;
#[cfg(test)]
mod lost_grants;
#[cfg(test)]
mod lost_sends;
#[cfg(test)]
mod malformed_bodies;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod misbehaving_tokens;
#[cfg(test)]
mod missed_reorgs;
#[cfg(test)]
mod mixed_payments;
#[cfg(test)]
mod networks;
#[cfg(test)]
mod outages;
#[cfg(test)]
mod page;
#[cfg(test)]
mod page_in_browser;
#[cfg(test)]
mod payment_isolation;
#[cfg(test)]
mod payments_command;
#[cfg(test)]
mod permit2_attacks;
#[cfg(test)]
mod permit2_codes;
#[cfg(test)]
mod permit2_payments;
#[cfg(test)]
mod permit2_via_contracts;
#[cfg(test)]
mod places;
#[cfg(test)]
mod private_postgres;
#[cfg(test)]
mod races;
#[cfg(test)]
mod readme;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod reorgs;
#[cfg(test)]
mod repeated_kills;
#[cfg(test)]
mod replicas;
#[cfg(test)]
mod rotated_keys;
#[cfg(test)]
mod rpc_pool;
#[cfg(test)]
mod rpc_providers;
#[cfg(test)]
mod seller;
#[cfg(test)]
mod seller_outages;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod signers_command;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod status;
#[cfg(test)]
mod status_command;
#[cfg(test)]
mod stuck_transactions;
#[cfg(test)]
mod support;
#[cfg(test)]
mod surface;
#[cfg(test)]
mod task_panics;
#[cfg(test)]
mod told;
#[cfg(test)]
mod transfer_limits;
#[cfg(test)]
mod transfers;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod two_replicas;
#[cfg(test)]
mod unfunded_signers;
#[cfg(test)]
mod unreadable_rows;
#[cfg(test)]
mod validity;
#[cfg(test)]
mod wallet_signatures;
#[cfg(test)]
mod wallets;
#[cfg(test)]
mod wasted_gas;
#[cfg(test)]
mod webhooks;
#[cfg(test)]
mod wrong_clocks;
