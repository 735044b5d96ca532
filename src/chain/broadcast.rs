//! What the replies to a send mean (`docs/architecture.md#broadcast-outcomes`). Misreading one is harmless, because every follow-up stays
//! under the same nonce.

use alloy::primitives::{B256, Bytes};

use crate::chain::{Rpc, RpcError};

/// The three outcomes of handing bytes to the network. Neither of the last two ever frees a nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// A node has these very bytes in its pool, or had them.
    Accepted,
    /// Every node that answered refused them; the text is the most telling refusal.
    Rejected(Rejection),
    /// No reply that says anything: assume that they were sent.
    Unknown,
}

/// Why nodes refuse bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The nonce is used up, by an attempt of ours or by somebody else.
    NonceTooLow,
    /// A transaction before it is missing.
    NonceTooHigh,
    /// Another transaction holds the nonce.
    Underpriced,
    /// The fee is below what blocks, or the node, ask now.
    FeeTooLow,
    /// No node takes it as it is, ever: too much gas, too many bytes. A smaller one may do.
    TooLarge,
    /// No node takes it as it is, ever, whatever its size.
    Unfit,
    /// The signer cannot pay for the gas.
    OutOfGasMoney,
    /// The node's pool has no room for it now.
    PoolFull,
}

impl Rejection {
    /// For log lines.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NonceTooLow => "the nonce is used already",
            Self::NonceTooHigh => "an earlier transaction is missing",
            Self::Underpriced => "another transaction holds the nonce",
            Self::FeeTooLow => "the fee is below what blocks or the node ask",
            Self::TooLarge => "no node takes a transaction of this size",
            Self::Unfit => "no node takes this transaction as it is",
            Self::OutOfGasMoney => "the signer has too little native currency for gas",
            Self::PoolFull => "the node's pool is full",
        }
    }
}

/// Sends `raw` to every endpoint and reads the replies together: one acceptance is enough, and a rejection counts only when nobody
/// was silent.
pub async fn broadcast(rpc: &Rpc, raw: &Bytes, hash: B256) -> Broadcast {
    let replies = rpc.send_everywhere(raw).await;
    judge(&replies, hash)
}

fn judge(replies: &[Result<B256, RpcError>], hash: B256) -> Broadcast {
    let readings: Vec<_> = replies.iter().map(|reply| reading(reply, hash)).collect();
    if readings.contains(&Broadcast::Accepted) {
        return Broadcast::Accepted;
    }
    if readings.contains(&Broadcast::Unknown) {
        return Broadcast::Unknown;
    }
    readings.into_iter().next().unwrap_or(Broadcast::Unknown)
}

fn reading(reply: &Result<B256, RpcError>, hash: B256) -> Broadcast {
    let message = match reply {
        Ok(answered) if *answered == hash => return Broadcast::Accepted,
        Err(RpcError::Refused { message, .. }) => message.to_lowercase(),
        Ok(_) | Err(_) => return Broadcast::Unknown,
    };
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    let known = says(&["already known", "already imported"])
        || (says(&["known transaction"]) && !says(&["unknown"]));
    if known {
        return Broadcast::Accepted;
    }
    let rejection = if says(&["nonce too low", "nonce is too low"]) {
        Rejection::NonceTooLow
    } else if says(&["nonce too high", "exceeds next nonce", "nonce gap"]) {
        Rejection::NonceTooHigh
    } else if says(&["replacement"]) && says(&["underpriced", "fee too low"]) {
        Rejection::Underpriced
    } else if says(&[
        "underpriced",
        "less than block base fee",
        "fee too low",
        "below base fee",
        "tip cap",
    ]) {
        Rejection::FeeTooLow
    } else if is_about_size(&message) {
        Rejection::TooLarge
    } else if says(&["intrinsic gas"]) {
        Rejection::Unfit
    } else if says(&["insufficient funds"]) {
        Rejection::OutOfGasMoney
    } else if says(&[
        "in-flight transaction limit",
        "txpool is full",
        "pool is full",
    ]) {
        Rejection::PoolFull
    } else {
        return Broadcast::Unknown;
    };
    Broadcast::Rejected(rejection)
}

/// Whether a refusal is about the size of what was sent: the same bytes hear it again, fewer may not.
fn is_about_size(message: &str) -> bool {
    TOO_LARGE.iter().any(|text| message.contains(text))
}

const TOO_LARGE: [&str; 6] = [
    "exceeds the configured cap",
    "exceeds block gas limit",
    "gas limit too high",
    "per-transaction gas limit",
    "maximum transaction gas limit",
    "oversized data",
];
/// What nodes say of simulations besides.
const TOO_LARGE_TO_SIMULATE: [&str; 5] = [
    "out of gas",
    "gas limit is too high",
    "too large",
    "execution timeout",
    "execution aborted (timeout",
];

