//! Parts that the tests are built from: a chain, a database, a faulty RPC proxy, and the service as a child process.

mod buyer_process;
mod caller;
mod chain;
mod cluster;
mod command;
mod database;
mod facilitator;
mod filled_ledger;
mod forger;
mod interop_programs;
#[cfg(feature = "aws")]
mod kms;
mod lying_facilitator;
mod paywall_seller;
mod permit2_purchase;
mod provider;
mod purchase;
mod rpc_proxy;
mod session;
mod tcp_proxy;
mod thief;
mod wait;
mod web_server;
mod world;

pub(crate) use buyer_process::{BuyerProcess, Interception, PayOutput, SellerProxy};
pub(crate) use caller::{Answer, Caller, has_event};
pub(crate) use chain::{
    Chain, addressOfCall, approveCall, blacklistCall, createWalletCall,
    invalidateUnorderedNoncesCall, mintCall, pauseCall, setModeCall,
};
pub(crate) use cluster::{Cluster, Pooler, free_port};
pub(crate) use command::{run, run_in};
pub(crate) use database::Database;
pub(crate) use facilitator::Facilitator;
pub(crate) use filled_ledger::FilledLedger;
pub(crate) use interop_programs::{BuyerReport, Seller, buy, buy_with, example, program};
#[cfg(feature = "aws")]
pub(crate) use kms::Kms;
pub(crate) use lying_facilitator::{Lie, LyingFacilitator};
pub(crate) use paywall_seller::{PaywallSeller, payment_header, present, receipt};
pub(crate) use permit2_purchase::{Permit2Purchase, signed};
pub(crate) use purchase::{Purchase, new_account, random, wrapped};
pub(crate) use rpc_proxy::{Fault, Proxy, SECRET};
pub(crate) use session::OpenSession;
pub(crate) use tcp_proxy::TcpProxy;
pub(crate) use thief::Thief;
pub(crate) use wait::eventually;
pub(crate) use web_server::WebServer;
pub(crate) use world::{Setup, World, attempts, manually_mined, settle_until_final};
