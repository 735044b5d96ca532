use super::*;
use crate::ledger::LaneLease;
use crate::ledger::testing::{
    LANE, NETWORK, TestLedger, attempt, block, location, mined, new_payment,
};
use crate::payment::{PaymentState, Who};
use crate::protocol::Reason;

/// Payments whose transactions, one for each, are mined without their transfers.
async fn without_transfer<const N: usize>(
    numbers: [u8; N],
) -> (TestLedger, LaneLease, Vec<Undecided>) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    for (nonce, number) in (0..).zip(numbers) {
        let payment = test.accepted(number).await;
        let id = test.signed(lease, nonce, &[&payment]).await;
        let mined = mined(id, nonce, number, &[]);
        test.record_mined(&mined).await.unwrap();
    }
    let mut undecided = test.undecided(NETWORK, 100).await.unwrap();
    undecided.sort_unstable_by_key(|row| row.payment.id);
    assert_eq!(undecided.len(), N);
    (test, lease, undecided)
}

fn rejection() -> Rejection {
    Rejection {
        reason: Reason::UnexpectedSettleError,
        message: "a test".to_owned(),
    }
}

fn transferred(number: u8, confirmed: bool) -> Verdict {
    Verdict::Transferred {
        location: location(number),
        confirmed,
    }
}

async fn outcomes(test: &TestLedger) -> String {
    let outcomes = "select string_agg(coalesce(outcome, 'open'), ' ' order by transaction_id) from transaction_payments";
    test.value(outcomes).await
}

async fn open(test: &TestLedger) -> usize {
    test.undecided(NETWORK, 100).await.unwrap().len()
}

