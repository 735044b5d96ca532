//! What a mined transaction did for a payment. The logs decide, then the token's own state; a receipt's status proves nothing by itself.

use crate::chain::token::{AuthorizationUse, transfer_log};
use crate::chain::{Head, Receipt, RpcError};
use crate::ledger::{LedgerError, RowOutcome, WithoutEffect};
use crate::payment::Payment;
use crate::payment::state::Exit;
use crate::protocol::Reason;
use crate::settlement::Site;

/// A payment that was mined without effect this often, although each simulation went through, is left alone.
const TRIES_MAX: i64 = 3;

/// The outcome cannot be told now; look again at the next block.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotNow {
    /// The chain cannot be asked.
    #[error(transparent)]
    Chain(#[from] RpcError),
    /// The ledger cannot be asked.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Reads the outcome of `payment` in a transaction of ours that stands in a canonical block.
pub(super) async fn of(
    site: &Site,
    payment: &Payment,
    receipt: &Receipt,
    head: &Head,
) -> Result<RowOutcome, NotNow> {
    let found = transfer_log(payment, &receipt.logs).filter(|_| receipt.succeeded());
    if let Some(log_index) = found {
        let depth = head.number.saturating_sub(receipt.block_number.to()) + 1;
        return Ok(RowOutcome::Transferred {
            log_index,
            deep: depth >= u64::from(payment.confirmations),
        });
    }
    let used = site.rpc.authorization_use(payment, head.number).await?;
    let tries = site.ledger.tries(payment.id).await?;
    Ok(without_transfer(
        payment,
        receipt.succeeded(),
        &used,
        head,
        tries,
    ))
}

fn without_transfer(
    payment: &Payment,
    succeeded: bool,
    used: &AuthorizationUse,
    head: &Head,
    tries: i64,
) -> RowOutcome {
    let fail = |reason, message: &str| {
        RowOutcome::WithoutEffect(WithoutEffect::Fail(Exit {
            reason,
            message: message.to_owned(),
        }))
    };
    let set_aside =
        |why: &str| RowOutcome::WithoutEffect(WithoutEffect::Quarantine(why.to_owned()));
    match used {
        AuthorizationUse::Transferred(location) => RowOutcome::Elsewhere {
            location: *location,
            deep: location.is_deep(head.number, payment.confirmations),
        },
        AuthorizationUse::Consumed(None) => {
            set_aside("the nonce is used, but the token's event about it cannot be found")
        }
        AuthorizationUse::Consumed(Some(_)) if succeeded => fail(
            Reason::ExactTransferMismatch,
            "the token used the nonce without moving exactly this amount to the payee",
        ),
        AuthorizationUse::Consumed(Some(_)) => fail(
            Reason::ExactNonceUsed,
            "the nonce was cancelled, or used for another transfer",
        ),
        AuthorizationUse::Unused if head.time.unix_timestamp() > expiry(payment) => fail(
            Reason::ExactValidBefore,
            "the authorization expired on the chain before it could be used",
        ),
        AuthorizationUse::Unused if succeeded => set_aside(
            "the transaction succeeded, but the token neither moved the money nor used the nonce",
        ),
        AuthorizationUse::Unused if tries >= TRIES_MAX => {
            let message = format!(
                "{tries} transactions were mined without effect although their simulation went through"
            );
            RowOutcome::WithoutEffect(WithoutEffect::Refuse(Exit {
                reason: Reason::ExactTransactionFailed,
                message,
            }))
        }
        AuthorizationUse::Unused => RowOutcome::WithoutEffect(WithoutEffect::Requeue),
    }
}

fn expiry(payment: &Payment) -> i64 {
    i64::try_from(payment.authorization.valid_before.atomic()).unwrap_or(i64::MAX)
}
