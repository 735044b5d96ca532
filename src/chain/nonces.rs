//! Finds the transaction that used an account nonce. No JSON-RPC method returns it, so its block is found by bisection over heights.

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use serde::Deserialize;

use crate::chain::authorization::MULTICALL3;
use crate::chain::{Rpc, RpcError};
use crate::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

/// Gas limit of a transfer that gives a payer gas money. On some rollups it also covers the L1 data fee.
pub const FUNDING_GAS: u64 = 200_000;

/// How many blocks before the newest are checked, in growing steps, because few nodes keep the state of older blocks.
const LOOK_BACK_STEPS: [u64; 5] = [16, 128, 1_024, 8_192, 65_536];

/// A mined transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MinedTransaction {
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
struct FullBlock {
    transactions: Vec<MinedTransaction>,
}

impl MinedTransaction {
    /// Whether x402d may have made it: a settlement, an empty replacement of one, or gas money for a payer. Gas money is recognised by its
    /// gas limit, which no wallet uses for a plain transfer.
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
    /// The transaction that used `nonce` of `account` at height `newest` or below. `None`: the nonce is unused, or was used too long ago.
    ///
    /// # Errors
    /// When too few endpoints answer, or none keeps the state of the searched blocks ([`RpcError::lacks_state`]).
    pub async fn find_transaction_by_nonce(
        &self,
        account: Address,
        nonce: u64,
        newest: u64,
    ) -> Result<Option<MinedTransaction>, RpcError> {
        if self.transaction_count_at(account, newest).await? <= nonce {
            return Ok(None);
        }
        // Invariant: the nonce is used at `high` and unused at `low`.
        let (mut low, mut high) = (None, newest);
        for step in LOOK_BACK_STEPS {
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
        let block: Option<FullBlock> = self
            .read("eth_getBlockByNumber", (format!("0x{high:x}"), true))
            .await?;
        let used_by =
            |one: &MinedTransaction| one.from == account && one.nonce.to::<u64>() == nonce;
        Ok(block.and_then(|block| block.transactions.into_iter().find(used_by)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settlements_empty_transactions_and_gas_money_match() {
        let token = Address::repeat_byte(7);
        let signer = Address::repeat_byte(1);
        let sent = |to: Option<Address>, value: u64, input: &'static [u8]| MinedTransaction {
            hash: B256::ZERO,
            from: signer,
            nonce: U64::ZERO,
            gas: U64::from(21_000),
            to,
            value: U256::from(value),
            input: Bytes::from_static(input),
        };
        let ours = |one: &MinedTransaction| one.is_settlement_like(&[token]);
        assert!(ours(&sent(Some(token), 0, &[1])));
        assert!(ours(&sent(Some(MULTICALL3), 0, &[1])));
        assert!(ours(&sent(Some(signer), 0, &[])));
        assert!(!ours(&sent(Some(signer), 1, &[])));
        assert!(!ours(&sent(Some(Address::repeat_byte(9)), 1, &[])));
        assert!(!ours(&sent(None, 0, &[1])));
        let gas_money = MinedTransaction {
            gas: U64::from(FUNDING_GAS),
            ..sent(Some(Address::repeat_byte(9)), 1, &[])
        };
        assert!(
            ours(&gas_money),
            "gas money, which a restored database may lack"
        );
    }
}
