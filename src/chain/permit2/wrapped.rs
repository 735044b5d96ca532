//! Payments by Permit2 that somebody has settled through a contract of their own. Its calldata proves nothing, so state and logs do: the
//! nonce was unused one block before, and one transaction of the block in which it was used has the exact trace.

use alloy::primitives::{Address, B256};

use crate::chain::authorization::AuthorizationUse;
use crate::chain::permit2::transfer_logs;
use crate::chain::receipt::{Log, Receipt};
use crate::chain::trouble::Trouble;
use crate::chain::{Rpc, RpcError};
use crate::payment::{Method, Signed};

/// Transactions of one block with a Transfer that looks like the payment's: where there are more, nothing is concluded.
const TRANSACTIONS_MAX: usize = 16;
/// Of a call of the proxy, from the permit on: token, amount, nonce, deadline, owner, payee.
const WORDS: usize = 6;

/// What one transaction shows of a payment whose nonce was used in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// Nothing of it.
    None,
    /// Its calldata spells out every settlement that looks like the payment's, this one among them: its Transfer.
    Named(u64),
    /// Its calldata does not say which payment it settled, and it settled one: that Transfer.
    Possible(u64),
    /// It settled several.
    Several,
}

impl Rpc {
    /// What became of an authorization that the calldata of known contracts does not explain, by the `alike` logs of its token.
    pub(super) async fn wrapped_use(
        &self,
        signed: Signed<'_>,
        alike: &[&Log],
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let Some(block) = self.block_used(signed, alike).await? else {
            return Ok(AuthorizationUse::Consumed(None));
        };
        let inside = alike
            .iter()
            .filter(|log| log.block_number.to::<u64>() == block);
        let mut transactions: Vec<B256> = inside.map(|log| log.transaction_hash).collect();
        transactions.sort_unstable();
        transactions.dedup();
        if transactions.len() > TRANSACTIONS_MAX {
            return Ok(AuthorizationUse::Consumed(None));
        }
        let (mut receipts, mut traces) = (Vec::new(), Vec::new());
        for transaction in transactions {
            if let Some(found) = self.settled_in(signed, transaction, tokens).await? {
                return Ok(found);
            }
            let (receipt, trace) = self.trace_in(signed, (transaction, block)).await?;
            receipts.push(receipt);
            traces.push(trace);
        }
        // The proxy of `upto` takes calls of the facilitator alone, which are known ones.
        let may_be_wrapped =
            matches!(signed.method, Method::Permit2(permit) if permit.facilitator.is_none());
        let found = the_only_one(&traces).filter(|_| may_be_wrapped);
        match found.and_then(|(index, log_index)| Some((receipts.get(index)?, log_index))) {
            Some((receipt, log_index)) => self.transferred(receipt, log_index).await,
            None => Ok(AuthorizationUse::Consumed(None)),
        }
    }

    /// The block in which a nonce was used, if it is one of these logs' and the nodes keep its state and that of the block before.
    async fn block_used(
        &self,
        signed: Signed<'_>,
        alike: &[&Log],
    ) -> Result<Option<u64>, RpcError> {
        let heights = alike.iter().map(|log| log.block_number.to::<u64>());
        let (Some(first), Some(last)) = (heights.clone().min(), heights.max()) else {
            return Ok(None);
        };
        let kept = |error: RpcError| {
            if error.trouble() == Trouble::MissingState {
                Ok(None)
            } else {
                Err(error)
            }
        };
        let block = match self.block_of_use(signed, (first, last)).await {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(None),
            Err(error) => return kept(error),
        };
        let before = self.is_used_at(signed, block.saturating_sub(1)).await;
        before.map_or_else(kept, |used| Ok((!used).then_some(block)))
    }

    async fn trace_in(
        &self,
        signed: Signed<'_>,
        (transaction, block): (B256, u64),
    ) -> Result<(Receipt, Trace), RpcError> {
        let call = self.call_of(transaction).await?;
        let receipt = self.receipt(transaction).await?;
        // A node may show a log that no receipt has, and a reorg may have moved the transaction since.
        let standing = receipt.filter(|receipt| receipt.block_number.to::<u64>() == block);
        let (Some(call), Some(receipt)) = (call, standing) else {
            return Err(RpcError::Malformed("eth_getLogs"));
        };
        let logs: &[Log] = if receipt.succeeded() {
            &receipt.logs
        } else {
            &[]
        };
        let trace = trace(signed, &call.input, logs);
        Ok((receipt, trace))
    }
}

/// Which transaction settled the payment, and its Transfer there, if only one can have.
fn the_only_one(traces: &[Trace]) -> Option<(usize, u64)> {
    let among = |wanted: fn(Trace) -> Option<u64>| {
        let all = traces.iter().enumerate();
        let mut found = all.filter_map(|(index, trace)| Some((index, wanted(*trace)?)));
        (found.next(), found.next().is_some())
    };
    let named = among(|trace| match trace {
        Trace::Named(log_index) => Some(log_index),
        Trace::None | Trace::Possible(_) | Trace::Several => None,
    });
    let possible = among(|trace| match trace {
        Trace::Possible(log_index) => Some(log_index),
        Trace::None | Trace::Named(_) | Trace::Several => None,
    });
    match (named, possible) {
        ((Some(one), false), _) => Some(one),
        ((None, _), (Some(one), false)) if !traces.contains(&Trace::Several) => Some(one),
        _ => None,
    }
}

fn trace(signed: Signed<'_>, input: &[u8], logs: &[Log]) -> Trace {
    let moved: Vec<u64> = transfer_logs(signed, logs).collect();
    let named = nonces_in(signed, input);
    if named.len() == moved.len() {
        let mut both = named.iter().zip(&moved);
        let own = both.find(|(nonce, _)| **nonce == signed.terms.nonce);
        return own.map_or(Trace::None, |(_, log_index)| Trace::Named(*log_index));
    }
    match moved[..] {
        [] => Trace::None,
        [only] => Trace::Possible(only),
        _ => Trace::Several,
    }
}

/// The nonces of the calls of the proxy of `exact`, anywhere in some calldata, that look like the payment's in the logs.
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
        let alike = [of, value, from, payee] == [&token.0, &amount.0, &owner.0, &to.0];
        alike.then(|| B256::from(*nonce))
    });
    calls.collect()
}

#[cfg(test)]
mod tests;
