//! Follows the canonical chain. The parent of every new block is checked, so that no reorg goes unnoticed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use alloy::primitives::{Address, B256, U64, U128, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::Deserialize;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::chain::outliers::ReportedHead;
use crate::chain::{Rpc, RpcError};

sol! {
    function getL1Fee(bytes data) external view returns (uint256);
}

/// The OP stack's predeploy for L1 data fees; it has the same address on every such rollup.
const GAS_PRICE_ORACLE: Address = address!("420000000000000000000000000000000000000F");
/// Approximate size of a payment's transaction, in bytes.
const PAYMENT_BYTES: usize = 500;

/// How many blocks are kept: the deepest reorg that is followed block by block.
const BLOCKS_KEPT: usize = 128;

/// Polls in a row that may end at a parent block which the node does not return. After that many, the block counts as orphaned between two
/// calls, and the tracker restarts at the newest block.
const MISSED_MAX: u32 = 5;

/// How many blocks that are not kept are read in one comparison with the chain, and how many of them at a time.
const READS_MAX: usize = 32;
const READS_AT_ONCE: usize = 16;
/// Time limit of one of these reads: the tracker follows the chain meanwhile no further.
const READ_LIMIT: Duration = Duration::from_secs(2);
/// How long a height that could not be read is not read again.
const UNREAD_FOR: Duration = Duration::from_mins(1);

/// The header of a block, reduced to the members that x402d uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    pub hash: B256,
    pub parent: B256,
    pub time: OffsetDateTime,
    /// Base fee in wei per gas (EIP-1559); `None` on chains without one.
    pub base_fee_wei: Option<u128>,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            number: 0,
            hash: B256::ZERO,
            parent: B256::ZERO,
            time: OffsetDateTime::UNIX_EPOCH,
            base_fee_wei: Some(0),
        }
    }
}

impl Head {
    /// Whether both are the same block. The base fee is not compared, because some endpoints leave it out.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let Self {
            number,
            hash,
            parent,
            time,
            base_fee_wei: _,
        } = self;
        (*number, *hash, *parent, *time) == (other.number, other.hash, other.parent, other.time)
    }

    pub(super) const fn reported_head(&self) -> ReportedHead {
        ReportedHead {
            number: self.number,
            time: self.time.unix_timestamp(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    number: U64,
    hash: B256,
    parent_hash: B256,
    timestamp: U64,
    #[serde(default)]
    base_fee_per_gas: Option<U128>,
}

impl Block {
    pub(super) fn head(&self) -> Option<Head> {
        let time =
            OffsetDateTime::from_unix_timestamp(i64::try_from(self.timestamp.to::<u64>()).ok()?)
                .ok()?;
        Some(Head {
            number: self.number.to(),
            hash: self.hash,
            parent: self.parent_hash,
            time,
            base_fee_wei: self.base_fee_per_gas.map(|fee| fee.to()),
        })
    }
}

/// The changes of the canonical chain since the last poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// New blocks of the canonical chain, oldest first; the last one is the head.
    pub added: Vec<Head>,
    /// Hashes of orphaned blocks.
    pub removed: Vec<B256>,
    /// Blocks between this poll and the last one were skipped; receipts must be read by transaction hash.
    pub skipped: bool,
}

/// Blocks compared with the canonical chain. Those that no endpoint could tell about are in neither list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    pub canonical: Vec<B256>,
    /// Height and hash of blocks that are not in the chain any more.
    pub orphaned: Vec<(u64, B256)>,
}

/// Follows the newest block of a network, one poll at a time.
#[derive(Debug)]
pub struct HeadTracker {
    rpc: Rpc,
    recent: VecDeque<Head>,
    /// Hashes of older blocks that were found canonical, and no reorg was seen since.
    compared: HashSet<B256>,
    /// Heights that could not be read, and until when they are not read again.
    unread: HashMap<u64, Instant>,
    /// Polls in a row that ended at a block which the node does not have.
    missed: u32,
    /// The base fee of the newest block that had one.
    base_fee_wei: Option<u128>,
}

impl HeadTracker {
    pub fn new(rpc: Rpc) -> Self {
        Self {
            rpc,
            recent: VecDeque::new(),
            compared: HashSet::new(),
            unread: HashMap::new(),
            missed: 0,
            base_fee_wei: None,
        }
    }

