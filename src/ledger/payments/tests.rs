use time::Duration;

use super::*;
use crate::ledger::testing::{LANE, NETWORK, TestLedger, location, new_payment, valid_before};
use crate::payment::PaymentState;
use crate::protocol::Reason;

fn rejection() -> Rejection {
    Rejection {
        reason: Reason::UnexpectedSettleError,
        message: "a test".to_owned(),
    }
}

/// The ids of payments, which the readers return in different orders.
fn ids(payments: Vec<Payment>) -> Vec<PaymentId> {
    let mut ids: Vec<PaymentId> = payments.into_iter().map(|payment| payment.id).collect();
    ids.sort_unstable();
    ids
}

async fn claims(ledger: &Ledger) -> usize {
    let claimed = ledger.claim_queued(NETWORK, &[LANE.signer], &[], 10).await;
    claimed.unwrap().len()
}

#[tokio::test]
async fn state_changes_as_the_table_allows() {
    let test = TestLedger::new().await;
    let states = [
        PaymentState::Queued,
        PaymentState::Inflight(location(1).transaction),
        PaymentState::Mined(location(1)),
        PaymentState::Settled(location(1)),
        PaymentState::Final(location(1)),
        PaymentState::LateSettled(location(1)),
        PaymentState::Refused(rejection()),
        PaymentState::Failed {
            rejection: rejection(),
            transaction: None,
        },
    ];
    let names: Vec<_> = states.iter().map(PaymentState::name).collect();
    assert_eq!(names, PaymentState::NAMES, "every state is compared");
    for from in &states {
        for to in &states {
            let (from_name, to_name) = (from.name(), to.name());
            let allowed = test
                .value(&format!(
                    "select exists (select from payment_transitions where from_state = '{from_name}' and to_state = '{to_name}')"
                ))
                .await;
            let may = from.may_become(to).to_string();
            assert_eq!(may, allowed, "{from_name} to {to_name}");
        }
    }
    let unknown = format!(
        "select count(*) from payment_transitions where not array[from_state, to_state] <@ '{{{}}}'",
        PaymentState::NAMES.join(",")
    );
    assert_eq!(test.value(&unknown).await, "0");
    // A payment without a charge is settled when it is accepted, or presented again.
    let uncharged = PaymentState::Uncharged;
    let from = states.iter().filter(|state| state.may_become(&uncharged));
    let from: Vec<_> = from.map(PaymentState::name).collect();
    assert_eq!(from, ["refused"]);
    assert!(states.iter().all(|state| !uncharged.may_become(state)));
}

#[tokio::test]
async fn change_that_the_table_does_not_name_is_refused() {
    let test = TestLedger::new().await;
    let payment = test.settled(1).await;
    test.set(payment.id, "state = 'final'").await;
    let refused = test.try_run("update payments set state = 'settled'").await;
    let refused = refused.unwrap_err();
    let constraint = refused.as_database_error().unwrap().constraint();
    assert_eq!(constraint, Some("payments_transition_is_allowed"));
    assert_eq!(test.state(payment.id).await, "final");
}

#[tokio::test]
async fn unreadable_payment_is_an_error_of_its_own() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let error = test.payment(unreadable).await.unwrap_err();
    assert!(matches!(error, LedgerError::Inconsistent(_)), "{error:?}");
    test.assert_quarantined(unreadable).await;
    // It is reported each time, and quarantined once.
    assert!(test.payment(unreadable).await.is_err());
    test.assert_quarantined(unreadable).await;
    for good in [first, third] {
        assert_eq!(test.payment(good).await.unwrap().unwrap().id, good);
    }
    let absent = test.payment(new_payment(4).id).await.unwrap();
    assert_eq!(absent, None);
}

#[tokio::test]
async fn payment_claimed_by_live_process_is_left_to_it() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = test.accepted(1).await.id;
    let holder = test.process().0;
    let queue = async |age: &str| {
        let queue = format!("queued_by = '{holder}', queued_at = now() - interval '{age}'");
        test.set(id, &queue).await;
    };
    queue("1 second").await;
    assert_eq!(claims(&test).await, 0, "it may be in memory");
    queue("3 seconds").await;
    assert_eq!(claims(&other).await, 0, "its claiming process is alive");
    assert_eq!(
        claims(&test).await,
        1,
        "its claiming process has forgotten it"
    );
    queue("11 seconds").await;
    assert_eq!(
        claims(&other).await,
        1,
        "its claiming process seems unable to send it"
    );
    queue("3 seconds").await;
    let missed = "update processes set lease_until = now() + interval '9 seconds' where id =";
    test.run(&format!("{missed} '{holder}'")).await;
    assert_eq!(
        claims(&other).await,
        1,
        "its claiming process has missed a heartbeat"
    );
}

