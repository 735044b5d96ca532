use crate::ledger::testing::{TestLedger, attempt, mined, new_payment};
use crate::ledger::{NewTransfer, Submitted, testing};
use crate::protocol::session::Rail;

#[tokio::test]
async fn unreadable_payment_is_shown_with_its_events_and_attempts() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let (unreadable, good) = (test.accepted(1).await, test.accepted(2).await);
    let id = test.signed(lease, 0, &[&unreadable, &good]).await;
    let both = [unreadable.id, good.id];
    test.record_mined(&mined(id, 0, 1, &both)).await.unwrap();
    test.make_unreadable(unreadable.id).await;
    let mut shown = Vec::new();
    for id in both {
        shown.push(test.detail(id).await.unwrap().unwrap());
    }
    let why = format!("payments.valid_after of {} cannot be read", unreadable.id);
    assert_eq!(shown[0].entry.quarantine.as_deref(), Some(&*why));
    assert_eq!(shown[1].entry.quarantine, None);
    for detail in &shown {
        let states = detail
            .events
            .iter()
            .filter_map(|event| event.to_state.as_deref());
        assert_eq!(states.collect::<Vec<_>>(), ["queued", "inflight", "mined"]);
        let hash = attempt(0).hash.to_string();
        assert_eq!(detail.attempts.len(), 1);
        assert_eq!(detail.attempts[0].hash, hash);
        let mined = detail.attempts[0].mined.as_ref().unwrap();
        assert_eq!((mined.payments, &*mined.fee_wei), (2, "90000007"));
        assert_eq!(mined.outcome.as_deref(), Some("transferred"));
    }
    assert_eq!(test.detail(new_payment(3).id).await.unwrap(), None);
}

#[tokio::test]
async fn unreadable_transfer_is_shown_with_its_transaction() {
    let test = TestLedger::new().await;
    let session = test.opened(1, Rail::Transfer).await;
    let transfer = testing::transfer(&session, 9);
    let new = NewTransfer {
        transfer: &transfer,
        raw: None,
        claim: &[],
    };
    let Submitted::Yes(id) = test.submit_transfer(&session, new).await.unwrap() else {
        panic!("expected it to be recorded")
    };
    test.run("update transfers set account_nonce = -1").await;
    let detail = test.detail(id).await.unwrap().unwrap();
    assert_eq!(detail.entry.session.unwrap().id, session.id.to_string());
    assert_eq!(detail.attempts.len(), 1);
    assert_eq!(detail.attempts[0].hash, transfer.hash.to_string());
    assert_eq!(detail.attempts[0].nonce, 0);
}
