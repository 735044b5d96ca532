//! What is the same for EIP-3009 and Permit2 authorizations: the call that settles one, its transfer in the logs of a transaction, whether
//! its nonce is used and how. Chooses between `eip3009` and `permit2`.

use std::collections::HashMap;

use alloy::primitives::{Address, Bytes};

use crate::chain::multicall::{self, CallOutcome, MULTICALL3};
use crate::chain::nonce_use::{AuthorizationUse, NonceCall};
use crate::chain::{Log, Rpc, RpcError, RpcResult, eip3009, permit2};
use crate::payment::{Method, PaymentTerms};

/// The call that settles a payment: to the token or a proxy, or to Multicall3 when the payer's wallet has to be deployed first.
pub fn settlement_call(terms: &PaymentTerms) -> (Address, Bytes) {
    let settlement = direct_call(terms);
    let Some(wallet) = &terms.wallet else {
        return settlement;
    };
    // Deployment may fail because the wallet has been deployed in the meantime: only the transfer has to succeed.
    let deployment = multicall::call((wallet.factory, wallet.call.clone()));
    let mut settlement = multicall::call(settlement);
    settlement.allowFailure = false;
    (MULTICALL3, multicall::batch(vec![deployment, settlement]))
}

/// The contract that transfers the money, which is the token or a Permit2 proxy, and the calldata for it.
pub(super) fn direct_call(terms: &PaymentTerms) -> (Address, Bytes) {
    let data = match &terms.method {
        Method::Eip3009 => eip3009::transfer_data(terms),
        Method::Permit2(permit) => permit2::settle_data(terms, permit),
    };
    (terms.method.settler(terms.asset), data)
}

/// The call that settles several payments at once. A payment that reverts does not affect the others.
pub fn batch_call<'a>(payments: impl Iterator<Item = &'a PaymentTerms>) -> (Address, Bytes) {
    let calls = payments.map(direct_call).map(multicall::call);
    (MULTICALL3, multicall::batch(calls.collect()))
}

/// The log index of a payment's transfer in a transaction that settles it. `None` unless the logs match the payment exactly.
pub fn transfer_log(terms: &PaymentTerms, logs: &[Log]) -> Option<u64> {
    match terms.method {
        Method::Eip3009 => eip3009::transfer_log(terms, logs),
        Method::Permit2(_) => permit2::transfer_log(terms, logs),
    }
}

pub(super) fn nonce_call(terms: &PaymentTerms) -> NonceCall {
    let (payer, nonce) = (terms.from, terms.nonce);
    match terms.method {
        Method::Eip3009 => eip3009::nonce_call(terms.asset, payer, nonce),
        Method::Permit2(_) => permit2::nonce_call(payer, nonce),
    }
}

impl Rpc {
    /// How one authorization was used; see [`authorization_uses`](Self::authorization_uses).
    pub async fn authorization_use(
        &self,
        terms: &PaymentTerms,
        head: u64,
        tokens: &[Address],
    ) -> RpcResult<AuthorizationUse> {
        let mut uses = self.authorization_uses(&[terms], head, tokens).await?;
        uses.pop().ok_or(RpcError::Malformed("aggregate3"))?
    }

    /// How authorizations were used, as of the block at height `head`. One call reads which nonces are used; a second one finds the
    /// transactions of all EIP-3009 authorizations.
    ///
    /// `tokens` are tokens known to call no other contract. A foreign batch proves a settlement only if no other call in it could have made
    /// the same transfer.
    ///
    /// # Errors
    /// When the nonces cannot be read. An error that concerns one authorization is returned in its place.
    pub async fn authorization_uses(
        &self,
        authorizations: &[&PaymentTerms],
        head: u64,
        tokens: &[Address],
    ) -> RpcResult<Vec<RpcResult<AuthorizationUse>>> {
        if authorizations.is_empty() {
            return Ok(Vec::new());
        }
        let nonces: Vec<_> = authorizations.iter().copied().map(nonce_call).collect();
        let used = self.nonces_used(&nonces, head).await?;
        let by_token = authorizations.iter().zip(&used).filter(|(terms, used)| {
            matches!(used, Ok(true)) && matches!(terms.method, Method::Eip3009)
        });
        let by_token: Vec<&PaymentTerms> = by_token.map(|(terms, _)| *terms).collect();
        let logs = self.token_uses(&by_token, head).await;
        let mut receipts = HashMap::new();
        let mut uses = Vec::with_capacity(authorizations.len());
        for (terms, used) in authorizations.iter().zip(used) {
            uses.push(match (used, &terms.method) {
                (Err(error), _) => Err(error),
                (Ok(false), _) => Ok(AuthorizationUse::Unused),
                (Ok(true), Method::Eip3009) => match &logs {
                    Ok(logs) => self.token_use(terms, logs, &mut receipts).await,
                    Err(error) => Err(error.clone()),
                },
                (Ok(true), Method::Permit2(_)) => self.permit2_use(terms, head, tokens).await,
            });
        }
        Ok(uses)
    }

    /// Simulates a batch in a transaction of `from` with `gas_limit`, on the newest state.
    ///
    /// # Errors
    /// When the call fails or the batch reverts as a whole.
    pub async fn simulate_batch(
        &self,
        from: Address,
        payments: &[&PaymentTerms],
        gas_limit: u64,
    ) -> RpcResult<Vec<CallOutcome>> {
        let calls = payments.iter().copied().map(direct_call);
        let calls = calls.map(multicall::call).collect();
        let payers = payments.iter().map(|terms| terms.from).collect();
        self.simulate_calls(from, (calls, payers), gas_limit).await
    }
}