#[tokio::test]
async fn only_queued_payments_that_a_signer_may_send_are_claimed() {
    let test = TestLedger::new().await;
    let id = test.accepted(1).await.id;
    let unclaimed = "queued_by = null";
    let claimed = async |set: &str, signers: &[Address], known: &[PaymentId]| {
        test.set(id, &format!("{unclaimed}, {set}")).await;
        let claimed = test.claim_queued(NETWORK, signers, known, 10).await;
        claimed.unwrap().len()
    };
    let signers = [LANE.signer];
    let none = "message = null";
    assert_eq!(claimed(none, &signers, &[id]).await, 0, "in memory already");
    let quarantined = "quarantined_at = now(), quarantine_reason = 'a test'";
    assert_eq!(claimed(quarantined, &signers, &[]).await, 0);
    let refused =
        "quarantined_at = null, quarantine_reason = null, state = 'refused', reason = 'a test'";
    assert_eq!(claimed(refused, &signers, &[]).await, 0);
    let elsewhere = Network::from_chain_id(1);
    test.set(id, "state = 'queued', reason = null").await;
    let other = test.claim_queued(elsewhere, &signers, &[], 10).await;
    assert_eq!(other.unwrap(), []);
    assert_eq!(claimed(none, &signers, &[]).await, 1);
    // Its payer has named one signer.
    let zero = "scheme = 'upto', permitted = amount, nonce_domain = '\\x000000000022d473030f116ddee9f6b43ac78ba3'";
    let named = format!("{zero}, signer = '\\x{:x}'", LANE.signer);
    assert_eq!(claimed(&named, &[Address::ZERO], &[]).await, 0);
    assert_eq!(claimed(none, &signers, &[]).await, 1);
}

#[tokio::test]
async fn unreadable_payment_is_left_out_of_a_claim() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    test.run("update payments set queued_by = null").await;
    let claimed = test.claim_queued(NETWORK, &[LANE.signer], &[], 10).await;
    assert_eq!(ids(claimed.unwrap()), [first, third]);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn process_releases_its_own_claims_on_queued_payments() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let other = test.another_process().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    let sent = test.accepted(3).await;
    test.signed(lease, 0, &[&sent]).await;
    let all = [first.id, sent.id];
    other.release_claims(&all).await.unwrap();
    let claimed = "select count(*) from payments where queued_by is not null";
    assert_eq!(test.value(claimed).await, "3");
    test.release_claims(&all).await.unwrap();
    assert_eq!(test.payment_value(first.id, "queued_by").await, "-");
    assert_ne!(test.payment_value(second.id, "queued_by").await, "-");
    assert_ne!(test.payment_value(sent.id, "queued_by").await, "-");
    assert_eq!(claims(&other).await, 1);
}

#[tokio::test]
async fn only_a_queued_payment_is_refused() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    let sent = test.accepted(2).await;
    test.signed(lease, 0, &[&sent]).await;
    let settled = test.settled(3).await;
    for id in [sent.id, settled.id, new_payment(4).id] {
        assert!(!test.refuse(id, &rejection()).await.unwrap());
    }
    assert_eq!(test.state(sent.id).await, "inflight");
    assert!(test.refuse(payment.id, &rejection()).await.unwrap());
    let refused = test.payment(payment.id).await.unwrap().unwrap();
    assert_eq!(refused.state, PaymentState::Refused(rejection()));
    assert!(!test.refuse(payment.id, &rejection()).await.unwrap());
}

#[tokio::test]
async fn unreadable_payment_is_left_out_of_the_expired() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    test.settled(4).await;
    let before = valid_before() - Duration::seconds(1);
    assert_eq!(test.expired(NETWORK, before, 10).await.unwrap(), []);
    let expired = test.expired(NETWORK, valid_before(), 10).await.unwrap();
    assert_eq!(ids(expired), [first, third]);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn unreadable_payment_is_left_out_of_those_without_a_transfer() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    test.run("update payments set state = 'refused', reason = 'a test'")
        .await;
    let failed = test.accepted(4).await.id;
    test.set(failed, "state = 'failed', reason = 'a test'")
        .await;
    // Accepted long ago, for a week.
    test.set(first, "created_at = now() - interval '7 days'")
        .await;
    let expired = test.accepted(5).await.id;
    test.set(
        expired,
        "state = 'refused', reason = 'a test', valid_before = now() - interval '61 minutes'",
    )
    .await;
    let found = async |failed_too, after, limit| {
        let found = test.payments_without_transfer(NETWORK, failed_too, after, limit);
        let (payments, last) = found.await.unwrap();
        (ids(payments), last)
    };
    assert_eq!(found(false, None, 10).await, (vec![first, third], None));
    let all = vec![first, third, failed];
    assert_eq!(found(true, None, 10).await, (all, None));
    let (page, last) = found(true, None, 2).await;
    assert_eq!(page, [first, third]);
    assert!(last.is_some());
    assert_eq!(found(true, last, 2).await, (vec![failed], None));
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn failed_payment_in_an_open_transaction_is_found() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    test.signed(lease, 0, &[&first]).await;
    let failed = "state = 'failed', reason = 'a test'";
    test.set(second.id, failed).await;
    assert!(!test.failed_in_flight(NETWORK).await.unwrap());
    test.set(first.id, failed).await;
    assert!(test.failed_in_flight(NETWORK).await.unwrap());
    let elsewhere = Network::from_chain_id(1);
    assert!(!test.failed_in_flight(elsewhere).await.unwrap());
}

#[tokio::test]
async fn decided_are_those_with_nothing_to_wait_for() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let queued = test.accepted(1).await;
    let sent = test.accepted(2).await;
    test.signed(lease, 0, &[&sent]).await;
    let settled = test.settled(3).await;
    // The row is not read, so an unreadable one is decided too: its request gets the error.
    let unreadable = test.settled(4).await;
    test.make_unreadable(unreadable.id).await;
    let refused = test.accepted(5).await;
    assert!(test.refuse(refused.id, &rejection()).await.unwrap());
    let all = [queued.id, sent.id, settled.id, unreadable.id, refused.id];
    let mut decided = test.decided(&all).await.unwrap();
    decided.sort_unstable();
    assert_eq!(decided, [settled.id, unreadable.id, refused.id]);
}
