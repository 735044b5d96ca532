//! What every authorization can be asked, whatever contract moves its money: the call that settles it, its trace in the logs of a
//! transaction, and what became of it.

use std::collections::HashMap;

use alloy::primitives::{Address, B256, Bytes, U256, address};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::json;

use crate::chain::receipt::Log;
use crate::chain::{Head, Receipt, Rpc, RpcError, lens, permit2, token};
use crate::payment::{Location, Method, Signed};
use crate::protocol::permit2::PERMIT2;

sol! {
    interface Multicall3 {
        struct Call3 { address target; bool allowFailure; bytes callData; }
        struct Result { bool success; bytes returnData; }
        function aggregate3(Call3[] calls) external payable returns (Result[] results);
    }
}

/// Multicall3 at the address that it has on every chain.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

/// The call that settles a payment: the token or a proxy itself, or Multicall3 when the payer's wallet has to be deployed first.
pub fn settlement_call(signed: Signed<'_>) -> (Address, Bytes) {
    let settler = signed.method.settler(signed.asset);
    let data = settlement_data(signed);
    let Some(wallet) = signed.wallet else {
        return (settler, data);
    };
    let calls = vec![
        // The wallet may have been deployed meanwhile: what counts is the transfer.
        Multicall3::Call3 {
            target: wallet.factory,
            allowFailure: true,
            callData: wallet.call.clone(),
        },
        Multicall3::Call3 {
            target: settler,
            allowFailure: false,
            callData: data,
        },
    ];
    (
        MULTICALL3,
        Multicall3::aggregate3Call { calls }.abi_encode().into(),
    )
}

/// What the contract that moves the money is called with.
pub(super) fn settlement_data(signed: Signed<'_>) -> Bytes {
    match signed.method {
        Method::Eip3009 => token::transfer_data(signed),
        Method::Permit2(permit) => permit2::settle_data(signed, permit),
    }
}

/// The call that settles several payments at once; one that fails does not keep the others.
pub fn batch_call<'a>(payments: impl Iterator<Item = Signed<'a>>) -> (Address, Bytes) {
    let call = Multicall3::aggregate3Call {
        calls: payments.map(call3).collect(),
    };
    (MULTICALL3, call.abi_encode().into())
}

fn call3(signed: Signed<'_>) -> Multicall3::Call3 {
    Multicall3::Call3 {
        target: signed.method.settler(signed.asset),
        allowFailure: true,
        callData: settlement_data(signed),
    }
}

/// Where a payment's money moved in the logs of a transaction that settles it. Anything less than its exact trace is no success.
pub fn transfer_log(signed: Signed<'_>, logs: &[Log]) -> Option<u64> {
    match signed.method {
        Method::Eip3009 => token::transfer_log(signed.asset, signed.terms, logs),
        Method::Permit2(_) => permit2::transfer_log(signed, logs),
    }
}

/// What became of an authorization, as the chain tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationUse {
    /// Its nonce is unused.
    Unused,
    /// It moved the money, in this transaction.
    Transferred {
        /// Where.
        location: Location,
        /// Who sent the transaction and paid for its gas.
        sender: Address,
    },
    /// Its nonce was used up without moving this money: cancelled, used for something else, or by a token that does not keep to
    /// the rules. The hash is the transaction that did it, where it could be found.
    Consumed(Option<B256>),
}

/// How a contract is asked whether a nonce is used: the contract, the call, and the bits of the answer that say so.
fn nonce_question(signed: Signed<'_>) -> (Address, Bytes, U256) {
    let (payer, nonce) = (signed.terms.from, signed.terms.nonce);
    match signed.method {
        Method::Eip3009 => {
            let question = token::nonce_question(payer, nonce);
            (signed.asset, question, U256::MAX)
        }
        Method::Permit2(_) => {
            let (question, bit) = permit2::nonce_question(payer, nonce);
            (PERMIT2, question, bit)
        }
    }
}

