use super::*;
use crate::ledger::testing::{CANCEL_TOKEN_HASH, NETWORK, TestLedger, location, session, transfer};
use crate::payment::PaymentState;
use crate::protocol::session::Rail;

async fn submit(test: &TestLedger, session: &Session, hash: u8) -> Submitted {
    let transfer = transfer(session, hash);
    let new = NewTransfer {
        transfer: &transfer,
        raw: None,
        claim: &[],
    };
    test.submit_transfer(session, new).await.unwrap()
}

/// The payment of a new session with this number, by the transaction with this hash.
async fn submitted(test: &TestLedger, number: u8) -> PaymentId {
    let session = test.opened(number, Rail::Transfer).await;
    let outcome = submit(test, &session, number).await;
    let Submitted::Yes(id) = outcome else {
        panic!("expected it to be recorded, got {outcome:?}");
    };
    id
}

fn transferred(number: u8, confirmed: bool) -> TransferOutcome {
    TransferOutcome::Transferred {
        location: location(number),
        confirmed,
        unmatched: None,
    }
}

fn failed() -> TransferOutcome {
    TransferOutcome::Failed(Rejection {
        reason: Reason::UnexpectedSettleError,
        message: "a test".to_owned(),
    })
}

async fn payments(test: &TestLedger) -> String {
    let counts =
        "select (select count(*) from payments) || ' ' || (select count(*) from transfers)";
    test.value(counts).await
}

#[tokio::test]
async fn session_is_paid_by_one_transfer() {
    let test = TestLedger::new().await;
    let open = test.opened(1, Rail::Transfer).await;
    let Submitted::Yes(id) = submit(&test, &open, 1).await else {
        panic!("expected it to be recorded")
    };
    assert_eq!(submit(&test, &open, 2).await, Submitted::SessionTaken);
    assert_eq!(payments(&test).await, "1 1");
    let paid = test.session(&open.id).await.unwrap().unwrap();
    assert_eq!(paid.payment, Some(id));
    let payment = test.payment(id).await.unwrap().unwrap();
    assert_eq!(
        payment.state,
        PaymentState::Inflight(transfer(&open, 1).hash)
    );
    // A payer's own transfer is no promise of ours.
    assert_eq!(test.value("select count(*) from payer_accounts").await, "0");
}

#[tokio::test]
async fn cancelled_or_absent_session_takes_no_transfer() {
    let test = TestLedger::new().await;
    let cancelled = test.opened(1, Rail::Transfer).await;
    test.cancel_session(&cancelled.id, CANCEL_TOKEN_HASH)
        .await
        .unwrap();
    assert_eq!(submit(&test, &cancelled, 1).await, Submitted::SessionTaken);
    let absent = session(2, Rail::Transfer);
    assert_eq!(submit(&test, &absent, 2).await, Submitted::SessionTaken);
    assert_eq!(payments(&test).await, "0 0");
    // Money that was sent before the session ended still counts.
    let expired = test.opened(3, Rail::Transfer).await;
    test.expire_session(&expired.id).await.unwrap();
    assert!(matches!(
        submit(&test, &expired, 3).await,
        Submitted::Yes(_)
    ));
}

#[tokio::test]
async fn transaction_pays_one_session() {
    let test = TestLedger::new().await;
    submitted(&test, 1).await;
    let second = test.opened(2, Rail::Transfer).await;
    assert_eq!(submit(&test, &second, 1).await, Submitted::TransactionTaken);
    assert_eq!(payments(&test).await, "1 1");
    let unpaid = test.session(&second.id).await.unwrap().unwrap();
    assert_eq!(unpaid.payment, None);
    assert!(matches!(submit(&test, &second, 2).await, Submitted::Yes(_)));
}

