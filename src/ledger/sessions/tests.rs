use super::*;
use crate::ledger::testing::{CANCEL_TOKEN_HASH, TestLedger, opening, session, transfer};
use crate::ledger::{NewTransfer, Submitted};
use crate::protocol::session::Rail;

async fn status(test: &TestLedger, session: &Session) -> SessionStatus {
    test.session(&session.id).await.unwrap().unwrap().status
}

async fn pay(test: &TestLedger, session: &Session, hash: u8) -> PaymentId {
    let transfer = transfer(session, hash);
    let new = NewTransfer {
        transfer: &transfer,
        raw: None,
        claim: &[],
    };
    let outcome = test.submit_transfer(session, new).await.unwrap();
    let Submitted::Yes(id) = outcome else {
        panic!("expected a payment, got {outcome:?}");
    };
    id
}

#[tokio::test]
async fn session_is_read_as_it_was_opened() {
    let test = TestLedger::new().await;
    let opened = test.opened(1, Rail::Transfer).await;
    let mut read = test.session(&opened.id).await.unwrap().unwrap();
    read.created_at = opened.created_at;
    assert_eq!(read, opened);
    let other = session(2, Rail::Transfer);
    assert_eq!(test.session(&other.id).await.unwrap(), None);
}

#[tokio::test]
async fn no_session_is_opened_beyond_the_limits() {
    let test = TestLedger::new().await;
    test.opened(1, Rail::Authorization).await;
    let (second, third) = (
        session(2, Rail::Authorization),
        session(3, Rail::Authorization),
    );
    let mut new = opening(&second);
    new.limits.total = 1;
    assert_eq!(test.open_session(&new).await.unwrap(), Opened::TooMany);
    let mut new = opening(&second);
    new.limits.client = 1;
    assert_eq!(test.open_session(&new).await.unwrap(), Opened::TooMany);
    assert_eq!(test.session(&second.id).await.unwrap(), None);
    new.client = "192.0.2.2";
    assert_eq!(test.open_session(&new).await.unwrap(), Opened::Yes);
    // A session that is not open does not count.
    test.run("update sessions set state = 'cancelled' where client = '192.0.2.1'")
        .await;
    let mut new = opening(&third);
    new.limits.client = 1;
    assert_eq!(test.open_session(&new).await.unwrap(), Opened::Yes);
}

#[tokio::test]
async fn oldest_open_session_of_a_party_makes_room() {
    let test = TestLedger::new().await;
    let (paid, oldest) = (
        test.opened(1, Rail::Transfer).await,
        test.opened(2, Rail::Transfer).await,
    );
    let newer = test.opened(3, Rail::Transfer).await;
    pay(&test, &paid, 1).await;
    let mut foreign = session(4, Rail::Transfer);
    foreign.payer = alloy::primitives::Address::repeat_byte(9);
    foreign.payee = foreign.payer;
    test.open_session(&opening(&foreign)).await.unwrap();
    let new = session(5, Rail::Transfer);
    let mut opening = opening(&new);
    opening.limits.party = 2;
    assert_eq!(test.open_session(&opening).await.unwrap(), Opened::Yes);
    assert_eq!(status(&test, &oldest).await, SessionStatus::Expired);
    for kept in [&paid, &newer, &foreign, &new] {
        assert_eq!(status(&test, kept).await, SessionStatus::Open);
    }
}

#[tokio::test]
async fn nonce_has_one_session() {
    let test = TestLedger::new().await;
    let first = test.opened(1, Rail::Transfer).await;
    let mut second = session(2, Rail::Transfer);
    second.nonce = first.nonce;
    let refused = test.open_session(&opening(&second)).await.unwrap_err();
    assert_eq!(refused.constraint(), Some("sessions_one_per_nonce"));
}

