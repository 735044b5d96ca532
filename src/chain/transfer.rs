//! Plain ERC-20 transfers: decoding of those that payers send themselves, and logs.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{B256, Bytes, b256};

use crate::chain::Log;
use crate::payment::session::Transfer;
use crate::payment::{Payment, PaymentTerms};

/// `Transfer(address,address,uint256)`.
pub(super) const TRANSFER: B256 =
    b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");

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

/// Whether a log is a transfer with exactly this token, payer, payee and amount.
pub(super) fn is_transfer_of(terms: &PaymentTerms, log: &Log) -> bool {
    log.address == terms.asset
        && log.topics == [TRANSFER, terms.from.into_word(), terms.to.into_word()]
        && log.data[..] == terms.value.atomic().to_be_bytes::<32>()
}

/// The log index of a transfer with exactly the payment's token, payer, payee and amount.
pub fn plain_transfer_log(payment: &Payment, logs: &[Log]) -> Option<u64> {
    let exact = |log: &&Log| is_transfer_of(&payment.terms, log);
    logs.iter().find(exact).map(|log| log.log_index.to())
}
