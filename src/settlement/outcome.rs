//! What a mined transaction did for a payment. The logs decide, then the token's own state; a receipt's status proves nothing by itself.

use alloy::primitives::B256;

use crate::chain::authorization::{AuthorizationUse, transfer_log};
use crate::chain::{Head, Receipt, RpcError};
use crate::ledger::{LedgerError, RowOutcome, WithoutEffect};
use crate::payment::Payment;
use crate::payment::method::Fault;
use crate::payment::state::Exit;
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

/// Reads the outcome of `payment` in a transaction of ours that stands in a canonical block; the flag says whether it is a batch.
pub(super) async fn of(
    site: &Site,
    payment: &Payment,
    (receipt, batch): (&Receipt, bool),
    head: &Head,
) -> Result<RowOutcome, NotNow> {
    let found = transfer_log(payment.signed(), &receipt.logs);
    if let Some(log_index) = found.filter(|_| receipt.succeeded()) {
        let depth = head.number.saturating_sub(receipt.block_number.to()) + 1;
        return Ok(RowOutcome::Transferred {
            log_index,
            deep: depth >= u64::from(payment.confirmations),
        });
    }
    let used = site
        .rpc
        .authorization_use(payment.signed(), head.number, &site.policy.tokens())
        .await?;
    let tries = site.ledger.tries(payment.id).await?;
    let ours = Ours {
        transaction: receipt.transaction_hash,
        call_succeeded: receipt.succeeded() && !batch && payment.wallet.is_none(),
    };
    Ok(without_transfer(payment, ours, &used, head, tries))
}

/// The transaction of ours that moved nothing for a payment.
#[derive(Debug, Clone, Copy)]
struct Ours {
    transaction: B256,
    /// The token's own call went through. Of a batch that is not known: each call may fail by itself there.
    call_succeeded: bool,
}

fn without_transfer(
    payment: &Payment,
    ours: Ours,
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
        AuthorizationUse::Transferred { location, .. } => RowOutcome::Elsewhere {
            location: *location,
            deep: location.is_deep(head.number, payment.confirmations),
        },
        AuthorizationUse::Consumed(None) => {
            set_aside("the nonce is used, but the token's event about it cannot be found")
        }
        AuthorizationUse::Consumed(Some(by)) if *by == ours.transaction => fail(
            payment.reason(Fault::Transfer),
            "the token used the nonce without moving exactly this amount to the payee",
        ),
        AuthorizationUse::Consumed(Some(_)) => fail(
            payment.reason(Fault::NonceUsed),
            "the nonce was cancelled, or used for another transfer",
        ),
        AuthorizationUse::Unused if head.time.unix_timestamp() > expiry(payment) => fail(
            payment.reason(Fault::Ends),
            "the authorization expired on the chain before it could be used",
        ),
        AuthorizationUse::Unused if ours.call_succeeded => set_aside(
            "the transaction succeeded, but the token neither moved the money nor used the nonce",
        ),
        AuthorizationUse::Unused if tries >= TRIES_MAX => {
            let message = format!(
                "{tries} transactions were mined without effect although their simulation went through"
            );
            RowOutcome::WithoutEffect(WithoutEffect::Refuse(Exit {
                reason: payment.reason(Fault::Transaction),
                message,
            }))
        }
        AuthorizationUse::Unused => RowOutcome::WithoutEffect(WithoutEffect::Requeue),
    }
}

