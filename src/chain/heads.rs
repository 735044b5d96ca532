//! Our own view of the canonical chain: every new block's parent is checked, so that a reorganisation cannot pass unseen.

use std::collections::VecDeque;

use alloy::primitives::{Address, B256, U64, U128, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde::Deserialize;
use time::OffsetDateTime;

use crate::chain::belief::Claim;
use crate::chain::{Rpc, RpcError};

sol! {
    function getL1Fee(bytes data) external view returns (uint256);
}

/// Tells what publishing data costs, at the address that it has on every rollup of the OP stack.
const GAS_PRICE_ORACLE: Address = address!("420000000000000000000000000000000000000F");
/// Bytes of a payment's transaction, roughly.
const PAYMENT_BYTES: usize = 500;

/// How many blocks are remembered: the deepest reorganisation that is followed block by block.
const REMEMBERED: usize = 128;

/// A block that a node does not show may come with the next look. After so many, the node will never have it (it left the chain between
/// two questions), and everything is looked at anew.
const MISSED_MAX: u32 = 5;

/// A block as far as we need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Height.
    pub number: u64,
    /// Hash.
    pub hash: B256,
    /// Hash of the block before.
    pub parent: B256,
    /// The chain's time.
    pub time: OffsetDateTime,
    /// Wei per gas that every transaction of the block pays; `None` where a chain has no base fee (EIP-1559) and takes a price instead.
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
    /// Whether both are one block, whoever has shown it.
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

    pub(super) const fn claim(&self) -> Claim {
        Claim {
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

/// What changed on the chain since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// Blocks that joined the canonical chain, oldest first; the last one is the head.
    pub added: Vec<Head>,
    /// Hashes of blocks that left it.
    pub removed: Vec<B256>,
    /// The look came so late that blocks between were skipped; receipts must be asked for by transaction.
    pub skipped: bool,
}

/// Follows the newest block of a network, one look at a time.
#[derive(Debug)]
pub struct HeadTracker {
    rpc: Rpc,
    recent: VecDeque<Head>,
    /// Looks in a row that ended at a block which the node does not have.
    missed: u32,
    /// The base fee of the newest block that had one.
    base_fee_wei: Option<u128>,
}

impl HeadTracker {
    /// A tracker that has seen nothing.
    pub const fn new(rpc: Rpc) -> Self {
        Self {
            rpc,
            recent: VecDeque::new(),
            missed: 0,
            base_fee_wei: None,
        }
    }

    /// The newest block seen.
    pub fn head(&self) -> Option<Head> {
        self.recent.back().copied()
    }

    /// Hash of the canonical block at a height, as far back as is remembered.
    pub fn canonical(&self, number: u64) -> Option<B256> {
        self.recent
            .iter()
            .rev()
            .find(|head| head.number == number)
            .map(|head| head.hash)
    }

    /// Looks at the newest block and walks back to the last one known. `None`: nothing new. A chain that had a base fee has one: where an endpoint
    /// leaves it out, the last one known stands for it.
    ///
    /// # Errors
    /// When the RPC fails; the next look starts where this one did.
    pub async fn advance(&mut self) -> Result<Option<Advance>, RpcError> {
        let mut advance = self.step().await?;
        for block in advance.iter_mut().flat_map(|advance| &mut advance.added) {
            self.base_fee_wei = block.base_fee_wei.or(self.base_fee_wei);
            block.base_fee_wei = self.base_fee_wei;
        }
        if let (Some(head), Some(newest)) = (&advance, self.recent.back_mut()) {
            newest.base_fee_wei = head.added.last().and_then(|head| head.base_fee_wei);
        }
        Ok(advance)
    }

    async fn step(&mut self) -> Result<Option<Advance>, RpcError> {
        let known = |block: &Head| self.recent.iter().any(|head| head.hash == block.hash);
        let newest = self.rpc.newest_after(known).await?;
        let Some(last) = self.head() else {
            return Ok(Some(self.restart(newest)));
        };
        // A node that lags behind shows a block of our own past: no news.
        if self.recent.iter().any(|head| head.hash == newest.hash) {
            return Ok(None);
        }
        let far = u64::try_from(REMEMBERED).unwrap_or(u64::MAX);
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
            if below || added.len() > 2 * REMEMBERED {
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
        Ok(Some(self.join(parent, added)))
    }

    fn join(&mut self, ancestor: B256, added: Vec<Head>) -> Advance {
        self.missed = 0;
        let mut removed = Vec::new();
        while let Some(head) = self.recent.pop_back_if(|head| head.hash != ancestor) {
            removed.push(head.hash);
        }
        self.recent.extend(added.iter().copied());
        while self.recent.len() > REMEMBERED {
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
        self.recent.clear();
        self.recent.push_back(newest);
        Advance {
            added: vec![newest],
            removed: Vec::new(),
            skipped: true,
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
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn newest(&self) -> Result<Head, RpcError> {
        self.newest_after(|_| false).await
    }

    /// What one endpoint shows as the newest block.
    pub(super) async fn newest_of_one(&self) -> Result<Head, RpcError> {
        let newest = self.block("eth_getBlockByNumber", "latest").await?;
        newest.ok_or(RpcError::Malformed("eth_getBlockByNumber"))
    }

    /// What the node thinks that producers of blocks want per gas, in wei.
    ///
    /// # Errors
    /// When no endpoint answers, or the chain knows no tips.
    pub async fn suggested_tip(&self) -> Result<u128, RpcError> {
        let tip: U128 = self.read("eth_maxPriorityFeePerGas", ()).await?;
        Ok(tip.to())
    }

    /// What the node thinks that a transaction should pay per gas, in wei, where there is no base fee.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn gas_price(&self) -> Result<u128, RpcError> {
        let price: U128 = self.read("eth_gasPrice", ()).await?;
        Ok(price.to())
    }

    /// Wei that a rollup of the OP stack takes at least for publishing a payment's data; `None` on other chains.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn data_fee(&self) -> Result<Option<u128>, RpcError> {
        let data = vec![0xff; PAYMENT_BYTES].into();
        let question = getL1FeeCall { data }.abi_encode().into();
        match self.view(GAS_PRICE_ORACLE, question).await {
            Ok(answer) => {
                let fee = getL1FeeCall::abi_decode_returns(&answer).ok();
                Ok(fee.and_then(|fee| u128::try_from(fee).ok()))
            }
            Err(error) if error.is_revert() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The canonical hash at a height, `None` above the head.
    ///
    /// # Errors
    /// When no endpoint answers, or too few show the same.
    pub async fn canonical(&self, number: u64) -> Result<Option<B256>, RpcError> {
        let tag = format!("0x{number:x}");
        let same = |one: &Option<Block>, other: &Option<Block>| {
            one.as_ref().map(|block| block.hash) == other.as_ref().map(|block| block.hash)
        };
        let block = self.agreed("eth_getBlockByNumber", (tag, false), same);
        Ok(block.await?.map(|block: Block| block.hash))
    }
}

#[cfg(test)]
mod tests;
