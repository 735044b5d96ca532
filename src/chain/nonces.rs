//! Which transaction has used a nonce of an account: no method of the standard tells, so it is searched for by height.

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use serde::Deserialize;

use crate::chain::authorization::MULTICALL3;
use crate::chain::{Rpc, RpcError};
use crate::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

/// Gas of a transfer that gives a payer gas money; some rollups count the publishing of its data in as well.
pub const FUNDING_GAS: u64 = 200_000;

/// How far back is looked, in steps that grow: the state of older blocks is kept by few nodes.
const STEPS: [u64; 5] = [16, 128, 1_024, 8_192, 65_536];

/// A transaction in a block.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UsedBy {
    /// Its hash.
    pub hash: B256,
    from: Address,
    nonce: U64,
    to: Option<Address>,
    #[serde(default)]
    gas: U64,
    #[serde(default)]
    value: U256,
    #[serde(default)]
    input: Bytes,
}

#[derive(Debug, Deserialize)]
struct Block {
    transactions: Vec<UsedBy>,
}

impl UsedBy {
    /// Whether it could be one that x402d has made: a settlement, an empty transaction in place of one, or gas money for a payer, which has a
    /// gas limit that no wallet gives a plain transfer.
    pub fn is_settlement_like(&self, tokens: &[Address]) -> bool {
        let Some(to) = self.to else { return false };
        let empty = to == self.from && self.value.is_zero() && self.input.is_empty();
        let contract = [MULTICALL3, EXACT_PROXY, UPTO_PROXY].contains(&to) || tokens.contains(&to);
        let plain = self.input.is_empty();
        let gas_money = plain && !self.value.is_zero() && self.gas.to::<u64>() == FUNDING_GAS;
        empty || gas_money || (contract && !plain)
    }
}

impl Rpc {
    /// The transaction that has used `nonce` of `account`, at the height `newest` or below. `None`: it is not there, or too old to be found.
    ///
    /// # Errors
    /// When no endpoint answers, or none keeps the state of the blocks that are searched.
    pub async fn nonce_used_by(
        &self,
        account: Address,
        nonce: u64,
        newest: u64,
    ) -> Result<Option<UsedBy>, RpcError> {
        if self.transaction_count_at(account, newest).await? <= nonce {
            return Ok(None);
        }
        // Used at `high`, and not at `low`.
        let (mut low, mut high) = (None, newest);
        for step in STEPS {
            let Some(height) = newest.checked_sub(step) else {
                low = Some(0);
                break;
            };
            if self.transaction_count_at(account, height).await? <= nonce {
                low = Some(height);
                break;
            }
            high = height;
        }
        let Some(mut low) = low else { return Ok(None) };
        while high > low + 1 {
            let middle = low + (high - low) / 2;
            if self.transaction_count_at(account, middle).await? > nonce {
                high = middle;
            } else {
                low = middle;
            }
        }
        let block: Option<Block> = self
            .read("eth_getBlockByNumber", (format!("0x{high:x}"), true))
            .await?;
        let used_by = |one: &UsedBy| one.from == account && one.nonce.to::<u64>() == nonce;
        Ok(block.and_then(|block| block.transactions.into_iter().find(used_by)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settlements_and_empty_transactions_look_like_ours_and_nothing_else_does() {
        let token = Address::repeat_byte(7);
        let signer = Address::repeat_byte(1);
        let sent = |to: Option<Address>, value: u64, input: &'static [u8]| UsedBy {
            hash: B256::ZERO,
            from: signer,
            nonce: U64::ZERO,
            gas: U64::from(21_000),
            to,
            value: U256::from(value),
            input: Bytes::from_static(input),
        };
        let ours = |one: &UsedBy| one.is_settlement_like(&[token]);
        assert!(ours(&sent(Some(token), 0, &[1])));
        assert!(ours(&sent(Some(MULTICALL3), 0, &[1])));
        assert!(ours(&sent(Some(signer), 0, &[])));
        assert!(!ours(&sent(Some(signer), 1, &[])));
        assert!(!ours(&sent(Some(Address::repeat_byte(9)), 1, &[])));
        assert!(!ours(&sent(None, 0, &[1])));
        let gas_money = UsedBy {
            gas: U64::from(FUNDING_GAS),
            ..sent(Some(Address::repeat_byte(9)), 1, &[])
        };
        assert!(ours(&gas_money), "which a database may have forgotten");
    }
}
