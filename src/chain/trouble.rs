//! What a call without a result means: one table of what nodes and providers say, read in one place.

use std::time::Duration;

use crate::chain::RpcError;

/// What to make of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The called contract refused: an answer, and the same everywhere.
    Revert,
    /// The call itself cannot be carried out, whoever is asked: its gas, its sender's money. The caller's doing, and an answer.
    Caller,
    /// Too many calls for this endpoint: ask another one, or later. No fault of the endpoint's.
    SlowDown,
    /// This node does not have the block or its state: a pool's nodes are not all at the same block. Ask another one, or a moment later.
    MissingBlock,
    /// This node does not keep the state of so old a block. Ask another one; later it would keep it even less.
    MissingState,
    /// A question about logs covers more than this provider allows.
    RangeTooWide,
    /// This endpoint cannot do what was asked.
    Unsupported,
    /// The connection broke. What was read may be read again.
    Broken,
    /// Anything else.
    Outage,
}

/// What providers say of their limits on calls.
const SLOW_DOWN: [&str; 14] = [
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

/// What providers say of questions about too many blocks or logs.
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

/// What nodes say of ranges that end above their head.
const BEYOND_HEAD: [&str; 3] = ["beyond current head", "beyond head", "invalid block range"];

/// What nodes say of states that they have let go.
const MISSING_STATE: [&str; 5] = [
    "missing trie node",
    "state not available",
    "state is not available",
    "no state available",
    "state histories",
];

/// What nodes say of blocks that they do not have.
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

/// What nodes say of calls that could be no transaction.
const CALLER: [&str; 4] = [
    "intrinsic gas",
    "insufficient funds",
    "gas limit is too high",
    "exceeds block gas limit",
];

/// What endpoints say that lack an ability.
const UNSUPPORTED: [&str; 6] = [
    "method not found",
    "not supported",
    "unsupported",
    "not available",
    "too many arguments",
    "too many params",
];

impl RpcError {
    /// What this error means.
    pub(super) fn trouble(&self) -> Trouble {
        match self {
            Self::Refused { .. } if self.is_revert() => Trouble::Revert,
            Self::Refused { code, message, .. } => of_refusal(*code, &message.to_lowercase()),
            Self::Status(429) => Trouble::SlowDown,
            Self::Status(413) => Trouble::RangeTooWide,
            Self::Status(405 | 501) | Self::NoOverrides => Trouble::Unsupported,
            Self::Unreachable => Trouble::Broken,
            // Of what it does not have yet, a node that is a block behind says null.
            Self::Disagreement(_) => Trouble::MissingBlock,
            Self::Timeout
            | Self::Status(_)
            | Self::Malformed(_)
            | Self::OverBudget
            | Self::Unconfirmed(_)
            | Self::SearchCutShort
            | Self::WrongChain { .. } => Trouble::Outage,
        }
    }

    /// Whether an endpoint does not keep, or does not serve, what was asked: it will not do so later.
    pub fn lacks_state(&self) -> bool {
        matches!(self.trouble(), Trouble::MissingState | Trouble::Unsupported)
    }

    /// Whether whoever is asked says the same: the called contract refused, or the call cannot be carried out.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.trouble(), Trouble::Revert | Trouble::Caller)
    }
}

/// Texts come first: codes are used for many things, and by no two providers alike.
fn of_refusal(code: i64, message: &str) -> Trouble {
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    // A range that ends above what the node has, however wide it is.
    if says(&BEYOND_HEAD) {
        return Trouble::MissingBlock;
    }
    if says(&RANGE_TOO_WIDE) {
        return Trouble::RangeTooWide;
    }
    if says(&MISSING_STATE) {
        return Trouble::MissingState;
    }
    if says(&MISSING_BLOCK) {
        return Trouble::MissingBlock;
    }
    if says(&SLOW_DOWN) {
        return Trouble::SlowDown;
    }
    if says(&CALLER) {
        return Trouble::Caller;
    }
    if says(&UNSUPPORTED) {
        return Trouble::Unsupported;
    }
    match code {
        429 | -32005 | -32029 | -32097 => Trouble::SlowDown,
        -32001 => Trouble::MissingBlock,
        -32601 | -32602 | -32004 => Trouble::Unsupported,
        _ => Trouble::Outage,
    }
}

/// The pauses of one read between rounds in which every endpoint was asked.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    slowed: u32,
    missed: u32,
    broken: u32,
}

impl Pauses {
    /// How long to wait after `error` before everybody is asked again. `None`: asking again would tell nothing else.
    pub(super) fn after(&mut self, error: &RpcError) -> Option<Duration> {
        let count = match error.trouble() {
            Trouble::SlowDown => &mut self.slowed,
            Trouble::MissingBlock if self.missed < MISSED_MAX => &mut self.missed,
            Trouble::Broken if self.broken == 0 => &mut self.broken,
            Trouble::MissingBlock
            | Trouble::Broken
            | Trouble::Revert
            | Trouble::Caller
            | Trouble::MissingState
            | Trouble::RangeTooWide
            | Trouble::Unsupported
            | Trouble::Outage => return None,
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << (*count).min(4));
        *count += 1;
        Some(pause)
    }
}

