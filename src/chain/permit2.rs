//! Payments by Permit2: calldata for the proxies, the settlement's logs, and how a nonce was used (`docs/architecture.md`, Permit2).
//!
//! Permit2 emits no event when a nonce is used, and a proxy's event (`Settled`, `SettledWithPermit`) names no payment. So a settlement is
//! recognised by the exact `Transfer` right before the proxy's event, and by the calldata of its transaction. Where the transaction calls a
//! foreign contract, the state of the nonce is used instead ([`wrapped`]).

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
/// How many transfers with the payment's accounts and amount are examined for one authorization, from the newest on.
const CANDIDATES_MAX: usize = 8;

/// Calldata for the proxy of the payment's scheme.
pub(super) fn settle_data(signed: Signed<'_>, permit: &Permit2) -> Bytes {
    let terms = signed.terms;
    let (owner, signature) = (terms.from, signed.signature.clone());
    let (to, valid_after) = (terms.to, terms.valid_after.atomic());
    let transfer_permit = PermitTransferFrom {
        permitted: TokenPermissions {
            token: signed.asset,
            amount: permit.permitted.atomic(),
        },
        nonce: U256::from_be_bytes(terms.nonce.0),
        deadline: terms.valid_before.atomic(),
    };
    let amount = terms.value.atomic();
    let exact_witness = ExactWitness {
        to,
        validAfter: valid_after,
    };
    let upto_witness = |facilitator| UptoWitness {
        to,
        facilitator,
        validAfter: valid_after,
    };
    let data = match (permit.facilitator, permit2612(permit)) {
        (None, None) => {
            let call = (transfer_permit, owner, exact_witness, signature);
            ExactProxy::settleCall::from(call).abi_encode()
        }
        (None, Some(allowance)) => {
            let call = (allowance, transfer_permit, owner, exact_witness, signature);
            ExactProxy::settleWithPermitCall::from(call).abi_encode()
        }
        (Some(facilitator), None) => {
            let call = (
                transfer_permit,
                amount,
                owner,
                upto_witness(facilitator),
                signature,
            );
            UptoProxy::settleCall::from(call).abi_encode()
        }
        (Some(facilitator), Some(allowance)) => {
            let call = (
                allowance,
                transfer_permit,
                amount,
                owner,
                upto_witness(facilitator),
                signature,
            );
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

/// Calldata to read the bitmap word of a nonce, and the nonce's bit in it.
pub(super) fn nonce_call(owner: Address, nonce: B256) -> (Bytes, U256) {
    let nonce = U256::from_be_bytes(nonce.0);
    let word: U256 = nonce >> 8;
    let call = Nonces::nonceBitmapCall { owner, word };
    let bit = nonce.byte(0);
    (call.abi_encode().into(), U256::ONE << usize::from(bit))
}

/// The log index of a payment's transfer: the exact `Transfer` that is the token's last event before the proxy's event. Two payments with
/// the same payer, payee, token and amount cannot be distinguished, so they are never put into the same transaction.
pub(super) fn transfer_log(signed: Signed<'_>, logs: &[Log]) -> Option<u64> {
    transfer_logs(signed, logs).next()
}

/// The log indices for all payments with the same payer, payee, token and amount, in the order of the logs.
fn transfer_logs(signed: Signed<'_>, logs: &[Log]) -> impl Iterator<Item = u64> {
    let proxy = signed.method.settler(signed.asset);
    let terms = signed.terms;
    let topics = [TRANSFER, terms.from.into_word(), terms.to.into_word()];
    let settled = move |log: &Log| {
        log.address == proxy && matches!(log.topics.first(), Some(&SETTLED | &SETTLED_WITH_PERMIT))
    };
    logs.split_inclusive(settled).filter_map(move |before| {
        let (_, before) = before.split_last().filter(|(last, _)| settled(last))?;
        // Some tokens also emit `Approval`. Any other log between belongs to another call.
        let is_approval =
            |log: &Log| log.address == signed.asset && log.topics.first() == Some(&APPROVAL);
        let transfer = before.iter().rev().find(|log| !is_approval(log))?;
        let exact = transfer.address == signed.asset
            && transfer.topics == topics
            && transfer.data[..] == terms.value.atomic().to_be_bytes::<32>();
        exact.then(|| transfer.log_index.to())
    })
}

/// Whether a transaction's calldata proves that it settles this authorization, and no other one with the same logs.
///
/// True of a direct call of the proxy for this authorization. True also of a Multicall3 batch that calls only this proxy, for payments in
/// `tokens`, and `tokens`, for other EIP-3009 transfers. Then this authorization must be the only one in it with its payer, payee, token
/// and amount.
fn proves_settlement(
    signed: Signed<'_>,
    to: Option<Address>,
    input: &Bytes,
    tokens: &[Address],
) -> bool {
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
    let is_harmless = |call: &Multicall3::Call3| {
        if call.target == proxy {
            return settlement_of(&call.callData).is_some_and(|call| tokens.contains(&call.token));
        }
        tokens.contains(&call.target)
            && token::is_other_transfer(signed, call.target, &call.callData)
    };
    let same_transfer = |call: &&Multicall3::Call3| {
        call.target == proxy && has_same_transfer(signed, &call.callData)
    };
    let mut same_transfer = batch.calls.iter().filter(same_transfer);
    batch.calls.iter().all(is_harmless)
        && same_transfer
            .next()
            .is_some_and(|call| is_call_for(signed, &call.callData))
        && same_transfer.next().is_none()
}

/// The payment that a call of a proxy settles.
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

fn has_same_transfer(signed: Signed<'_>, input: &Bytes) -> bool {
    let terms = signed.terms;
    settlement_of(input).is_none_or(|call| {
        call.owner == terms.from
            && call.to == terms.to
            && call.token == signed.asset
            && call.amount == terms.value.atomic()
    })
}

fn is_call_for(signed: Signed<'_>, input: &Bytes) -> bool {
    has_same_transfer(signed, input)
        && settlement_of(input).is_some_and(|call| call.nonce == signed.terms.nonce)
}

impl Rpc {
    /// Which proxies are deployed; none where Permit2 is not.
    pub async fn proxies(&self) -> Result<Proxies, RpcError> {
        if self.code(PERMIT2).await?.is_empty() {
            return Ok(Proxies::default());
        }
        Ok(Proxies {
            exact: !self.code(EXACT_PROXY).await?.is_empty(),
            upto: !self.code(UPTO_PROXY).await?.is_empty(),
        })
    }

    /// The allowance of Permit2 for an account's token.
    pub async fn allowance(&self, token: Address, owner: Address) -> Result<U256, RpcError> {
        let call = Erc20::allowanceCall {
            owner,
            spender: PERMIT2,
        };
        let answer = self.view(token, call.abi_encode().into()).await?;
        Erc20::allowanceCall::abi_decode_returns(&answer)
            .map_err(|_| RpcError::Malformed("allowance"))
    }

    /// Whether a call would succeed in a transaction of `from` with `gas_limit`, on the newest state.
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
            Err(error) if error.is_final() => Ok(false),
            // The texts of nodes for too little gas differ.
            Err(RpcError::Refused { message, .. }) if message.to_lowercase().contains("gas") => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// How an authorization was used whose nonce is used at Permit2; see [`Rpc::authorization_uses`].
    pub(super) async fn permit2_use(
        &self,
        signed: Signed<'_>,
        head: u64,
        tokens: &[Address],
    ) -> Result<AuthorizationUse, RpcError> {
        let terms = signed.terms;
        let (from, to) = (terms.from.into_word(), terms.to.into_word());
        let filter = (json!(signed.asset), json!([TRANSFER, from, to]));
        let transfers = self
            .recent_logs(filter, (&[signed], head), |_| false)
            .await?;
        let amount = terms.value.atomic().to_be_bytes::<32>();
        let mut same_transfer: Vec<&Log> = transfers
            .iter()
            .filter(|log| log.data[..] == amount)
            .collect();
        same_transfer.sort_by_key(|log| std::cmp::Reverse(log.block_number));
        for log in same_transfer.iter().take(CANDIDATES_MAX) {
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
        let Some(invalidation) = invalidated.iter().find(of_nonce) else {
            return self.wrapped_use(signed, &same_transfer, tokens).await;
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
        signed: Signed<'_>,
        transaction: B256,
        tokens: &[Address],
    ) -> Result<Option<AuthorizationUse>, RpcError> {
        let Some(call) = self.agreed_transaction(transaction).await? else {
            return Ok(None);
        };
        if !proves_settlement(signed, call.to, &call.input, tokens) {
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

/// Whether an `UnorderedNonceInvalidation` with the data `members` (word and mask) includes a nonce.
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
