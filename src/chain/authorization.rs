//! Operations common to EIP-3009 and Permit2 authorizations: the call that settles one, its transfer in the logs of a transaction,
//! whether its nonce is used and by which transaction.

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

/// Multicall3; it has the same address on every chain.
pub const MULTICALL3: Address = address!("cA11bde05977b3631167028862bE2a173976CA11");

/// The call that settles a payment: to the token or a proxy, or to Multicall3 when the payer's wallet has to be deployed first.
pub fn settlement_call(signed: Signed<'_>) -> (Address, Bytes) {
    let settler = signed.method.settler(signed.asset);
    let data = settlement_data(signed);
    let Some(wallet) = signed.wallet else {
        return (settler, data);
    };
    let calls = vec![
        // Deployment may fail because the wallet has been deployed in the meantime: only the transfer has to succeed.
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

/// Calldata for the contract that transfers the money: the token or a Permit2 proxy.
pub(super) fn settlement_data(signed: Signed<'_>) -> Bytes {
    match signed.method {
        Method::Eip3009 => token::transfer_data(signed),
        Method::Permit2(permit) => permit2::settle_data(signed, permit),
    }
}

/// The call that settles several payments at once. A payment that reverts does not affect the others.
pub fn batch_call<'a>(payments: impl Iterator<Item = Signed<'a>>) -> (Address, Bytes) {
    let call = Multicall3::aggregate3Call {
        calls: payments.map(batch_entry).collect(),
    };
    (MULTICALL3, call.abi_encode().into())
}

fn batch_entry(signed: Signed<'_>) -> Multicall3::Call3 {
    Multicall3::Call3 {
        target: signed.method.settler(signed.asset),
        allowFailure: true,
        callData: settlement_data(signed),
    }
}

/// The log index of a payment's transfer in a transaction that settles it. `None` unless the logs match the payment exactly.
pub fn transfer_log(signed: Signed<'_>, logs: &[Log]) -> Option<u64> {
    match signed.method {
        Method::Eip3009 => token::transfer_log(signed.asset, signed.terms, logs),
        Method::Permit2(_) => permit2::transfer_log(signed, logs),
    }
}

/// How an authorization's nonce was used on chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationUse {
    /// The nonce is unused.
    Unused,
    /// The nonce was used by a transfer of exactly this payment.
    Transferred {
        location: Location,
        /// The account that sent the transaction and paid for its gas.
        sender: Address,
    },
    /// The nonce was used without this transfer: it was cancelled, used for another transfer, or the token does not follow the standard.
    /// The hash is that of the transaction, if it was found.
    Consumed(Option<B256>),
}

/// How to read whether a nonce is used: the contract, the calldata, and the bits of the result that are set if it is.
fn nonce_call(signed: Signed<'_>) -> (Address, Bytes, U256) {
    let (payer, nonce) = (signed.terms.from, signed.terms.nonce);
    match signed.method {
        Method::Eip3009 => {
            let data = token::nonce_call(payer, nonce);
            (signed.asset, data, U256::MAX)
        }
        Method::Permit2(_) => {
            let (data, bit) = permit2::nonce_call(payer, nonce);
            (PERMIT2, data, bit)
        }
    }
}

