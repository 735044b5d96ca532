//! The meaning of the replies to a broadcast (`docs/architecture.md`, Broadcast outcomes). A wrong reading is harmless, because every
//! follow-up stays under the same nonce.

use alloy::primitives::{B256, Bytes};

use crate::chain::{Rpc, RpcError, RpcResult};

/// The three outcomes of a broadcast. Neither of the last two ever frees a nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// A node has or had these bytes in its mempool.
    Accepted,
    /// Every node rejected them; this is the first endpoint's reason.
    Rejected(BroadcastRejection),
    /// At least one endpoint gave no clear reply and none accepted: assume that the transaction was sent.
    Unknown,
}

/// Why a node rejected a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BroadcastRejection {
    /// The nonce is used, by an attempt of ours or by a foreign transaction.
    NonceTooLow,
    /// A transaction with a lower nonce is missing.
    NonceTooHigh,
    /// Another transaction with the same nonce is pending.
    Underpriced,
    /// The fee is below the current base fee or the node's minimum.
    FeeTooLow,
    /// Too much gas or too many bytes: the same bytes are always rejected, but a smaller transaction may pass.
    TooLarge,
    /// The same bytes are always rejected, for a reason that is not their size.
    Invalid,
    /// The signer cannot pay for the gas.
    InsufficientFunds,
    /// The node's mempool is full.
    PoolFull,
}

impl BroadcastRejection {
    /// For log lines.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NonceTooLow => "the nonce is already used",
            Self::NonceTooHigh => "a transaction with a lower nonce is missing",
            Self::Underpriced => "another transaction with this nonce is pending",
            Self::FeeTooLow => "the fee is below the base fee or the node's minimum",
            Self::TooLarge => "the transaction is too large for every node",
            Self::Invalid => "the transaction is invalid for every node",
            Self::InsufficientFunds => "the signer has too little native currency for gas",
            Self::PoolFull => "the node's mempool is full",
        }
    }
}

/// Sends `raw` to every endpoint and combines the replies. One acceptance is enough; a rejection counts only when every endpoint
/// rejected.
pub async fn broadcast(rpc: &Rpc, raw: &Bytes, hash: B256) -> Broadcast {
    let replies = rpc.send_everywhere(raw).await;
    combine(&replies, hash)
}

fn combine(replies: &[RpcResult<B256>], hash: B256) -> Broadcast {
    let outcomes: Vec<_> = replies.iter().map(|reply| classify(reply, hash)).collect();
    if outcomes.contains(&Broadcast::Accepted) {
        return Broadcast::Accepted;
    }
    if outcomes.contains(&Broadcast::Unknown) {
        return Broadcast::Unknown;
    }
    outcomes.into_iter().next().unwrap_or(Broadcast::Unknown)
}

fn classify(reply: &RpcResult<B256>, hash: B256) -> Broadcast {
    let message = match reply {
        Ok(answered) if *answered == hash => return Broadcast::Accepted,
        Err(RpcError::Refused { message, .. }) => message.to_lowercase(),
        Ok(_) | Err(_) => return Broadcast::Unknown,
    };
    let contains_any = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    let in_pool = contains_any(&["already known", "already imported"])
        || (contains_any(&["known transaction"]) && !contains_any(&["unknown"]));
    if in_pool {
        return Broadcast::Accepted;
    }
    let rejection = REJECTIONS.iter().find(|(texts, _)| contains_any(texts));
    let rejection = match rejection.map(|(_, rejection)| *rejection) {
        None => return Broadcast::Unknown,
        Some(BroadcastRejection::FeeTooLow)
            if contains_any(&["replacement"]) && contains_any(&["underpriced", "fee too low"]) =>
        {
            BroadcastRejection::Underpriced
        }
        Some(rejection) => rejection,
    };
    Broadcast::Rejected(rejection)
}

/// Texts of nodes, and why they reject a transaction. The first that matches counts.
const REJECTIONS: [(&[&str], BroadcastRejection); 7] = [
    (
        &["nonce too low", "nonce is too low"],
        BroadcastRejection::NonceTooLow,
    ),
    (
        &["nonce too high", "exceeds next nonce", "nonce gap"],
        BroadcastRejection::NonceTooHigh,
    ),
    (
        &[
            "underpriced",
            "less than block base fee",
            "fee too low",
            "below base fee",
            "tip cap",
        ],
        BroadcastRejection::FeeTooLow,
    ),
    (&TOO_LARGE, BroadcastRejection::TooLarge),
    (&["intrinsic gas"], BroadcastRejection::Invalid),
    (
        &["insufficient funds"],
        BroadcastRejection::InsufficientFunds,
    ),
    (
        &[
            "in-flight transaction limit",
            "txpool is full",
            "pool is full",
        ],
        BroadcastRejection::PoolFull,
    ),
];

