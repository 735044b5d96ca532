//! Verdicts about payments whose transaction was mined without their transfer in its logs. Pure. The token's own state decides, with the
//! confirmations that the payment was promised; a receipt's status alone proves nothing.

use crate::chain::AuthorizationUse;
use crate::chain::Head;
use crate::ledger::{Undecided, Verdict};
use crate::payment::method::Fault;
use crate::payment::{Payment, PaymentState};
use crate::protocol::Rejection;

/// A payment mined this often without effect, although each simulation succeeded, is refused.
pub(super) const TRIES_MAX: i64 = 3;

/// Whether the transaction has the confirmations that a verdict needs.
pub(super) fn is_confirmed(row: &Undecided, head: &Head) -> bool {
    let confirmations = (head.number + 1).saturating_sub(row.block_number);
    confirmations >= u64::from(row.payment.confirmations)
}

/// The verdict about an undecided payment of which the chain says `used`. `None`: not yet. `lasting`: it has been undecided for so long that
/// contradicting answers quarantine it for the operator.
pub(super) fn verdict(
    row: &Undecided,
    used: &AuthorizationUse,
    head: &Head,
    lasting: bool,
) -> Option<Verdict> {
    let payment = &row.payment;
    let fail = |reason, message: &str| {
        Some(Verdict::Fail(Rejection {
            reason,
            message: message.to_owned(),
        }))
    };
    let quarantine = |why: &str| lasting.then(|| Verdict::Quarantine(why.to_owned()));
    match used {
        AuthorizationUse::Transferred { location, .. } => {
            let confirmed = location.is_confirmed(head.number, payment.confirmations);
            // A failed payment becomes settled only with the promised confirmations, because that is final.
            let failed = matches!(payment.state, PaymentState::Failed { .. });
            (confirmed || !failed).then_some(Verdict::Transferred {
                location: *location,
                confirmed,
            })
        }
        AuthorizationUse::Consumed(None) => {
            quarantine("the nonce is used, but the token's event for it was not found")
        }
        AuthorizationUse::Consumed(Some(by)) if *by == row.hash => fail(
            payment.terms.reason(Fault::Transfer),
            "the token used the nonce without transferring exactly this amount to the payee",
        ),
        AuthorizationUse::Consumed(Some(_)) => fail(
            payment.terms.reason(Fault::NonceUsed),
            "the nonce was cancelled, or used for another transfer",
        ),
        AuthorizationUse::Unused if head.time.unix_timestamp() > expiry(payment) => fail(
            payment.terms.reason(Fault::ValidBefore),
            "the authorization expired on the chain before it could be used",
        ),
        AuthorizationUse::Unused if row.call_succeeded => quarantine(
            "the transaction succeeded, but the token neither transferred the money nor used the nonce",
        ),
        AuthorizationUse::Unused if row.tries >= TRIES_MAX => {
            let message = format!(
                "{} transactions were mined without effect although each simulation succeeded",
                row.tries
            );
            Some(Verdict::Refuse(Rejection {
                reason: payment.terms.reason(Fault::Transaction),
                message,
            }))
        }
        AuthorizationUse::Unused => Some(Verdict::Again),
    }
}

