//! What the tests stand on: a chain, a database, a proxy that misbehaves, and the service as a child process.

mod caller;
mod chain;
mod cluster;
mod database;
mod facilitator;
mod liar;
mod line;
mod past;
mod peers;
mod permission;
mod program;
mod proxy;
mod purchase;
mod session;
mod shopper;
mod stall;
mod trouble;
mod wait;
mod world;

pub(crate) use caller::{Answer, Caller};
pub(crate) use chain::{
    Chain, addressOfCall, approveCall, createWalletCall, invalidateUnorderedNoncesCall, mintCall,
    pauseCall, setModeCall,
};
pub(crate) use cluster::{Cluster, Pooler};
pub(crate) use database::Database;
pub(crate) use facilitator::Facilitator;
pub(crate) use line::Line;
pub(crate) use past::Past;
pub(crate) use peers::{Bought, Seller, buy, buy_with, example};
pub(crate) use permission::{Permission, signed};
pub(crate) use program::run;
pub(crate) use proxy::{Fault, Proxy, SECRET};
pub(crate) use purchase::{Purchase, new_account, wrapped};
pub(crate) use session::Negotiated;
pub(crate) use shopper::{Middle, Passage, Shopper, Shown};
pub(crate) use stall::{Stall, payment_header, present, receipt};
pub(crate) use wait::eventually;
pub(crate) use world::{Setup, World};
