//! Payments by Permit2 that were settled through a foreign contract, which wraps the call of the proxy. Its calldata proves nothing. State
//! and logs do: the nonce was unused one block before, and only one transaction of the block in which it was used has the payment's logs.

use alloy::primitives::{Address, B256};

use crate::chain::authorization::AuthorizationUse;
use crate::chain::error_kind::ErrorKind;
use crate::chain::permit2::transfer_logs;
use crate::chain::receipt::{Log, Receipt};
use crate::chain::{Rpc, RpcError};
use crate::payment::{Method, Signed};

/// Most transactions of one block with the payment's transfer; with more of them the result stays open.
const TRANSACTIONS_MAX: usize = 16;
/// The words of a proxy call that are compared, from the permit on: token, amount, nonce, deadline, owner, payee.
const WORDS: usize = 6;

/// Evidence in one transaction for a payment whose nonce was used in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evidence {
    /// It did not settle the payment.
    None,
    /// Its calldata contains a proxy call for every settlement with the payment's transfer, this payment's among them. Its log index.
    Identified(u64),
    /// It has one settlement with the payment's transfer, of an unknown nonce. Its log index.
    Possible(u64),
    /// It has several of them, of unknown nonces.
    Ambiguous,
}

impl Rpc {
    /// How an authorization was used that no calldata of known contracts explains. `same_transfer` are the token's logs with its transfer.
    pub(super) async fn wrapped_use(
        &self,
        signed: Signed<'_>,
        same_transfer: &[&Log],
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let Some(block) = self.block_used(signed, same_transfer).await? else {
            return Ok(AuthorizationUse::Consumed(None));
        };
        let inside = same_transfer
            .iter()
            .filter(|log| log.block_number.to::<u64>() == block);
        let mut transactions: Vec<B256> = inside.map(|log| log.transaction_hash).collect();
        transactions.sort_unstable();
        transactions.dedup();
        if transactions.len() > TRANSACTIONS_MAX {
            return Ok(AuthorizationUse::Consumed(None));
        }
        let (mut receipts, mut all_evidence) = (Vec::new(), Vec::new());
        for transaction in transactions {
            if let Some(found) = self.settled_in(signed, transaction, tokens).await? {
                return Ok(found);
            }
            let (receipt, evidence) = self.evidence_in(signed, (transaction, block)).await?;
            receipts.push(receipt);
            all_evidence.push(evidence);
        }
        // The proxy of `upto` accepts calls from the facilitator only, so such a payment cannot be wrapped.
        let may_be_wrapped =
            matches!(signed.method, Method::Permit2(permit) if permit.facilitator.is_none());
        let found = single_match(&all_evidence).filter(|_| may_be_wrapped);
        match found.and_then(|(index, log_index)| Some((receipts.get(index)?, log_index))) {
            Some((receipt, log_index)) => self.transferred(receipt, log_index).await,
            None => Ok(AuthorizationUse::Consumed(None)),
        }
    }

    /// The block in which a nonce was used, if it is in the range of these logs and the nodes have its state and that of the block before.
    async fn block_used(
        &self,
        signed: Signed<'_>,
        same_transfer: &[&Log],
    ) -> Result<Option<u64>, RpcError> {
        let heights = same_transfer.iter().map(|log| log.block_number.to::<u64>());
        let (Some(first), Some(last)) = (heights.clone().min(), heights.max()) else {
            return Ok(None);
        };
        let unless_missing = |error: RpcError| {
            if error.kind() == ErrorKind::MissingState {
                Ok(None)
            } else {
                Err(error)
            }
        };
        let block = match self.block_of_nonce_use(signed, (first, last)).await {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(None),
            Err(error) => return unless_missing(error),
        };
        let before = self.is_nonce_used_at(signed, block.saturating_sub(1)).await;
        before.map_or_else(unless_missing, |used| Ok((!used).then_some(block)))
    }

    async fn evidence_in(
        &self,
        signed: Signed<'_>,
        (transaction, block): (B256, u64),
    ) -> Result<(Receipt, Evidence), RpcError> {
        let call = self.agreed_transaction(transaction).await?;
        let receipt = self.receipt(transaction).await?;
        // A node may return a log that is in no canonical receipt, and a reorg may have moved the transaction to another block.
        let mined = receipt.filter(|receipt| receipt.block_number.to::<u64>() == block);
        let (Some(call), Some(receipt)) = (call, mined) else {
            return Err(RpcError::Malformed("eth_getLogs"));
        };
        let logs: &[Log] = if receipt.succeeded() {
            &receipt.logs
        } else {
            &[]
        };
        let evidence = evidence(signed, &call.input, logs);
        Ok((receipt, evidence))
    }
}

/// The index of the transaction that settled the payment and its transfer's log index, if only one transaction can have.
fn single_match(evidence: &[Evidence]) -> Option<(usize, u64)> {
    let single = |log_index_of: fn(Evidence) -> Option<u64>| {
        let all = evidence.iter().enumerate();
        let mut found = all.filter_map(|(index, evidence)| Some((index, log_index_of(*evidence)?)));
        (found.next(), found.next().is_some())
    };
    let identified = single(|evidence| match evidence {
        Evidence::Identified(log_index) => Some(log_index),
        Evidence::None | Evidence::Possible(_) | Evidence::Ambiguous => None,
    });
    let possible = single(|evidence| match evidence {
        Evidence::Possible(log_index) => Some(log_index),
        Evidence::None | Evidence::Identified(_) | Evidence::Ambiguous => None,
    });
    match (identified, possible) {
        ((Some(one), false), _) => Some(one),
        ((None, _), (Some(one), false)) if !evidence.contains(&Evidence::Ambiguous) => Some(one),
        _ => None,
    }
}

fn evidence(signed: Signed<'_>, input: &[u8], logs: &[Log]) -> Evidence {
    let transfers: Vec<u64> = transfer_logs(signed, logs).collect();
    let identified = nonces_in(signed, input);
    if identified.len() == transfers.len() {
        let mut both = identified.iter().zip(&transfers);
        let own = both.find(|(nonce, _)| **nonce == signed.terms.nonce);
        return own.map_or(Evidence::None, |(_, log_index)| {
            Evidence::Identified(*log_index)
        });
    }
    match transfers[..] {
        [] => Evidence::None,
        [only] => Evidence::Possible(only),
        _ => Evidence::Ambiguous,
    }
}

/// The nonces of all calls of the `exact` proxy with the payment's transfer, at any position in some calldata.
fn nonces_in(signed: Signed<'_>, input: &[u8]) -> Vec<B256> {
    let terms = signed.terms;
    let amount = B256::from(terms.value.atomic());
    let (token, owner, to) = (
        signed.asset.into_word(),
        terms.from.into_word(),
        terms.to.into_word(),
    );
    let calls = input.windows(WORDS * 32).filter_map(|call| {
        let (words, _) = call.as_chunks::<32>();
        let [of, value, nonce, _deadline, from, payee] = words else {
            return None;
        };
        let same_transfer = [of, value, from, payee] == [&token.0, &amount.0, &owner.0, &to.0];
        same_transfer.then(|| B256::from(*nonce))
    });
    calls.collect()
}

#[cfg(test)]
mod tests;