fn expiry(payment: &Payment) -> i64 {
    payment.terms.valid_before.timestamp()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::ledger::Carried;
    use crate::payment::fixture::{
        PAYER, VALID_BEFORE, candidate_of, location, now, payment, permit2_body,
    };
    use crate::payment::{Location, Purpose};
    use crate::protocol::{Reason, Scheme};

    const OURS: B256 = B256::repeat_byte(0x05);

    /// A payment that needs two confirmations.
    fn row(call_succeeded: bool, tries: i64) -> Undecided {
        Undecided {
            payment: payment(PaymentState::Inflight(OURS)),
            transaction: Uuid::nil(),
            hash: OURS,
            block_number: location().block_number,
            block_hash: B256::ZERO,
            call_succeeded,
            carried: Carried::Payment,
            ran_out_of_gas: false,
            tries,
        }
    }

    fn head_at(time: OffsetDateTime) -> Head {
        Head {
            number: location().block_number,
            time,
            ..Head::default()
        }
    }

    fn verdict_at(
        time: OffsetDateTime,
        used: &AuthorizationUse,
        row: &Undecided,
    ) -> Option<Verdict> {
        verdict(row, used, &head_at(time), false)
    }

    fn expired() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(VALID_BEFORE).unwrap() + time::Duration::SECOND
    }

    /// The code of a final failure.
    fn failure(verdict: Option<Verdict>) -> Option<Reason> {
        if let Some(Verdict::Fail(rejection)) = verdict {
            Some(rejection.reason)
        } else {
            None
        }
    }

    fn transferred_in(location: Location) -> AuthorizationUse {
        AuthorizationUse::Transferred {
            location,
            sender: PAYER,
        }
    }

    #[test]
    fn no_verdict_before_the_promised_confirmations() {
        let row = row(false, 1);
        let mut head = head_at(now());
        assert!(!is_confirmed(&row, &head), "one of two");
        head.number += 1;
        assert!(is_confirmed(&row, &head));
    }

    #[test]
    fn transfer_in_another_transaction_is_found_with_its_confirmations() {
        for (below, confirmed) in [(0, false), (1, true), (50, true)] {
            let location = Location {
                block_number: location().block_number - below,
                ..location()
            };
            let expected = Some(Verdict::Transferred {
                location,
                confirmed,
            });
            for (succeeded, time) in [(true, now()), (false, now()), (false, expired())] {
                let found = verdict_at(time, &transferred_in(location), &row(succeeded, 9));
                assert_eq!(found, expected, "{below} below");
            }
        }
    }

    #[test]
    fn failed_payment_becomes_settled_only_when_confirmed() {
        let rejection = Rejection {
            reason: Reason::ExactNonceUsed,
            message: String::new(),
        };
        let mut row = row(false, 1);
        row.payment.state = PaymentState::Failed {
            rejection,
            transaction: Some(OURS),
        };
        assert_eq!(verdict_at(now(), &transferred_in(location()), &row), None);
        let deeper = Location {
            block_number: location().block_number - 1,
            ..location()
        };
        let late = verdict_at(now(), &transferred_in(deeper), &row);
        assert!(matches!(
            late,
            Some(Verdict::Transferred {
                confirmed: true,
                ..
            })
        ));
    }

    #[test]
    fn contradicting_answers_quarantine_after_a_while() {
        let lost = AuthorizationUse::Consumed(None);
        let unused = AuthorizationUse::Unused;
        for (used, row) in [
            (&lost, row(false, 1)),
            (&lost, row(true, 9)),
            (&unused, row(true, TRIES_MAX)),
        ] {
            let after = |lasting| verdict(&row, used, &head_at(now()), lasting);
            assert_eq!(after(false), None);
            let quarantined = after(true);
            assert!(
                matches!(quarantined, Some(Verdict::Quarantine(_))),
                "{quarantined:?}"
            );
        }
    }

    #[test]
    fn nonce_used_without_this_transfer_is_a_final_failure() {
        let used_by = |transaction| AuthorizationUse::Consumed(Some(transaction));
        for succeeded in [true, false] {
            let row = row(succeeded, 0);
            assert_eq!(
                failure(verdict_at(now(), &used_by(OURS), &row)),
                Some(Reason::ExactTransferMismatch)
            );
            assert_eq!(
                failure(verdict_at(now(), &used_by(B256::ZERO), &row)),
                Some(Reason::ExactNonceUsed)
            );
        }
    }

    #[test]
    fn unused_authorization_fails_only_after_it_expired_on_chain() {
        let unused = AuthorizationUse::Unused;
        for succeeded in [true, false] {
            let late = verdict_at(expired(), &unused, &row(succeeded, 0));
            assert_eq!(failure(late), Some(Reason::ExactValidBefore));
        }
        let end = expired() - time::Duration::SECOND;
        let just_in_time = verdict_at(end, &unused, &row(false, 0));
        assert_eq!(just_in_time, Some(Verdict::Again));
    }

    #[test]
    fn each_method_and_scheme_fails_with_its_own_codes() {
        let failing = |scheme, used: &AuthorizationUse, time| {
            let candidate = candidate_of(&permit2_body(scheme), Purpose::Settle);
            let mut row = row(false, TRIES_MAX);
            row.payment.terms.method = candidate.terms.method;
            match verdict_at(time, used, &row) {
                Some(Verdict::Fail(rejection) | Verdict::Refuse(rejection)) => rejection.reason,
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
            assert_eq!(
                failing(scheme, &unused, expired()),
                Reason::Permit2DeadlineExpired
            );
            assert_eq!(
                failing(scheme, &elsewhere, now()),
                Reason::Permit2InvalidNonce
            );
        }
    }

    #[test]
    fn revert_is_tried_again_three_times_and_then_refused() {
        let unused = AuthorizationUse::Unused;
        for tries in 0..TRIES_MAX {
            let again = verdict_at(now(), &unused, &row(false, tries));
            assert_eq!(again, Some(Verdict::Again), "{tries} tries");
        }
        let Some(Verdict::Refuse(rejection)) = verdict_at(now(), &unused, &row(false, TRIES_MAX))
        else {
            panic!("expected a refusal, which a later presentation may undo");
        };
        assert_eq!(rejection.reason, Reason::ExactTransactionFailed);
    }
}
