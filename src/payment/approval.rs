//! A payer's own transaction that lets Permit2 take its token (`docs/architecture.md#gas-sponsoring`): read, and checked before anybody pays for it.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::protocol::permit2::PERMIT2;
use crate::protocol::{Amount, Network, Reason};

sol! {
    function approve(address spender, uint256 value) external returns (bool);
}

/// The signed bytes of an approval, read.
#[derive(Clone, PartialEq, Eq)]
pub struct Approval {
    /// The bytes.
    pub raw: Bytes,
    /// Their hash.
    pub hash: B256,
    /// The payer's account nonce: once another transaction has used it, this one can never be mined.
    pub account_nonce: u64,
    /// Gas at most.
    pub gas_limit: u64,
    /// Wei per gas at most.
    pub max_fee_wei: u128,
    /// What the token is called with.
    pub call: Bytes,
}

/// Whose approval of what is expected.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The chain.
    pub network: Network,
    /// The payer.
    pub payer: Address,
    /// The token.
    pub token: Address,
    /// What Permit2 is going to take.
    pub amount: Amount,
}

impl Approval {
    /// Reads signed bytes, and makes sure that they approve Permit2 for what is wanted, and do nothing else.
    ///
    /// # Errors
    /// The code of the first thing that is wrong with them.
    pub fn read(raw: &Bytes, wanted: Wanted) -> Result<Self, (Reason, String)> {
        let unreadable = || {
            (
                Reason::ApprovalParseFailed,
                "expected the bytes of one signed EIP-1559 transaction".to_owned(),
            )
        };
        let signed = TxEnvelope::decode_2718_exact(raw).map_err(|_| unreadable())?;
        if !signed.is_eip1559() {
            return Err(unreadable());
        }
        if signed.chain_id() != Some(wanted.network.chain_id()) {
            let why = format!("expected a transaction for {}", wanted.network);
            return Err((Reason::ApprovalParseFailed, why));
        }
        if signed.to() != Some(wanted.token) {
            let why = format!("expected a call of the token {}", wanted.token);
            return Err((Reason::ApprovalWrongTarget, why));
        }
        approves(signed.input(), wanted.amount)?;
        if !signed.value().is_zero() {
            let why = "expected an approval that moves no native money".to_owned();
            return Err((Reason::ApprovalInvalidCalldata, why));
        }
        let signer = signed.recover_signer().map_err(|_| {
            let why = "the transaction's signature cannot be recovered".to_owned();
            (Reason::ApprovalInvalidSignature, why)
        })?;
        if signer != wanted.payer {
            let why = format!(
                "expected a transaction of the payer {}, it is {signer}'s",
                wanted.payer
            );
            return Err((Reason::ApprovalSignerMismatch, why));
        }
        Ok(Self {
            raw: raw.clone(),
            hash: *signed.tx_hash(),
            account_nonce: signed.nonce(),
            gas_limit: signed.gas_limit(),
            max_fee_wei: signed.max_fee_per_gas(),
            call: signed.input().clone(),
        })
    }

    /// What the payer must have in native money for it to be taken by a node: its gas, and half of that again, because rollups ask for
    /// the publishing of its data on top.
    pub fn cost_wei(&self) -> U256 {
        let gas = U256::from(self.max_fee_wei).saturating_mul(U256::from(self.gas_limit));
        gas.saturating_add(gas / U256::from(2))
    }
}

fn approves(input: &Bytes, amount: Amount) -> Result<(), (Reason, String)> {
    if input.get(..4) != Some(&approveCall::SELECTOR[..]) {
        let why = "expected a call of approve(address,uint256)".to_owned();
        return Err((Reason::ApprovalWrongSelector, why));
    }
    let call = approveCall::abi_decode_validate(input).map_err(|_| {
        let why = "expected the two members of approve(address,uint256)".to_owned();
        (Reason::ApprovalInvalidCalldata, why)
    })?;
    if call.spender != PERMIT2 {
        let why = format!(
            "expected an approval of Permit2, {PERMIT2}, it is for {}",
            call.spender
        );
        return Err((Reason::ApprovalWrongSpender, why));
    }
    if call.value < amount.atomic() {
        let why = format!(
            "expected an approval of at least {amount}, it is of {}",
            call.value
        );
        return Err((Reason::ApprovalInvalidCalldata, why));
    }
    Ok(())
}

impl std::fmt::Debug for Approval {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Whoever holds the bytes can submit them: they stay out of every log.
        formatter
            .debug_struct("Approval")
            .field("hash", &self.hash)
            .field("account_nonce", &self.account_nonce)
            .finish_non_exhaustive()
    }
}
