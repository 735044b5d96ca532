//! Queued payments whose authorizations expired before a lane took them, because the signer that they name is stopped or no longer
//! configured. Refusing them frees the funds that their payers have promised.

use super::settle_foreign;
use crate::chain::AuthorizationUse;
use crate::chain::Head;
use crate::payment::method::Fault;
use crate::protocol::Rejection;
use crate::settlement::{DependencyError, Named, ServedNetwork};

/// Payments per query.
const EXPIRED_MAX: i64 = 200;

/// Refuses queued payments that have expired by block time. No bytes of ours could transfer their money, but a foreign transaction may
/// have: the chain is asked first. Without an answer the payment stays queued and is checked again.
pub(super) async fn refuse_expired(
    served: &ServedNetwork,
    head: &Head,
) -> Result<(), DependencyError> {
    let network = served.policy.network;
    let expired = served
        .ledger
        .expired(network, head.time, EXPIRED_MAX)
        .await?;
    if expired.is_empty() {
        return Ok(());
    }
    let terms: Vec<_> = expired.iter().map(|payment| &payment.terms).collect();
    let tokens = served.policy.tokens();
    let uses = served.rpc.authorization_uses(&terms, head.number, &tokens);
    for (payment, used) in expired.iter().zip(uses.await?) {
        let fault = match used {
            Ok(AuthorizationUse::Transferred { location, .. }) => {
                settle_foreign(served, payment, &location, head.number).await?;
                continue;
            }
            Ok(AuthorizationUse::Unused) => Fault::ValidBefore,
            Ok(AuthorizationUse::Consumed(_)) => Fault::NonceUsed,
            Err(error) => {
                tracing::debug!(payment = %payment.id, %error, "expired payment not checked for a foreign transfer: retrying");
                continue;
            }
        };
        let rejection = Rejection {
            reason: payment.terms.reason(fault),
            message: if payment.terms.settling_signer().is_some() {
                "the authorization expired before it could be sent: the signer that it names is stopped, or no longer configured"
            } else {
                "the authorization expired before it could be sent"
            }
            .to_owned(),
        };
        if served.ledger.refuse(payment.id, &rejection).await? {
            served.note_refused(Named::of(payment), &rejection);
            served.waiters.wake([payment.id]);
        }
    }
    Ok(())
}
