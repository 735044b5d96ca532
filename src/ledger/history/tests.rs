use super::*;
use crate::ledger::testing::{NETWORK, TestLedger, attempt, location};

const ALL: Page = Page {
    after: None,
    limit: 10,
};

fn ids(entries: &[Entry]) -> Vec<PaymentId> {
    entries.iter().map(|entry| entry.id).collect()
}

fn assert_shown_as_unreadable(entries: &[Entry], id: PaymentId) {
    let shown: Vec<_> = entries
        .iter()
        .filter(|entry| entry.quarantine.is_some())
        .collect();
    assert_eq!(shown.len(), 1, "{entries:?}");
    assert_eq!(shown[0].id, id);
    let why = format!("payments.valid_after of {id} cannot be read");
    assert_eq!(shown[0].quarantine.as_deref(), Some(&*why));
}

#[tokio::test]
async fn unreadable_payment_is_listed_with_its_columns() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let entries = test.history(&HistoryFilter::default(), ALL).await.unwrap();
    assert_eq!(ids(&entries), [third, unreadable, first]);
    assert_shown_as_unreadable(&entries, unreadable);
    assert_eq!(entries[1].amount, entries[0].amount);
    assert_eq!(entries[1].state, "queued");
    // Reading the history changes nothing.
    assert_eq!(test.payment_value(unreadable, "quarantined_at").await, "-");
}

#[tokio::test]
async fn pages_hold_every_payment_once_beside_an_unreadable_one() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let (mut after, mut found) = (None, Vec::new());
    loop {
        let page = Page { after, limit: 1 };
        let entries = test.history(&HistoryFilter::default(), page).await.unwrap();
        let Some(last) = entries.last() else { break };
        after = Some(last.cursor().to_string().parse().unwrap());
        found.extend(ids(&entries));
    }
    assert_eq!(found, [third, unreadable, first]);
}

#[tokio::test]
async fn filter_selects_an_unreadable_payment_too() {
    let test = TestLedger::new().await;
    let [_, unreadable, third] = test.one_unreadable_of_three().await;
    test.set(third, "resource = 'a page'").await;
    test.set(unreadable, "resource = 'a page'").await;
    let filter = HistoryFilter {
        resource: Some("a page".to_owned()),
        state: Some("queued"),
        network: Some(NETWORK),
        ..HistoryFilter::default()
    };
    let entries = test.history(&filter, ALL).await.unwrap();
    assert_eq!(ids(&entries), [third, unreadable]);
    assert_shown_as_unreadable(&entries, unreadable);
    let settled = HistoryFilter {
        state: Some("settled"),
        ..filter
    };
    assert_eq!(test.history(&settled, ALL).await.unwrap(), []);
}

#[tokio::test]
async fn unreadable_payment_of_a_transaction_is_listed_with_its_columns() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    test.signed(lease, 0, &[&first, &second]).await;
    let settled = test.settled(3).await;
    test.make_unreadable(first.id).await;
    let hash = attempt(0).hash;
    let entries = test.payments_of_transaction(NETWORK, hash).await.unwrap();
    assert_eq!(ids(&entries), [second.id, first.id]);
    assert_shown_as_unreadable(&entries, first.id);
    let hash = location(3).transaction;
    let entries = test.payments_of_transaction(NETWORK, hash).await.unwrap();
    assert_eq!(ids(&entries), [settled.id]);
    let elsewhere = Network::from_chain_id(1);
    let entries = test.payments_of_transaction(elsewhere, hash).await.unwrap();
    assert_eq!(entries, []);
}

#[tokio::test]
async fn history_writes_nothing() {
    let test = TestLedger::new().await;
    let mut snapshot = test.snapshot().await.unwrap();
    let write = sqlx::query("delete from payments")
        .execute(&mut *snapshot)
        .await;
    let refused = write.unwrap_err();
    assert!(
        crate::ledger::connections::is_read_only(&refused),
        "{refused:?}"
    );
}
