//! The gas sponsoring extensions of a payment, checked before the facilitator pays any gas for them.

use alloy::primitives::Address;

use crate::payment::approval::ExpectedApproval;
use crate::payment::method::Sponsored;
use crate::payment::{Approval, Method, NetworkPolicy, signature};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{
    AuthorizationPayload, Eip2612Info, Erc20ApprovalInfo, Extension, PaymentRequest, Reason,
    Rejection,
};

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
        deadline: info.deadline,
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