    /// The newest block; `None` before the first poll.
    pub fn head(&self) -> Option<Head> {
        self.recent.back().copied()
    }

    /// Compares blocks, none of them above the head, with the canonical chain. Blocks older than those kept are read from the RPC: a few
    /// each time, those at or below `final_height` once until the next reorg. An endpoint that does not have the height, or does not answer,
    /// proves nothing about it; it is read again after a minute.
    pub async fn compare(&mut self, blocks: &[(u64, B256)], final_height: u64) -> Comparison {
        let now = Instant::now();
        self.unread.retain(|_, until| *until > now);
        let mut comparison = Comparison::default();
        let mut unknown = Vec::new();
        for (number, hash) in blocks {
            match self.kept(*number) {
                Some(canonical) => comparison.add((*number, *hash), canonical),
                None if self.compared.contains(hash) => comparison.canonical.push(*hash),
                None if self.unread.contains_key(number) => {}
                None => unknown.push((*number, *hash)),
            }
        }
        unknown.truncate(READS_MAX);
        let reads = unknown.into_iter().map(|block: (u64, B256)| {
            let canonical = timeout(READ_LIMIT, self.rpc.canonical(block.0));
            async move { (block, canonical.await) }
        });
        let read: Vec<_> = stream::iter(reads)
            .buffer_unordered(READS_AT_ONCE)
            .collect()
            .await;
        for ((number, hash), canonical) in read {
            if let Ok(Ok(Some(canonical))) = canonical {
                comparison.add((number, hash), canonical);
                if canonical == hash && number <= final_height {
                    self.compared.insert(hash);
                }
            } else {
                self.unread.insert(number, now + UNREAD_FOR);
            }
        }
        let wanted = |hash: &B256| blocks.iter().any(|(_, wanted)| wanted == hash);
        self.compared.retain(wanted);
        comparison
    }

    /// Hashes of the blocks that are kept.
    pub fn recent_hashes(&self) -> Vec<B256> {
        self.recent.iter().map(|head| head.hash).collect()
    }

    /// Hash of the canonical block at a height; `None` for blocks that are not kept.
    fn kept(&self, number: u64) -> Option<B256> {
        self.recent
            .iter()
            .rev()
            .find(|head| head.number == number)
            .map(|head| head.hash)
    }

    /// Reads the newest block and its ancestors back to a known one. `None`: there is no new block.
    ///
    /// # Errors
    /// When the RPC fails. The kept blocks are unchanged, and the next poll starts from the same block.
    pub async fn advance(&mut self) -> Result<Option<Advance>, RpcError> {
        let mut advance = self.poll().await?;
        // Some endpoints leave the base fee out. A chain that has had one keeps it, so the last known one is used.
        for block in advance.iter_mut().flat_map(|advance| &mut advance.added) {
            self.base_fee_wei = block.base_fee_wei.or(self.base_fee_wei);
            block.base_fee_wei = self.base_fee_wei;
        }
        if let (Some(head), Some(newest)) = (&advance, self.recent.back_mut()) {
            newest.base_fee_wei = head.added.last().and_then(|head| head.base_fee_wei);
        }
        Ok(advance)
    }

    async fn poll(&mut self) -> Result<Option<Advance>, RpcError> {
        let known = |block: &Head| self.recent.iter().any(|head| head.hash == block.hash);
        let newest = self.rpc.newest_after(known).await?;
        let Some(last) = self.head() else {
            return Ok(Some(self.restart(newest)));
        };
        // A node that is behind returns a block that is already known.
        if self.recent.iter().any(|head| head.hash == newest.hash) {
            return Ok(None);
        }
        let far = u64::try_from(BLOCKS_KEPT).unwrap_or(u64::MAX);
        if newest.number > last.number + far || newest.number + far < last.number {
            return Ok(Some(self.restart(newest)));
        }
        let mut added = vec![newest];
        let mut parent = newest.parent;
        while !self.recent.iter().any(|head| head.hash == parent) {
            let below = added.last().is_none_or(|head| {
                self.recent
                    .front()
                    .is_none_or(|oldest| head.number <= oldest.number)
            });
            if below || added.len() > 2 * BLOCKS_KEPT {
                return Ok(Some(self.restart(newest)));
            }
            let Some(block) = self.rpc.block("eth_getBlockByHash", parent).await? else {
                self.missed += 1;
                if self.missed < MISSED_MAX {
                    return Err(RpcError::Malformed("eth_getBlockByHash"));
                }
                return Ok(Some(self.restart(newest)));
            };
            parent = block.parent;
            added.push(block);
        }
        added.reverse();
        Ok(Some(self.append(parent, added)))
    }

