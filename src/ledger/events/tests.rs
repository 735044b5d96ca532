use std::time::Duration;

use sqlx::Connection as _;

use super::*;
use crate::clock::{Clock as _, SystemClock};
use crate::ledger::testing::{TestLedger, mined};
use crate::payment::{Key, KeyId, PresentedKey, Scope};

/// Waits until everything that is committed is told: transactions of other tests, on the same server, hold the feed back for a moment.
async fn caught_up(test: &TestLedger) {
    let told = "select coalesce(max(xact) < pg_snapshot_xmin(pg_current_snapshot()), true) from (select xact from events order by xact desc nulls last limit 1) e";
    while test.value(told).await != "true" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn page(test: &TestLedger, after: EventPosition) -> FeedPage {
    caught_up(test).await;
    test.events_after(after, 100).await.unwrap().unwrap()
}

async fn told(test: &TestLedger) -> Vec<String> {
    let events = page(test, EventPosition::default()).await.events;
    let told = events.iter().map(|event| {
        let subject = event.payment.as_ref().map(|payment| payment.id.to_string());
        let subject = subject.or_else(|| event.signer.clone());
        let subject = subject.or_else(|| event.subject.clone());
        format!("{} {}", event.kind.name(), subject.unwrap_or_default())
    });
    told.collect()
}

#[test]
fn every_type_is_one_that_the_schema_knows() {
    let schema = include_str!("../../../migrations/0013_events.sql");
    for kind in EventType::ALL {
        let name = kind.name();
        let is_known = schema.contains(&format!("'{name}'"));
        assert_eq!(is_known, !name.starts_with("payment."), "{name}");
    }
}

#[test]
fn types_are_named_one_by_one_and_in_groups() {
    let of = |text: &str| text.parse::<EventTypes>().map(|types| types.0.len());
    assert_eq!(of("payment.settled"), Ok(1));
    assert_eq!(of("payment.settled, signer.*,payment.settled"), Ok(6));
    assert_eq!(of("payment.*,signer.*,network.*,budget.*,key.*"), Ok(19));
    for wrong in [
        "",
        "payment",
        "payment.",
        "*",
        "payment.se*",
        "payment.lost",
        "a,payment.sent",
    ] {
        assert_eq!(of(wrong), Err(UnknownEventType), "{wrong}");
    }
}

#[tokio::test]
async fn payment_is_told_step_by_step() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    let id = test.signed(lease, 0, &[&payment]).await;
    let mut mined = mined(id, 0, 1, &[payment.id]);
    for transferred in &mut mined.transferred {
        transferred.confirmed = true;
    }
    test.record_mined(&mined).await.unwrap();
    let expected =
        ["accepted", "sent", "settled"].map(|step| format!("payment.{step} {}", payment.id));
    assert_eq!(told(&test).await, expected);
    let events = page(&test, EventPosition::default()).await.events;
    let first = events.first().unwrap();
    let of = first.payment.as_ref().unwrap();
    assert_eq!(of.payee_address, Some(payment.terms.to));
    assert_eq!(of.amount, payment.terms.value.to_string());
    assert_eq!((first.transaction, first.reason.as_deref()), (None, None));
    assert!(
        events
            .iter()
            .skip(1)
            .all(|event| event.transaction.is_some())
    );
}

