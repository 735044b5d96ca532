use super::*;
use crate::ledger::testing::TestLedger;

#[tokio::test]
async fn payment_is_quarantined_once_for_the_first_reason() {
    let test = TestLedger::new().await;
    let id = test.accepted(1).await.id;
    test.accepted(2).await;
    let mut connection = test.engine.acquire().await.unwrap();
    assert!(quarantine(&mut connection, id, "the first").await.unwrap());
    assert!(!quarantine(&mut connection, id, "the second").await.unwrap());
    Ledger::quarantine(&test, id, "the third").await.unwrap();
    let payment = test.payment(id).await.unwrap().unwrap();
    assert_eq!(payment.quarantine.as_deref(), Some("the first"));
    assert_eq!(payment.state.name(), "queued");
    let events = "select string_agg(reason, ',') from events where kind = 'quarantined'";
    assert_eq!(test.value(events).await, "the first");
    let quarantined = "select count(*) from payments where quarantined_at is not null";
    assert_eq!(test.value(quarantined).await, "1");
}

#[tokio::test]
async fn unreadable_row_is_quarantined_and_the_others_are_read() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let rows = select_payments!("where p.id = $1", first.0).fetch_all(&test.pool);
    let mut all: Vec<PaymentRow> = rows.await.unwrap();
    for id in [unreadable, third] {
        let rows = select_payments!("where p.id = $1", id.0).fetch_all(&test.pool);
        all.extend(rows.await.unwrap());
    }
    let read = each_payment(&test.pool, all).await;
    let read: Vec<_> = read
        .into_iter()
        .map(|(id, payment)| (id, payment.is_ok()))
        .collect();
    assert_eq!(read, [(first, true), (unreadable, false), (third, true)]);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn row_that_cannot_be_quarantined_is_left_out_all_the_same() {
    let test = TestLedger::new().await;
    let [first, unreadable, _] = test.one_unreadable_of_three().await;
    test.run("alter table payments rename column quarantine_reason to renamed")
        .await;
    let why = Unreadable {
        table: "payments",
        column: "valid_after",
        id: unreadable.to_string(),
    };
    quarantine_unreadable(&test.pool, unreadable, &why).await;
    test.run("alter table payments rename column renamed to quarantine_reason")
        .await;
    assert_eq!(
        test.payment_value(unreadable, "quarantine_reason").await,
        "-"
    );
    assert!(test.payment(first).await.unwrap().is_some());
}

#[tokio::test]
async fn payment_is_released_for_the_reason_that_was_seen() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    assert_eq!(test.quarantined(10).await.unwrap(), []);
    for id in [first, unreadable] {
        Ledger::quarantine(&test, id, "a reason").await.unwrap();
    }
    let listed = test.quarantined(10).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [unreadable, first]);
    assert_eq!(test.quarantined(1).await.unwrap().len(), 1);
    let release = async |id, why| test.release_from_quarantine(id, why).await.unwrap();
    assert!(!release(first, "another reason").await);
    assert!(!release(third, "a reason").await);
    assert!(release(first, "a reason").await);
    assert!(!release(first, "a reason").await);
    assert_eq!(test.state(first).await, "queued");
    assert_eq!(test.quarantined(10).await.unwrap().len(), 1);
}
