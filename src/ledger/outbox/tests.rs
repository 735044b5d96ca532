use super::*;
use crate::ledger::Accepted;
use crate::ledger::LaneLease;
use crate::ledger::testing::{
    LANE, OTHER_LANE, TestLedger, attempt, mined, new_payment, own, permit2_candidate, transaction,
    verified,
};
use crate::payment::fixture;
use crate::protocol::Scheme;

async fn ready() -> (TestLedger, LaneLease, Payment) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    (test, lease, payment)
}

async fn nothing_written(test: &TestLedger) {
    let rows = "select (select count(*) from attempts) + (select count(*) from transactions)
        + (select count(*) from transaction_payments)";
    assert_eq!(test.value(rows).await, "0");
    assert_eq!(test.value("select next_nonce from lanes").await, "0");
    let moved = "select count(*) from payments where state = 'inflight'";
    assert_eq!(test.value(moved).await, "0");
}

#[tokio::test]
async fn transaction_is_written_with_its_bytes_and_payments() {
    let (test, lease, payment) = ready().await;
    let id = test.signed(lease, 0, &[&payment]).await;
    let sent = test.payment(payment.id).await.unwrap().unwrap();
    assert_eq!(sent.state.transaction(), Some(attempt(0).hash));
    let pending = test.pending_transactions(LANE).await.unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!((pending[0].id, pending[0].nonce), (id, 0));
    assert_eq!(pending[0].attempts, [(attempt(0).hash, attempt(0).raw)]);
    assert_eq!(pending[0].payments, [sent]);
    assert!(!pending[0].batch);
    assert_eq!(own(&test, LANE).await.next_nonce, 1);
}

#[tokio::test]
async fn process_without_the_lane_writes_no_nonce() {
    let (test, lease, payment) = ready().await;
    let attempt = attempt(0);
    let payments = [&payment];
    let new = transaction(lease, 0, &attempt, &payments);
    let other = test.another_process().await;
    assert_eq!(other.record(&new).await.unwrap(), Recorded::LaneLost);
    let mut earlier = lease;
    earlier.epoch -= 1;
    let earlier = transaction(earlier, 0, &attempt, &payments);
    assert_eq!(test.record(&earlier).await.unwrap(), Recorded::LaneLost);
    let ahead = transaction(lease, 1, &attempt, &payments);
    assert_eq!(test.record(&ahead).await.unwrap(), Recorded::LaneLost);
    let mut elsewhere = transaction(lease, 0, &attempt, &payments);
    elsewhere.lane = OTHER_LANE;
    assert_eq!(test.record(&elsewhere).await.unwrap(), Recorded::LaneLost);
    nothing_written(&test).await;
    assert!(matches!(test.record(&new).await, Ok(Recorded::Written(..))));
    assert_eq!(test.record(&new).await.unwrap(), Recorded::LaneLost);
}

#[tokio::test]
async fn only_queued_payments_are_written_into_a_transaction() {
    let (test, lease, payment) = ready().await;
    let attempt = attempt(0);
    let other = test.accepted(2).await;
    let refuses = async |changed: &Payment| {
        let payments = [&payment, changed];
        let new = transaction(lease, 0, &attempt, &payments);
        let recorded = test.record(&new).await.unwrap();
        assert_eq!(recorded, Recorded::PaymentsChanged(vec![payment.id]));
        nothing_written(&test).await;
    };
    refuses(&test.settled(3).await).await;
    let mut charged = other.clone();
    charged.terms.value = crate::protocol::Amount::ZERO;
    refuses(&charged).await;
    let mut absent = other.clone();
    absent.id = new_payment(4).id;
    refuses(&absent).await;
    let quarantined = "quarantined_at = now(), quarantine_reason = 'a test'";
    test.set(other.id, quarantined).await;
    refuses(&other).await;
}

#[tokio::test]
async fn payment_is_written_only_by_the_signer_that_it_names() {
    let (test, _, _) = ready().await;
    let named = verified(permit2_candidate(Scheme::Upto, 2), &fixture::facts());
    let Accepted::New(named) = test.accept(named).await.unwrap() else {
        panic!("expected a new payment")
    };
    assert_eq!(named.terms.settling_signer(), Some(LANE.signer));
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    let lease = own(&test, OTHER_LANE).await;
    let attempt = attempt(0);
    let payments = [&*named];
    let mut new = transaction(lease, 0, &attempt, &payments);
    new.lane = OTHER_LANE;
    let recorded = test.record(&new).await.unwrap();
    assert_eq!(recorded, Recorded::PaymentsChanged(vec![]));
    // The schema refuses it too.
    let lease = own(&test, LANE).await;
    test.signed(lease, 0, &payments).await;
    let other = format!("'\\x{:x}'", OTHER_LANE.signer);
    test.run(&format!(
        "update payments set signer = {other} where id = '{}'",
        named.id
    ))
    .await;
    let again = "update transaction_payments set outcome = 'without_effect';
        insert into transaction_payments (transaction_id, position, payment_id)
        select transaction_id, 1, payment_id from transaction_payments";
    let refused = test.try_run(again).await.unwrap_err();
    let constraint = refused.as_database_error().unwrap().constraint();
    assert_eq!(
        constraint,
        Some("transaction_payments_ride_with_their_signer")
    );
}

