//! Receipts, read leniently: chains put transaction types of their own into blocks.

use alloy::primitives::{Address, B256, Bytes, U64, U128};
use serde::{Deserialize, Deserializer};

use crate::chain::agreement::in_rounds;
use crate::chain::{Rpc, RpcError};

/// The receipt of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Which transaction.
    pub transaction_hash: B256,
    /// Who sent it.
    pub from: Address,
    /// 1 for success.
    pub status: Option<U64>,
    /// Gas used by this transaction.
    #[serde(default, deserialize_with = "or_default")]
    pub gas_used: U64,
    /// Wei per gas that was paid.
    #[serde(default, deserialize_with = "or_default")]
    pub effective_gas_price: U128,
    /// Wei that a rollup takes for publishing the transaction's data, besides gas.
    #[serde(default)]
    pub l1_fee: Option<U128>,
    /// In which block.
    pub block_hash: B256,
    /// At which height.
    pub block_number: U64,
    /// What contracts said.
    #[serde(default, deserialize_with = "or_default")]
    pub logs: Vec<Log>,
}

/// Some nodes leave members out, others say null.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    member: D,
) -> Result<T, D::Error> {
    Option::deserialize(member).map(Option::unwrap_or_default)
}

/// What a contract said.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Which contract.
    pub address: Address,
    /// Indexed members; the first is the event's signature.
    pub topics: Vec<B256>,
    /// The other members.
    pub data: Bytes,
    /// Position in the block.
    pub log_index: U64,
    /// Height of the block.
    #[serde(default, deserialize_with = "or_default")]
    pub block_number: U64,
    /// Which transaction.
    pub transaction_hash: B256,
}

impl Receipt {
    /// Wei that a rollup took for publishing the transaction's data, besides gas.
    pub fn data_fee_wei(&self) -> u128 {
        self.l1_fee.map_or(0, |fee| fee.to())
    }

    /// Whether the transaction as a whole went through.
    pub fn succeeded(&self) -> bool {
        self.status == Some(U64::from(1))
    }
}

impl Receipt {
    /// Whether both tell the same of one transaction in one block.
    fn is_same(&self, other: &Self) -> bool {
        let said = |receipt: &Self| (receipt.transaction_hash, receipt.block_hash, receipt.status);
        let log = |log: &Log| {
            (
                log.address,
                log.log_index,
                log.topics.clone(),
                log.data.clone(),
            )
        };
        said(self) == said(other)
            && self.block_number == other.block_number
            && self.logs.iter().map(log).eq(other.logs.iter().map(log))
    }
}

impl Rpc {
    /// All receipts of a block: one call, however many transactions of ours it holds.
    ///
    /// # Errors
    /// When no endpoint answers, or the block is unknown there.
    pub async fn block_receipts(&self, block: B256) -> Result<Vec<Receipt>, RpcError> {
        let receipts: Option<Vec<Receipt>> = self.read("eth_getBlockReceipts", (block,)).await?;
        receipts.ok_or(RpcError::Malformed("eth_getBlockReceipts"))
    }

    /// The receipt of one transaction, `None` while it is in no canonical block. A receipt alone does not show that: some nodes give
    /// one for a block that is only announced (a preconfirmation), or that has left the chain.
    ///
    /// # Errors
    /// When no endpoint answers, or it is in a block that is not known to be canonical or not.
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
        let block = in_rounds(async || match self.canonical(height).await {
            Ok(Some(block)) => Ok(Ok(block)),
            // Who was asked about the block is behind.
            Ok(None) => Err(vec![RpcError::Disagreement("eth_getBlockByNumber")]),
            Err(error) => Ok(Err(error)),
        })
        .await??;
        Ok((block == receipt.block_hash).then_some(receipt))
    }
}
