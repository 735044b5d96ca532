//! Errors of calls without secrets, and their meaning: one table of the texts of nodes and providers, used by all calls.

use std::time::Duration;

use alloy::primitives::Bytes;

/// Why a call has no result. Contains no URL, because URLs contain API keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// No response in time. A send may have arrived all the same.
    #[error("the RPC did not answer in time")]
    Timeout,
    /// No connection, or the connection broke.
    #[error("the RPC cannot be reached")]
    Unreachable,
    /// An HTTP error status instead of a JSON-RPC response.
    #[error("the RPC answered with HTTP status {0}")]
    Status(u16),
    /// The node returned a JSON-RPC error.
    #[error("the RPC refused the call with code {code}")]
    Refused {
        /// JSON-RPC error code.
        code: i64,
        /// The node's text. Used for classification only, never shown.
        message: String,
        /// Revert data of a failed call.
        data: Option<Bytes>,
    },
    /// A response of an unexpected shape.
    #[error("the RPC's response to {0} is not of the expected form")]
    Malformed(&'static str),
    /// No turn in time for this call: the operator's limit per second, or too many calls of callers in flight.
    #[error(
        "no RPC call was free in time (rpc_calls_per_second, or too many calls in flight); the call was not made"
    )]
    OverBudget,
    /// Fewer endpoints than required gave the same answer.
    #[error("too few RPC endpoints give the same answer to {0}")]
    NoAgreement(&'static str),
    /// The endpoints' limits ended a search of logs early: the log may exist further back.
    #[error(
        "the RPC allows too few blocks per eth_getLogs call to search the latest hour, and does not keep the state of old blocks; use an endpoint that allows more"
    )]
    SearchIncomplete,
    /// Endpoints gave different answers, perhaps because one of them is behind.
    #[error("the RPC endpoints give different answers to {0}")]
    Disagreement(&'static str),
    /// No endpoint supports state overrides.
    #[error(
        "no RPC endpoint supports state overrides (the third parameter of eth_call); use a node that does, such as geth, reth, Nethermind or Erigon"
    )]
    NoOverrides,
    /// The endpoint serves another chain.
    #[error(
        "RPC URL number {number} serves chain {found}, configured is chain {configured}; correct the URL or the network"
    )]
    WrongChain {
        /// Position of the configured URL, from 1.
        number: usize,
        /// Configured chain id.
        configured: u64,
        /// Chain id that the endpoint returned.
        found: u64,
    },
}

/// What an error means for the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::chain) enum ErrorKind {
    /// The called contract reverted. A final answer, the same on every endpoint.
    Revert,
    /// The call cannot be executed on any endpoint, because of its gas. A final answer.
    InvalidCall,
    /// The call's sender cannot pay for its gas. A final answer, unless the call overrides the balance: then the endpoint ignored that.
    InsufficientFunds,
    /// Too many calls for this endpoint: ask another one, or retry later. Does not count as a failure of the endpoint.
    RateLimited,
    /// This node does not have the block or its state yet: the nodes behind a load balancer are not all at the same block. Ask another one,
    /// or retry.
    MissingBlock,
    /// This node has pruned the state of the block. Ask another one; a retry does not help.
    MissingState,
    /// An `eth_getLogs` call covers more than this provider allows.
    RangeTooWide,
    /// This endpoint does not support the method or its parameters.
    Unsupported,
    /// The connection broke. A read can be retried.
    ConnectionLost,
    /// Anything else.
    Other,
}

/// Texts of providers for a limit on calls.
const RATE_LIMITED: [&str; 14] = [
    "rate limit",
    "rate-limit",
    "ratelimit",
    "too many requests",
    "request limit",
    "requests per second",
    "compute units",
    "capacity",
    "throttl",
    "slow down",
    "try again later",
    "quota",
    "request count exceeded",
    "credits",
];

/// Texts of providers for too many blocks or logs in one call.
const RANGE_TOO_WIDE: [&str; 16] = [
    "block range",
    "blocks range",
    "range of blocks",
    "range is too",
    "range too",
    "range limit",
    "ranges over",
    "max range",
    "maximum range",
    "too many blocks",
    "blocks distance",
    "block distance",
    "query returned more than",
    "results, try with",
    "response size",
    "exceed maximum",
];

/// Texts of nodes for a block range that ends above their head.
const BEYOND_HEAD: [&str; 3] = ["beyond current head", "beyond head", "invalid block range"];

/// Texts of nodes for pruned state.
const MISSING_STATE: [&str; 5] = [
    "missing trie node",
    "state not available",
    "state is not available",
    "no state available",
    "state histories",
];

/// Texts of nodes for blocks that they do not have.
const MISSING_BLOCK: [&str; 10] = [
    "header not found",
    "block not found",
    "block is not found",
    "unknown block",
    "blockoutofrange",
    "block is out of range",
    "could not find block",
    "block does not exist",
    "future block",
    "resource not found",
];

/// Texts of nodes for calls that no valid transaction could make.
const INVALID_CALL: [&str; 3] = [
    "intrinsic gas",
    "gas limit is too high",
    "exceeds block gas limit",
];