#[tokio::test]
async fn replacement_is_written_by_the_owner_for_an_open_transaction() {
    let (test, lease, payment) = ready().await;
    let id = test.signed(lease, 0, &[&payment]).await;
    let lane = (LANE, lease.epoch);
    let replacement = attempt(7);
    let other = test.another_process().await;
    assert!(!other.record_attempt(lane, id, &replacement).await.unwrap());
    let earlier = (LANE, lease.epoch - 1);
    assert!(
        !test
            .record_attempt(earlier, id, &replacement)
            .await
            .unwrap()
    );
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    let elsewhere = (OTHER_LANE, own(&test, OTHER_LANE).await.epoch);
    assert!(
        !test
            .record_attempt(elsewhere, id, &replacement)
            .await
            .unwrap()
    );
    assert_eq!(test.value("select count(*) from attempts").await, "1");

    assert!(test.record_attempt(lane, id, &replacement).await.unwrap());
    let sent = test.payment(payment.id).await.unwrap().unwrap();
    assert_eq!(sent.state.transaction(), Some(replacement.hash));
    let pending = test.pending_transactions(LANE).await.unwrap();
    let hashes: Vec<B256> = pending[0].attempts.iter().map(|(hash, _)| *hash).collect();
    assert_eq!(hashes, [attempt(0).hash, replacement.hash]);

    test.record_mined(&mined(id, 0, 1, &[payment.id]))
        .await
        .unwrap();
    assert!(!test.record_attempt(lane, id, &attempt(8)).await.unwrap());
    let mined = test.payment(payment.id).await.unwrap().unwrap();
    assert_eq!(mined.state.transaction(), Some(attempt(0).hash));
    assert_eq!(test.value("select count(*) from attempts").await, "2");
}

#[tokio::test]
async fn bytes_are_written_once() {
    let (test, lease, payment) = ready().await;
    let id = test.signed(lease, 0, &[]).await;
    let again = test
        .record_attempt((LANE, lease.epoch), id, &attempt(0))
        .await;
    assert_eq!(again.unwrap_err().constraint(), Some("attempts_pkey"));
    let attempt = attempt(0);
    let payments = [&payment];
    let again = test
        .record(&transaction(lease, 1, &attempt, &payments))
        .await;
    assert_eq!(again.unwrap_err().constraint(), Some("attempts_pkey"));
    assert_eq!(test.state(payment.id).await, "queued");
    assert_eq!(test.value("select next_nonce from lanes").await, "1");
}

#[tokio::test]
async fn reply_is_recorded_when_it_differs() {
    let (test, lease, payment) = ready().await;
    test.signed(lease, 0, &[&payment]).await;
    let hash = attempt(0).hash;
    let accepted = BroadcastReply {
        reply: "accepted",
        reason: None,
    };
    test.note_reply(hash, accepted).await.unwrap();
    let hour_ago = "update attempts set broadcast_at = now() - interval '1 hour'";
    test.run(hour_ago).await;
    test.note_reply(hash, accepted).await.unwrap();
    let old = "select broadcast || (broadcast_at < now() - interval '1 minute') from attempts";
    assert_eq!(test.value(old).await, "acceptedtrue");
    let rejected = BroadcastReply {
        reply: "rejected",
        reason: Some("underpriced"),
    };
    test.note_reply(hash, rejected).await.unwrap();
    test.note_reply(attempt(1).hash, accepted).await.unwrap();
    assert_eq!(test.value(old).await, "rejectedfalse");
    let invalid = BroadcastReply {
        reply: "perhaps",
        reason: None,
    };
    let refused = test.note_reply(hash, invalid).await.unwrap_err();
    assert_eq!(refused.constraint(), Some("attempts_broadcast_is_known"));
}

#[tokio::test]
async fn unreadable_payment_is_left_out_of_its_open_transaction() {
    let (test, lease, first) = ready().await;
    let (unreadable, third) = (test.accepted(2).await, test.accepted(3).await);
    test.signed(lease, 0, &[&first, &unreadable]).await;
    test.signed(lease, 1, &[&third]).await;
    test.make_unreadable(unreadable.id).await;
    let pending = test.pending_transactions(LANE).await.unwrap();
    let payments = pending
        .iter()
        .map(|open| open.payments.iter().map(|payment| payment.id).collect());
    let payments: Vec<Vec<PaymentId>> = payments.collect();
    assert_eq!(payments, [[first.id], [third.id]]);
    test.assert_quarantined(unreadable.id).await;
}
