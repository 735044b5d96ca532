//! Payments by Permit2: calldata for the proxies, and what proves a settlement in logs and calldata (`docs/architecture.md`, Permit2).
//!
//! A proxy's event (`Settled`, `SettledWithPermit`) names no payment. So a settlement is recognised by the exact `Transfer` right before
//! the proxy's event, and by the calldata of its transaction.

use alloy::primitives::{Address, B256, Bytes, U256, b256};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::chain::multicall::{MULTICALL3, Multicall3};
use crate::chain::nonce_use::NonceCall;
use crate::chain::transfer::is_transfer_of;
use crate::chain::{Log, eip3009};
use crate::payment::{PaymentTerms, Permit2, Sponsored};
use crate::protocol::permit2::PERMIT2;

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

    interface Nonces {
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);
    }
}

/// `Settled()`.
pub(super) const SETTLED: B256 =
    b256!("97088ec3606cfe8cc112180570d03fcde05f9b8e1bfef8e27784eaf5dd5691b6");
/// `SettledWithPermit()`.
const SETTLED_WITH_PERMIT: B256 =
    b256!("de5b89d10fc800c459329c382fabfcad0be0ed7e5328e01fae04e507b09ef5d8");
/// `Approval(address,address,uint256)`.
const APPROVAL: B256 = b256!("8c5be1e5ebec7d5bd14f71427d1e84f3dd0314c0f7b2291e5b200ac8c7c3b925");

/// Calldata for the proxy of the payment's scheme.
pub(super) fn settle_data(terms: &PaymentTerms, permit: &Permit2) -> Bytes {
    let (owner, signature) = (terms.from, terms.signature.clone());
    let (to, valid_after) = (terms.to, terms.valid_after.word());
    let transfer_permit = PermitTransferFrom {
        permitted: TokenPermissions::from((terms.asset, permit.permitted.atomic())),
        nonce: U256::from_be_bytes(terms.nonce.0),
        deadline: terms.valid_before.word(),
    };
    let amount = terms.value.atomic();
    let exact_witness = ExactWitness::from((to, valid_after));
    let upto_witness = |facilitator| UptoWitness::from((to, facilitator, valid_after));
    let data = match (permit.facilitator.map(upto_witness), permit2612(permit)) {
        (None, None) => {
            let call = (transfer_permit, owner, exact_witness, signature);
            ExactProxy::settleCall::from(call).abi_encode()
        }
        (None, Some(allowance)) => {
            let call = (allowance, transfer_permit, owner, exact_witness, signature);
            ExactProxy::settleWithPermitCall::from(call).abi_encode()
        }
        (Some(witness), None) => {
            let call = (transfer_permit, amount, owner, witness, signature);
            UptoProxy::settleCall::from(call).abi_encode()
        }
        (Some(witness), Some(allowance)) => {
            let permit = transfer_permit;
            let call = (allowance, permit, amount, owner, witness, signature);
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
    let (value, deadline) = (permit.permitted.atomic(), deadline.word());
    let (r, s, v) = eip3009::split(signature);
    Some(Permit2612 {
        value,
        deadline,
        r,
        s,
        v,
    })
}

/// The nonce's bit in the word of Permit2's bitmap.
pub(super) fn nonce_call(owner: Address, nonce: B256) -> NonceCall {
    let nonce = U256::from_be_bytes(nonce.0);
    let word: U256 = nonce >> 8;
    let call = Nonces::nonceBitmapCall { owner, word };
    NonceCall {
        call: (PERMIT2, call.abi_encode().into()),
        mask: U256::ONE << usize::from(nonce.byte(0)),
    }
}

/// The log index of a payment's transfer: the exact `Transfer` that is the token's last event before the proxy's event. Two payments with
/// the same payer, payee, token and amount cannot be distinguished, so they are never put into the same transaction.
pub(super) fn transfer_log(terms: &PaymentTerms, logs: &[Log]) -> Option<u64> {
    transfer_logs(terms, logs).next()
}

/// The log indices for all payments with the same payer, payee, token and amount, in the order of the logs.
pub(super) fn transfer_logs(terms: &PaymentTerms, logs: &[Log]) -> impl Iterator<Item = u64> {
    let proxy = terms.method.settler(terms.asset);
    let settled = move |log: &Log| {
        log.address == proxy && matches!(log.topics.first(), Some(&SETTLED | &SETTLED_WITH_PERMIT))
    };
    logs.split_inclusive(settled).filter_map(move |before| {
        let (_, before) = before.split_last().filter(|(last, _)| settled(last))?;
        // Some tokens also emit `Approval`. Any other log between belongs to another call.
        let is_approval =
            |log: &Log| log.address == terms.asset && log.topics.first() == Some(&APPROVAL);
        let transfer = before.iter().rev().find(|log| !is_approval(log))?;
        is_transfer_of(terms, transfer).then(|| transfer.log_index.to())
    })
}

/// Whether a transaction's calldata proves that it settles this authorization, and no other one with the same logs.
///
/// True of a direct call of the proxy for this authorization. True also of a Multicall3 batch that calls only this proxy, for payments in
/// `tokens`, and `tokens`, for other EIP-3009 transfers. Then this authorization must be the only one in it with its payer, payee, token
/// and amount.
pub(super) fn proves_settlement(
    terms: &PaymentTerms,
    to: Option<Address>,
    input: &Bytes,
    tokens: &[Address],
) -> bool {
    let proxy = terms.method.settler(terms.asset);
    if to == Some(proxy) {
        return is_call_for(terms, input);
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
            && eip3009::is_other_transfer(terms, call.target, &call.callData)
    };
    let same_transfer = |call: &&Multicall3::Call3| {
        call.target == proxy && has_same_transfer(terms, &call.callData)
    };
    let mut same_transfer = batch.calls.iter().filter(same_transfer);
    batch.calls.iter().all(is_harmless)
        && same_transfer
            .next()
            .is_some_and(|call| is_call_for(terms, &call.callData))
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
    let of = |permit: PermitTransferFrom, owner, to, amount: Option<U256>| {
        Some(Settlement {
            nonce: B256::from(permit.nonce),
            owner,
            to,
            token: permit.permitted.token,
            amount: amount.unwrap_or(permit.permitted.amount),
        })
    };
    if let Ok(call) = ExactProxy::settleCall::abi_decode(input) {
        return of(call.permit, call.owner, call.witness.to, None);
    }
    if let Ok(call) = ExactProxy::settleWithPermitCall::abi_decode(input) {
        return of(call.permit, call.owner, call.witness.to, None);
    }
    if let Ok(call) = UptoProxy::settleCall::abi_decode(input) {
        let amount = Some(call.amount);
        return of(call.permit, call.owner, call.witness.to, amount);
    }
    let call = UptoProxy::settleWithPermitCall::abi_decode(input).ok()?;
    let amount = Some(call.amount);
    of(call.permit, call.owner, call.witness.to, amount)
}

fn has_same_transfer(terms: &PaymentTerms, input: &Bytes) -> bool {
    settlement_of(input).is_none_or(|call| {
        call.owner == terms.from
            && call.to == terms.to
            && call.token == terms.asset
            && call.amount == terms.value.atomic()
    })
}

fn is_call_for(terms: &PaymentTerms, input: &Bytes) -> bool {
    has_same_transfer(terms, input)
        && settlement_of(input).is_some_and(|call| call.nonce == terms.nonce)
}

#[cfg(test)]
mod tests;