#[tokio::test]
async fn pages_meet_each_other_and_end_where_the_feed_ends() {
    let test = TestLedger::new().await;
    for nonce in 1..=3 {
        test.accepted(nonce).await;
    }
    caught_up(&test).await;
    let mut position = EventPosition::default();
    let mut ids = Vec::new();
    loop {
        let page = test.events_after(position, 1).await.unwrap().unwrap();
        ids.extend(page.events.iter().map(|event| event.position.id));
        position = page.end;
        if !page.more {
            break;
        }
    }
    assert_eq!(ids.len(), 3);
    assert!(ids.is_sorted());
    assert_eq!(test.event_place(0).await.unwrap(), position);
    let last_two = test.event_place(2).await.unwrap();
    assert_eq!(page(&test, last_two).await.events.len(), 2);
    assert_eq!(
        page(&test, test.event_place(9).await.unwrap())
            .await
            .events
            .len(),
        3
    );
    // A position is a text for its reader.
    assert_eq!(position.to_string().parse(), Ok(position));
    for wrong in ["", "1", "1.", ".1", "-1.1", "1.x"] {
        assert_eq!(
            wrong.parse::<EventPosition>(),
            Err(InvalidPosition),
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn event_that_is_committed_later_is_not_missed() {
    let test = TestLedger::new().await;
    test.accepted(1).await;
    let (mut first, mut second) = (test.connection().await, test.connection().await);
    let insert = "insert into events (kind, subject) values ('key.revoked', $1)";
    let mut slow = first.begin().await.unwrap();
    sqlx::query(insert)
        .bind("slow")
        .execute(&mut *slow)
        .await
        .unwrap();
    let mut quick = second.begin().await.unwrap();
    sqlx::query(insert)
        .bind("quick")
        .execute(&mut *quick)
        .await
        .unwrap();
    quick.commit().await.unwrap();
    // The later one is committed already, and would be passed with the earlier one still open.
    let before = loop {
        let begin = EventPosition::default();
        let before = test.events_after(begin, 100).await.unwrap().unwrap();
        if !before.events.is_empty() {
            break before;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!((before.events.len(), before.more), (1, false));
    slow.commit().await.unwrap();
    let subjects = page(&test, before.end).await.events;
    let subjects: Vec<_> = subjects
        .iter()
        .map(|event| event.subject.as_deref())
        .collect();
    assert_eq!(subjects, [Some("slow"), Some("quick")]);
}

#[tokio::test]
async fn place_without_an_event_is_unknown() {
    let test = TestLedger::new().await;
    test.accepted(1).await;
    caught_up(&test).await;
    let end = test.event_place(0).await.unwrap();
    assert_eq!(
        test.events_after(end, 9).await.unwrap(),
        Some(FeedPage::empty_at(end))
    );
    for (xact, id) in [
        (end.xact, end.id + 1),
        (end.xact - 1, end.id),
        (end.xact + 1_000_000, 1),
    ] {
        let place = EventPosition { xact, id };
        assert_eq!(test.events_after(place, 9).await.unwrap(), None, "{place}");
    }
}

#[tokio::test]
async fn events_of_another_server_come_again_in_their_order() {
    let test = TestLedger::new().await;
    let first = test.accepted(1).await.id;
    let second = test.accepted(2).await.id;
    test.run("update events set xact = (xact::text::bigint + 1000000000000)::text::xid8")
        .await;
    let third = test.accepted(3).await.id;
    assert_eq!(test.place_restored_events().await.unwrap(), 2);
    let expected = [third, first, second].map(|id| format!("payment.accepted {id}"));
    assert_eq!(told(&test).await, expected);
    assert_eq!(test.place_restored_events().await.unwrap(), 0);
}

#[tokio::test]
async fn stop_pause_and_resumption_of_a_signer_are_told() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    assert!(
        test.stop_lane(lane, lease, 0, "a foreign nonce")
            .await
            .unwrap()
    );
    assert!(test.stop_lane(lane, lease, 0, "another").await.unwrap());
    assert!(test.resume_lane(lane, Some("another")).await.unwrap());
    assert!(test.pause_lane(lane, true).await.unwrap());
    assert!(test.pause_lane(lane, false).await.unwrap());
    assert!(test.resume_lane(lane, None).await.unwrap());
    let events = page(&test, EventPosition::default()).await.events;
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.kind.name(), event.reason.as_deref()))
        .collect();
    assert_eq!(
        told,
        [
            ("signer.stopped", Some("a foreign nonce")),
            ("signer.resumed", None),
            ("signer.paused", Some("draining")),
            ("signer.paused", Some("paused")),
            ("signer.resumed", None),
        ]
    );
    let signer = lane.signer.to_checksum(None);
    let is_of_signer = |event: &FeedEvent| event.signer.as_deref() == Some(&*signer);
    assert!(events.iter().all(is_of_signer), "{events:?}");
}

#[tokio::test]
async fn keys_are_told_without_their_text_and_forgotten_after_a_month() {
    let test = TestLedger::new().await;
    let id = KeyId::from_entropy([3; KeyId::LENGTH]);
    let (_, presented) = PresentedKey::new(id, [3; 32]);
    let key = Key {
        id,
        name: "shop".to_owned(),
        scopes: vec![Scope::Settle],
        payees: vec![Address::repeat_byte(1)],
        networks: vec![],
        gas_wei_per_day: None,
        created_at: SystemClock.now(),
        expires_at: None,
        revoked_at: None,
    };
    test.create_key(&key, &presented).await.unwrap();
    test.accepted(1).await;
    assert!(test.revoke_key(id).await.unwrap());
    let all = told(&test).await;
    assert_eq!(all.len(), 3, "{all:?}");
    for (told, step) in [(0, "created"), (2, "revoked")] {
        assert_eq!(all[told], format!("key.{step} {}", id.as_str()));
    }
    test.forget_events().await.unwrap();
    assert_eq!(told(&test).await.len(), 3);
    test.run("update events set at = now() - interval '31 days'")
        .await;
    test.forget_events().await.unwrap();
    // Those of payments stay, and the newest one, where up-to-date readers stand.
    let left = told(&test).await;
    let kept = ["payment.accepted", "key.revoked"];
    assert_eq!(left.len(), kept.len(), "{left:?}");
    for (left, kept) in left.iter().zip(kept) {
        assert!(left.starts_with(kept), "{left:?}");
    }
}
