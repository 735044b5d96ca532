//! Account nonces of signers and payers: what endpoints agree on, whether a transaction has lost its nonce, and which transaction used one.
//! No JSON-RPC method returns the latter, so its block is found by bisection over heights.

use alloy::primitives::{Address, B256};
use futures_util::StreamExt as _;

use crate::chain::multicall::MULTICALL3;
use crate::chain::rpc::{ErrorKind, Errors, MinedTransaction, retry_rounds};
use crate::chain::{Rpc, RpcError, RpcResult};
use crate::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

/// Gas limit of a transfer that gives a payer gas money. On some rollups it also covers the L1 data fee.
pub const FUNDING_GAS: u64 = 200_000;

/// How many blocks before the newest are checked, in growing steps, because few nodes keep the state of older blocks.
const LOOK_BACK_STEPS: [u64; 5] = [16, 128, 1_024, 8_192, 65_536];

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
    /// The account nonce that two endpoints (one, if there is only one) report at least, as of `block` (a tag or a height). A single
    /// endpoint could make a lane skip nonces, or give up transactions that may still be mined.
    ///
    /// # Errors
    /// [`RpcError::NoAgreement`] when only one of several endpoints answers; its error when none does.
    pub async fn agreed_nonce(&self, account: Address, block: String) -> RpcResult<u64> {
        retry_rounds(async || {
            let mut answers = self.transaction_count_of_each(account, &block);
            let (mut counts, mut errors) = (Vec::new(), Errors::new());
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(count) => counts.push(count),
                    Err(error) => errors.push(error),
                }
            }
            counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
            let required = self.endpoints.len().min(2);
            if let Some(count) = counts.get(required - 1) {
                return Ok(*count);
            }
            if let Some(missing_state) = errors
                .iter()
                .position(|error| error.kind() == ErrorKind::MissingState)
            {
                // The endpoint does not keep state that old, so its answer stays missing: report this error as the last one.
                let missing = errors.swap_remove(missing_state);
                errors.push(missing);
            } else if !counts.is_empty() {
                errors.push(RpcError::NoAgreement("eth_getTransactionCount"));
            }
            Err(errors)
        })
        .await
    }

    /// Whether none of `transactions` can ever be mined, because another transaction used their account nonce as of the block at `height`.
    ///
    /// True when two endpoints (one, if there is only one) report a higher nonce, as many report no receipt, and none reports a receipt.
    /// Nodes show receipts later than nonces: the caller must check again after a while before it acts on the result.
    pub async fn is_nonce_lost(
        &self,
        account: Address,
        nonce: u64,
        transactions: &[B256],
        height: u64,
    ) -> RpcResult<bool> {
        let height = self.agreed_height(height);
        if self.transaction_count_at(account, height).await? <= nonce {
            return Ok(false);
        }
        for transaction in transactions {
            if !self.has_no_receipt(*transaction).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether two endpoints (one, if there is only one) report no receipt of a transaction, and none reports one.
    async fn has_no_receipt(&self, transaction: B256) -> RpcResult<bool> {
        retry_rounds(async || {
            let mut answers = self.receipt_of_each(transaction);
            let mut without_receipt = 0;
            let mut errors = vec![RpcError::NoAgreement("eth_getTransactionReceipt")];
            while let Some(answer) = answers.next().await {
                match answer {
                    Ok(Some(_)) => return Ok(false),
                    Ok(None) => without_receipt += 1,
                    Err(error) => errors.push(error),
                }
            }
            if without_receipt >= self.endpoints.len().min(2) {
                Ok(true)
            } else {
                Err(errors)
            }
        })
        .await
    }

    /// The account nonce of `account` as of the block at height `number`; see [`Rpc::agreed_nonce`].
    ///
    /// # Errors
    /// When too few endpoints answer, or too few have the block's state ([`RpcError::lacks_state`]).
    pub async fn transaction_count_at(&self, account: Address, number: u64) -> RpcResult<u64> {
        self.agreed_nonce(account, format!("0x{number:x}")).await
    }

    /// The transaction that used `nonce` of `account` at height `newest` or below. `None`: the nonce is unused, or was used too long ago.
    ///
    /// # Errors
    /// When too few endpoints answer, or none keeps the state of the searched blocks ([`RpcError::lacks_state`]).
    pub async fn find_transaction_by_nonce(
        &self,
        account: Address,
        nonce: u64,
        newest: u64,
    ) -> RpcResult<Option<MinedTransaction>> {
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
        let used_by =
            |one: &MinedTransaction| one.from == account && one.nonce.to::<u64>() == nonce;
        Ok(self.transactions_at(high).await?.into_iter().find(used_by))
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{Bytes, U64, U256};

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
