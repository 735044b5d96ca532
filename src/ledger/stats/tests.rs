use super::*;
use crate::ledger::testing::TestLedger;
use crate::payment::fixture::AMOUNT;

#[tokio::test]
async fn unreadable_payment_is_counted_with_the_others() {
    let test = TestLedger::new().await;
    test.one_unreadable_of_three().await;
    test.settled(4).await;
    let grouping = Grouping {
        state: true,
        ..Grouping::default()
    };
    let groups = test.stats(&HistoryFilter::default(), grouping, 10).await;
    let groups: Vec<_> = groups
        .unwrap()
        .into_iter()
        .map(|group| (group.state.unwrap(), group.payments, group.amount))
        .collect();
    let expected = [
        ("queued".to_owned(), 3, (3 * AMOUNT).to_string()),
        ("settled".to_owned(), 1, AMOUNT.to_string()),
    ];
    assert_eq!(groups, expected);
}

#[tokio::test]
async fn sum_beyond_any_amount_is_shown() {
    let test = TestLedger::new().await;
    test.accepted(1).await;
    test.accepted(2).await;
    test.run("update payments set amount = 2::numeric ^ 256 - 1")
        .await;
    let groups = test
        .stats(&HistoryFilter::default(), Grouping::default(), 10)
        .await;
    let groups = groups.unwrap();
    assert_eq!((groups.len(), groups[0].payments), (1, 2));
    let sum = test
        .value("select (2::numeric ^ 257 - 2)::numeric(80, 0)")
        .await;
    assert_eq!(groups[0].amount, sum);
}
