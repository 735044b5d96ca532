//! The gas sponsoring extensions of a payment, checked before the facilitator pays any gas for them.

use alloy::primitives::Address;

use crate::payment::approval::ExpectedApproval;
use crate::payment::method::{Permit2, Sponsored};
use crate::payment::{Approval, Method, NetworkPolicy, signature};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{
    AuthorizationPayload, Eip2612Info, Erc20ApprovalInfo, Extension, PaymentRequest, Reason,
};

/// The payer and the token that an extension must name.
#[derive(Debug, Clone, Copy)]
struct Subject {
    payer: Address,
    token: Address,
}

/// Checks the sponsoring extension of a Permit2 payment and stores it in `method`. An EIP-2612 permit takes precedence over an approval,
/// and approvals are ignored if the operator does not submit them.
pub(super) fn attach(
    method: &mut Method,
    request: &PaymentRequest<AuthorizationPayload>,
    policy: &NetworkPolicy,
) -> Result<(), (Reason, String)> {
    let Method::Permit2(permit) = method else {
        return Ok(());
    };
    let subject = Subject {
        payer: request.payload.payer(),
        token: request.requirements.asset,
    };
    match &request.sponsoring.eip2612 {
        Extension::Given(info) => {
            permit.sponsored = Some(check_permit(info, subject, permit)?);
            Ok(())
        }
        Extension::Malformed(why) => Err((Reason::Eip2612Format, why.clone())),
        Extension::Absent if policy.approvals.is_none() => Ok(()),
        Extension::Absent => match &request.sponsoring.approval {
            Extension::Given(info) => {
                let expected = ExpectedApproval {
                    network: request.requirements.network,
                    payer: subject.payer,
                    token: subject.token,
                    amount: permit.permitted,
                };
                permit.sponsored = Some(check_approval(info, expected)?);
                Ok(())
            }
            Extension::Malformed(why) => Err((Reason::ApprovalFormat, why.clone())),
            Extension::Absent => Ok(()),
        },
    }
}

/// Checks a signed approval. Whether it can still be mined is checked later, against the chain.
fn check_approval(
    info: &Erc20ApprovalInfo,
    expected: ExpectedApproval,
) -> Result<Sponsored, (Reason, String)> {
    let differs = |field: &str, expected: Address, received: Address| {
        format!("expected the approval's {field} to be {expected}, got {received}")
    };
    if info.from != expected.payer {
        let why = differs("from", expected.payer, info.from);
        return Err((Reason::ApprovalFromMismatch, why));
    }
    if info.asset != expected.token {
        let why = differs("asset", expected.token, info.asset);
        return Err((Reason::ApprovalAssetMismatch, why));
    }
    if info.spender != PERMIT2 {
        let why = differs("spender", PERMIT2, info.spender);
        return Err((Reason::ApprovalSpender, why));
    }
    let approval = Approval::read(&info.signed_transaction, expected)?;
    Ok(Sponsored::Approval(approval.raw))
}

/// Checks an EIP-2612 permit. Its deadline is checked later, against the block time.
fn check_permit(
    info: &Eip2612Info,
    subject: Subject,
    permit: &Permit2,
) -> Result<Sponsored, (Reason, String)> {
    let differs =
        |field: &str, expected: &dyn std::fmt::Display, received: &dyn std::fmt::Display| {
            format!("expected the permit's {field} to be {expected}, got {received}")
        };
    if info.from != subject.payer {
        let why = differs("from", &subject.payer, &info.from);
        return Err((Reason::Eip2612FromMismatch, why));
    }
    if info.asset != subject.token {
        let why = differs("asset", &subject.token, &info.asset);
        return Err((Reason::Eip2612AssetMismatch, why));
    }
    if info.spender != PERMIT2 {
        let why = differs("spender", &PERMIT2, &info.spender);
        return Err((Reason::Eip2612Spender, why));
    }
    if info.amount != permit.permitted {
        let why = differs("amount", &permit.permitted, &info.amount);
        return Err((Reason::Permit2612AmountMismatch, why));
    }
    let signature = signature::normalised(&info.signature).ok_or_else(|| {
        let why = "expected a permit signature of 65 bytes with s in the lower half".to_owned();
        (Reason::Eip2612Format, why)
    })?;
    Ok(Sponsored::Permit {
        deadline: info.deadline,
        signature,
    })
}
