//! The gas sponsoring extensions of a payment: a signed allowance to Permit2, as an EIP-2612 permit or as an approval transaction. Checked
//! before the facilitator pays any gas for it.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol;
use alloy::sol_types::SolCall;

use crate::payment::method::Sponsored;
use crate::payment::{Method, NetworkPolicy, signature};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{
    Amount, AuthorizationPayload, Eip2612Info, Erc20ApprovalInfo, Extension, Network,
    PaymentRequest, Reason, Rejection,
};

sol! {
    function approve(address spender, uint256 value) external returns (bool);
}

/// Checks the sponsoring extension of a Permit2 payment and stores it in `method`. An EIP-2612 permit takes precedence over an approval,
/// and approvals are ignored if the operator does not submit them.
pub(super) fn attach(
    method: &mut Method,
    request: &PaymentRequest<AuthorizationPayload>,
    policy: &NetworkPolicy,
) -> Result<(), Rejection> {
    let Method::Permit2(permit) = method else {
        return Ok(());
    };
    let expected = ExpectedApproval {
        network: request.requirements.network,
        payer: request.payload.payer(),
        token: request.requirements.asset,
        amount: permit.permitted,
    };
    permit.sponsored = match (&request.sponsoring.eip2612, &request.sponsoring.approval) {
        (Extension::Given(info), _) => Some(check_permit(info, expected)?),
        (Extension::Malformed(why), _) => {
            return Err(Rejection::new(Reason::Eip2612Format, why));
        }
        (Extension::Absent, _) if policy.approvals.is_none() => None,
        (Extension::Absent, Extension::Given(info)) => Some(check_approval(info, expected)?),
        (Extension::Absent, Extension::Malformed(why)) => {
            return Err(Rejection::new(Reason::ApprovalFormat, why));
        }
        (Extension::Absent, Extension::Absent) => None,
    };
    Ok(())
}

/// Checks a signed approval. Whether it can still be mined is checked later, against the chain.
fn check_approval(
    info: &Erc20ApprovalInfo,
    expected: ExpectedApproval,
) -> Result<Sponsored, Rejection> {
    let ExpectedApproval { payer, token, .. } = expected;
    check_addresses(
        "approval",
        [
            ("from", payer, info.from, Reason::ApprovalFromMismatch),
            ("asset", token, info.asset, Reason::ApprovalAssetMismatch),
            ("spender", PERMIT2, info.spender, Reason::ApprovalSpender),
        ],
    )?;
    let approval = Approval::read(&info.signed_transaction, expected)?;
    Ok(Sponsored::Approval(approval.raw))
}

/// Checks an EIP-2612 permit. Its deadline is checked later, against the block time.
fn check_permit(info: &Eip2612Info, expected: ExpectedApproval) -> Result<Sponsored, Rejection> {
    let ExpectedApproval { payer, token, .. } = expected;
    check_addresses(
        "permit",
        [
            ("from", payer, info.from, Reason::Eip2612FromMismatch),
            ("asset", token, info.asset, Reason::Eip2612AssetMismatch),
            ("spender", PERMIT2, info.spender, Reason::Eip2612Spender),
        ],
    )?;
    if info.amount != expected.amount {
        let why = format!(
            "expected the permit's amount to be {}, got {}",
            expected.amount, info.amount
        );
        return Err(Rejection::new(Reason::Permit2612AmountMismatch, why));
    }
    let signature = signature::normalised(&info.signature).ok_or_else(|| {
        let why = "expected a permit signature of 65 bytes with s in the lower half";
        Rejection::new(Reason::Eip2612Format, why)
    })?;
    Ok(Sponsored::Permit {
        deadline: info.deadline.into(),
        signature,
    })
}

/// Compares addresses of an extension: the field's name, the expected and the received address, and the code where they differ.
fn check_addresses(
    extension: &str,
    fields: [(&str, Address, Address, Reason); 3],
) -> Result<(), Rejection> {
    for (field, expected, received, reason) in fields {
        if received != expected {
            let why =
                format!("expected the {extension}'s {field} to be {expected}, got {received}");
            return Err(Rejection::new(reason, why));
        }
    }
    Ok(())
}

