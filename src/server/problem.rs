//! Why the service does not start, in the operator's words.

use std::net::SocketAddr;

use alloy::primitives::Address;

use crate::chain::fees::TooDear;
use crate::chain::{RpcError, TokenProblem};
use crate::ledger::LedgerError;

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A network.
    #[error("{network}: {problem}")]
    Network {
        /// CAIP-2.
        network: String,
        /// What is wrong with it.
        problem: NetworkProblem,
    },
    /// The address.
    #[error(
        "cannot listen on {address}: {source}; choose another address (--listen, X402D_LISTEN), or end what uses it"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// What the chain says against a network's configuration.
#[derive(Debug, thiserror::Error)]
pub enum NetworkProblem {
    /// The RPC fails or serves another chain.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The ledger was begun on another chain, or fails.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A token is not what the configuration says.
    #[error(transparent)]
    Token(#[from] TokenProblem),
    /// Blocks cost more than the operator allows.
    #[error("{0}, so nothing can be sent; if that lasts, raise max_fee_wei")]
    TooDear(#[from] TooDear),
    /// A signer has code; nodes accept too few transactions from such accounts.
    #[error("the signer {0} has code (an EIP-7702 delegation?); use a plain account")]
    SignerHasCode(Address),
}

impl NetworkProblem {
    /// Whether nobody has said anything against the configuration: the RPC does not answer.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Rpc(error) => {
                !matches!(error, RpcError::WrongChain { .. } | RpcError::NoOverrides)
            }
            Self::Ledger(_) | Self::Token(_) | Self::TooDear(_) | Self::SignerHasCode(_) => false,
        }
    }
}
