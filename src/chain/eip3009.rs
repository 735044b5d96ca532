//! EIP-3009 tokens: calldata and logs of a payment, and how a nonce was used.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use alloy::primitives::{Address, B256, Bytes, U256, b256};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::json;

use crate::chain::nonce_use::{AuthorizationUse, NonceCall};
use crate::chain::transfer::{TRANSFER, is_transfer_of};
use crate::chain::{Log, Receipt, Rpc, RpcError, RpcResult};
use crate::payment::PaymentTerms;

sol! {
    interface Eip3009 {
        function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore,
            bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
        function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore,
            bytes32 nonce, bytes signature) external;
        function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
    }
}

/// `AuthorizationCanceled(address,bytes32)`.
const AUTHORIZATION_CANCELED: B256 =
    b256!("1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81");
/// `AuthorizationUsed(address,bytes32)`.
const AUTHORIZATION_USED: B256 =
    b256!("98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5");

/// Calldata of `transferWithAuthorization`.
pub(super) fn transfer_data(terms: &PaymentTerms) -> Bytes {
    let (from, to, nonce) = (terms.from, terms.to, terms.nonce);
    let value = terms.value.atomic();
    let (after, before) = (terms.valid_after.word(), terms.valid_before.word());
    // A signature by the payer's key uses the overload with `v`, `r` and `s`, which every EIP-3009 token has. A signature that only the
    // payer's contract can verify (EIP-1271) needs the overload with `bytes`, also if it has 65 bytes.
    let fixed: Option<[u8; 65]> = terms.signature[..].try_into().ok();
    let data = if let Some(signature) = fixed.filter(|_| terms.is_signed_by_payer_key()) {
        let (r, s, v) = split(&signature);
        let call = (from, to, value, after, before, nonce, v, r, s);
        Eip3009::transferWithAuthorization_0Call::from(call).abi_encode()
    } else {
        let signature = terms.signature.clone();
        let call = (from, to, value, after, before, nonce, signature);
        Eip3009::transferWithAuthorization_1Call::from(call).abi_encode()
    };
    data.into()
}

/// The parts `r`, `s` and `v` of a signature.
pub(super) fn split(signature: &[u8; 65]) -> (B256, B256, u8) {
    let [scalars @ .., v] = signature;
    let (r, s) = scalars.split_at(32);
    (B256::from_slice(r), B256::from_slice(s), *v)
}

/// Whether a call of a token is an EIP-3009 transfer with another token, payer, payee or amount than `signed`.
pub(super) fn is_other_transfer(terms: &PaymentTerms, token: Address, input: &Bytes) -> bool {
    let transfer = Eip3009::transferWithAuthorization_0Call::abi_decode(input)
        .map(|call| (call.from, call.to, call.value))
        .or_else(|_| {
            Eip3009::transferWithAuthorization_1Call::abi_decode(input)
                .map(|call| (call.from, call.to, call.value))
        });
    let ours = (terms.from, terms.to, terms.value.atomic());
    transfer.is_ok_and(|transfer| token != terms.asset || transfer != ours)
}

pub(super) fn nonce_call(token: Address, authorizer: Address, nonce: B256) -> NonceCall {
    let call = Eip3009::authorizationStateCall { authorizer, nonce };
    NonceCall {
        call: (token, call.abi_encode().into()),
        mask: U256::MAX,
    }
}

/// The log index of a payment's transfer: the token's `AuthorizationUsed(payer, nonce)` with the exact `Transfer` right beside it, both
/// emitted by the token. `None` for anything less.
pub(super) fn transfer_log(terms: &PaymentTerms, logs: &[Log]) -> Option<u64> {
    let (asset, payer) = (terms.asset, terms.from.into_word());
    let by_token =
        |log: &Log, topics: &[B256]| log.address == asset && log.topics.starts_with(topics);
    let paid = |log: &Log| is_transfer_of(terms, log).then(|| log.log_index.to());
    let at = logs.iter().position(|log| {
        log.address == asset && log.topics == [AUTHORIZATION_USED, payer, terms.nonce]
    })?;
    // In a transaction of their own, the payer can put any other calls before and after. A `Transfer` of the payer right after the event is
    // the one that used the nonce, whether it paid this payment or not. The one before is considered only if there is none after (some
    // tokens emit `Transfer` first), and if it does not belong to an earlier authorization. Otherwise one transfer could settle two
    // payments.
    match logs.split_at_checked(at)? {
        (_, [_, behind, ..]) if by_token(behind, &[TRANSFER, payer]) => paid(behind),
        ([.., earlier, _], _) if by_token(earlier, &[AUTHORIZATION_USED]) => None,
        ([.., before], _) => paid(before),
        ([], _) => None,
    }
}