impl RpcError {
    /// Whether the answer to a simulated batch says that it is too large: too much gas, too many bytes, too long to run.
    pub fn is_about_size(&self) -> bool {
        match self {
            Self::Refused { message, .. } => {
                let message = message.to_lowercase();
                let says = |text: &&str| message.contains(*text);
                is_about_size(&message) || TOO_LARGE_TO_SIMULATE.iter().any(says)
            }
            Self::Status(status) => *status == PAYLOAD_TOO_LARGE,
            Self::Timeout
            | Self::Unreachable
            | Self::Malformed(_)
            | Self::OverBudget
            | Self::Unconfirmed(_)
            | Self::Disagreement(_)
            | Self::SearchCutShort
            | Self::NoOverrides
            | Self::WrongChain { .. } => false,
        }
    }
}

/// HTTP's word for it.
const PAYLOAD_TOO_LARGE: u16 = 413;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(message: &str) -> Result<B256, RpcError> {
        Err(RpcError::Refused {
            code: -32000,
            message: message.to_owned(),
            data: None,
        })
    }

    #[test]
    fn only_our_own_hash_or_a_pooled_copy_counts_as_accepted() {
        let (ours, other) = (B256::repeat_byte(1), B256::repeat_byte(2));
        assert_eq!(judge(&[Ok(ours)], ours), Broadcast::Accepted);
        assert_eq!(
            judge(&[refused("transaction already imported")], ours),
            Broadcast::Accepted
        );
        assert_eq!(
            judge(&[Ok(other)], ours),
            Broadcast::Unknown,
            "a node that invents hashes is not believed"
        );
        assert_eq!(
            judge(&[refused("unknown transaction type")], ours),
            Broadcast::Unknown
        );
    }

    #[test]
    fn refusals_are_read_by_what_can_be_done_about_them() {
        for (message, meaning) in [
            (
                "replacement transaction underpriced",
                Rejection::Underpriced,
            ),
            (
                "transaction underpriced: gas tip cap 1000000, minimum needed 25000000000",
                Rejection::FeeTooLow,
            ),
            (
                "max fee per gas less than block base fee",
                Rejection::FeeTooLow,
            ),
            (
                "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)",
                Rejection::TooLarge,
            ),
            ("exceeds block gas limit", Rejection::TooLarge),
            (
                "transaction gas limit too high (cap: 16777216, tx: 17000000)",
                Rejection::TooLarge,
            ),
            ("intrinsic gas too low: gas 21000", Rejection::Unfit),
            ("oversized data: limit 131072", Rejection::TooLarge),
            ("insufficient funds for gas", Rejection::OutOfGasMoney),
        ] {
            let read = judge(&[refused(message)], B256::ZERO);
            assert_eq!(read, Broadcast::Rejected(meaning), "{message}");
        }
    }

    #[test]
    fn only_what_is_said_of_its_size_makes_a_batch_smaller() {
        let about_size = |message| refused(message).is_err_and(|error| error.is_about_size());
        for message in [
            "err: out of gas: gas exhausted (supplied gas 15000000)",
            "Request entity too large",
            "execution aborted (timeout = 5s)",
            "intrinsic gas too high -- CallGasCostMoreThanGasLimit: gas limit is too high",
        ] {
            assert!(about_size(message), "{message}");
        }
        for message in [
            "too many requests",
            "header not found",
            "request timed out",
            "limit exceeded",
            "intrinsic gas too low",
            "missing trie node",
        ] {
            assert!(!about_size(message), "{message}");
        }
        assert!(RpcError::Status(413).is_about_size() && !RpcError::Status(429).is_about_size());
        assert!(!RpcError::Timeout.is_about_size());
    }

    #[test]
    fn silence_beats_refusal_and_acceptance_beats_both() {
        let hash = B256::repeat_byte(1);
        let low = refused("Nonce too low");
        assert_eq!(
            judge(std::slice::from_ref(&low), hash),
            Broadcast::Rejected(Rejection::NonceTooLow)
        );
        assert_eq!(
            judge(&[low.clone(), Err(RpcError::Timeout)], hash),
            Broadcast::Unknown
        );
        assert_eq!(
            judge(&[low, Err(RpcError::Timeout), Ok(hash)], hash),
            Broadcast::Accepted
        );
        assert_eq!(judge(&[], hash), Broadcast::Unknown);
    }
}
