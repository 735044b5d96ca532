use std::net::SocketAddr;

use alloy::primitives::Address;

use crate::chain::fees::FeeError;
use crate::chain::{RpcError, TokenProblem};
use crate::ledger::LedgerError;

/// Why the service does not start. The messages are written for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("{network}: {problem}")]
    Network {
        network: String,
        problem: NetworkProblem,
    },
    #[error(
        "cannot listen on {address}: {cause}; choose another address (--listen, X402D_LISTEN), or end what uses it"
    )]
    Listen {
        address: SocketAddr,
        cause: std::io::Error,
    },
    #[error(
        "cannot listen on {address}: {cause}; choose another address for the metrics (metrics_listen, X402D_METRICS_LISTEN), or end what uses it"
    )]
    ListenForMetrics {
        address: SocketAddr,
        cause: std::io::Error,
    },
    #[error("webhooks cannot be sent: the TLS of this machine cannot be used: {0}")]
    Webhooks(reqwest::Error),
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
}

/// The configured connections need more open files than the system allows.
#[derive(Debug, thiserror::Error)]
#[error(
    "connections_max: {connections_max} connections need {needed} open files, and the system allows {allowed}; raise its limit (ulimit -n, LimitNOFILE= of systemd), or set connections_max to {fitting} at most"
)]
pub struct TooFewDescriptors {
    pub(super) connections_max: usize,
    pub(super) needed: usize,
    pub(super) allowed: usize,
    /// The most connections that the system allows.
    pub(super) fitting: usize,
}

/// A difference between a network and its configuration.
#[derive(Debug, thiserror::Error)]
pub enum NetworkProblem {
    /// The RPC fails, or serves another chain.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The ledger was created with another chain, or fails.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A token is not what the configuration says.
    #[error(transparent)]
    Token(#[from] TokenProblem),
    /// Blocks cost more than the operator allows.
    #[error("{0}, so nothing can be sent; if that lasts, raise max_fee_wei")]
    FeeError(#[from] FeeError),
    /// A signer has code; nodes accept too few transactions from such accounts.
    #[error("the signer {0} has code (an EIP-7702 delegation?); use a plain account")]
    SignerHasCode(Address),
}

impl NetworkProblem {
    /// Whether the RPC did not answer, so that the configuration may still be right.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Rpc(error) => {
                !matches!(error, RpcError::WrongChain { .. } | RpcError::NoOverrides)
            }
            Self::Ledger(_) | Self::Token(_) | Self::FeeError(_) | Self::SignerHasCode(_) => false,
        }
    }
}