fn expiry(payment: &Payment) -> i64 {
    i64::try_from(payment.authorization.valid_before.atomic()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::payment::specimen::{
        PAYER, VALID_BEFORE, candidate_of, location, now, payment, permit2_body,
    };
    use crate::payment::{Location, PaymentState, Purpose};
    use crate::protocol::{Reason, Scheme};

    const OURS: B256 = B256::repeat_byte(0x05);

    /// The outcome at a head of that time, for a payment that wants two confirmations.
    fn outcome_at(
        time: OffsetDateTime,
        used: &AuthorizationUse,
        call_succeeded: bool,
        tries: i64,
    ) -> RowOutcome {
        let ours = Ours {
            transaction: OURS,
            call_succeeded,
        };
        let payment = payment(PaymentState::Inflight(B256::ZERO));
        let head = Head {
            number: location().block_number,
            time,
            ..Head::default()
        };
        without_transfer(&payment, ours, used, &head, tries)
    }

    fn outcome(used: &AuthorizationUse, succeeded: bool, tries: i64) -> RowOutcome {
        outcome_at(now(), used, succeeded, tries)
    }

    fn expired() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(VALID_BEFORE).unwrap() + Duration::SECOND
    }

    /// The code with which a payment failed for good.
    fn failure(outcome: &RowOutcome) -> Option<Reason> {
        if let RowOutcome::WithoutEffect(WithoutEffect::Fail(exit)) = outcome {
            Some(exit.reason)
        } else {
            None
        }
    }

    fn is_set_aside(outcome: &RowOutcome) -> bool {
        matches!(
            outcome,
            RowOutcome::WithoutEffect(WithoutEffect::Quarantine(_))
        )
    }

    #[test]
    fn money_that_moved_in_another_transaction_is_found_there_with_its_depth() {
        for (below, deep) in [(0, false), (1, true), (50, true)] {
            let location = Location {
                block_number: location().block_number - below,
                ..location()
            };
            let used = AuthorizationUse::Transferred {
                location,
                sender: PAYER,
            };
            let expected = RowOutcome::Elsewhere { location, deep };
            for succeeded in [true, false] {
                assert_eq!(outcome(&used, succeeded, 0), expected, "{below} below");
            }
            assert_eq!(
                outcome_at(expired(), &used, false, 9),
                expected,
                "expiry changes nothing"
            );
        }
    }

    #[test]
    fn a_used_nonce_whose_event_is_nowhere_is_for_the_operator() {
        for succeeded in [true, false] {
            let found = outcome_at(expired(), &AuthorizationUse::Consumed(None), succeeded, 9);
            assert!(is_set_aside(&found), "{found:?}");
        }
    }

    #[test]
    fn a_nonce_used_without_this_transfer_is_a_failure_for_good() {
        let used_by = |transaction| AuthorizationUse::Consumed(Some(transaction));
        for succeeded in [true, false] {
            assert_eq!(
                failure(&outcome(&used_by(OURS), succeeded, 0)),
                Some(Reason::ExactTransferMismatch)
            );
            assert_eq!(
                failure(&outcome(&used_by(B256::ZERO), succeeded, 0)),
                Some(Reason::ExactNonceUsed)
            );
        }
    }

    #[test]
    fn an_unused_authorization_fails_only_once_the_chain_is_past_its_end() {
        let unused = AuthorizationUse::Unused;
        for succeeded in [true, false] {
            let late = outcome_at(expired(), &unused, succeeded, 0);
            assert_eq!(failure(&late), Some(Reason::ExactValidBefore));
        }
        let end = expired() - Duration::SECOND;
        let just_in_time = outcome_at(end, &unused, false, 0);
        assert_eq!(
            just_in_time,
            RowOutcome::WithoutEffect(WithoutEffect::Requeue)
        );
    }

    #[test]
    fn each_method_and_scheme_fails_with_its_own_codes() {
        let failing = |scheme, used: &AuthorizationUse, time| {
            let candidate = candidate_of(&permit2_body(scheme), Purpose::Settle);
            let payment = Payment {
                method: candidate.method,
                ..payment(PaymentState::Inflight(B256::ZERO))
            };
            let ours = Ours {
                transaction: OURS,
                call_succeeded: false,
            };
            let head = Head {
                number: location().block_number,
                time,
                ..Head::default()
            };
            match without_transfer(&payment, ours, used, &head, TRIES_MAX) {
                RowOutcome::WithoutEffect(
                    WithoutEffect::Fail(exit) | WithoutEffect::Refuse(exit),
                ) => exit.reason,
                other => panic!("expected a code, got {other:?}"),
            }
        };
        let unused = AuthorizationUse::Unused;
        let elsewhere = AuthorizationUse::Consumed(Some(B256::ZERO));
        for (scheme, code) in [
            (Scheme::Exact, Reason::ExactTransactionFailed),
            (Scheme::Upto, Reason::UptoTransactionFailed),
        ] {
            assert_eq!(failing(scheme, &unused, now()), code);
            assert_eq!(failing(scheme, &unused, expired()), Reason::Permit2DeadlineExpired);
            assert_eq!(failing(scheme, &elsewhere, now()), Reason::Permit2InvalidNonce);
        }
    }

    #[test]
    fn a_success_that_did_nothing_is_for_the_operator() {
        let found = outcome(&AuthorizationUse::Unused, true, TRIES_MAX);
        assert!(is_set_aside(&found), "{found:?}");
    }

    #[test]
    fn a_revert_is_tried_again_three_times_and_then_refused() {
        let unused = AuthorizationUse::Unused;
        for tries in 0..TRIES_MAX {
            let again = RowOutcome::WithoutEffect(WithoutEffect::Requeue);
            assert_eq!(outcome(&unused, false, tries), again, "{tries} tries");
        }
        let RowOutcome::WithoutEffect(WithoutEffect::Refuse(exit)) =
            outcome(&unused, false, TRIES_MAX)
        else {
            panic!("expected a refusal, which a later presentation may undo");
        };
        assert_eq!(exit.reason, Reason::ExactTransactionFailed);
    }
}
