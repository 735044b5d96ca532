//! What a payer adds so that Permit2 may take its token: checked before anybody pays for gas (`protocol.md` §3.6).

use crate::payment::method::{Permit2, Sponsored};
use crate::payment::{Method, NetworkPolicy, signature};
use crate::protocol::permit2::PERMIT2;
use crate::protocol::{AuthorizationPayload, Eip2612Info, Extension, PaymentRequest, Reason};

/// The payer and the token that an extension has to be about.
#[derive(Debug, Clone, Copy)]
struct About {
    payer: alloy::primitives::Address,
    token: alloy::primitives::Address,
}

/// Takes into `method` what the payment carries for Permit2's sake.
///
/// # Errors
/// What is wrong with it.
pub(super) fn accept(
    method: &mut Method,
    request: &PaymentRequest<AuthorizationPayload>,
    _policy: &NetworkPolicy,
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
        Extension::Absent => Ok(()),
    }
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