impl Rpc {
    /// How one authorization was used; see [`authorization_uses`](Self::authorization_uses).
    pub async fn authorization_use(
        &self,
        signed: Signed<'_>,
        head: u64,
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let mut uses = self.authorization_uses(&[signed], head, tokens).await?;
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
        authorizations: &[Signed<'_>],
        head: u64,
        tokens: &[Address],
    ) -> Result<Vec<Result<AuthorizationUse, RpcError>>, RpcError> {
        if authorizations.is_empty() {
            return Ok(Vec::new());
        }
        let used = self.nonces_used(authorizations, head).await?;
        let by_token = authorizations.iter().zip(&used).filter(|(signed, used)| {
            matches!(used, Ok(true)) && matches!(signed.method, Method::Eip3009)
        });
        let by_token: Vec<Signed<'_>> = by_token.map(|(signed, _)| *signed).collect();
        let logs = self.token_uses(&by_token, head).await;
        let mut receipts = HashMap::new();
        let mut uses = Vec::with_capacity(authorizations.len());
        for (signed, used) in authorizations.iter().zip(used) {
            uses.push(match (used, signed.method) {
                (Err(error), _) => Err(error),
                (Ok(false), _) => Ok(AuthorizationUse::Unused),
                (Ok(true), Method::Eip3009) => match &logs {
                    Ok((logs, complete)) => {
                        match self.token_use(*signed, logs, &mut receipts).await {
                            Ok(AuthorizationUse::Consumed(None)) if !complete => {
                                Err(RpcError::SearchIncomplete)
                            }
                            found => found,
                        }
                    }
                    Err(error) => Err(error.clone()),
                },
                (Ok(true), Method::Permit2(_)) => self.permit2_use(*signed, head, tokens).await,
            });
        }
        Ok(uses)
    }

    /// Which nonces are used as of the block at height `head`.
    pub(super) async fn nonces_used(
        &self,
        authorizations: &[Signed<'_>],
        head: u64,
    ) -> Result<Vec<Result<bool, RpcError>>, RpcError> {
        let nonce_calls: Vec<_> = authorizations.iter().copied().map(nonce_call).collect();
        let calls = nonce_calls.iter();
        let calls = calls.map(|(contract, data, _)| (*contract, data.clone()));
        let answers = self.call_many(calls.collect(), head).await?;
        let used = answers.into_iter().zip(&nonce_calls).map(|(answer, call)| {
            let word = answer.as_deref().and_then(|answer| answer.get(..32));
            let word = word.ok_or(RpcError::Malformed("eth_call"))?;
            Ok(!(U256::from_be_slice(word) & call.2).is_zero())
        });
        Ok(used.collect())
    }

    /// The [`AuthorizationUse::Transferred`] for a transfer log in `receipt`; reads the time of its block.
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

    /// Simulates a batch in a transaction of `from` with `gas_limit`, on the newest state. One call returns for each payment whether it
    /// succeeds and whether its payer has code.
    ///
    /// # Errors
    /// When the call fails or the batch reverts as a whole.
    pub async fn simulate_batch(
        &self,
        from: Address,
        batch: &[Signed<'_>],
        gas_limit: u64,
    ) -> Result<Vec<CallOutcome>, RpcError> {
        let payers = batch.iter().map(|signed| signed.terms.from).collect();
        let codes = Multicall3::Call3 {
            target: lens::LENS,
            allowFailure: true,
            callData: lens::code_sizes_call(payers),
        };
        // The code sizes come first, so that a payment that uses up the gas cannot affect them.
        let calls = std::iter::once(codes).chain(batch.iter().copied().map(batch_entry));
        let data: Bytes = Multicall3::aggregate3Call {
            calls: calls.collect(),
        }
        .abi_encode()
        .into();
        let rows = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let gas = gas_limit
            .saturating_add(CODE_SIZES_GAS.saturating_add(rows.saturating_mul(CODE_SIZE_GAS)));
        let call =
            json!({"from": from, "to": MULTICALL3, "data": data, "gas": format!("0x{gas:x}")});
        let call = (call, "latest", lens::overrides());
        let reads = |answer: &Bytes| decode_simulation(answer).is_some();
        let answer = self.call_overridden(call, reads).await?;
        let malformed = || RpcError::Malformed("eth_call");
        let (sizes, results) = decode_simulation(&answer).ok_or_else(malformed)?;
        if sizes.len() != batch.len() || results.len() != batch.len() {
            return Err(malformed());
        }
        let rows = results.iter().zip(sizes).map(|(result, size)| CallOutcome {
            succeeds: result.success,
            payer_has_code: !size.is_zero(),
        });
        Ok(rows.collect())
    }

    /// Several read-only calls at the block at height `block` in one `eth_call`; `None` for a call that reverted.
    async fn call_many(
        &self,
        calls: Vec<(Address, Bytes)>,
        block: u64,
    ) -> Result<Vec<Option<Bytes>>, RpcError> {
        let count = calls.len();
        let one_by_one = calls.clone();
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
            return self.call_one_by_one(one_by_one, block).await;
        }
        let results = Multicall3::aggregate3Call::abi_decode_returns(&answer)
            .ok()
            .filter(|results| results.len() == count)
            .ok_or(RpcError::Malformed("aggregate3"))?;
        let values = results
            .into_iter()
            .map(|result| result.success.then_some(result.returnData));
        Ok(values.collect())
    }

    /// The same with one `eth_call` each, for chains without Multicall3.
    async fn call_one_by_one(
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

/// Decodes the result of a simulated batch: the code size of each payer, and the result of each payment's call.
fn decode_simulation(answer: &Bytes) -> Option<(Vec<U256>, Vec<Multicall3::Result>)> {
    let mut results = Multicall3::aggregate3Call::abi_decode_returns(answer)
        .ok()?
        .into_iter();
    let codes = results.next().filter(|codes| codes.success)?;
    Some((
        lens::decode_code_sizes(&codes.returnData)?,
        results.collect(),
    ))
}

/// The simulated result of one payment of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallOutcome {
    /// The call of the payment succeeds.
    pub succeeds: bool,
    /// The payer's account has code, which would run in the batch.
    pub payer_has_code: bool,
}

/// Gas for reading code sizes: once, and for each account.
const CODE_SIZES_GAS: u64 = 50_000;
const CODE_SIZE_GAS: u64 = 4_000;