#[tokio::test]
async fn unreadable_transfer_is_quarantined_and_the_others_are_followed() {
    let test = TestLedger::new().await;
    let mut ids = Vec::new();
    for number in 1..=5 {
        ids.push(submitted(&test, number).await);
    }
    test.make_unreadable(ids[1]).await;
    let spoil = "update transfers set account_nonce = -1 where payment_id =";
    test.run(&format!("{spoil} '{}'", ids[2])).await;
    let detached = "update sessions set payment_id = null where payment_id =";
    test.run(&format!("{detached} '{}'", ids[3])).await;
    let (open, more) = test.open_transfers(NETWORK, false, None, 10).await.unwrap();
    let found: Vec<PaymentId> = open.iter().map(|open| open.payment.id).collect();
    assert_eq!((found, more), (vec![ids[4], ids[0]], None));
    test.assert_quarantined(ids[1]).await;
    for id in &ids[2..4] {
        let why = test.payment_value(*id, "quarantine_reason").await;
        let expected = format!("transfers.hash, account_nonce or session of {id} cannot be read");
        assert_eq!(why, expected);
    }
    // They do not take the place of others the next time.
    let (open, more) = test.open_transfers(NETWORK, false, None, 2).await.unwrap();
    assert_eq!((open.len(), more), (2, Some(ids[0])));
    let (open, more) = test.open_transfers(NETWORK, false, more, 2).await.unwrap();
    assert_eq!((open.len(), more), (0, None));
}

#[tokio::test]
async fn failed_transfers_are_followed_when_asked_for() {
    let test = TestLedger::new().await;
    let (open, failing) = (submitted(&test, 1).await, submitted(&test, 2).await);
    let settled = submitted(&test, 3).await;
    test.record_transfer(failing, &failed()).await.unwrap();
    test.record_transfer(settled, &transferred(3, true))
        .await
        .unwrap();
    let followed = async |failed_too| {
        let open = test.open_transfers(NETWORK, failed_too, None, 10).await;
        let open = open.unwrap().0.into_iter();
        open.map(|open| open.payment.id).collect::<Vec<_>>()
    };
    assert_eq!(followed(false).await, [open]);
    assert_eq!(followed(true).await, [failing, open]);
}

#[tokio::test]
async fn outcome_of_a_transfer_is_recorded_once() {
    let test = TestLedger::new().await;
    let id = submitted(&test, 1).await;
    test.record_transfer(id, &transferred(1, true))
        .await
        .unwrap();
    for later in [transferred(2, true), transferred(2, false), failed()] {
        test.record_transfer(id, &later).await.unwrap();
        let payment = test.payment(id).await.unwrap().unwrap();
        assert_eq!(payment.state, PaymentState::Settled(location(1)));
    }
    // An authorization is never recorded as a transfer.
    let queued = test.accepted(2).await.id;
    test.record_transfer(queued, &transferred(2, true))
        .await
        .unwrap();
    test.record_transfer(queued, &failed()).await.unwrap();
    assert_eq!(test.state(queued).await, "queued");
}

#[tokio::test]
async fn failed_transfer_is_settled_late_at_its_confirmations() {
    let test = TestLedger::new().await;
    let id = submitted(&test, 1).await;
    test.record_transfer(id, &failed()).await.unwrap();
    assert_eq!(test.state(id).await, "failed");
    test.record_transfer(id, &transferred(1, false))
        .await
        .unwrap();
    assert_eq!(test.state(id).await, "failed");
    test.record_transfer(id, &transferred(1, true))
        .await
        .unwrap();
    let payment = test.payment(id).await.unwrap().unwrap();
    assert_eq!(payment.state, PaymentState::LateSettled(location(1)));
}

#[tokio::test]
async fn log_of_another_payment_pays_no_session() {
    let test = TestLedger::new().await;
    let settled = test.settled(1).await;
    let id = submitted(&test, 2).await;
    test.record_transfer(id, &transferred(1, false))
        .await
        .unwrap();
    assert_eq!(
        test.state(id).await,
        "inflight",
        "the other one may be orphaned"
    );
    test.record_transfer(id, &transferred(1, true))
        .await
        .unwrap();
    assert_eq!(test.state(id).await, "failed");
    let reason = test.payment_value(id, "reason").await;
    assert_eq!(reason, Reason::TransferAlreadyUsed.code());
    assert_eq!(test.payment(settled.id).await.unwrap(), Some(settled));
}

#[tokio::test]
async fn transfer_that_came_too_late_is_recorded_with_the_reason() {
    let test = TestLedger::new().await;
    let id = submitted(&test, 1).await;
    let late = TransferOutcome::Transferred {
        location: location(1),
        confirmed: true,
        unmatched: Some("too late".to_owned()),
    };
    test.record_transfer(id, &late).await.unwrap();
    let payment = test.payment(id).await.unwrap().unwrap();
    assert_eq!(payment.state, PaymentState::Settled(location(1)));
    assert_eq!(payment.unmatched.as_deref(), Some("too late"));
}