/// A transaction signed by the payer that approves Permit2 (x402 extension `erc20ApprovalGasSponsoring`).
#[derive(Clone, PartialEq, Eq)]
pub struct Approval {
    /// The signed bytes, EIP-2718 encoded.
    pub raw: Bytes,
    /// The transaction hash.
    pub hash: B256,
    /// The payer's account nonce. If another transaction uses it, this one can never be mined.
    pub account_nonce: u64,
    pub gas_limit: u64,
    /// `maxFeePerGas`, in wei per gas.
    pub max_fee_wei: u128,
    /// The calldata.
    pub call: Bytes,
}

/// The terms that a signed allowance to Permit2 must have.
#[derive(Debug, Clone, Copy)]
pub struct ExpectedApproval {
    pub network: Network,
    pub payer: Address,
    pub token: Address,
    /// The smallest sufficient allowance: the amount that the payment permits, in atomic units.
    pub amount: Amount,
}

impl Approval {
    /// Decodes signed bytes and checks that they approve Permit2 for the expected terms and do nothing else.
    ///
    /// # Errors
    /// The code of the first check that failed.
    pub fn read(raw: &Bytes, expected: ExpectedApproval) -> Result<Self, Rejection> {
        let undecodable = || {
            let why = "expected the bytes of one signed EIP-1559 transaction";
            Rejection::new(Reason::ApprovalParseFailed, why)
        };
        let signed = TxEnvelope::decode_2718_exact(raw).map_err(|_| undecodable())?;
        if !signed.is_eip1559() {
            return Err(undecodable());
        }
        if signed.chain_id() != Some(expected.network.chain_id()) {
            let why = format!("expected a transaction for {}", expected.network);
            return Err(Rejection::new(Reason::ApprovalParseFailed, why));
        }
        if signed.to() != Some(expected.token) {
            let why = format!("expected a call of the token {}", expected.token);
            return Err(Rejection::new(Reason::ApprovalWrongTarget, why));
        }
        check_calldata(signed.input(), expected.amount)?;
        if !signed.value().is_zero() {
            let why = "expected an approval that transfers no native currency";
            return Err(Rejection::new(Reason::ApprovalInvalidCalldata, why));
        }
        let signer = signed.recover_signer().map_err(|_| {
            let why =
                "expected a valid signature; the signer of the transaction cannot be recovered";
            Rejection::new(Reason::ApprovalInvalidSignature, why)
        })?;
        if signer != expected.payer {
            let why = format!(
                "expected a transaction signed by the payer {}, got one signed by {signer}",
                expected.payer
            );
            return Err(Rejection::new(Reason::ApprovalSignerMismatch, why));
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

    /// The native currency that the payer needs before a node accepts the transaction, in wei: its gas plus one half, because rollups
    /// charge for the transaction's data on top.
    pub fn cost_wei(&self) -> U256 {
        let gas = U256::from(self.max_fee_wei).saturating_mul(U256::from(self.gas_limit));
        gas.saturating_add(gas / U256::from(2))
    }
}

fn check_calldata(input: &Bytes, amount: Amount) -> Result<(), Rejection> {
    if input.get(..4) != Some(&approveCall::SELECTOR[..]) {
        let why = "expected a call of approve(address,uint256)";
        return Err(Rejection::new(Reason::ApprovalWrongSelector, why));
    }
    let call = approveCall::abi_decode_validate(input).map_err(|_| {
        let why = "expected the two arguments of approve(address,uint256)";
        Rejection::new(Reason::ApprovalInvalidCalldata, why)
    })?;
    if call.spender != PERMIT2 {
        let why = format!(
            "expected an approval of Permit2, {PERMIT2}, got one of {}",
            call.spender
        );
        return Err(Rejection::new(Reason::ApprovalWrongSpender, why));
    }
    if call.value < amount.atomic() {
        let why = format!(
            "expected an approval of at least {amount}, got {}",
            call.value
        );
        return Err(Rejection::new(Reason::ApprovalInvalidCalldata, why));
    }
    Ok(())
}

impl std::fmt::Debug for Approval {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Bearer value: anyone who holds the bytes can submit them, so they must not reach a log.
        formatter
            .debug_struct("Approval")
            .field("hash", &self.hash)
            .field("account_nonce", &self.account_nonce)
            .finish_non_exhaustive()
    }
}
