//! Payments by Permit2: calldata for the proxies, the trace in the logs, and what became of a nonce (`docs/architecture.md#permit2`).
//!
//! Permit2 says nothing when a nonce is used, and a proxy only that something was settled. So a settlement is told by the exact Transfer
//! right before the proxy's word, and by the calldata of its transaction; where that goes to a contract of somebody's own, by state ([`wrapped`]).

use alloy::primitives::{Address, B256, Bytes, U256, b256};
use alloy::sol;
use alloy::sol_types::SolCall;
use serde_json::json;

use crate::chain::authorization::{AuthorizationUse, MULTICALL3, Multicall3};
use crate::chain::receipt::Log;
use crate::chain::token::TRANSFER;
use crate::chain::{Rpc, RpcError, token};
use crate::payment::{Permit2, Proxies, Signed, Sponsored};
use crate::protocol::permit2::{EXACT_PROXY, PERMIT2, UPTO_PROXY};

sol! {
    struct TokenPermissions { address token; uint256 amount; }
    struct PermitTransferFrom { TokenPermissions permitted; uint256 nonce; uint256 deadline; }
    struct Permit2612 { uint256 value; uint256 deadline; bytes32 r; bytes32 s; uint8 v; }
    struct ExactWitness { address to; uint256 validAfter; }
    struct UptoWitness { address to; address facilitator; uint256 validAfter; }

    interface ExactProxy {
        function settle(PermitTransferFrom permit, address owner, ExactWitness witness, bytes signature) external;
        function settleWithPermit(Permit2612 permit2612, PermitTransferFrom permit, address owner, ExactWitness witness,
            bytes signature) external;
    }

    interface UptoProxy {
        function settle(PermitTransferFrom permit, uint256 amount, address owner, UptoWitness witness, bytes signature) external;
        function settleWithPermit(Permit2612 permit2612, PermitTransferFrom permit, uint256 amount, address owner,
            UptoWitness witness, bytes signature) external;
    }

    interface Erc20 {
        function allowance(address owner, address spender) external view returns (uint256);
    }

    interface Nonces {
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);
    }
}

/// `Settled()`.
const SETTLED: B256 = b256!("97088ec3606cfe8cc112180570d03fcde05f9b8e1bfef8e27784eaf5dd5691b6");
/// `SettledWithPermit()`.
const SETTLED_WITH_PERMIT: B256 =
    b256!("de5b89d10fc800c459329c382fabfcad0be0ed7e5328e01fae04e507b09ef5d8");
/// `Approval(address,address,uint256)`.
const APPROVAL: B256 = b256!("8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925");
/// `UnorderedNonceInvalidation(address,uint256,uint256)`.
const NONCES_INVALIDATED: B256 =
    b256!("3704902f963766a4e561bbaab6e6cdc1b1dd12f6e9e99648da8843b3f46b918d");
/// Transfers between the same two accounts that are looked at for one authorization: the newest.
const CANDIDATES_MAX: usize = 8;

/// What the proxy of the scheme is called with.
pub(super) fn settle_data(signed: Signed<'_>, permit: &Permit2) -> Bytes {
    let terms = signed.terms;
    let (owner, signature) = (terms.from, signed.signature.clone());
    let (to, valid_after) = (terms.to, terms.valid_after.atomic());
    let leave = PermitTransferFrom {
        permitted: TokenPermissions {
            token: signed.asset,
            amount: permit.permitted.atomic(),
        },
        nonce: U256::from_be_bytes(terms.nonce.0),
        deadline: terms.valid_before.atomic(),
    };
    let amount = terms.value.atomic();
    let to_exactly = ExactWitness {
        to,
        validAfter: valid_after,
    };
    let by = |facilitator| UptoWitness {
        to,
        facilitator,
        validAfter: valid_after,
    };
    let data = match (permit.facilitator, permit2612(permit)) {
        (None, None) => {
            let call = (leave, owner, to_exactly, signature);
            ExactProxy::settleCall::from(call).abi_encode()
        }
        (None, Some(allowance)) => {
            let call = (allowance, leave, owner, to_exactly, signature);
            ExactProxy::settleWithPermitCall::from(call).abi_encode()
        }
        (Some(facilitator), None) => {
            let call = (leave, amount, owner, by(facilitator), signature);
            UptoProxy::settleCall::from(call).abi_encode()
        }
        (Some(facilitator), Some(allowance)) => {
            let call = (allowance, leave, amount, owner, by(facilitator), signature);
            UptoProxy::settleWithPermitCall::from(call).abi_encode()
        }
    };
    data.into()
}

fn permit2612(permit: &Permit2) -> Option<Permit2612> {
    let Some(Sponsored::Permit {
        deadline,
        signature,
    }) = &permit.sponsored
    else {
        return None;
    };
    let (scalars, v) = signature.split_at(64);
    let (r, s) = scalars.split_at(32);
    Some(Permit2612 {
        value: permit.permitted.atomic(),
        deadline: deadline.atomic(),
        r: B256::from_slice(r),
        s: B256::from_slice(s),
        v: v.first().copied().unwrap_or_default(),
    })
}

