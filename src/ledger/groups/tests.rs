use super::*;
use crate::ledger::testing::{TestLedger, new_payment};

#[tokio::test]
async fn row_that_the_schema_refuses_fails_alone_in_its_group() {
    let test = TestLedger::new().await;
    let mut bad = new_payment(2);
    bad.confirmations = 0;
    let group = vec![new_payment(1), bad, new_payment(3)];
    let answers = run_group(group, |new| {
        acceptance::accept(test.pool.clone(), test.process(), new)
    })
    .await;
    let [first, bad, third] = answers.try_into().unwrap();
    assert!(matches!(first.unwrap(), Accepted::New(_)));
    let broken = bad.unwrap_err();
    let constraint = Some("payments_confirmations_is_positive");
    assert_eq!(broken.constraint(), constraint, "{broken:?}");
    assert!(matches!(third.unwrap(), Accepted::New(_)));
    assert_eq!(test.value("select count(*) from payments").await, "2");
}
