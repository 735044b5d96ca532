//! The answer for a payment that the ledger has: a pure function from its state and its grant.

use crate::ledger::{GrantStatus, PaymentWithGrant};
use crate::payment::PaymentState;
use crate::payment::state::Rejection;

/// What the caller that presents a known payment gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Its outcome is open: wait for it.
    Join,
    /// The money was transferred and no caller was told success: this one may be.
    Grant,
    /// Another request is answering success right now; wait until that answer was written or has broken off.
    AwaitGrant,
    /// A caller was told success before.
    Duplicate,
    /// Refused, and no transaction of it is under way; check it anew.
    CheckAgain(Rejection),
    /// Proven unable to move money.
    Failed(Rejection),
    /// Money was transferred, but not in a way that counts for this payment.
    Unmatched(String),
    /// Quarantined: only the operator can decide.
    Quarantined(String),
}

pub(super) fn decide(found: &PaymentWithGrant) -> Decision {
    let payment = &found.payment;
    if let Some(why) = &payment.quarantine {
        return Decision::Quarantined(why.clone());
    }
    match &payment.state {
        PaymentState::Queued | PaymentState::Inflight(_) | PaymentState::Mined(_) => Decision::Join,
        PaymentState::Settled(_)
        | PaymentState::Uncharged
        | PaymentState::Final(_)
        | PaymentState::LateSettled(_) => {
            if let Some(why) = &payment.unmatched {
                return Decision::Unmatched(why.clone());
            }
            match found.grant {
                GrantStatus::Free => Decision::Grant,
                GrantStatus::Open => Decision::AwaitGrant,
                GrantStatus::Answered => Decision::Duplicate,
            }
        }
        PaymentState::Refused(rejection) => Decision::CheckAgain(rejection.clone()),
        PaymentState::Failed { rejection, .. } => Decision::Failed(rejection.clone()),
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;
    use crate::payment::fixture::{location, payment};
    use crate::protocol::Reason;

    const GRANTS: [GrantStatus; 3] = [GrantStatus::Free, GrantStatus::Open, GrantStatus::Answered];

    fn rejection() -> Rejection {
        Rejection {
            reason: Reason::ExactNonceUsed,
            message: "used".to_owned(),
        }
    }

    fn failed(transaction: Option<B256>) -> PaymentState {
        PaymentState::Failed {
            rejection: rejection(),
            transaction,
        }
    }

    /// Every state, with the decisions for a free, an undecided and an answered grant.
    fn table() -> Vec<(PaymentState, [Decision; 3])> {
        let always = |decision: Decision| [decision.clone(), decision.clone(), decision];
        let settled = || [Decision::Grant, Decision::AwaitGrant, Decision::Duplicate];
        vec![
            (PaymentState::Queued, always(Decision::Join)),
            (PaymentState::Inflight(B256::ZERO), always(Decision::Join)),
            (PaymentState::Mined(location()), always(Decision::Join)),
            (PaymentState::Settled(location()), settled()),
            (PaymentState::Uncharged, settled()),
            (PaymentState::Final(location()), settled()),
            (PaymentState::LateSettled(location()), settled()),
            (
                PaymentState::Refused(rejection()),
                always(Decision::CheckAgain(rejection())),
            ),
            (failed(None), always(Decision::Failed(rejection()))),
            (
                failed(Some(B256::ZERO)),
                always(Decision::Failed(rejection())),
            ),
        ]
    }

    fn with_grant(state: &PaymentState, grant: GrantStatus) -> PaymentWithGrant {
        PaymentWithGrant {
            payment: payment(state.clone()),
            grant,
        }
    }

    #[test]
    fn each_state_under_each_grant_leads_to_one_decision() {
        for (state, decisions) in table() {
            for (grant, expected) in GRANTS.into_iter().zip(decisions) {
                let found = decide(&with_grant(&state, grant));
                assert_eq!(found, expected, "{} under a {grant:?} grant", state.name());
            }
        }
    }

    #[test]
    fn table_contains_every_payment_state() {
        let mut names: Vec<_> = table().iter().map(|(state, _)| state.name()).collect();
        names.dedup();
        assert_eq!(names, PaymentState::NAMES);
    }

    #[test]
    fn quarantined_payment_is_never_granted() {
        for (state, _) in table() {
            for grant in GRANTS {
                let mut found = with_grant(&state, grant);
                found.payment.quarantine = Some("two events".to_owned());
                let expected = Decision::Quarantined("two events".to_owned());
                assert_eq!(decide(&found), expected, "{} {grant:?}", state.name());
            }
        }
    }

    #[test]
    fn unmatched_payment_is_never_granted() {
        for (state, decisions) in table() {
            let mut found = with_grant(&state, GrantStatus::Free);
            found.payment.unmatched = Some("late".to_owned());
            let transferred = decisions.first() == Some(&Decision::Grant);
            let late = Decision::Unmatched("late".to_owned());
            assert_eq!(decide(&found) == late, transferred, "{}", state.name());
        }
    }

    #[test]
    fn grant_requires_settled_state_and_a_free_grant() {
        for (state, decisions) in table() {
            let grants = decisions
                .iter()
                .filter(|decision| **decision == Decision::Grant);
            let settled = matches!(
                state,
                PaymentState::Settled(_)
                    | PaymentState::Uncharged
                    | PaymentState::Final(_)
                    | PaymentState::LateSettled(_)
            );
            assert_eq!(grants.count(), usize::from(settled), "{}", state.name());
        }
    }
}
