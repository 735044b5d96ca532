use std::time::Duration;

use super::*;
use crate::ledger::testing::TestLedger;
use crate::payment::PaymentId;
use crate::payment::fixture::PAYEE;

async fn receiver(test: &TestLedger, types: &str, payee: Option<Address>) -> Receiver {
    let new = Receiver {
        id: Uuid::now_v7(),
        url: "https://receiver.example/events".to_owned(),
        types: types.to_owned(),
        payee,
        secret: vec![7; 32].into(),
        may_be_private: false,
        created_at: OffsetDateTime::UNIX_EPOCH,
        waiting: 0,
        dead: 0,
    };
    test.add_receiver(&new).await.unwrap();
    new
}

/// Writes the deliveries of a receiver until there are so many.
async fn written(test: &TestLedger, to: &Receiver, count: usize) {
    loop {
        test.write_deliveries(to, FeedEvent::public_id)
            .await
            .unwrap();
        let found = test.deliveries(Some(to.id), (false, 100)).await.unwrap();
        assert!(found.len() <= count, "{found:?}");
        if found.len() == count {
            return;
        }
        // Transactions of other tests hold the feed back.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn failed() -> Tried {
    Tried::Failed {
        status: Some(500),
        problem: "it answered 500".to_owned(),
    }
}

#[tokio::test]
async fn events_are_written_once_for_those_whom_they_concern() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let all = receiver(&test, "payment.*", None).await;
    let own = receiver(&test, "payment.accepted", Some(PAYEE)).await;
    let foreign = receiver(&test, "payment.*", Some(Address::repeat_byte(0x99))).await;
    test.accepted(1).await;
    test.try_run("insert into events (kind, subject) values ('key.revoked', 'x')")
        .await
        .unwrap();
    test.accepted(2).await;
    written(&test, &all, 2).await;
    written(&test, &own, 2).await;
    for to in [&all, &own, &foreign] {
        other
            .write_deliveries(to, FeedEvent::public_id)
            .await
            .unwrap();
        test.write_deliveries(to, FeedEvent::public_id)
            .await
            .unwrap();
    }
    let counts = test.receivers().await.unwrap();
    let counts: Vec<_> = counts.iter().map(|one| (one.id, one.waiting)).collect();
    assert_eq!(counts, [(all.id, 2), (own.id, 2), (foreign.id, 0)]);
    assert!(!format!("{all:?}").contains('7') || !format!("{all:?}").contains("7, 7"));
    assert!(test.remove_receiver(all.id).await.unwrap());
    assert!(!test.remove_receiver(all.id).await.unwrap());
    assert_eq!(test.deliveries(None, (false, 9)).await.unwrap().len(), 2);
}

/// A receiver with one event of the first payment, and two of the second.
async fn three(test: &TestLedger) -> (Receiver, [PaymentId; 2]) {
    let to = receiver(test, "payment.*", None).await;
    let (_, lease) = test.owned_lane().await;
    let payments = [test.accepted(1).await, test.accepted(2).await];
    test.signed(lease, 0, &[&payments[1]]).await;
    written(test, &to, 3).await;
    (to, payments.map(|payment| payment.id))
}

#[tokio::test]
async fn one_payment_is_sent_in_order_and_each_delivery_by_one_process() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let (to, _) = three(&test).await;
    let (mine, theirs) = tokio::join!(
        test.claim_deliveries(to.id, 9),
        other.claim_deliveries(to.id, 9)
    );
    let (mine, theirs) = (mine.unwrap(), theirs.unwrap());
    let claimed: Vec<_> = mine.iter().chain(&theirs).collect();
    assert_eq!(claimed.len(), 2, "{claimed:?}");
    assert!(test.claim_deliveries(to.id, 9).await.unwrap().is_empty());
    for delivery in &claimed {
        test.record_tries(&[(delivery, Tried::Delivered { status: 204 })])
            .await
            .unwrap();
    }
    let last = test.claim_deliveries(to.id, 9).await.unwrap();
    assert_eq!(last.len(), 1);
    // Its process dies: another one sends it again, under the same id.
    test.run("update webhook_deliveries set next_try_at = now()")
        .await;
    let again = other.claim_deliveries(to.id, 9).await.unwrap();
    assert_eq!(
        (again[0].id, &again[0].message_id, again[0].tries),
        (last[0].id, &last[0].message_id, 2)
    );
    // The late failure of the first says nothing about the second; a success does.
    test.record_tries(&[(&last[0], failed())]).await.unwrap();
    assert_eq!(
        test.value("select count(*) from webhook_deliveries where status = 500")
            .await,
        "0"
    );
    test.record_tries(&[(&last[0], Tried::Delivered { status: 200 })])
        .await
        .unwrap();
    let states = "select string_agg(distinct state, ',') from webhook_deliveries";
    assert_eq!(test.value(states).await, "delivered");
}

#[tokio::test]
async fn those_behind_a_failed_delivery_wait_as_long() {
    let test = TestLedger::new().await;
    let (to, _) = three(&test).await;
    let due =
        "select count(*) from webhook_deliveries where state = 'waiting' and next_try_at <= now()";
    let record = async |tried: fn() -> Tried| {
        let claimed = test.claim_deliveries(to.id, 9).await.unwrap();
        assert_eq!(claimed.len(), 2);
        let tries: Vec<_> = claimed.iter().map(|one| (one, tried())).collect();
        test.record_tries(&tries).await.unwrap();
    };
    record(failed).await;
    assert_eq!(test.value(due).await, "0", "no claim looks at it");
    test.run("update webhook_deliveries set next_try_at = now() where tries > 0")
        .await;
    record(|| Tried::Delivered { status: 200 }).await;
    assert_eq!(test.value(due).await, "1", "its turn has come");
}