/// A node that still lacks a block after so many pauses (two seconds) has let it go, or never will have it.
const MISSED_MAX: u32 = 5;
/// Doubled each time: a provider's limit counts by the second, a node is a block behind for less than that.
const FIRST_PAUSE: Duration = Duration::from_millis(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// As nodes and providers word it.
    const TABLE: [(i64, &str, Trouble); 36] = [
        (
            -32000,
            "block range extends beyond current head block",
            Trouble::MissingBlock,
        ),
        (-32000, "invalid block range params", Trouble::MissingBlock),
        (3, "execution reverted", Trouble::Revert),
        (-32000, "execution reverted: expired", Trouble::Revert),
        (-32015, "VM execution error: revert", Trouble::Revert),
        (-32000, "header not found", Trouble::MissingBlock),
        (-32001, "block not found", Trouble::MissingBlock),
        (-32000, "unknown block", Trouble::MissingBlock),
        (-32001, "Resource not found.", Trouble::MissingBlock),
        (
            -32000,
            "missing trie node 3c0e (path ) state 0x1 is not available",
            Trouble::MissingState,
        ),
        (
            -32602,
            "BlockOutOfRangeError: block height is 7 but requested was 8",
            Trouble::MissingBlock,
        ),
        (
            -32603,
            "could not find block: hash 0x12",
            Trouble::MissingBlock,
        ),
        (
            -32005,
            "project ID request rate exceeded",
            Trouble::SlowDown,
        ),
        (
            429,
            "Your app has exceeded its compute units per second capacity",
            Trouble::SlowDown,
        ),
        (-32029, "limit reached", Trouble::SlowDown),
        (-32007, "50/second request limit reached", Trouble::SlowDown),
        (
            -32005,
            "daily request count exceeded, request rate limited",
            Trouble::SlowDown,
        ),
        (
            -32000,
            "Too many requests, reason: call rate limit exhausted, retry in 10s",
            Trouble::SlowDown,
        ),
        (
            -32005,
            "query returned more than 10000 results",
            Trouble::RangeTooWide,
        ),
        (
            -32600,
            "You can make eth_getLogs requests with up to a 500 block range.",
            Trouble::RangeTooWide,
        ),
        (
            -32602,
            "eth_getLogs is limited to a 5 block range",
            Trouble::RangeTooWide,
        ),
        (-32000, "block range is too wide", Trouble::RangeTooWide),
        (
            -32614,
            "eth_getLogs is limited to a 10,000 range limit",
            Trouble::RangeTooWide,
        ),
        (
            -32000,
            "exceed maximum block range: 5000",
            Trouble::RangeTooWide,
        ),
        (
            -32701,
            "Please specify an address; max range is 1000",
            Trouble::RangeTooWide,
        ),
        (-32602, "Log response size exceeded.", Trouble::RangeTooWide),
        (
            -32000,
            "intrinsic gas too low: have 1, want 21000",
            Trouble::Caller,
        ),
        (
            -32003,
            "Insufficient funds for gas * price + value",
            Trouble::Caller,
        ),
        (
            -32601,
            "the method eth_getBlockReceipts does not exist/is not available",
            Trouble::Unsupported,
        ),
        (-32601, "Method not found", Trouble::Unsupported),
        (
            -32602,
            "too many arguments, want at most 2",
            Trouble::Unsupported,
        ),
        (-32004, "Method not supported", Trouble::Unsupported),
        (-32603, "Internal error", Trouble::Outage),
        (-32000, "nonce too low", Trouble::Outage),
        (-32000, "execution timeout", Trouble::Outage),
        (-32700, "parse error", Trouble::Outage),
    ];

    #[test]
    fn what_nodes_say_is_understood() {
        for (code, message, meaning) in TABLE {
            let error = RpcError::Refused {
                code,
                message: message.to_owned(),
                data: None,
            };
            assert_eq!(error.trouble(), meaning, "{code} {message}");
        }
        assert_eq!(RpcError::Status(429).trouble(), Trouble::SlowDown);
        assert_eq!(RpcError::Status(503).trouble(), Trouble::Outage);
    }

    #[test]
    fn pauses_grow_and_a_broken_line_is_tried_once_again() {
        let mut pauses = Pauses::default();
        let slow = RpcError::Status(429);
        let taken: Vec<_> = (0..6).filter_map(|_| pauses.after(&slow)).collect();
        assert_eq!(taken.len(), 6);
        assert!(taken.windows(2).all(|pair| pair[0] <= pair[1]), "{taken:?}");
        assert!(pauses.after(&RpcError::Unreachable).is_some());
        assert_eq!(pauses.after(&RpcError::Unreachable), None);
        assert_eq!(pauses.after(&RpcError::Timeout), None);
    }
}