/// The token's event for an authorization: its nonce was used or cancelled.
fn find_use<'a>(terms: &PaymentTerms, logs: &'a [Log]) -> Option<&'a Log> {
    let topics = [terms.from.into_word(), terms.nonce];
    logs.iter()
        .find(|log| log.address == terms.asset && log.topics.get(1..) == Some(&topics))
}

impl Rpc {
    /// The events of tokens by which the nonces of these authorizations were used or cancelled, in the latest blocks up to `head`; and
    /// whether the search is complete.
    pub(super) async fn token_uses(
        &self,
        authorizations: &[&PaymentTerms],
        head: u64,
    ) -> RpcResult<(Vec<Log>, bool)> {
        if authorizations.is_empty() {
            return Ok((Vec::new(), true));
        }
        let all = authorizations.iter();
        let assets: BTreeSet<Address> = all.clone().map(|terms| terms.asset).collect();
        let payers: BTreeSet<B256> = all.clone().map(|terms| terms.from.into_word()).collect();
        let nonces: Vec<B256> = all.clone().map(|terms| terms.nonce).collect();
        let filter = (
            json!(assets),
            json!([[AUTHORIZATION_USED, AUTHORIZATION_CANCELED], payers, nonces]),
        );
        let nonces = all.map(|terms| nonce_call(terms.asset, terms.from, terms.nonce));
        let nonces: Vec<_> = nonces.collect();
        let enough = |logs: &[Log]| {
            authorizations
                .iter()
                .all(|terms| find_use(terms, logs).is_some())
        };
        self.recent_logs(filter, &nonces, head, enough).await
    }

    /// How an authorization was used whose nonce is used, according to the token's `logs`. `receipts` caches receipts by transaction hash,
    /// because one transaction may use many authorizations.
    pub(super) async fn token_use(
        &self,
        terms: &PaymentTerms,
        (logs, complete): &(Vec<Log>, bool),
        receipts: &mut HashMap<B256, Receipt>,
    ) -> RpcResult<AuthorizationUse> {
        let Some(transaction) = find_use(terms, logs).map(|log| log.transaction_hash) else {
            let consumed = complete.then_some(AuthorizationUse::Consumed(None));
            return consumed.ok_or(RpcError::SearchIncomplete);
        };
        let receipt = match receipts.entry(transaction) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                // A node that has returned the log should have the receipt.
                let receipt = self.receipt(transaction).await?;
                place.insert(receipt.ok_or(RpcError::Malformed("eth_getTransactionReceipt"))?)
            }
        };
        let found = transfer_log(terms, &receipt.logs);
        let Some(log_index) = found.filter(|_| receipt.succeeded()) else {
            // A node may return a log that is in no canonical receipt.
            return match find_use(terms, &receipt.logs) {
                Some(_) => Ok(AuthorizationUse::Consumed(Some(transaction))),
                None => Err(RpcError::Malformed("eth_getLogs")),
            };
        };
        self.transferred(receipt, log_index).await
    }

    /// Whether a payer's nonce is used at a token, by a transfer or a cancellation.
    pub async fn is_nonce_used(
        &self,
        token: Address,
        payer: Address,
        nonce: B256,
    ) -> RpcResult<bool> {
        let call = Eip3009::authorizationStateCall {
            authorizer: payer,
            nonce,
        };
        self.view(token, call).await
    }
}

#[cfg(test)]
mod tests;
