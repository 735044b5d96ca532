use super::*;
use crate::ledger::testing::{NETWORK, TestLedger, attempt, transaction};
use crate::ledger::{LaneLease, Recorded};
use crate::payment::Payment;

async fn ready() -> (TestLedger, LaneLease, Payment, Wasteful) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    let payer = Wasteful::Payer(payment.terms.from);
    (test, lease, payment, payer)
}

/// Seconds until the end of the suspension, after which the suspension is set to have ended `ago`.
async fn length(test: &TestLedger, of: &[Wasteful], transaction: Uuid, ago: &str) -> Vec<i64> {
    let found = test.suspend(NETWORK, transaction, of).await.unwrap();
    let now = test.value("select extract(epoch from now())::bigint").await;
    let now: i64 = now.parse().unwrap();
    let lengths = found.iter().map(|one| one.until.unix_timestamp() - now + 1);
    let lengths = lengths.collect();
    test.run(&format!(
        "update suspensions set counted_at = now() - interval '9 days', suspended_until = now() - interval '{ago}'"
    ))
    .await;
    lengths
}

fn about(lengths: &[i64], expected: i64) -> bool {
    lengths
        .iter()
        .all(|one| (expected - 5..=expected + 5).contains(one))
        && !lengths.is_empty()
}

#[tokio::test]
async fn each_failure_suspends_twice_as_long_up_to_a_day() {
    let (test, lease, payment, payer) = ready().await;
    let id = test.signed(lease, 0, &[&payment]).await;
    for expected in [60, 120, 240, 480] {
        let lengths = length(&test, &[payer], id, "1 second").await;
        assert!(about(&lengths, expected), "{lengths:?}");
    }
    test.run("update suspensions set failures = 500").await;
    let lengths = length(&test, &[payer], id, "25 hours").await;
    assert!(about(&lengths, 86_400), "{lengths:?}");
    // A day after a suspension has ended, it is forgotten.
    let lengths = length(&test, &[payer], id, "1 second").await;
    assert!(about(&lengths, 60), "{lengths:?}");
    let code = Wasteful::Code(B256::repeat_byte(7));
    let lengths = length(&test, &[code], id, "1 second").await;
    assert!(about(&lengths, 15), "{lengths:?}");
}

#[tokio::test]
async fn payments_that_were_under_way_already_count_once() {
    let (test, lease, payment, payer) = ready().await;
    let id = test.signed(lease, 0, &[&payment]).await;
    let other = test.accepted(2).await;
    let also = test.signed(lease, 1, &[&other]).await;
    let first = test.suspend(NETWORK, id, &[payer]).await.unwrap();
    for id in [id, also] {
        assert_eq!(test.suspend(NETWORK, id, &[payer]).await.unwrap(), first);
    }
    assert_eq!(test.value("select failures from suspensions").await, "1");
    assert_eq!(test.suspensions(NETWORK).await.unwrap(), first);
    let elsewhere = crate::protocol::Network::from_chain_id(1);
    assert_eq!(test.suspensions(elsewhere).await.unwrap(), []);
    test.run("update suspensions set counted_at = now() - interval '2 days', suspended_until = now() - interval '1 second'").await;
    assert_eq!(test.suspensions(NETWORK).await.unwrap(), []);
}

#[tokio::test]
async fn no_transaction_is_written_with_a_payment_of_a_suspended_payer() {
    let (test, lease, payment, _) = ready().await;
    let other = test.accepted(2).await;
    let earlier = test.signed(lease, 0, &[&other]).await;
    let payer = Wasteful::Payer(payment.terms.from);
    test.suspend(NETWORK, earlier, &[payer]).await.unwrap();
    let third = test.accepted(3).await;
    let attempt = attempt(1);
    let payments = [&payment, &third];
    let new = transaction(lease, 1, &attempt, &payments);
    let recorded = test.record(&new).await.unwrap();
    assert_eq!(recorded, Recorded::PaymentsChanged(vec![third.id]));
    assert_eq!(test.state(payment.id).await, "queued");
}

#[tokio::test]
async fn payer_that_was_settled_has_paid() {
    let test = TestLedger::new().await;
    let payment = test.settled(1).await;
    let (asset, payer) = (payment.terms.asset, payment.terms.from);
    assert!(test.has_paid(NETWORK, asset, payer).await.unwrap());
    let queued = test.accepted(2).await;
    let payer = queued.terms.from;
    assert!(!test.has_paid(NETWORK, asset, payer).await.unwrap());
}