/// Texts of nodes for a sender that cannot pay for the gas of a call.
const INSUFFICIENT_FUNDS: [&str; 1] = ["insufficient funds"];

/// Texts of endpoints for unsupported methods and parameters.
const UNSUPPORTED: [&str; 6] = [
    "method not found",
    "not supported",
    "unsupported",
    "not available",
    "too many arguments",
    "too many params",
];

/// The first that matches counts. A range that ends above the node's head also matches [`RANGE_TOO_WIDE`], but its width does not matter.
const TEXTS: [(&[&str], ErrorKind); 8] = [
    (&BEYOND_HEAD, ErrorKind::MissingBlock),
    (&RANGE_TOO_WIDE, ErrorKind::RangeTooWide),
    (&MISSING_STATE, ErrorKind::MissingState),
    (&MISSING_BLOCK, ErrorKind::MissingBlock),
    (&RATE_LIMITED, ErrorKind::RateLimited),
    (&INVALID_CALL, ErrorKind::InvalidCall),
    (&INSUFFICIENT_FUNDS, ErrorKind::InsufficientFunds),
    (&UNSUPPORTED, ErrorKind::Unsupported),
];

/// The result of a call.
pub type RpcResult<T> = Result<T, RpcError>;

impl RpcError {
    /// Whether the called contract reverted, as opposed to an error of the endpoint.
    pub fn is_revert(&self) -> bool {
        matches!(self, Self::Refused { code, data, message } if *code == 3 || data.is_some() || message.contains("revert"))
    }

    pub(in crate::chain) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. } if self.is_revert() => ErrorKind::Revert,
            Self::Refused { code, message, .. } => kind_of_refusal(*code, &message.to_lowercase()),
            Self::Status(429) => ErrorKind::RateLimited,
            Self::Status(413) => ErrorKind::RangeTooWide,
            Self::Status(405 | 501) | Self::NoOverrides => ErrorKind::Unsupported,
            Self::Unreachable => ErrorKind::ConnectionLost,
            // A node that is a block behind answers null for the block it lacks, so a retry may bring agreement.
            Self::Disagreement(_) => ErrorKind::MissingBlock,
            Self::Timeout
            | Self::Status(_)
            | Self::Malformed(_)
            | Self::OverBudget
            | Self::NoAgreement(_)
            | Self::SearchIncomplete
            | Self::WrongChain { .. } => ErrorKind::Other,
        }
    }

    /// Whether the endpoint has pruned the state or does not support the call: a retry does not help.
    pub fn lacks_state(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::MissingState | ErrorKind::Unsupported
        )
    }

    /// Whether every endpoint would give this error: the called contract reverted, or the call cannot be executed.
    pub(in crate::chain) fn is_final(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Revert | ErrorKind::InvalidCall | ErrorKind::InsufficientFunds
        )
    }

    /// Whether the endpoint does not have the block or its state, perhaps no more.
    pub(in crate::chain) fn is_of_missing_data(&self) -> bool {
        [ErrorKind::MissingBlock, ErrorKind::MissingState].contains(&self.kind())
    }

    /// Whether a retry may help.
    pub(super) fn is_transient(&self) -> bool {
        RetryPauses::default().after(self).is_some()
    }
}

/// Texts are checked before codes, because providers use the same code for different errors.
fn kind_of_refusal(code: i64, message: &str) -> ErrorKind {
    let contains_any = |texts: &&[&str]| texts.iter().any(|text| message.contains(text));
    if let Some((_, kind)) = TEXTS.iter().find(|(texts, _)| contains_any(texts)) {
        return *kind;
    }
    match code {
        429 | -32005 | -32029 | -32097 => ErrorKind::RateLimited,
        -32001 => ErrorKind::MissingBlock,
        -32601 | -32602 | -32004 => ErrorKind::Unsupported,
        _ => ErrorKind::Other,
    }
}

/// The pauses of one read between its rounds over all endpoints. Counted per kind of error.
#[derive(Debug, Default)]
pub(super) struct RetryPauses {
    rate_limited: u32,
    missing_block: u32,
    connection_lost: u32,
}

impl RetryPauses {
    /// How long to wait after `error` before the next round. `None`: a retry does not help.
    pub(super) fn after(&mut self, error: &RpcError) -> Option<Duration> {
        let (count, max) = match error.kind() {
            ErrorKind::RateLimited => (&mut self.rate_limited, u32::MAX),
            ErrorKind::MissingBlock => (&mut self.missing_block, MISSING_BLOCK_RETRIES),
            ErrorKind::ConnectionLost => (&mut self.connection_lost, 1),
            ErrorKind::Revert
            | ErrorKind::InvalidCall
            | ErrorKind::InsufficientFunds
            | ErrorKind::MissingState
            | ErrorKind::RangeTooWide
            | ErrorKind::Unsupported
            | ErrorKind::Other => return None,
        };
        if *count >= max {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (*count).min(4));
        *count += 1;
        Some(pause)
    }
}