/// About the size of the transaction: the same bytes would be rejected again, a smaller transaction may pass.
const TOO_LARGE: [&str; 6] = [
    "exceeds the configured cap",
    "exceeds block gas limit",
    "gas limit too high",
    "per-transaction gas limit",
    "maximum transaction gas limit",
    "oversized data",
];
/// Further texts of nodes, for simulations only.
const TOO_LARGE_TO_SIMULATE: [&str; 5] = [
    "out of gas",
    "gas limit is too high",
    "too large",
    "execution timeout",
    "execution aborted (timeout",
];

impl RpcError {
    /// Whether the simulation of a batch failed because the batch is too large: too much gas, too many bytes, too long to run.
    pub fn is_too_large(&self) -> bool {
        let Self::Refused { message, .. } = self else {
            return *self == Self::Status(PAYLOAD_TOO_LARGE);
        };
        let message = message.to_lowercase();
        let mut texts = TOO_LARGE.iter().chain(&TOO_LARGE_TO_SIMULATE);
        texts.any(|text| message.contains(text))
    }
}

/// HTTP 413 Content Too Large.
const PAYLOAD_TOO_LARGE: u16 = 413;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(message: &str) -> RpcResult<B256> {
        Err(RpcError::Refused {
            code: -32000,
            message: message.to_owned(),
            data: None,
        })
    }

    #[test]
    fn only_own_hash_or_known_transaction_counts_as_accepted() {
        let (ours, other) = (B256::repeat_byte(1), B256::repeat_byte(2));
        assert_eq!(combine(&[Ok(ours)], ours), Broadcast::Accepted);
        assert_eq!(
            combine(&[refused("transaction already imported")], ours),
            Broadcast::Accepted
        );
        assert_eq!(
            combine(&[Ok(other)], ours),
            Broadcast::Unknown,
            "a reply with another hash proves nothing"
        );
        assert_eq!(
            combine(&[refused("unknown transaction type")], ours),
            Broadcast::Unknown
        );
    }

    #[test]
    fn rejections_are_classified_by_the_possible_reaction() {
        for (message, meaning) in [
            (
                "replacement transaction underpriced",
                BroadcastRejection::Underpriced,
            ),
            (
                "transaction underpriced: gas tip cap 1000000, minimum needed 25000000000",
                BroadcastRejection::FeeTooLow,
            ),
            (
                "max fee per gas less than block base fee",
                BroadcastRejection::FeeTooLow,
            ),
            (
                "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)",
                BroadcastRejection::TooLarge,
            ),
            ("exceeds block gas limit", BroadcastRejection::TooLarge),
            (
                "transaction gas limit too high (cap: 16777216, tx: 17000000)",
                BroadcastRejection::TooLarge,
            ),
            (
                "intrinsic gas too low: gas 21000",
                BroadcastRejection::Invalid,
            ),
            ("oversized data: limit 131072", BroadcastRejection::TooLarge),
            (
                "insufficient funds for gas",
                BroadcastRejection::InsufficientFunds,
            ),
        ] {
            let read = combine(&[refused(message)], B256::ZERO);
            assert_eq!(read, Broadcast::Rejected(meaning), "{message}");
        }
    }

    #[test]
    fn only_size_errors_count_as_too_large() {
        let about_size = |message| refused(message).is_err_and(|error| error.is_too_large());
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
        assert!(RpcError::Status(413).is_too_large() && !RpcError::Status(429).is_too_large());
        assert!(!RpcError::Timeout.is_too_large());
    }

    #[test]
    fn unknown_outweighs_rejection_and_acceptance_outweighs_both() {
        let hash = B256::repeat_byte(1);
        let low = refused("Nonce too low");
        assert_eq!(
            combine(std::slice::from_ref(&low), hash),
            Broadcast::Rejected(BroadcastRejection::NonceTooLow)
        );
        assert_eq!(
            combine(&[low.clone(), Err(RpcError::Timeout)], hash),
            Broadcast::Unknown
        );
        assert_eq!(
            combine(&[low, Err(RpcError::Timeout), Ok(hash)], hash),
            Broadcast::Accepted
        );
        assert_eq!(combine(&[], hash), Broadcast::Unknown);
    }
}
