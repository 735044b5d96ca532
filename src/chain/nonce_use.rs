//! How an authorization's nonce was used, from the state and the logs of the latest hour. Logs are read within each provider's limit on
//! blocks per `eth_getLogs` call, which is between five and ten thousand (`docs/architecture.md`, Past logs).

use std::sync::atomic::Ordering::Relaxed;

use alloy::primitives::{Address, B256, Bytes, U256};

use crate::chain::rpc::LogFilter;
use crate::chain::{Head, Log, Receipt, Rpc, RpcError, RpcResult};
use crate::payment::Location;

/// How far back the use of an authorization is searched, in seconds of block time: longer than a failover or an outage lasts.
const LOOK_BACK_S: u64 = 3_600;
/// Lower and upper bound of that in blocks, for slow and fast chains.
const LOOK_BACK_BLOCKS: (u64, u64) = (300, 40_000);
/// Over how many blocks the block time of a chain is measured.
const SAMPLE_BLOCKS: u64 = 1_000;
/// If more calls than this remain, the block is searched by bisection over the nonce's state instead, which takes about a dozen calls.
const CALLS_BEFORE_BISECTION: u64 = 16;
/// Most calls in all where a node has pruned that state: with five blocks per call and one block per second they cover twenty minutes. The
/// search starts at the newest blocks, because the log is most likely there.
const CALLS_MAX: u64 = 256;

/// How an authorization's nonce was used on chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationUse {
    /// The nonce is unused.
    Unused,
    /// The nonce was used by a transfer of exactly this payment.
    Transferred {
        location: Location,
        /// The account that sent the transaction and paid for its gas.
        sender: Address,
    },
    /// The nonce was used without this transfer: it was cancelled, used for another transfer, or the token does not follow the standard.
    /// The hash is that of the transaction, if it was found.
    Consumed(Option<B256>),
}

/// How to read whether a nonce is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NonceCall {
    /// The contract to call, and the calldata.
    pub(super) call: (Address, Bytes),
    /// The bits of the result that are set if the nonce is used.
    pub(super) mask: U256,
}

impl Rpc {
    /// Which nonces are used as of the block at height `head`.
    pub(super) async fn nonces_used(
        &self,
        nonces: &[NonceCall],
        head: u64,
    ) -> RpcResult<Vec<RpcResult<bool>>> {
        let calls: Vec<_> = nonces.iter().map(|nonce| nonce.call.clone()).collect();
        let answers = self.call_many(&calls, head).await?;
        let used = answers.into_iter().zip(nonces).map(|(answer, nonce)| {
            let word = answer.as_deref().and_then(|answer| answer.get(..32));
            let word = word.ok_or(RpcError::Malformed("eth_call"))?;
            Ok(!(U256::from_be_slice(word) & nonce.mask).is_zero())
        });
        Ok(used.collect())
    }

    /// The [`AuthorizationUse::Transferred`] for a transfer log in `receipt`; reads the time of its block.
    pub(super) async fn transferred(
        &self,
        receipt: &Receipt,
        log_index: u64,
    ) -> RpcResult<AuthorizationUse> {
        let location = Location {
            transaction: receipt.transaction_hash,
            log_index,
            block_number: receipt.block_number.to(),
            block_hash: receipt.block_hash,
            block_time: self
                .block_time(receipt.block_hash, &Head::default())
                .await?,
        };
        Ok(AuthorizationUse::Transferred {
            location,
            sender: receipt.from,
        })
    }