#[tokio::test]
async fn unreadable_payment_is_left_out_of_the_undecided() {
    let (test, _, rows) = without_transfer([1, 2, 3]).await;
    assert_eq!(rows[0].hash, attempt(0).hash);
    assert_eq!(
        (rows[0].block_number, rows[0].block_hash),
        (block(1).number, block(1).hash)
    );
    assert!(rows[0].call_succeeded);
    assert_eq!(rows[0].tries, 1);
    test.make_unreadable(rows[1].payment.id).await;
    let read = test.undecided(NETWORK, 100).await.unwrap();
    let mut ids: Vec<PaymentId> = read.into_iter().map(|row| row.payment.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [rows[0].payment.id, rows[2].payment.id]);
    test.assert_quarantined(rows[1].payment.id).await;
    assert_eq!(open(&test).await, 2);
    let elsewhere = Network::from_chain_id(1);
    assert!(test.undecided(elsewhere, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn payment_of_an_unreadable_transaction_is_quarantined() {
    let (test, _, rows) = without_transfer([1, 2, 3]).await;
    let spoiled = &rows[1];
    test.run(&format!(
        "alter table transactions drop constraint transactions_hashes_have_32_bytes;
        update transactions set block_hash = '\\x11' where id = '{}'",
        spoiled.transaction
    ))
    .await;
    assert_eq!(open(&test).await, 2);
    let why = test
        .payment_value(spoiled.payment.id, "quarantine_reason")
        .await;
    let id = spoiled.transaction;
    assert_eq!(
        why,
        format!("transactions.hash or block_hash of {id} cannot be read")
    );
}

#[tokio::test]
async fn payment_is_decided_once() {
    let (test, _, rows) = without_transfer([1]).await;
    let row = &rows[0];
    assert!(test.decide(row, &Verdict::Again).await.unwrap().is_some());
    assert_eq!(test.state(row.payment.id).await, "queued");
    for verdict in [
        transferred(1, true),
        Verdict::Fail(rejection()),
        Verdict::Quarantine("a test".to_owned()),
    ] {
        assert!(test.decide(row, &verdict).await.unwrap().is_none());
    }
    assert_eq!(test.state(row.payment.id).await, "queued");
    assert_eq!(outcomes(&test).await, "without_effect");
    assert_eq!(
        test.payment_value(row.payment.id, "quarantined_at").await,
        "-"
    );
}

#[tokio::test]
async fn verdict_about_an_orphaned_block_is_not_recorded() {
    let (test, _, rows) = without_transfer([1]).await;
    let row = &rows[0];
    let mut orphaned = row.clone();
    orphaned.block_hash = B256::ZERO;
    assert!(
        test.decide(&orphaned, &Verdict::Again)
            .await
            .unwrap()
            .is_none()
    );
    test.roll_back(NETWORK, &[row.block_hash], row.block_number)
        .await
        .unwrap();
    assert!(test.decide(row, &Verdict::Again).await.unwrap().is_none());
    assert_eq!(test.state(row.payment.id).await, "inflight");
    assert_eq!(outcomes(&test).await, "open");
    let pending = test.pending_transactions(LANE).await.unwrap();
    assert_eq!(pending[0].payments.len(), 1);
}

#[tokio::test]
async fn verdicts_are_recorded() {
    let (test, _, rows) = without_transfer([1, 2, 3, 4]).await;
    let verdicts = [
        transferred(9, false),
        Verdict::Refuse(rejection()),
        Verdict::Fail(rejection()),
        Verdict::Quarantine("a test".to_owned()),
    ];
    let mut states = Vec::new();
    for (row, verdict) in rows.iter().zip(verdicts) {
        assert!(test.decide(row, &verdict).await.unwrap().is_some());
        states.push(test.payment(row.payment.id).await.unwrap().unwrap());
    }
    let quarantine = states[3].quarantine.as_deref();
    assert_eq!(quarantine, Some("a test"));
    let states: Vec<_> = states.into_iter().map(|payment| payment.state).collect();
    let expected = [
        PaymentState::Mined(location(9)),
        PaymentState::Refused(rejection()),
        PaymentState::Failed {
            rejection: rejection(),
            transaction: Some(rows[2].hash),
        },
        PaymentState::Inflight(rows[3].hash),
    ];
    assert_eq!(states, expected);
    let expected = "elsewhere without_effect without_effect open";
    assert_eq!(outcomes(&test).await, expected);
    assert_eq!(open(&test).await, 0);
}

#[tokio::test]
async fn only_a_payment_in_flight_is_queued_refused_or_failed() {
    let (test, _, rows) = without_transfer([1]).await;
    let row = &rows[0];
    // A reorg has invalidated an earlier proof of failure; the payment is undecided in its failed state.
    let failed = "state = 'failed', reason = 'earlier', transaction_hash = null";
    test.set(row.payment.id, failed).await;
    assert!(test.decide(row, &Verdict::Again).await.unwrap().is_some());
    assert_eq!(test.state(row.payment.id).await, "failed");
    assert_eq!(
        test.payment_value(row.payment.id, "reason").await,
        "earlier"
    );
}

#[tokio::test]
async fn log_of_another_payment_quarantines_the_undecided_one() {
    let (test, _, rows) = without_transfer([1]).await;
    test.settled(9).await;
    let row = &rows[0];
    let decided = test.decide(row, &transferred(9, true)).await.unwrap();
    assert_eq!(decided, Some(Decided::Unchanged), "its log is taken");
    let payment = test.payment(row.payment.id).await.unwrap().unwrap();
    assert_eq!(payment.state, PaymentState::Inflight(row.hash));
    assert_eq!(payment.quarantine.as_deref(), Some(LOG_TAKEN));
}

#[tokio::test]
async fn payment_in_an_open_transaction_is_not_settled_by_a_foreign_one() {
    let (test, lease, rows) = without_transfer([1]).await;
    let sent = test.accepted(2).await;
    test.signed(lease, 1, &[&sent]).await;
    let settle = async |id| {
        let settled = test
            .settle_by_foreign_transaction(id, &location(9), true)
            .await;
        settled.unwrap()
    };
    assert!(!settle(sent.id).await);
    // Undecided: the verdict records it.
    test.set(
        rows[0].payment.id,
        "state = 'queued', transaction_hash = null",
    )
    .await;
    assert!(!settle(rows[0].payment.id).await);
    assert!(!settle(new_payment(5).id).await);
    assert_eq!(test.state(sent.id).await, "inflight");
    assert_eq!(test.state(rows[0].payment.id).await, "queued");
}

#[tokio::test]
async fn transfer_by_a_foreign_transaction_is_recorded_once() {
    let test = TestLedger::new().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    assert!(test.refuse(first.id, &rejection()).await.unwrap());
    let settle = async |id, number, confirmed| {
        let location = location(number);
        let settled = test
            .settle_by_foreign_transaction(id, &location, confirmed)
            .await;
        settled.unwrap()
    };
    assert!(settle(first.id, 8, false).await);
    assert!(!settle(first.id, 9, true).await, "it is mined already");
    let mined = test.payment(first.id).await.unwrap().unwrap();
    assert_eq!(mined.state, PaymentState::Mined(location(8)));
    // The log is the first one's.
    assert!(!settle(second.id, 8, true).await);
    let taken = test.payment(second.id).await.unwrap().unwrap();
    assert_eq!(taken.state, PaymentState::Queued);
    assert_eq!(taken.quarantine.as_deref(), Some(LOG_TAKEN));
}

/// Its authorization is public by then: if it lost its owner, whoever presents it first would be told.
#[tokio::test]
async fn refused_payment_that_a_foreign_transaction_settles_stays_its_owners() {
    let test = TestLedger::new().await;
    let owned = test.accepted(1).await.id;
    let nobodys = test.accepted(2).await.id;
    assert!(test.own_payment(owned, Who::Anonymous).await.unwrap());
    for (id, number, owner) in [(owned, 8, Some(Who::Anonymous)), (nobodys, 9, None)] {
        assert!(test.refuse(id, &rejection()).await.unwrap());
        let settled = test
            .settle_by_foreign_transaction(id, &location(number), true)
            .await;
        assert!(settled.unwrap());
        let payment = test.payment(id).await.unwrap().unwrap();
        assert_eq!(payment.caller, owner);
    }
}

#[tokio::test]
async fn failed_payment_is_settled_late_at_its_confirmations() {
    let test = TestLedger::new().await;
    let id = test.accepted(1).await.id;
    test.set(id, "state = 'failed', reason = 'a test'").await;
    let settle = async |confirmed| {
        let settled = test
            .settle_by_foreign_transaction(id, &location(9), confirmed)
            .await;
        settled.unwrap()
    };
    assert!(!settle(false).await);
    assert_eq!(test.state(id).await, "failed");
    assert_eq!(test.payment_value(id, "quarantined_at").await, "-");
    assert!(settle(true).await);
    assert_eq!(test.state(id).await, "late_settled");
}

#[tokio::test]
async fn released_payment_is_decided_anew() {
    let (test, _, rows) = without_transfer([1, 2]).await;
    let [settled, waiting] = &rows[..] else {
        panic!("two")
    };
    let taken = Verdict::Quarantine("a test".to_owned());
    assert!(test.decide(settled, &taken).await.unwrap().is_some());
    assert_eq!(test.state(settled.payment.id).await, "inflight");
    // Those in quarantine do not use up the limit.
    let read = test.undecided(NETWORK, 1).await.unwrap();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].payment.id, waiting.payment.id);
    test.run("update payments set quarantined_at = null, quarantine_reason = null")
        .await;
    assert_eq!(open(&test).await, 2);
    let decided = test.decide(settled, &transferred(8, true)).await.unwrap();
    assert_eq!(decided, Some(Decided::Changed));
    assert_eq!(test.state(settled.payment.id).await, "settled");
    assert_eq!(outcomes(&test).await, "elsewhere open");

    // The log of another payment: in quarantine, and open.
    assert!(
        test.decide(waiting, &transferred(8, true))
            .await
            .unwrap()
            .is_some()
    );
    let row = test.payment(waiting.payment.id).await.unwrap().unwrap();
    assert_eq!(row.quarantine.as_deref(), Some(LOG_TAKEN));
    assert_eq!(outcomes(&test).await, "elsewhere open");
}

/// A foreign transaction has settled the payment; its own transaction is reopened by a reorg and mined again without effect.
#[tokio::test]
async fn payment_settled_by_another_transaction_is_closed_in_its_own() {
    for verdict in [
        transferred(8, true),
        Verdict::Quarantine("its nonce is used, and no log shows for what".to_owned()),
    ] {
        let (test, _, rows) = without_transfer([1]).await;
        let row = &rows[0];
        assert!(
            test.decide(row, &transferred(8, true))
                .await
                .unwrap()
                .is_some()
        );
        test.run("update transaction_payments set outcome = null")
            .await;
        let [row] = &test.undecided(NETWORK, 10).await.unwrap()[..] else {
            panic!("one")
        };
        assert!(test.decide(row, &verdict).await.unwrap().is_some());
        assert_eq!(test.state(row.payment.id).await, "settled");
        assert_eq!(
            test.payment_value(row.payment.id, "quarantined_at").await,
            "-"
        );
        assert_eq!(open(&test).await, 0, "{verdict:?}");
    }
}

#[tokio::test]
async fn undecided_payments_of_one_transaction_are_queued_together() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payments = [1, 2, 3].map(|number| test.accepted(number));
    let [first, second, third] = payments;
    let (first, second, third) = (first.await, second.await, third.await);
    // In the order of their calls, which is not the one of their ids.
    let id = test.signed(lease, 0, &[&third, &first, &second]).await;
    test.record_mined(&mined(id, 0, 1, &[])).await.unwrap();
    let rows = test.undecided(NETWORK, 100).await.unwrap();
    let order: Vec<PaymentId> = rows.iter().map(|row| row.payment.id).collect();
    assert_eq!(order, [third.id, first.id, second.id]);
    // One that is decided meanwhile keeps its verdict; after a reorg nothing is recorded.
    let refused = Verdict::Refuse(rejection());
    assert!(test.decide(&rows[1], &refused).await.unwrap().is_some());
    let mut orphaned = rows[0].clone();
    orphaned.block_hash = B256::ZERO;
    test.queue_undecided(&[&orphaned]).await.unwrap();
    assert_eq!(test.state(third.id).await, "inflight");
    let all: Vec<&Undecided> = rows.iter().collect();
    test.queue_undecided(&all).await.unwrap();
    let mut states = Vec::new();
    for id in order {
        states.push(test.state(id).await);
    }
    assert_eq!(states, ["queued", "refused", "queued"]);
    assert_eq!(open(&test).await, 0);
    assert_eq!(outcomes(&test).await, ["without_effect"; 3].join(" "));
    assert!(test.failed_batches(&[third.id]).await.unwrap().is_empty());
    test.run("update transactions set kind = 'batch'").await;
    let failed = test.failed_batches(&[third.id, second.id]).await.unwrap();
    assert_eq!(failed.get(&third.id), Some(&1));
}
