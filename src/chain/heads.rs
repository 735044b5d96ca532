//! Follows the canonical chain. The parent of every new block is checked, so that no reorg goes unnoticed. Which block is the newest is
//! agreed between the endpoints.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use alloy::primitives::B256;
use futures_util::stream::{self, StreamExt as _};
use tokio::time::{Instant, timeout};

use crate::chain::rpc::{is_near, outliers};
use crate::chain::{Head, Rpc, RpcError, RpcResult};

/// How many blocks are kept: the deepest reorg that is followed block by block.
const BLOCKS_KEPT: usize = 128;

/// Polls in a row that may end at a parent block which the node does not return. After that many, the block counts as orphaned between two
/// calls, and the tracker restarts at the newest block.
const MISSED_MAX: u32 = 5;

/// How many blocks that are not kept are read in one comparison with the chain, and how many of them at a time.
const READS_MAX: usize = 32;
const READS_AT_ONCE: usize = 16;
/// Time limit of one of these reads: the tracker follows the chain meanwhile no further.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// How long a final height that could not be read is not read again.
const UNREAD_FOR: Duration = Duration::from_mins(1);
/// How long a block that was found canonical counts as such, if it is final, and if it is not.
const FINAL_FOR: Duration = Duration::from_hours(1);
const RECENT_FOR: Duration = Duration::from_secs(15);

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
    /// Older blocks that were found canonical, and until when that counts; no reorg was seen since.
    compared: HashMap<B256, Instant>,
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
            compared: HashMap::new(),
            unread: HashMap::new(),
            missed: 0,
            base_fee_wei: None,
        }
    }

    /// The newest block; `None` before the first poll.
    pub fn head(&self) -> Option<Head> {
        self.recent.back().copied()
    }

    /// Compares blocks, none of them above the head, with the canonical chain. Blocks older than those kept are read from the RPC, a few
    /// each time; what was read counts for a while, unless a reorg is seen. An endpoint that does not have the height, or does not answer,
    /// proves nothing about it; at or below `final_height` it is read again after a minute.
    pub async fn compare(&mut self, blocks: &[(u64, B256)], final_height: u64) -> Comparison {
        let now = Instant::now();
        self.unread.retain(|_, until| *until > now);
        self.compared.retain(|_, until| *until > now);
        let mut comparison = Comparison::default();
        let mut unknown = Vec::new();
        for (number, hash) in blocks {
            match self.kept(*number) {
                Some(canonical) => comparison.add((*number, *hash), canonical),
                None if self.compared.contains_key(hash) => comparison.canonical.push(*hash),
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
                if canonical == hash {
                    let is_final = number <= final_height;
                    let counts_for = if is_final { FINAL_FOR } else { RECENT_FOR };
                    self.compared.insert(hash, now + counts_for);
                }
            } else if number <= final_height {
                self.unread.insert(number, now + UNREAD_FOR);
            }
        }
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
    pub async fn advance(&mut self) -> RpcResult<Option<Advance>> {
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

    async fn poll(&mut self) -> RpcResult<Option<Advance>> {
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
        if newest.number.abs_diff(last.number) > far {
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
            let Some(block) = self.rpc.block_by_hash(parent).await? else {
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
    /// The newest block.
    pub async fn newest(&self) -> RpcResult<Head> {
        self.newest_after(|_| false).await
    }

    /// The newest block.
    ///
    /// The answer of one endpoint is enough, unless the newest block of another endpoint is far from it or `confirm_with` is 2 or more:
    /// then it is the highest block that enough of the answering endpoints show. A block that is `known` and agreed is not checked again.
    ///
    /// # Errors
    /// When no endpoint answers, or the endpoints contradict each other.
    async fn newest_after(&self, known: impl Fn(&Head) -> bool) -> RpcResult<Head> {
        let newest = self.newest_of_any().await?;
        let enough = if self.one_is_enough() {
            self.endpoints.len() < 2 || self.is_credible(&newest)
        } else {
            known(&newest) && self.agreed_height(newest.number) == newest.number
        };
        if enough {
            return Ok(newest);
        }
        self.newest_of_all().await
    }

    async fn newest_of_all(&self) -> RpcResult<Head> {
        let mut heads: Vec<(usize, Head)> = Vec::new();
        let mut reported = self.newest_of_each();
        while let Some((index, head)) = reported.next().await {
            if let Some(endpoint) = self.endpoints.get(index) {
                endpoint.health().record_head(Instant::now(), head);
            }
            heads.push((index, head));
        }
        heads.sort_by_key(|(_, head)| std::cmp::Reverse(head.number));
        let required = heads.len().min(self.confirm_with);
        for (_, candidate) in &heads {
            if self.one_is_enough() && !self.is_credible(candidate) {
                continue;
            }
            if self.count_having(candidate, &heads).await >= required {
                if required == self.confirm_with {
                    self.highest_agreed.fetch_max(candidate.number, Relaxed);
                }
                return Ok(*candidate);
            }
        }
        Err(RpcError::NoAgreement("eth_getBlockByNumber"))
    }

    /// How many of the endpoints that returned `heads` have the candidate in their chain.
    async fn count_having(&self, candidate: &Head, heads: &[(usize, Head)]) -> usize {
        let mut times = 0;
        for (index, head) in heads {
            let shows = match head.number.cmp(&candidate.number) {
                Ordering::Less => false,
                Ordering::Equal => head.is_same(candidate),
                Ordering::Greater => {
                    let shown = self.block_of(*index, candidate.number).await;
                    shown.is_ok_and(|shown| shown.is_some_and(|shown| shown.is_same(candidate)))
                }
            };
            times += usize::from(shows);
            if times >= self.confirm_with {
                break;
            }
        }
        times
    }

    /// Whether a newest block is credible, compared with those that the endpoints have recently reported.
    fn is_credible(&self, head: &Head) -> bool {
        let now = Instant::now();
        let endpoints = self.endpoints.iter();
        let reported: Vec<_> = endpoints
            .map(|endpoint| endpoint.health().reported_head(now))
            .collect();
        let counting = reported.iter().zip(outliers(&reported));
        let mut others = counting.filter_map(|(other, outlier)| other.filter(|_| !outlier));
        // With no other report there is nothing to compare with.
        reported.iter().all(Option::is_none) || others.any(|other| is_near(head, &other))
    }
}

#[cfg(test)]
mod tests;
