//! How a Permit2 nonce was used (`docs/architecture.md`, Permit2). Permit2 emits no event when a nonce is used: the transactions with the
//! payment's transfer are examined, then invalidations, then the state of the nonce.

use alloy::primitives::{Address, B256, Bytes, U256, b256};
use serde_json::json;

use crate::chain::nonce_use::AuthorizationUse;
use crate::chain::permit2::{nonce_call, proves_settlement, transfer_log, transfer_logs};
use crate::chain::rpc::ErrorKind;
use crate::chain::transfer::TRANSFER;
use crate::chain::{Log, Receipt, Rpc, RpcError, RpcResult};
use crate::payment::{Method, PaymentTerms};
use crate::protocol::permit2::PERMIT2;

/// `UnorderedNonceInvalidation(address,uint256,uint256)`.
const NONCES_INVALIDATED: B256 =
    b256!("3704902f963766a4e561bbaab6e6cdc1b1dd12f6e9e99648da8843b3f46b918d");
/// How many transfers with the payment's accounts and amount are examined for one authorization, from the newest on.
const CANDIDATES_MAX: usize = 8;
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
    /// How an authorization was used whose nonce is used at Permit2; see [`Rpc::authorization_uses`].
    pub(super) async fn permit2_use(
        &self,
        terms: &PaymentTerms,
        head: u64,
        tokens: &[Address],
    ) -> RpcResult<AuthorizationUse> {
        let (from, to) = (terms.from.into_word(), terms.to.into_word());
        let filter = (json!(terms.asset), json!([TRANSFER, from, to]));
        let nonce_call = [nonce_call(terms.from, terms.nonce)];
        let all = |(logs, complete): (Vec<Log>, bool)| {
            let logs = complete.then_some(logs);
            logs.ok_or(RpcError::SearchIncomplete)
        };
        let transfers = self.recent_logs(filter, &nonce_call, head, |_| false);
        let transfers = all(transfers.await?)?;
        let amount = terms.value.atomic().to_be_bytes::<32>();
        let mut same_transfer: Vec<&Log> = transfers
            .iter()
            .filter(|log| log.data[..] == amount)
            .collect();
        same_transfer.sort_by_key(|log| std::cmp::Reverse(log.block_number));
        for log in same_transfer.iter().take(CANDIDATES_MAX) {
            let found = self.settled_in(terms, log.transaction_hash, tokens);
            if let Some(found) = found.await? {
                return Ok(found);
            }
        }
        let nonce = U256::from_be_bytes(terms.nonce.0);
        let of_nonce = |log: &&Log| invalidates(&log.data, nonce);
        let filter = (json!(PERMIT2), json!([NONCES_INVALIDATED, from]));
        let enough = |logs: &[Log]| logs.iter().any(|log| invalidates(&log.data, nonce));
        let invalidated = self.recent_logs(filter, &nonce_call, head, enough);
        let invalidated = all(invalidated.await?)?;
        let Some(invalidation) = invalidated.iter().find(of_nonce) else {
            return self.wrapped_use(terms, &same_transfer, tokens).await;
        };
        let receipt = self.receipt(invalidation.transaction_hash).await?;
        // A node may return a log that is in no canonical receipt.
        let in_receipt = receipt.is_some_and(|receipt| {
            let mut own = receipt.logs.iter().filter(|log| log.address == PERMIT2);
            own.any(|log| log.topics == invalidation.topics && log.data == invalidation.data)
        });
        if in_receipt {
            Ok(AuthorizationUse::Consumed(Some(
                invalidation.transaction_hash,
            )))
        } else {
            Err(RpcError::Malformed("eth_getLogs"))
        }
    }

    async fn settled_in(
        &self,
        terms: &PaymentTerms,
        transaction: B256,
        tokens: &[Address],
    ) -> RpcResult<Option<AuthorizationUse>> {
        let Some(call) = self.agreed_transaction(transaction).await? else {
            return Ok(None);
        };
        if !proves_settlement(terms, call.to, &call.input, tokens) {
            return Ok(None);
        }
        let Some(receipt) = self.receipt(transaction).await? else {
            return Ok(None);
        };
        let found = transfer_log(terms, &receipt.logs).filter(|_| receipt.succeeded());
        match found {
            Some(log_index) => self.transferred(&receipt, log_index).await.map(Some),
            None => Ok(None),
        }
    }

    /// How an authorization was used that no calldata of known contracts explains: a foreign contract may wrap the call of the proxy, and
    /// its calldata proves nothing. State and logs do: the nonce was unused one block before, and only one transaction of the block in which
    /// it was used has the payment's logs. `same_transfer` are the token's logs with its transfer.
    async fn wrapped_use(
        &self,
        terms: &PaymentTerms,
        same_transfer: &[&Log],
        tokens: &[Address],
    ) -> RpcResult<AuthorizationUse> {
        let Some(block) = self.block_used(terms, same_transfer).await? else {
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
            if let Some(found) = self.settled_in(terms, transaction, tokens).await? {
                return Ok(found);
            }
            let (receipt, evidence) = self.evidence_in(terms, (transaction, block)).await?;
            receipts.push(receipt);
            all_evidence.push(evidence);
        }
        // The proxy of `upto` accepts calls from the facilitator only, so such a payment cannot be wrapped.
        let may_be_wrapped =
            matches!(&terms.method, Method::Permit2(permit) if permit.facilitator.is_none());
        let found = single_match(&all_evidence).filter(|_| may_be_wrapped);
        match found.and_then(|(index, log_index)| Some((receipts.get(index)?, log_index))) {
            Some((receipt, log_index)) => self.transferred(receipt, log_index).await,
            None => Ok(AuthorizationUse::Consumed(None)),
        }
    }

    /// The block in which a nonce was used, if it is in the range of these logs and the nodes have its state and that of the block before.
    async fn block_used(
        &self,
        terms: &PaymentTerms,
        same_transfer: &[&Log],
    ) -> RpcResult<Option<u64>> {
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
        let nonce = nonce_call(terms.from, terms.nonce);
        let block = match self.block_of_nonce_use(&nonce, (first, last)).await {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(None),
            Err(error) => return unless_missing(error),
        };
        let before = self.is_nonce_used_at(&nonce, block.saturating_sub(1)).await;
        before.map_or_else(unless_missing, |used| Ok((!used).then_some(block)))
    }

    async fn evidence_in(
        &self,
        terms: &PaymentTerms,
        (transaction, block): (B256, u64),
    ) -> RpcResult<(Receipt, Evidence)> {
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
        let evidence = evidence(terms, &call.input, logs);
        Ok((receipt, evidence))
    }
}