#[tokio::test]
async fn unpaid_session_is_cancelled_with_its_token() {
    let test = TestLedger::new().await;
    let open = test.opened(1, Rail::Transfer).await;
    let another = test.opened(2, Rail::Transfer).await;
    assert!(!test.may_cancel(&open.id, B256::ZERO).await.unwrap());
    assert!(!test.cancel_session(&open.id, B256::ZERO).await.unwrap());
    assert_eq!(status(&test, &open).await, SessionStatus::Open);
    assert!(test.may_cancel(&open.id, CANCEL_TOKEN_HASH).await.unwrap());
    assert!(
        test.cancel_session(&open.id, CANCEL_TOKEN_HASH)
            .await
            .unwrap()
    );
    assert_eq!(status(&test, &open).await, SessionStatus::Cancelled);
    assert!(
        !test
            .cancel_session(&open.id, CANCEL_TOKEN_HASH)
            .await
            .unwrap()
    );
    assert_eq!(status(&test, &another).await, SessionStatus::Open);

    let payment = pay(&test, &another, 1).await;
    assert!(
        !test
            .cancel_session(&another.id, CANCEL_TOKEN_HASH)
            .await
            .unwrap()
    );
    assert_eq!(status(&test, &another).await, SessionStatus::Open);
    let refused = "rail = 'authorization', signature = '\\x01', state = 'refused', reason = 'a test', transaction_hash = null";
    test.set(payment, refused).await;
    assert!(
        test.cancel_session(&another.id, CANCEL_TOKEN_HASH)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn only_an_open_session_without_a_payment_expires() {
    let test = TestLedger::new().await;
    let (open, paid) = (
        test.opened(1, Rail::Transfer).await,
        test.opened(2, Rail::Transfer).await,
    );
    let cancelled = test.opened(3, Rail::Transfer).await;
    pay(&test, &paid, 1).await;
    test.cancel_session(&cancelled.id, CANCEL_TOKEN_HASH)
        .await
        .unwrap();
    for session in [&open, &paid, &cancelled] {
        test.expire_session(&session.id).await.unwrap();
    }
    assert_eq!(status(&test, &open).await, SessionStatus::Expired);
    assert_eq!(status(&test, &paid).await, SessionStatus::Open);
    assert_eq!(status(&test, &cancelled).await, SessionStatus::Cancelled);
    let mut changed = test
        .sessions_changed(&[
            open.id.clone(),
            paid.id.clone(),
            session(4, Rail::Transfer).id,
        ])
        .await
        .unwrap();
    changed.sort_unstable_by_key(ToString::to_string);
    assert_eq!(changed, [open.id, paid.id]);
}

#[tokio::test]
async fn unreadable_session_is_an_error_of_its_own() {
    let test = TestLedger::new().await;
    let (good, unreadable) = (
        test.opened(1, Rail::Transfer).await,
        test.opened(2, Rail::Transfer).await,
    );
    let spoil = format!(
        "update sessions set accept_from_block = -1 where id = '{}'",
        unreadable.id
    );
    test.run(&spoil).await;
    let error = test.session(&unreadable.id).await.unwrap_err();
    let text = format!(
        "sessions.accept_from_block of {} cannot be read",
        unreadable.id
    );
    assert_eq!(error.to_string(), text);
    assert_eq!(status(&test, &good).await, SessionStatus::Open);
    // Its buyer can still cancel it, and waiting requests hear of it.
    assert!(
        test.cancel_session(&unreadable.id, CANCEL_TOKEN_HASH)
            .await
            .unwrap()
    );
    let ids = [good.id, unreadable.id];
    assert_eq!(test.sessions_changed(&ids).await.unwrap(), [ids[1].clone()]);
}

#[tokio::test]
async fn unpaid_session_is_deleted_after_its_retention() {
    let test = TestLedger::new().await;
    for (number, rail) in [
        (1, Rail::Authorization),
        (2, Rail::Transfer),
        (3, Rail::Transfer),
    ] {
        test.opened(number, rail).await;
    }
    pay(&test, &session(3, Rail::Transfer), 1).await;
    let expire = async |days: i32| {
        let expire = "update sessions set expires_at = now() - interval '1 minute' - interval";
        test.run(&format!("{expire} '{days} days'")).await;
        test.delete_unpaid_sessions().await.unwrap()
    };
    assert_eq!(expire(0).await, 0);
    assert_eq!(expire(1).await, 1);
    assert_eq!(expire(29).await, 0);
    assert_eq!(expire(30).await, 1);
    let left = session(3, Rail::Transfer).id.to_string();
    assert_eq!(
        test.value("select string_agg(id, ',') from sessions").await,
        left
    );
}
