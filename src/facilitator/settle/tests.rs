//! The table of decisions about known payments, and what every answer names.

use alloy::primitives::B256;

use super::*;
use crate::payment::fixture::{PAYER, body, location, payment};
use crate::protocol::X402Version;

const WHO: Who = Who::Anonymous;
const GRANTS: [GrantStatus; 4] = [
    GrantStatus::Free,
    GrantStatus::Reserved,
    GrantStatus::Open,
    GrantStatus::Answered,
];

fn rejection() -> Rejection {
    Rejection::new(Reason::ExactNonceUsed, "used")
}

fn failed(transaction: Option<B256>) -> PaymentState {
    PaymentState::Failed {
        rejection: rejection(),
        transaction,
    }
}

/// Every state, with the decisions for a free, a reserved, an undecided and an answered grant.
fn table() -> Vec<(PaymentState, [Decision; 4])> {
    let always = |decision: Decision| [(); 4].map(|()| decision.clone());
    let settled = || {
        [
            Decision::Grant,
            Decision::AwaitGrant,
            Decision::AwaitGrant,
            Decision::Duplicate,
        ]
    };
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
        first_asker: Some("first".to_owned()),
        granted_to: None,
    }
}

#[test]
fn each_state_under_each_grant_leads_to_one_decision() {
    for (state, decisions) in table() {
        for (grant, expected) in GRANTS.into_iter().zip(decisions) {
            let found = decide(&with_grant(&state, grant), WHO);
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
            assert_eq!(decide(&found, WHO), expected, "{} {grant:?}", state.name());
        }
    }
}

#[test]
fn unmatched_payment_is_never_granted() {
    for (state, decisions) in table() {
        let mut found = with_grant(&state, GrantStatus::Free);
        found.payment.unmatched = Some("late".to_owned());
        let transferred = decisions.first() == Some(&Decision::Grant);
        let late = Decision::Failed(Rejection::new(Reason::SessionExpired, "late"));
        assert_eq!(decide(&found, WHO) == late, transferred, "{}", state.name());
    }
}

#[test]
fn payment_of_another_caller_is_a_duplicate_whatever_its_grant_says() {
    for (state, decisions) in table() {
        for (grant, decision) in GRANTS.into_iter().zip(decisions) {
            let mut found = with_grant(&state, grant);
            found.payment.caller = Some(Who::Operator);
            assert_eq!(decide(&found, Who::Operator), decision);
            let expected = match decision {
                Decision::Join | Decision::Grant | Decision::AwaitGrant => Decision::Duplicate,
                unchanged @ (Decision::Duplicate
                | Decision::CheckAgain(_)
                | Decision::Failed(_)
                | Decision::Quarantined(_)) => unchanged,
            };
            assert_eq!(decide(&found, WHO), expected, "{} {grant:?}", state.name());
        }
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

#[test]
fn reserved_grant_is_free_for_the_first_asker_alone() {
    let found = with_grant(&PaymentState::Settled(location()), GrantStatus::Reserved);
    assert_eq!(
        decide(&found.clone().seen_by("other"), WHO),
        Decision::AwaitGrant
    );
    assert_eq!(decide(&found.seen_by("first"), WHO), Decision::Grant);
    let open = with_grant(&PaymentState::Settled(location()), GrantStatus::Open);
    assert_eq!(decide(&open.seen_by("first"), WHO), Decision::AwaitGrant);
}

#[test]
fn every_answer_names_the_payer_and_the_requested_network() {
    for (version, name) in [
        (X402Version::V1, "base-sepolia"),
        (X402Version::V2, "eip155:84532"),
    ] {
        let request = PaymentRequest::parse(body(version).to_string().as_bytes()).unwrap();
        let response = SettleAnswer::new(&request).response;
        assert_eq!(response.network, name);
        assert_eq!(response.payer, Some(checksummed(PAYER)));
    }
}