/// The index of the transaction that settled the payment and its transfer's log index, if only one transaction can have.
fn single_match(evidence: &[Evidence]) -> Option<(usize, u64)> {
    let of_kind = |identified: bool| {
        let all = evidence.iter().enumerate();
        let of_kind = all.filter_map(|(index, evidence)| match evidence {
            Evidence::Identified(log_index) if identified => Some((index, *log_index)),
            Evidence::Possible(log_index) if !identified => Some((index, *log_index)),
            Evidence::None
            | Evidence::Identified(_)
            | Evidence::Possible(_)
            | Evidence::Ambiguous => None,
        });
        of_kind.collect::<Vec<_>>()
    };
    match (of_kind(true).as_slice(), of_kind(false).as_slice()) {
        ([one], _) => Some(*one),
        ([], [one]) if !evidence.contains(&Evidence::Ambiguous) => Some(*one),
        _ => None,
    }
}

fn evidence(terms: &PaymentTerms, input: &[u8], logs: &[Log]) -> Evidence {
    let transfers: Vec<u64> = transfer_logs(terms, logs).collect();
    let identified = nonces_in(terms, input);
    if identified.len() == transfers.len() {
        let mut both = identified.iter().zip(&transfers);
        let own = both.find(|(nonce, _)| **nonce == terms.nonce);
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
fn nonces_in(terms: &PaymentTerms, input: &[u8]) -> Vec<B256> {
    let amount = B256::from(terms.value.atomic());
    let (token, owner, to) = (
        terms.asset.into_word(),
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

/// Whether an `UnorderedNonceInvalidation` with the data `members` (word and mask) includes a nonce.
fn invalidates(members: &Bytes, nonce: U256) -> bool {
    let member = |from: usize| members.get(from..from + 32).map(U256::from_be_slice);
    let (Some(word), Some(mask)) = (member(0), member(32)) else {
        return false;
    };
    let (own, bit): (U256, usize) = (nonce >> 8, usize::from(nonce.byte(0)));
    word == own && mask.bit(bit)
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{U64, keccak256};

    use super::*;
    use crate::chain::authorization::settlement_call;
    use crate::chain::permit2::SETTLED;
    use crate::payment::fixture::{AMOUNT, PAYEE, PAYER, USDC, candidate_of, permit2_body};
    use crate::payment::{Candidate, Purpose};
    use crate::protocol::Scheme;
    use crate::protocol::permit2::EXACT_PROXY;

    fn exact(nonce: u8) -> Candidate {
        let mut exact = candidate_of(&permit2_body(Scheme::Exact), Purpose::Settle);
        exact.terms.nonce = B256::repeat_byte(nonce);
        exact
    }

    /// The logs of `count` settlements with the same transfer; the transfers have the log indices 0, 2, 4 and so on.
    fn settlements(count: usize) -> Vec<Log> {
        let log = |address, topics: Vec<B256>, data: Bytes| Log {
            address,
            topics,
            data,
            log_index: U64::ZERO,
            block_number: U64::ZERO,
            transaction_hash: B256::ZERO,
        };
        let transfer = vec![TRANSFER, PAYER.into_word(), PAYEE.into_word()];
        let amount = Bytes::from(U256::from(AMOUNT).to_be_bytes::<32>());
        let mut logs = Vec::new();
        for _ in 0..count {
            logs.push(log(USDC, transfer.clone(), amount.clone()));
            logs.push(log(EXACT_PROXY, vec![SETTLED], Bytes::new()));
        }
        for (log, index) in logs.iter_mut().zip(0_u64..) {
            log.log_index = U64::from(index);
        }
        logs
    }

    /// Calldata of a foreign contract that contains proxy calls for these nonces.
    fn wrapped_calls(nonces: &[u8]) -> Vec<u8> {
        let mut input = b"wrap".to_vec();
        for nonce in nonces {
            input.extend_from_slice(&settlement_call(&exact(*nonce).terms).1);
        }
        input
    }

    #[test]
    fn calldata_with_every_settlement_identifies_the_payment() {
        let (payment, two) = (exact(1), settlements(2));
        let of = |nonces: &[u8]| evidence(&payment.terms, &wrapped_calls(nonces), &two);
        assert_eq!(of(&[1, 2]), Evidence::Identified(0));
        assert_eq!(of(&[2, 1]), Evidence::Identified(2));
        assert_eq!(of(&[2, 3]), Evidence::None, "two other payments");
        for unclear in [&[][..], &[1], &[1, 2, 3]] {
            assert_eq!(of(unclear), Evidence::Ambiguous, "{unclear:?}");
        }
    }

    #[test]
    fn one_settlement_without_calldata_is_possible() {
        let payment = exact(1);
        let of = |nonces: &[u8], count| {
            let logs = settlements(count);
            evidence(&payment.terms, &wrapped_calls(nonces), &logs)
        };
        assert_eq!(of(&[], 1), Evidence::Possible(0));
        assert_eq!(of(&[], 0), Evidence::None);
        assert_eq!(of(&[1], 1), Evidence::Identified(0));
        assert_eq!(of(&[1], 0), Evidence::None, "it reverted");
        assert_eq!(of(&[2], 1), Evidence::None, "another payment");
    }

    #[test]
    fn payment_matches_only_if_one_transaction_can_have_settled_it() {
        use Evidence::{Ambiguous, Identified, None as NoEvidence, Possible};
        for (evidence, found) in [
            (vec![Possible(3)], Some((0, 3))),
            (vec![NoEvidence, Possible(3)], Some((1, 3))),
            (vec![Possible(3), Identified(5)], Some((1, 5))),
            (vec![Ambiguous, Identified(5)], Some((1, 5))),
            (vec![], None),
            (vec![Ambiguous], None),
            (vec![Possible(3), Possible(5)], None),
            (vec![Possible(3), Ambiguous], None),
            (vec![Identified(3), Identified(5)], None),
        ] {
            assert_eq!(single_match(&evidence), found, "{evidence:?}");
        }
    }

    #[test]
    fn invalidation_includes_the_bits_of_its_mask() {
        assert_eq!(
            NONCES_INVALIDATED,
            keccak256("UnorderedNonceInvalidation(address,uint256,uint256)")
        );
        for (nonce, word, bit) in [
            (U256::from(7), U256::ZERO, 7),
            (U256::from(256), U256::ONE, 0),
            (U256::MAX, U256::MAX >> 8, 255),
        ] {
            let mask = U256::ONE << bit;
            let members = |word: U256, mask: U256| {
                let bytes = [word.to_be_bytes::<32>(), mask.to_be_bytes::<32>()].concat();
                Bytes::from(bytes)
            };
            assert!(invalidates(&members(word, mask), nonce));
            assert!(!invalidates(&members(word, !mask), nonce));
            assert!(!invalidates(&members(!word, U256::MAX), nonce));
        }
        assert!(!invalidates(&Bytes::new(), U256::ZERO));
    }
}