    /// Logs of the latest hour up to a head, from the newest blocks on, until they are `enough`; and whether the search is complete: a log
    /// that an incomplete search has not found, because of the providers' limits, may still exist. Where the search would take too many
    /// calls, the block in which each of the `nonces` was used is searched instead.
    pub(super) async fn recent_logs(
        &self,
        filter: LogFilter,
        nonces: &[NonceCall],
        head: u64,
        enough: impl Fn(&[Log]) -> bool,
    ) -> RpcResult<(Vec<Log>, bool)> {
        let first = (head + 1).saturating_sub(self.blocks_per_hour(head).await?);
        let (mut logs, mut last, mut bisected) = (Vec::new(), head, false);
        for _ in 0..CALLS_MAX {
            let (found, from) = self.logs_up_to(&filter, first, last).await?;
            logs.extend(found);
            if enough(&logs) || from <= first {
                return Ok((logs, true));
            }
            last = from - 1;
            let calls_left = (last - first) / self.log_range.blocks();
            if calls_left > CALLS_BEFORE_BISECTION && !bisected {
                bisected = true;
                match self.logs_at_nonce_use(&filter, nonces, (first, last)).await {
                    Ok(found) => {
                        logs.extend(found);
                        return Ok((logs, true));
                    }
                    // The node has pruned the old state: continue range by range.
                    Err(error) if error.is_of_missing_data() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((logs, false))
    }

    /// Logs of the blocks in which the nonces of the authorizations were used, if these are in the range `within`.
    async fn logs_at_nonce_use(
        &self,
        filter: &LogFilter,
        nonces: &[NonceCall],
        within: (u64, u64),
    ) -> RpcResult<Vec<Log>> {
        let mut logs = Vec::new();
        for nonce in nonces {
            if let Some(block) = self.block_of_nonce_use(nonce, within).await? {
                logs.extend(self.logs_between(filter, block, block).await?);
            }
        }
        Ok(logs)
    }

    /// The block in which a nonce was used, by bisection. `None`: the nonce is unused at height `last`.
    pub(super) async fn block_of_nonce_use(
        &self,
        nonce: &NonceCall,
        (first, last): (u64, u64),
    ) -> RpcResult<Option<u64>> {
        if !self.is_nonce_used_at(nonce, last).await? {
            return Ok(None);
        }
        // A nonce that was used before `first` yields `first`, whose logs do not contain the use. The state before `first` is not read,
        // because it may be pruned.
        let (mut unused, mut used) = (first.saturating_sub(1), last);
        while used - unused > 1 {
            let middle = unused + (used - unused) / 2;
            if self.is_nonce_used_at(nonce, middle).await? {
                used = middle;
            } else {
                unused = middle;
            }
        }
        Ok(Some(used))
    }

    pub(super) async fn is_nonce_used_at(&self, nonce: &NonceCall, block: u64) -> RpcResult<bool> {
        let mut used = self.nonces_used(std::slice::from_ref(nonce), block).await?;
        used.pop().ok_or(RpcError::Malformed("eth_call"))?
    }

    /// How many blocks the chain makes in an hour; measured once per network.
    async fn blocks_per_hour(&self, head: u64) -> RpcResult<u64> {
        let known = self.blocks_per_hour.load(Relaxed);
        if known > 0 {
            return Ok(known);
        }
        // On a young chain search everything. Its block time cannot be measured, because its first block may have any timestamp.
        if head <= SAMPLE_BLOCKS {
            return Ok(head + 1);
        }
        let before = head - SAMPLE_BLOCKS;
        let (newest, earlier) = (
            self.block_time_at(head).await?,
            self.block_time_at(before).await?,
        );
        let (Some(newest), Some(earlier)) = (newest, earlier) else {
            return Ok(LOOK_BACK_BLOCKS.0);
        };
        let seconds = u64::try_from(newest - earlier).unwrap_or_default().max(1);
        let blocks = SAMPLE_BLOCKS.saturating_mul(LOOK_BACK_S) / seconds;
        let blocks = blocks.clamp(LOOK_BACK_BLOCKS.0, LOOK_BACK_BLOCKS.1);
        self.blocks_per_hour.store(blocks, Relaxed);
        Ok(blocks)
    }

    async fn block_time_at(&self, number: u64) -> RpcResult<Option<i64>> {
        let block = self.block_at(number).await?;
        Ok(block.map(|head| head.time.unix_timestamp()))
    }
}