/// Pauses (about two seconds in all) after which a node that still lacks a block is assumed never to have it.
const MISSING_BLOCK_RETRIES: u32 = 5;
/// Doubled each time. Providers count calls by the second, and a node is a block behind for less than that.
const FIRST_PAUSE: Duration = Duration::from_millis(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// Messages of real nodes and providers.
    const TABLE: [(i64, &str, ErrorKind); 36] = [
        (
            -32000,
            "block range extends beyond current head block",
            ErrorKind::MissingBlock,
        ),
        (
            -32000,
            "invalid block range params",
            ErrorKind::MissingBlock,
        ),
        (3, "execution reverted", ErrorKind::Revert),
        (-32000, "execution reverted: expired", ErrorKind::Revert),
        (-32015, "VM execution error: revert", ErrorKind::Revert),
        (-32000, "header not found", ErrorKind::MissingBlock),
        (-32001, "block not found", ErrorKind::MissingBlock),
        (-32000, "unknown block", ErrorKind::MissingBlock),
        (-32001, "Resource not found.", ErrorKind::MissingBlock),
        (
            -32000,
            "missing trie node 3c0e (path ) state 0x1 is not available",
            ErrorKind::MissingState,
        ),
        (
            -32602,
            "BlockOutOfRangeError: block height is 7 but requested was 8",
            ErrorKind::MissingBlock,
        ),
        (
            -32603,
            "could not find block: hash 0x12",
            ErrorKind::MissingBlock,
        ),
        (
            -32005,
            "project ID request rate exceeded",
            ErrorKind::RateLimited,
        ),
        (
            429,
            "Your app has exceeded its compute units per second capacity",
            ErrorKind::RateLimited,
        ),
        (-32029, "limit reached", ErrorKind::RateLimited),
        (
            -32007,
            "50/second request limit reached",
            ErrorKind::RateLimited,
        ),
        (
            -32005,
            "daily request count exceeded, request rate limited",
            ErrorKind::RateLimited,
        ),
        (
            -32000,
            "Too many requests, reason: call rate limit exhausted, retry in 10s",
            ErrorKind::RateLimited,
        ),
        (
            -32005,
            "query returned more than 10000 results",
            ErrorKind::RangeTooWide,
        ),
        (
            -32600,
            "You can make eth_getLogs requests with up to a 500 block range.",
            ErrorKind::RangeTooWide,
        ),
        (
            -32602,
            "eth_getLogs is limited to a 5 block range",
            ErrorKind::RangeTooWide,
        ),
        (-32000, "block range is too wide", ErrorKind::RangeTooWide),
        (
            -32614,
            "eth_getLogs is limited to a 10,000 range limit",
            ErrorKind::RangeTooWide,
        ),
        (
            -32000,
            "exceed maximum block range: 5000",
            ErrorKind::RangeTooWide,
        ),
        (
            -32701,
            "Please specify an address; max range is 1000",
            ErrorKind::RangeTooWide,
        ),
        (
            -32602,
            "Log response size exceeded.",
            ErrorKind::RangeTooWide,
        ),
        (
            -32000,
            "intrinsic gas too low: have 1, want 21000",
            ErrorKind::InvalidCall,
        ),
        (
            -32003,
            "Insufficient funds for gas * price + value",
            ErrorKind::InsufficientFunds,
        ),
        (
            -32601,
            "the method eth_getBlockReceipts does not exist/is not available",
            ErrorKind::Unsupported,
        ),
        (-32601, "Method not found", ErrorKind::Unsupported),
        (
            -32602,
            "too many arguments, want at most 2",
            ErrorKind::Unsupported,
        ),
        (-32004, "Method not supported", ErrorKind::Unsupported),
        (-32603, "Internal error", ErrorKind::Other),
        (-32000, "nonce too low", ErrorKind::Other),
        (-32000, "execution timeout", ErrorKind::Other),
        (-32700, "parse error", ErrorKind::Other),
    ];

    #[test]
    fn node_and_provider_errors_are_classified() {
        for (code, message, meaning) in TABLE {
            let error = RpcError::Refused {
                code,
                message: message.to_owned(),
                data: None,
            };
            assert_eq!(error.kind(), meaning, "{code} {message}");
        }
        assert_eq!(RpcError::Status(429).kind(), ErrorKind::RateLimited);
        assert_eq!(RpcError::Status(503).kind(), ErrorKind::Other);
    }

    #[test]
    fn pauses_grow_and_a_broken_connection_is_retried_once() {
        let mut pauses = RetryPauses::default();
        let slow = RpcError::Status(429);
        let taken: Vec<_> = (0..6).filter_map(|_| pauses.after(&slow)).collect();
        assert_eq!(taken.len(), 6);
        assert!(taken.windows(2).all(|pair| pair[0] <= pair[1]), "{taken:?}");
        assert!(pauses.after(&RpcError::Unreachable).is_some());
        assert_eq!(pauses.after(&RpcError::Unreachable), None);
        assert_eq!(pauses.after(&RpcError::Timeout), None);
    }
}