impl Rpc {
    /// What became of an authorization; see [`authorization_uses`](Self::authorization_uses).
    ///
    /// # Errors
    /// When the RPC fails.
    pub async fn authorization_use(
        &self,
        signed: Signed<'_>,
        head: u64,
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let mut uses = self.authorization_uses(&[signed], head, tokens).await?;
        uses.pop().ok_or(RpcError::Malformed("aggregate3"))?
    }

    /// Asks what became of authorizations, as of the block at height `head`: one call tells which nonces are used, another one where, for all
    /// of a kind. `tokens` are those that are known to call nobody: a batch of somebody else's proves something only if nothing else could
    /// have moved money in it.
    ///
    /// # Errors
    /// When the RPC fails; where only one cannot be told, that one's.
    pub async fn authorization_uses(
        &self,
        asked: &[Signed<'_>],
        head: u64,
        tokens: &[Address],
    ) -> Result<Vec<Result<AuthorizationUse, RpcError>>, RpcError> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let used = self.nonces_used(asked, head).await?;
        let by_token = asked.iter().zip(&used).filter(|(signed, used)| {
            matches!(used, Ok(true)) && matches!(signed.method, Method::Eip3009)
        });
        let by_token: Vec<Signed<'_>> = by_token.map(|(signed, _)| *signed).collect();
        let logs = self.token_uses(&by_token, head).await;
        let mut receipts = HashMap::new();
        let mut uses = Vec::with_capacity(asked.len());
        for (signed, used) in asked.iter().zip(used) {
            uses.push(match (used, signed.method) {
                (Err(error), _) => Err(error),
                (Ok(false), _) => Ok(AuthorizationUse::Unused),
                (Ok(true), Method::Eip3009) => match &logs {
                    Ok((logs, complete)) => {
                        match self.token_use(*signed, logs, &mut receipts).await {
                            Ok(AuthorizationUse::Consumed(None)) if !complete => {
                                Err(RpcError::SearchCutShort)
                            }
                            told => told,
                        }
                    }
                    Err(error) => Err(error.clone()),
                },
                (Ok(true), Method::Permit2(_)) => self.permit2_use(*signed, head, tokens).await,
            });
        }
        Ok(uses)
    }