#[tokio::test]
async fn claim_is_renewed_by_the_process_that_has_it() {
    let test = TestLedger::new().await;
    let (to, _) = three(&test).await;
    let first = test.claim_deliveries(to.id, 9).await.unwrap();
    let due =
        "update webhook_deliveries set next_try_at = now() - interval '1 minute' where tries > 0";
    test.run(due).await;
    test.renew_claims(&first).await.unwrap();
    assert!(test.claim_deliveries(to.id, 9).await.unwrap().is_empty());
    test.run(due).await;
    let second = test.claim_deliveries(to.id, 9).await.unwrap();
    assert_eq!(second.len(), first.len());
    test.run(due).await;
    // The one that has lost it renews nothing.
    test.renew_claims(&first).await.unwrap();
    assert_eq!(
        test.claim_deliveries(to.id, 9).await.unwrap().len(),
        first.len()
    );
}

#[tokio::test]
async fn failing_delivery_waits_longer_each_time_and_is_given_up_after_three_days() {
    let test = TestLedger::new().await;
    let (to, _) = three(&test).await;
    let mut waits = Vec::new();
    for _ in 0..17 {
        test.run("update webhook_deliveries set next_try_at = case when id = (select min(id) from webhook_deliveries) then now() else 'infinity' end").await;
        let claimed = test.claim_deliveries(to.id, 1).await.unwrap();
        test.record_tries(&[(&claimed[0], failed())]).await.unwrap();
        let wait = "select round(extract(epoch from next_try_at - now())) from webhook_deliveries order by id limit 1";
        waits.push(test.value(wait).await.parse::<f64>().unwrap());
    }
    assert!(
        (waits[0] - 1.0).abs() < 2.0 && (waits[4] - 16.0).abs() < 3.0,
        "{waits:?}"
    );
    assert!(
        (waits[16] - 28_800.0).abs() < 30.0 && waits.is_sorted(),
        "{waits:?}"
    );
    test.run("update webhook_deliveries set next_try_at = now(), first_tried_at = now() - interval '73 hours' where tries > 0").await;
    let claimed = test.claim_deliveries(to.id, 1).await.unwrap();
    test.record_tries(&[(&claimed[0], failed())]).await.unwrap();
    let dead = test.deliveries(None, (true, 9)).await.unwrap();
    assert_eq!(dead.len(), 1);
    assert_eq!(
        (dead[0].status, dead[0].problem.as_deref()),
        (Some(500), Some("it answered 500"))
    );
    assert_eq!(test.replay_deliveries(to.id, None).await.unwrap(), 1);
    assert_eq!(test.replay_deliveries(to.id, None).await.unwrap(), 0);
    assert_eq!(test.claim_deliveries(to.id, 1).await.unwrap()[0].tries, 1);
}

#[tokio::test]
async fn trial_is_a_delivery_and_old_ones_are_forgotten() {
    let test = TestLedger::new().await;
    let to = receiver(&test, "key.*", None).await;
    assert_eq!(
        test.test_receiver(Uuid::nil(), ("evt_test_1", "{}"))
            .await
            .unwrap(),
        None
    );
    let id = test
        .test_receiver(to.id, ("evt_test_1", "{}"))
        .await
        .unwrap()
        .unwrap();
    let claimed = test.claim_deliveries(to.id, 9).await.unwrap();
    assert_eq!(
        (claimed[0].id, claimed[0].message_id.as_str()),
        (id, "evt_test_1")
    );
    test.record_tries(&[(&claimed[0], Tried::Delivered { status: 200 })])
        .await
        .unwrap();
    assert_eq!(test.replay_deliveries(to.id, Some(id)).await.unwrap(), 1);
    test.run("update webhook_deliveries set state = 'dead', ended_at = now() - interval '31 days'")
        .await;
    test.forget_deliveries().await.unwrap();
    assert!(test.deliveries(None, (false, 9)).await.unwrap().is_empty());
}

#[tokio::test]
async fn receiver_fails_from_its_first_failure_until_it_takes_the_event() {
    let test = TestLedger::new().await;
    let (down, up) = (
        receiver(&test, "payment.*", None).await,
        receiver(&test, "payment.*", None).await,
    );
    test.accepted(1).await;
    for to in [&down, &up] {
        written(&test, to, 1).await;
    }
    assert_eq!(test.failing_receivers().await.unwrap(), []);
    let [first] = &test.claim_deliveries(down.id, 10).await.unwrap()[..] else {
        panic!("one delivery");
    };
    let [other] = &test.claim_deliveries(up.id, 10).await.unwrap()[..] else {
        panic!("one delivery");
    };
    let delivered = Tried::Delivered { status: 204 };
    test.record_tries(&[(other, delivered.clone())])
        .await
        .unwrap();
    test.record_tries(&[(first, failed())]).await.unwrap();
    test.run("update webhook_deliveries set first_tried_at = now() - interval '1 hour'")
        .await;
    let failing = test.failing_receivers().await.unwrap();
    let expected = FailingReceiver {
        receiver: down.id,
        waiting: 1,
        since: Duration::from_hours(1),
        problem: "it answered 500".to_owned(),
    };
    assert_eq!(failing, [expected]);
    test.record_tries(&[(first, delivered)]).await.unwrap();
    assert_eq!(test.failing_receivers().await.unwrap(), []);
}
