//! What a payer adds so that Permit2 may take its token: checked before anybody pays for gas (`docs/architecture.md#gas-sponsoring`).

use alloy::primitives::Address;

use crate::payment::approval::Wanted;
use crate::payment::method::{Permit2, Sponsored};
use crate::payment::{Approval, Method, NetworkPolicy, signature};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{
    AuthorizationPayload, Eip2612Info, Erc20ApprovalInfo, Extension, PaymentRequest, Reason,
};

/// The payer and the token that an extension has to be about.
#[derive(Debug, Clone, Copy)]
struct About {
    payer: Address,
    token: Address,
}

/// Takes into `method` what the payment carries for Permit2's sake.
///
/// # Errors
/// What is wrong with it.
pub(super) fn accept(
    method: &mut Method,
    request: &PaymentRequest<AuthorizationPayload>,
    policy: &NetworkPolicy,
) -> Result<(), (Reason, String)> {
    let Method::Permit2(permit) = method else {
        return Ok(());
    };
    let about = About {
        payer: request.payload.payer(),
        token: request.requirements.asset,
    };
    match &request.sponsoring.eip2612 {
        Extension::Given(info) => {
            permit.sponsored = Some(permitted(info, about, permit)?);
            Ok(())
        }
        Extension::Malformed(why) => Err((Reason::Eip2612Format, why.clone())),
        Extension::Absent if policy.approvals.is_none() => Ok(()),
        Extension::Absent => match &request.sponsoring.approval {
            Extension::Given(info) => {
                let wanted = Wanted {
                    network: request.requirements.network,
                    payer: about.payer,
                    token: about.token,
                    amount: permit.permitted,
                };
                permit.sponsored = Some(approved(info, wanted)?);
                Ok(())
            }
            Extension::Malformed(why) => Err((Reason::ApprovalFormat, why.clone())),
            Extension::Absent => Ok(()),
        },
    }
}

/// A signed approval. Whether it can still be mined is for the chain to say, later.
fn approved(info: &Erc20ApprovalInfo, wanted: Wanted) -> Result<Sponsored, (Reason, String)> {
    let differs = |what: &str, expected: Address, came: Address| {
        format!("expected the approval's {what} to be {expected}, got {came}")
    };
    if info.from != wanted.payer {
        let why = differs("from", wanted.payer, info.from);
        return Err((Reason::ApprovalFromMismatch, why));
    }
    if info.asset != wanted.token {
        let why = differs("asset", wanted.token, info.asset);
        return Err((Reason::ApprovalAssetMismatch, why));
    }
    if info.spender != PERMIT2 {
        let why = differs("spender", PERMIT2, info.spender);
        return Err((Reason::ApprovalSpender, why));
    }
    let approval = Approval::read(&info.signed_transaction, wanted)?;
    Ok(Sponsored::Approval(approval.raw))
}

/// The token's own permit. Its deadline is judged by the chain's time, later.
fn permitted(
    info: &Eip2612Info,
    about: About,
    permit: &Permit2,
) -> Result<Sponsored, (Reason, String)> {
    let differs = |what: &str, expected: &dyn std::fmt::Display, came: &dyn std::fmt::Display| {
        format!("expected the permit's {what} to be {expected}, got {came}")
    };
    if info.from != about.payer {
        let why = differs("from", &about.payer, &info.from);
        return Err((Reason::Eip2612FromMismatch, why));
    }
    if info.asset != about.token {
        let why = differs("asset", &about.token, &info.asset);
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
