//! Payments that were queued until their authorizations ended, because no lane is left that could take or refuse them: those that name a
//! signer which is stopped or gone. Their payers are bound by them no longer.

use crate::chain::Head;
use crate::chain::authorization::AuthorizationUse;
use crate::payment::Payment;
use crate::payment::method::Fault;
use crate::payment::state::Exit;
use crate::settlement::unmoved::settle;
use crate::settlement::{NotNow, Site};

/// Payments looked at in one go.
const EXPIRED_MAX: i64 = 200;

/// Refuses what has expired by the chain's time. No bytes of ours exist that could move its money; whether somebody else's have is asked
/// first. A payment that the chain tells nothing about stays queued, and is looked at again.
pub(super) async fn refuse_expired(site: &Site, head: &Head) -> Result<(), NotNow> {
    let network = site.policy.network;
    let expired = site.ledger.expired(network, head.time, EXPIRED_MAX).await?;
    if expired.is_empty() {
        return Ok(());
    }
    let signed: Vec<_> = expired.iter().map(Payment::signed).collect();
    let tokens = site.policy.tokens();
    let uses = site.rpc.authorization_uses(&signed, head.number, &tokens);
    for (payment, used) in expired.iter().zip(uses.await?) {
        let fault = match used {
            Ok(AuthorizationUse::Transferred { location, .. }) => {
                settle(site, payment, &location, head.number).await?;
                continue;
            }
            Ok(AuthorizationUse::Unused) => Fault::Ends,
            Ok(AuthorizationUse::Consumed(_)) => Fault::NonceUsed,
            Err(error) => {
                tracing::debug!(payment.id = %payment.id, %error, "cannot tell whether a queued payment that expired was submitted by somebody else; it is looked at again");
                continue;
            }
        };
        let exit = Exit {
            reason: payment.reason(fault),
            message: if payment.signer().is_some() {
                "the authorization ended before it could be sent: the signer that it names is stopped, or not configured any more"
            } else {
                "the authorization ended before it could be sent"
            }
            .to_owned(),
        };
        if site.ledger.refuse(payment.id, &exit).await? {
            tracing::info!(payment.id = %payment.id, code = exit.reason.code(), "queued payment refused: it expired before it could be sent");
            site.waiters.wake([payment.id]);
        }
    }
    Ok(())
}
