//! Plain ERC-20 transfers that payers send themselves: their bytes, and their trace in the logs.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Bytes, U64, U256};
use serde::Deserialize;

use crate::chain::receipt::Log;
use crate::chain::token::TRANSFER;
use crate::chain::{Rpc, RpcError};
use crate::payment::Payment;
use crate::payment::session::Transfer;

/// The signed bytes of a transaction, read; its hash and sender are computed from them. `None` for anything else, also for bytes
/// behind the transaction.
pub fn decode(raw: &Bytes) -> Option<Transfer> {
    let mut rest: &[u8] = raw;
    let signed = TxEnvelope::decode_2718(&mut rest).ok()?;
    if !rest.is_empty() {
        return None;
    }
    Some(Transfer {
        hash: *signed.tx_hash(),
        chain_id: signed.chain_id(),
        from: signed.recover_signer().ok()?,
        account_nonce: signed.nonce(),
        to: signed.to(),
        value: signed.value(),
        input: signed.input().clone(),
    })
}

/// A transaction as a node shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    hash: B256,
    from: Address,
    to: Option<Address>,
    nonce: U64,
    value: U256,
    input: Bytes,
    chain_id: Option<U64>,
    block_number: Option<U64>,
}

impl Rpc {
    /// A transaction that a node has in its pool or in a block, with the height of that block.
    ///
    /// # Errors
    /// When no endpoint answers.
    pub async fn transfer(
        &self,
        transaction: B256,
    ) -> Result<Option<(Transfer, Option<u64>)>, RpcError> {
        let shown = self.read("eth_getTransactionByHash", (transaction,));
        read_transfer(shown.await?, transaction)
    }

    /// A transaction as enough endpoints show it to conclude something from its content.
    ///
    /// # Errors
    /// When too few do.
    pub(super) async fn call_of(&self, transaction: B256) -> Result<Option<Transfer>, RpcError> {
        let shown = self.agreed("eth_getTransactionByHash", (transaction,), Option::eq);
        let read = read_transfer(shown.await?, transaction)?;
        Ok(read.map(|(transfer, _)| transfer))
    }

    /// The account nonce that `account` has reached for sure as of the block at height `number`.
    ///
    /// # Errors
    /// When too few endpoints answer, or the block's state is not kept there.
    pub async fn transaction_count_at(
        &self,
        account: Address,
        number: u64,
    ) -> Result<u64, RpcError> {
        self.reached_nonce(account, format!("0x{number:x}")).await
    }
}

fn read_transfer(
    shown: Option<Shown>,
    transaction: B256,
) -> Result<Option<(Transfer, Option<u64>)>, RpcError> {
    let Some(shown) = shown else { return Ok(None) };
    if shown.hash != transaction {
        return Err(RpcError::Malformed("eth_getTransactionByHash"));
    }
    let block = shown.block_number.map(|number| number.to());
    let transfer = Transfer {
        hash: transaction,
        chain_id: shown.chain_id.map(|id| id.to()),
        from: shown.from,
        account_nonce: shown.nonce.to(),
        to: shown.to,
        value: shown.value,
        input: shown.input,
    };
    Ok(Some((transfer, block)))
}

/// Where a transfer of exactly this payment stands in the logs of its transaction.
pub fn plain_transfer_log(payment: &Payment, logs: &[Log]) -> Option<u64> {
    let terms = &payment.authorization;
    let topics = [TRANSFER, terms.from.into_word(), terms.to.into_word()];
    let exact = |log: &&Log| {
        log.address == payment.asset
            && log.topics == topics
            && log.data[..] == terms.value.atomic().to_be_bytes::<32>()
    };
    logs.iter().find(exact).map(|log| log.log_index.to())
}