    /// Which nonces are used up as of the block at height `head`.
    pub(super) async fn nonces_used(
        &self,
        asked: &[Signed<'_>],
        head: u64,
    ) -> Result<Vec<Result<bool, RpcError>>, RpcError> {
        let questions: Vec<_> = asked.iter().copied().map(nonce_question).collect();
        let calls = questions.iter();
        let calls = calls.map(|(contract, question, _)| (*contract, question.clone()));
        let answers = self.views(calls.collect(), head).await?;
        let used = answers.into_iter().zip(&questions).map(|(answer, asked)| {
            let word = answer.as_deref().and_then(|answer| answer.get(..32));
            let word = word.ok_or(RpcError::Malformed("eth_call"))?;
            Ok(!(U256::from_be_slice(word) & asked.2).is_zero())
        });
        Ok(used.collect())
    }

    /// A use that moved the money, in a transaction whose receipt is at hand.
    pub(super) async fn transferred(
        &self,
        receipt: &Receipt,
        log_index: u64,
    ) -> Result<AuthorizationUse, RpcError> {
        let location = Location {
            transaction: receipt.transaction_hash,
            log_index,
            block_number: receipt.block_number.to(),
            block_hash: receipt.block_hash,
            block_time: self
                .block_time(receipt.block_hash, &Head::default())
                .await?,
        };
        Ok(AuthorizationUse::Transferred {
            location,
            sender: receipt.from,
        })
    }

    /// How the payments of a batch would fare in a transaction of `from` with `gas_limit`, on the newest state: whether each call goes through,
    /// and whether each payer is a plain account. One call for both.
    ///
    /// # Errors
    /// When the RPC fails, or the batch as a whole does.
    pub async fn rehearse(
        &self,
        from: Address,
        batch: &[Signed<'_>],
        gas_limit: u64,
    ) -> Result<Vec<Rehearsal>, RpcError> {
        let payers = batch.iter().map(|signed| signed.terms.from).collect();
        let codes = Multicall3::Call3 {
            target: lens::LENS,
            allowFailure: true,
            callData: lens::code_sizes(payers),
        };
        // The question comes first: who burns gas, burns it later.
        let calls = std::iter::once(codes).chain(batch.iter().copied().map(call3));
        let data: Bytes = Multicall3::aggregate3Call {
            calls: calls.collect(),
        }
        .abi_encode()
        .into();
        let rows = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let gas = gas_limit.saturating_add(CODES_GAS.saturating_add(rows.saturating_mul(CODE_GAS)));
        let call =
            json!({"from": from, "to": MULTICALL3, "data": data, "gas": format!("0x{gas:x}")});
        let call = (call, "latest", lens::overrides());
        let reads = |answer: &Bytes| sizes_and_results(answer).is_some();
        let answer = self.call_overridden(call, reads).await?;
        let malformed = || RpcError::Malformed("eth_call");
        let (sizes, results) = sizes_and_results(&answer).ok_or_else(malformed)?;
        if sizes.len() != batch.len() || results.len() != batch.len() {
            return Err(malformed());
        }
        let rows = results.iter().zip(sizes).map(|(result, size)| Rehearsal {
            goes_through: result.success,
            payer_has_code: !size.is_zero(),
        });
        Ok(rows.collect())
    }

    /// Several read-only calls at the block at height `block` in one; `None` for one that reverted.
    async fn views(
        &self,
        calls: Vec<(Address, Bytes)>,
        block: u64,
    ) -> Result<Vec<Option<Bytes>>, RpcError> {
        let asked = calls.len();
        let singly = calls.clone();
        let calls = calls.into_iter().map(|(target, data)| Multicall3::Call3 {
            target,
            allowFailure: true,
            callData: data,
        });
        let call = Multicall3::aggregate3Call {
            calls: calls.collect(),
        };
        let call = json!({"to": MULTICALL3, "data": Bytes::from(call.abi_encode())});
        let at = (call, format!("0x{block:x}"));
        let answer: Bytes = self.agreed("eth_call", at, Bytes::eq).await?;
        if answer.is_empty() {
            return self.views_singly(singly, block).await;
        }
        let results = Multicall3::aggregate3Call::abi_decode_returns(&answer)
            .ok()
            .filter(|results| results.len() == asked)
            .ok_or(RpcError::Malformed("aggregate3"))?;
        let values = results
            .into_iter()
            .map(|result| result.success.then_some(result.returnData));
        Ok(values.collect())
    }

    /// The same call by call, where Multicall3 is not there.
    async fn views_singly(
        &self,
        calls: Vec<(Address, Bytes)>,
        block: u64,
    ) -> Result<Vec<Option<Bytes>>, RpcError> {
        let mut values = Vec::with_capacity(calls.len());
        for (to, data) in calls {
            let call = (json!({"to": to, "data": data}), format!("0x{block:x}"));
            values.push(match self.agreed("eth_call", call, Bytes::eq).await {
                Ok(answer) => Some(answer),
                Err(error) if error.is_revert() => None,
                Err(error) => return Err(error),
            });
        }
        Ok(values)
    }
}

/// What a simulated batch answers: how much code each payer has, and how each call went.
fn sizes_and_results(answer: &Bytes) -> Option<(Vec<U256>, Vec<Multicall3::Result>)> {
    let mut results = Multicall3::aggregate3Call::abi_decode_returns(answer)
        .ok()?
        .into_iter();
    let codes = results.next().filter(|codes| codes.success)?;
    Some((lens::code_sizes_of(&codes.returnData)?, results.collect()))
}

/// How one payment of a batch would fare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rehearsal {
    /// Its call goes through.
    pub goes_through: bool,
    /// Foreign code would run for it.
    pub payer_has_code: bool,
}

/// Gas of the question about code, and for each account in it.
const CODES_GAS: u64 = 50_000;
const CODE_GAS: u64 = 4_000;