/// The question whether a nonce is used, and the bit of the answer that says so.
pub(super) fn nonce_question(owner: Address, nonce: B256) -> (Bytes, U256) {
    let nonce = U256::from_be_bytes(nonce.0);
    let word: U256 = nonce >> 8;
    let question = Nonces::nonceBitmapCall { owner, word };
    let bit = nonce.byte(0);
    (question.abi_encode().into(), U256::ONE << usize::from(bit))
}

/// Where a payment's money moved: the exact Transfer that the token said last before its proxy said that it has settled. Two payments
/// of the same payer, payee, token and amount look alike here: they never ride in one transaction.
pub(super) fn transfer_log(signed: Signed<'_>, logs: &[Log]) -> Option<u64> {
    transfer_logs(signed, logs).next()
}

/// The same of every payment that looks alike, in the order of the logs.
fn transfer_logs(signed: Signed<'_>, logs: &[Log]) -> impl Iterator<Item = u64> {
    let proxy = signed.method.settler(signed.asset);
    let terms = signed.terms;
    let topics = [TRANSFER, terms.from.into_word(), terms.to.into_word()];
    let settled = move |log: &Log| {
        log.address == proxy && matches!(log.topics.first(), Some(&SETTLED | &SETTLED_WITH_PERMIT))
    };
    logs.split_inclusive(settled).filter_map(move |before| {
        let (_, before) = before.split_last().filter(|(last, _)| settled(last))?;
        // Some tokens speak of the allowance as well. Whatever else was said in between belongs to another call.
        let aside =
            |log: &Log| log.address == signed.asset && log.topics.first() == Some(&APPROVAL);
        let moved = before.iter().rev().find(|log| !aside(log))?;
        let exact = moved.address == signed.asset
            && moved.topics == topics
            && moved.data[..] == terms.value.atomic().to_be_bytes::<32>();
        exact.then(|| moved.log_index.to())
    })
}

/// Whether a call settles exactly this authorization, and nothing else that looks like it in the logs. True of a call of the proxy
/// itself, and of a batch in which proxies and `tokens` are called alone, for payments in those tokens, of which one looks like it.
fn settles(signed: Signed<'_>, to: Option<Address>, input: &Bytes, tokens: &[Address]) -> bool {
    let proxy = signed.method.settler(signed.asset);
    if to == Some(proxy) {
        return is_call_for(signed, input);
    }
    if to != Some(MULTICALL3) {
        return false;
    }
    let Ok(batch) = Multicall3::aggregate3Call::abi_decode(input) else {
        return false;
    };
    let harmless = |call: &Multicall3::Call3| {
        if call.target == proxy {
            return settlement_of(&call.callData).is_some_and(|call| tokens.contains(&call.token));
        }
        tokens.contains(&call.target)
            && token::moves_something_else(signed, call.target, &call.callData)
    };
    let alike =
        |call: &&Multicall3::Call3| call.target == proxy && looks_like(signed, &call.callData);
    let mut alike = batch.calls.iter().filter(alike);
    batch.calls.iter().all(harmless)
        && alike
            .next()
            .is_some_and(|call| is_call_for(signed, &call.callData))
        && alike.next().is_none()
}

/// What a call of a proxy moves: nonce, payer, payee, token, amount.
struct Settlement {
    nonce: B256,
    owner: Address,
    to: Address,
    token: Address,
    amount: U256,
}

fn settlement_of(input: &Bytes) -> Option<Settlement> {
    let of = |permit: PermitTransferFrom, owner, to, amount: Option<U256>| Settlement {
        nonce: B256::from(permit.nonce),
        owner,
        to,
        token: permit.permitted.token,
        amount: amount.unwrap_or(permit.permitted.amount),
    };
    if let Ok(call) = ExactProxy::settleCall::abi_decode(input) {
        return Some(of(call.permit, call.owner, call.witness.to, None));
    }
    if let Ok(call) = ExactProxy::settleWithPermitCall::abi_decode(input) {
        return Some(of(call.permit, call.owner, call.witness.to, None));
    }
    if let Ok(call) = UptoProxy::settleCall::abi_decode(input) {
        return Some(of(
            call.permit,
            call.owner,
            call.witness.to,
            Some(call.amount),
        ));
    }
    let call = UptoProxy::settleWithPermitCall::abi_decode(input).ok()?;
    Some(of(
        call.permit,
        call.owner,
        call.witness.to,
        Some(call.amount),
    ))
}

fn looks_like(signed: Signed<'_>, input: &Bytes) -> bool {
    let terms = signed.terms;
    settlement_of(input).is_none_or(|call| {
        call.owner == terms.from
            && call.to == terms.to
            && call.token == signed.asset
            && call.amount == terms.value.atomic()
    })
}

fn is_call_for(signed: Signed<'_>, input: &Bytes) -> bool {
    looks_like(signed, input)
        && settlement_of(input).is_some_and(|call| call.nonce == signed.terms.nonce)
}

