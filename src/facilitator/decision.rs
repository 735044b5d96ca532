//! What to answer for a known payment: the table of the grant rule, pure.

use crate::ledger::{GrantStatus, Standing};
use crate::payment::PaymentState;
use crate::payment::state::Exit;

/// What a presenter of a known payment gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Its outcome is open: join it.
    Join,
    /// The money has moved and nobody was told: this presenter may be.
    Grant,
    /// Somebody is being told right now; wait until that answer has arrived or broken off.
    AwaitGrant,
    /// Somebody was told.
    Duplicate,
    /// Ejected before any broadcast; check it anew.
    CheckAgain(Exit),
    /// Proven unable to move money.
    Failed(Exit),
    /// The money moved, but not in a way that counts.
    Unmatched(String),
    /// Set aside for the operator; nothing more can be said.
    SetAside(String),
}

pub(super) fn decide(standing: &Standing) -> Decision {
    let payment = &standing.payment;
    if let Some(why) = &payment.quarantine {
        return Decision::SetAside(why.clone());
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
            match standing.grant {
                GrantStatus::Free => Decision::Grant,
                GrantStatus::Undecided => Decision::AwaitGrant,
                GrantStatus::Standing => Decision::Duplicate,
            }
        }
        PaymentState::Refused(exit) => Decision::CheckAgain(exit.clone()),
        PaymentState::Failed { exit, .. } => Decision::Failed(exit.clone()),
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;

    use super::*;
    use crate::payment::specimen::{location, payment};
    use crate::protocol::Reason;

    const GRANTS: [GrantStatus; 3] = [
        GrantStatus::Free,
        GrantStatus::Undecided,
        GrantStatus::Standing,
    ];

    fn exit() -> Exit {
        Exit {
            reason: Reason::ExactNonceUsed,
            message: "used".to_owned(),
        }
    }

    fn failed(transaction: Option<B256>) -> PaymentState {
        PaymentState::Failed {
            exit: exit(),
            transaction,
        }
    }

    /// Every state, with the decisions for a free, an undecided and a standing grant.
    fn table() -> Vec<(PaymentState, [Decision; 3])> {
        let always = |decision: Decision| [decision.clone(), decision.clone(), decision];
        let moved = || [Decision::Grant, Decision::AwaitGrant, Decision::Duplicate];
        vec![
            (PaymentState::Queued, always(Decision::Join)),
            (PaymentState::Inflight(B256::ZERO), always(Decision::Join)),
            (PaymentState::Mined(location()), always(Decision::Join)),
            (PaymentState::Settled(location()), moved()),
            (PaymentState::Uncharged, moved()),
            (PaymentState::Final(location()), moved()),
            (PaymentState::LateSettled(location()), moved()),
            (
                PaymentState::Refused(exit()),
                always(Decision::CheckAgain(exit())),
            ),
            (failed(None), always(Decision::Failed(exit()))),
            (failed(Some(B256::ZERO)), always(Decision::Failed(exit()))),
        ]
    }

    fn standing(state: &PaymentState, grant: GrantStatus) -> Standing {
        Standing {
            payment: payment(state.clone()),
            grant,
        }
    }

    #[test]
    fn each_state_under_each_grant_leads_to_one_decision() {
        for (state, decisions) in table() {
            for (grant, expected) in GRANTS.into_iter().zip(decisions) {
                let found = decide(&standing(&state, grant));
                assert_eq!(found, expected, "{} under a {grant:?} grant", state.name());
            }
        }
    }

    #[test]
    fn the_table_leaves_no_state_out() {
        let mut names: Vec<_> = table().iter().map(|(state, _)| state.name()).collect();
        names.dedup();
        assert_eq!(names, PaymentState::NAMES);
    }

    #[test]
    fn a_payment_set_aside_is_never_granted_whatever_its_state() {
        for (state, _) in table() {
            for grant in GRANTS {
                let mut standing = standing(&state, grant);
                standing.payment.quarantine = Some("two events".to_owned());
                let expected = Decision::SetAside("two events".to_owned());
                assert_eq!(decide(&standing), expected, "{} {grant:?}", state.name());
            }
        }
    }

    #[test]
    fn money_that_came_too_late_is_never_granted() {
        for (state, decisions) in table() {
            let mut standing = standing(&state, GrantStatus::Free);
            standing.payment.unmatched = Some("late".to_owned());
            let moved = decisions.first() == Some(&Decision::Grant);
            let late = Decision::Unmatched("late".to_owned());
            assert_eq!(decide(&standing) == late, moved, "{}", state.name());
        }
    }

    #[test]
    fn success_is_told_only_after_the_money_moved_and_to_one_alone() {
        for (state, decisions) in table() {
            let told = decisions
                .iter()
                .filter(|decision| **decision == Decision::Grant);
            let deep = matches!(
                state,
                PaymentState::Settled(_)
                    | PaymentState::Uncharged
                    | PaymentState::Final(_)
                    | PaymentState::LateSettled(_)
            );
            assert_eq!(told.count(), usize::from(deep), "{}", state.name());
        }
    }
}
