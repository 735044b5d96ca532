//! What endpoints answer, reduced to the members that x402d uses. Parsed leniently, because chains have transaction types of their own.

use alloy::primitives::{Address, B256, Bytes, U64, U128, U256};
use alloy::serde::quantity;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;

use crate::payment::session::Transfer;

/// The header of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Height.
    #[serde(deserialize_with = "quantity::deserialize")]
    pub number: u64,
    pub hash: B256,
    #[serde(rename = "parentHash")]
    pub parent: B256,
    #[serde(rename = "timestamp", deserialize_with = "unix_time")]
    pub time: OffsetDateTime,
    /// Base fee in wei per gas (EIP-1559); `None` on chains without one.
    #[serde(
        rename = "baseFeePerGas",
        default,
        deserialize_with = "quantity::opt::deserialize"
    )]
    pub base_fee_wei: Option<u128>,
}

/// A block of which only the hash is read.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(in crate::chain) struct BlockHash {
    pub(in crate::chain) hash: B256,
}

fn unix_time<'de, D: Deserializer<'de>>(member: D) -> Result<OffsetDateTime, D::Error> {
    let seconds: i64 = U64::deserialize(member)?
        .try_into()
        .map_err(D::Error::custom)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(D::Error::custom)
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
    pub(in crate::chain) fn is_same(&self, other: &Self) -> bool {
        let base_fee_wei = self.base_fee_wei;
        *self
            == Self {
                base_fee_wei,
                ..*other
            }
    }
}

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

    /// Whether both describe the same transaction in the same block with the same status and logs.
    pub(super) fn is_same(&self, other: &Self) -> bool {
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

/// A transaction as a node returns it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Transaction {
    pub(super) hash: B256,
    from: Address,
    to: Option<Address>,
    nonce: U64,
    value: U256,
    input: Bytes,
    chain_id: Option<U64>,
    pub(super) block_number: Option<U64>,
}

impl From<Transaction> for Transfer {
    fn from(shown: Transaction) -> Self {
        Self {
            hash: shown.hash,
            chain_id: shown.chain_id.map(|id| id.to()),
            from: shown.from,
            account_nonce: shown.nonce.to(),
            to: shown.to,
            value: shown.value,
            input: shown.input,
        }
    }
}

/// A block with its transactions.
#[derive(Debug, Deserialize)]
pub(super) struct FullBlock {
    pub(super) transactions: Vec<MinedTransaction>,
}

/// A transaction of a block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MinedTransaction {
    pub hash: B256,
    pub(in crate::chain) from: Address,
    pub(in crate::chain) nonce: U64,
    pub(in crate::chain) to: Option<Address>,
    #[serde(default)]
    pub(in crate::chain) gas: U64,
    #[serde(default)]
    pub(in crate::chain) value: U256,
    #[serde(default)]
    pub(in crate::chain) input: Bytes,
}