impl Rpc {
    /// Which proxies have code, where Permit2 has it as well.
    ///
    /// # Errors
    /// When the RPC fails.
    pub async fn proxies(&self) -> Result<Proxies, RpcError> {
        if self.code(PERMIT2).await?.is_empty() {
            return Ok(Proxies::default());
        }
        Ok(Proxies {
            exact: !self.code(EXACT_PROXY).await?.is_empty(),
            upto: !self.code(UPTO_PROXY).await?.is_empty(),
        })
    }

    /// What Permit2 may take of an account's token.
    ///
    /// # Errors
    /// When the RPC fails, or the token does not say.
    pub async fn allowance(&self, token: Address, owner: Address) -> Result<U256, RpcError> {
        let question = Erc20::allowanceCall {
            owner,
            spender: PERMIT2,
        };
        let answer = self.view(token, question.abi_encode().into()).await?;
        Erc20::allowanceCall::abi_decode_returns(&answer)
            .map_err(|_| RpcError::Malformed("allowance"))
    }

    /// Whether a call would go through in a transaction of `from` with `gas_limit`, on the newest state.
    ///
    /// # Errors
    /// When the RPC fails.
    pub async fn would_succeed(
        &self,
        from: Address,
        (to, data): (Address, &Bytes),
        gas_limit: u64,
    ) -> Result<bool, RpcError> {
        let gas = format!("0x{gas_limit:x}");
        let call = serde_json::json!({"from": from, "to": to, "data": data, "gas": gas});
        match self.read::<Bytes>("eth_call", (call, "latest")).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_revert() => Ok(false),
            Err(error) if error.is_answer() => Ok(false),
            // Nodes word it in many ways that the gas does not suffice.
            Err(RpcError::Refused { message, .. }) if message.to_lowercase().contains("gas") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What became of an authorization whose nonce is used at Permit2; see [`Rpc::authorization_uses`].
    pub(super) async fn permit2_use(
        &self,
        signed: Signed<'_>,
        head: u64,
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let terms = signed.terms;
        let (from, to) = (terms.from.into_word(), terms.to.into_word());
        let moves = (json!(signed.asset), json!([TRANSFER, from, to]));
        let moved = self
            .recent_logs(moves, (&[signed], head), |_| false)
            .await?;
        let amount = terms.value.atomic().to_be_bytes::<32>();
        let mut alike: Vec<&Log> = moved.iter().filter(|log| log.data[..] == amount).collect();
        alike.sort_by_key(|log| std::cmp::Reverse(log.block_number));
        for log in alike.iter().take(CANDIDATES_MAX) {
            if let Some(found) = self
                .settled_in(signed, log.transaction_hash, tokens)
                .await?
            {
                return Ok(found);
            }
        }
        let nonce = U256::from_be_bytes(terms.nonce.0);
        let of_nonce = |log: &&Log| invalidates(&log.data, nonce);
        let filter = (json!(PERMIT2), json!([NONCES_INVALIDATED, from]));
        let enough = |logs: &[Log]| logs.iter().any(|log| invalidates(&log.data, nonce));
        let invalidated = self.recent_logs(filter, (&[signed], head), enough).await?;
        let Some(by) = invalidated.iter().find(of_nonce) else {
            return self.wrapped_use(signed, &alike, tokens).await;
        };
        let receipt = self.receipt(by.transaction_hash).await?;
        // A node may show a log that no receipt has.
        let said = receipt.is_some_and(|receipt| {
            let mut own = receipt.logs.iter().filter(|log| log.address == PERMIT2);
            own.any(|log| log.topics == by.topics && log.data == by.data)
        });
        if said {
            Ok(AuthorizationUse::Consumed(Some(by.transaction_hash)))
        } else {
            Err(RpcError::Malformed("eth_getLogs"))
        }
    }

    async fn settled_in(
        &self,
        signed: Signed<'_>,
        transaction: B256,
        tokens: &[Address],
    ) -> Result<Option<AuthorizationUse>, RpcError> {
        let Some(call) = self.call_of(transaction).await? else {
            return Ok(None);
        };
        if !settles(signed, call.to, &call.input, tokens) {
            return Ok(None);
        }
        let Some(receipt) = self.receipt(transaction).await? else {
            return Ok(None);
        };
        let found = transfer_log(signed, &receipt.logs).filter(|_| receipt.succeeded());
        match found {
            Some(log_index) => self.transferred(&receipt, log_index).await.map(Some),
            None => Ok(None),
        }
    }
}

/// Whether the members of an invalidation, word and mask, include a nonce.
fn invalidates(members: &Bytes, nonce: U256) -> bool {
    let member = |from: usize| members.get(from..from + 32).map(U256::from_be_slice);
    let (Some(word), Some(mask)) = (member(0), member(32)) else {
        return false;
    };
    let (own, bit): (U256, usize) = (nonce >> 8, usize::from(nonce.byte(0)));
    word == own && mask.bit(bit)
}

mod wrapped;

#[cfg(test)]
mod tests;
