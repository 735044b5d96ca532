//! Receipts, parsed leniently, because chains have transaction types of their own.

use alloy::primitives::{Address, B256, Bytes, U64, U128};
use serde::{Deserialize, Deserializer};

use crate::chain::agreement::retry_rounds;
use crate::chain::{Rpc, RpcError};

/// A transaction receipt; only the members that x402d uses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    pub transaction_hash: B256,
    /// The sender.
    pub from: Address,
    /// 1 for success.
    pub status: Option<U64>,
    /// Gas used by this transaction.
    #[serde(default, deserialize_with = "or_default")]
    pub gas_used: U64,
    /// Wei per gas that was charged.
    #[serde(default, deserialize_with = "or_default")]
    pub effective_gas_price: U128,
    /// L1 data fee in wei that a rollup charges in addition to gas.
    #[serde(default)]
    pub l1_fee: Option<U128>,
    pub block_hash: B256,
    pub block_number: U64,
    #[serde(default, deserialize_with = "or_default")]
    pub logs: Vec<Log>,
}

/// Some nodes leave members out, others return null.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    member: D,
) -> Result<T, D::Error> {
    Option::deserialize(member).map(Option::unwrap_or_default)
}

/// An event in a receipt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// The contract that emitted it.
    pub address: Address,
    /// The hash of the event's signature, then the indexed members.
    pub topics: Vec<B256>,
    /// The ABI-encoded members that are not indexed.
    pub data: Bytes,
    /// Position in the block.
    pub log_index: U64,
    #[serde(default, deserialize_with = "or_default")]
    pub block_number: U64,
    pub transaction_hash: B256,
}

impl Receipt {
    /// L1 data fee in wei; 0 on chains without one.
    pub fn data_fee_wei(&self) -> u128 {
        self.l1_fee.map_or(0, |fee| fee.to())
    }

    /// Whether the transaction did not revert. Calls inside it may have.
    pub fn succeeded(&self) -> bool {
        self.status == Some(U64::from(1))
    }
}

impl Receipt {
    /// Whether both describe the same transaction in the same block with the same status and logs.
    fn is_same(&self, other: &Self) -> bool {
        let identity =
            |receipt: &Self| (receipt.transaction_hash, receipt.block_hash, receipt.status);
        let log = |log: &Log| {
            (
                log.address,
                log.log_index,
                log.topics.clone(),
                log.data.clone(),
            )
        };
        identity(self) == identity(other)
            && self.block_number == other.block_number
            && self.logs.iter().map(log).eq(other.logs.iter().map(log))
    }
}

impl Rpc {
    /// All receipts of a block in one call. Fails if the endpoint does not know the block.
    pub async fn block_receipts(&self, block: B256) -> Result<Vec<Receipt>, RpcError> {
        let receipts: Option<Vec<Receipt>> = self.read("eth_getBlockReceipts", (block,)).await?;
        receipts.ok_or(RpcError::Malformed("eth_getBlockReceipts"))
    }

    /// The receipt of one transaction; `None` while it is in no canonical block.
    ///
    /// Some nodes return receipts of blocks that are only announced (a preconfirmation) or orphaned, so the block of the receipt is
    /// compared with the canonical one at its height.
    ///
    /// # Errors
    /// When no endpoint answers, or the endpoints do not agree on the receipt or the canonical block.
    pub async fn receipt(&self, transaction: B256) -> Result<Option<Receipt>, RpcError> {
        const METHOD: &str = "eth_getTransactionReceipt";
        let same = |one: &Option<Receipt>, other: &Option<Receipt>| match (one, other) {
            (Some(one), Some(other)) => one.is_same(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let receipt: Option<Receipt> = self.agreed(METHOD, (transaction,), same).await?;
        let Some(receipt) = receipt else {
            return Ok(None);
        };
        if receipt.transaction_hash != transaction {
            return Err(RpcError::Malformed(METHOD));
        }
        let height = receipt.block_number.to();
        let block = retry_rounds(async || match self.canonical(height).await {
            Ok(Some(block)) => Ok(Ok(block)),
            // The endpoint that was asked for the block is behind.
            Ok(None) => Err(vec![RpcError::Disagreement("eth_getBlockByNumber")]),
            Err(error) => Ok(Err(error)),
        })
        .await??;
        Ok((block == receipt.block_hash).then_some(receipt))
    }
}