    fn append(&mut self, ancestor: B256, added: Vec<Head>) -> Advance {
        self.missed = 0;
        let mut removed = Vec::new();
        while let Some(head) = self.recent.pop_back_if(|head| head.hash != ancestor) {
            removed.push(head.hash);
        }
        if !removed.is_empty() {
            self.compared.clear();
        }
        self.recent.extend(added.iter().copied());
        while self.recent.len() > BLOCKS_KEPT {
            self.recent.pop_front();
        }
        Advance {
            added,
            removed,
            skipped: false,
        }
    }

    fn restart(&mut self, newest: Head) -> Advance {
        self.missed = 0;
        self.compared.clear();
        self.recent.clear();
        self.recent.push_back(newest);
        Advance {
            added: vec![newest],
            removed: Vec::new(),
            skipped: true,
        }
    }
}

impl Comparison {
    fn add(&mut self, (number, hash): (u64, B256), canonical: B256) {
        if canonical == hash {
            self.canonical.push(hash);
        } else {
            self.orphaned.push((number, hash));
        }
    }
}

impl Rpc {
    pub(super) async fn block(
        &self,
        method: &'static str,
        which: impl alloy::rpc::json_rpc::RpcSend,
    ) -> Result<Option<Head>, RpcError> {
        let block: Option<Block> = self.read(method, (which, false)).await?;
        block
            .map(|block| block.head().ok_or(RpcError::Malformed(method)))
            .transpose()
    }

    /// The newest block.
    pub async fn newest(&self) -> Result<Head, RpcError> {
        self.newest_after(|_| false).await
    }

    /// The newest block according to one endpoint.
    pub(super) async fn newest_of_any(&self) -> Result<Head, RpcError> {
        let newest = self.block("eth_getBlockByNumber", "latest").await?;
        newest.ok_or(RpcError::Malformed("eth_getBlockByNumber"))
    }

    /// The priority fee that the node suggests, in wei per gas. Fails on chains without priority fees.
    pub async fn suggested_priority_fee(&self) -> Result<u128, RpcError> {
        let tip: U128 = self.read("eth_maxPriorityFeePerGas", ()).await?;
        Ok(tip.to())
    }

    /// The node's gas price in wei, for chains without a base fee.
    pub async fn gas_price(&self) -> Result<u128, RpcError> {
        let price: U128 = self.read("eth_gasPrice", ()).await?;
        Ok(price.to())
    }

    /// The least L1 data fee of a payment's transaction on an OP stack rollup, in wei; `None` on other chains.
    pub async fn data_fee(&self) -> Result<Option<u128>, RpcError> {
        let data = vec![0xff; PAYMENT_BYTES].into();
        let call = getL1FeeCall { data }.abi_encode().into();
        match self.view(GAS_PRICE_ORACLE, call).await {
            Ok(answer) => {
                let fee = getL1FeeCall::abi_decode_returns(&answer).ok();
                Ok(fee.and_then(|fee| u128::try_from(fee).ok()))
            }
            Err(error) if error.is_revert() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The agreed hash of the canonical block at a height; `None` above the head.
    ///
    /// # Errors
    /// When no endpoint answers, or too few agree.
    pub async fn canonical(&self, number: u64) -> Result<Option<B256>, RpcError> {
        let tag = format!("0x{number:x}");
        let same = |one: &Option<Block>, other: &Option<Block>| {
            one.as_ref().map(|block| block.hash) == other.as_ref().map(|block| block.hash)
        };
        let block = self.agreed("eth_getBlockByNumber", (tag, false), same);
        let block: Option<Block> = block.await?;
        // Some gateways answer an unknown height with another block.
        let block = block.filter(|block| block.number.to::<u64>() == number);
        Ok(block.map(|block| block.hash))
    }
}

#[cfg(test)]
mod tests;
