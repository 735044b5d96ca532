//! Plain ERC-20 transfers that payers send themselves: decoding, look-up and logs.

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

/// Decodes a signed transaction; its hash and sender are computed from the bytes. `None` for any other bytes, and for trailing bytes.
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

/// A transaction as a node returns it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RpcTransaction {
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
    /// A transaction that a node has in its mempool or in a block, and the height of that block.
    pub async fn transfer(
        &self,
        transaction: B256,
    ) -> Result<Option<(Transfer, Option<u64>)>, RpcError> {
        let shown = self.read("eth_getTransactionByHash", (transaction,));
        to_transfer(shown.await?, transaction)
    }

    /// A transaction on whose content and block height enough endpoints agree. Whether the block is canonical is not checked.
    pub(super) async fn agreed_transaction(
        &self,
        transaction: B256,
    ) -> Result<Option<Transfer>, RpcError> {
        let shown = self.agreed("eth_getTransactionByHash", (transaction,), Option::eq);
        let read = to_transfer(shown.await?, transaction)?;
        Ok(read.map(|(transfer, _)| transfer))
    }

    /// The account nonce of `account` as of the block at height `number`; see [`Rpc::agreed_nonce`].
    ///
    /// # Errors
    /// When too few endpoints answer, or too few have the block's state ([`RpcError::lacks_state`]).
    pub async fn transaction_count_at(
        &self,
        account: Address,
        number: u64,
    ) -> Result<u64, RpcError> {
        self.agreed_nonce(account, format!("0x{number:x}")).await
    }
}

fn to_transfer(
    shown: Option<RpcTransaction>,
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

/// The log index of a transfer with exactly the payment's token, payer, payee and amount.
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
