use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::ledger::Accepted;
use crate::ledger::testing::{TestLedger, key, location, new_payment, request};
use crate::protocol::session::Rail;
use crate::protocol::{Reason, Rejection};

/// Ends the lease of every process but `ledger`'s.
async fn end_other_leases(test: &TestLedger, ledger: &Ledger) {
    let this = ledger.process().0;
    let end = "update processes set lease_until = now() - interval '1 second' where id <>";
    test.run(&format!("{end} '{this}'")).await;
}

async fn takes(ledger: &Ledger, payment: PaymentId, request_id: &str) -> bool {
    let granted = ledger.grant(payment, request(request_id)).await.unwrap();
    granted.is_some()
}

fn closing(payment: PaymentId, request_id: &str, answered: bool) -> Closing {
    Closing {
        payment,
        request_id: request_id.to_owned(),
        answered,
    }
}

async fn grant_of(test: &TestLedger, payment: PaymentId) -> GrantStatus {
    test.payment_with_grant(payment).await.unwrap().grant
}

async fn kinds(test: &TestLedger) -> String {
    let kinds = "select string_agg(kind || ' ' || reason, ', ' order by id) from events where kind <> 'state'";
    test.value(kinds).await
}

#[tokio::test]
async fn only_a_settled_payment_is_granted() {
    let test = TestLedger::new().await;
    let queued = test.accepted(1).await;
    assert!(!takes(&test, queued.id, "one").await);
    let settled = test.settled(2).await;
    test.set(settled.id, "state = 'mined'").await;
    assert!(!takes(&test, settled.id, "one").await);
    let quarantined = "state = 'settled', quarantined_at = now(), quarantine_reason = 'a test'";
    test.set(settled.id, quarantined).await;
    assert!(!takes(&test, settled.id, "one").await);
    let unmatched = "quarantined_at = null, quarantine_reason = null, rail = 'transfer', unmatched_reason = 'late'";
    test.set(settled.id, unmatched).await;
    assert!(!takes(&test, settled.id, "one").await);
    test.set(settled.id, "unmatched_reason = null").await;
    assert!(takes(&test, settled.id, "one").await);
    assert_eq!(kinds(&test).await, "granted one");
}

#[tokio::test]
async fn grant_is_held_by_one_request_until_it_is_void() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = test.settled(1).await.id;
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
    assert!(takes(&test, id, "one").await);
    assert_eq!(grant_of(&test, id).await, GrantStatus::Open);
    assert!(!takes(&test, id, "two").await);
    assert!(!takes(&other, id, "three").await);
    test.close_grant(closing(id, "one", false)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
    assert!(
        !takes(&test, id, "one").await,
        "its statement may arrive late"
    );
    assert!(takes(&other, id, "two").await);
    other.close_grant(closing(id, "two", true)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Answered);
    assert!(!takes(&test, id, "three").await);
    end_other_leases(&test, &test).await;
    assert!(!takes(&test, id, "three").await, "it was answered");
}

#[tokio::test]
async fn grant_of_a_dead_process_is_free() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = test.settled(1).await.id;
    assert!(takes(&other, id, "one").await);
    end_other_leases(&test, &test).await;
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
    assert!(takes(&test, id, "two").await);
    // Its answer comes too late to close the grant of another request.
    other.close_grant(closing(id, "one", true)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Open);
}

/// A settled payment that `first` has had accepted.
async fn settled_for(test: &TestLedger, number: u8, first: &str) -> PaymentId {
    let id = test.settled(number).await.id;
    let right = format!(
        "first_asker = '{first}', first_request = '{first}', first_asker_process = '{}'",
        test.process().0
    );
    test.set(id, &right).await;
    id
}

#[tokio::test]
async fn first_right_keeps_others_out_until_it_ends() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = settled_for(&test, 1, "first").await;
    assert_eq!(grant_of(&test, id).await, GrantStatus::Reserved);
    assert!(!takes(&test, id, "two").await);
    assert!(!takes(&other, id, "three").await);
    // Neither another process nor another id ends it.
    other.end_first_right(id, &request("first")).await.unwrap();
    test.end_first_right(id, &request("two")).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Reserved);
    test.end_first_right(id, &request("first")).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
    assert!(takes(&other, id, "three").await);
    assert_eq!(kinds(&test).await, "granted three");
}

#[tokio::test]
async fn first_asker_takes_its_grant_at_any_process() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = settled_for(&test, 1, "first").await;
    assert!(takes(&other, id, "first").await);
    assert_eq!(grant_of(&test, id).await, GrantStatus::Open);
    other.close_grant(closing(id, "first", true)).await.unwrap();
    let found = test.payment_with_grant(id).await.unwrap();
    assert_eq!(found.granted_to.as_deref(), Some("first"));
    assert!(found.is_first_asker("first"));
}

#[tokio::test]
async fn first_right_of_a_dead_process_is_over() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = settled_for(&test, 1, "first").await;
    end_other_leases(&test, &other).await;
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
    assert!(takes(&other, id, "two").await);
}

#[tokio::test]
async fn acceptance_records_its_first_asker() {
    let test = TestLedger::new().await;
    let mut new = new_payment(1);
    new.first_asker = Some(request("first"));
    let id = new.id;
    assert!(matches!(test.accept(new).await.unwrap(), Accepted::New(_)));
    assert_eq!(grant_of(&test, id).await, GrantStatus::Reserved);
    let early = new_payment(2);
    let early_id = early.id;
    test.accept(early).await.unwrap();
    assert_eq!(grant_of(&test, early_id).await, GrantStatus::Free);
    // Presented again after its refusal, by another request.
    let refused = Rejection::new(Reason::UnexpectedSettleError, "a test");
    assert!(test.refuse(id, &refused).await.unwrap());
    let mut again = new_payment(1);
    (again.id, again.first_asker) = (id, Some(request("second")));
    test.queue_again(again).await.unwrap();
    let found = test.payment_with_grant(id).await.unwrap();
    assert!(found.is_first_asker("second"));
    assert_eq!(found.grant, GrantStatus::Reserved);
}

/// A caller repeats its request under its own id, after the first one was refused. What ends late is the first one.
#[tokio::test]
async fn late_end_of_a_request_leaves_the_first_right_of_its_repetition() {
    let test = TestLedger::new().await;
    let asked_again = |id: &str| GrantRequest {
        asked_as: "the caller's id".to_owned(),
        ..request(id)
    };
    let (earlier, later) = (asked_again("one"), asked_again("two"));
    let mut new = new_payment(1);
    let id = new.id;
    new.first_asker = Some(earlier.clone());
    test.accept(new).await.unwrap();
    let refused = Rejection::new(Reason::UnexpectedSettleError, "a test");
    assert!(test.refuse(id, &refused).await.unwrap());
    let mut again = new_payment(1);
    (again.id, again.first_asker) = (id, Some(later.clone()));
    test.queue_again(again).await.unwrap();
    test.end_first_right(id, &earlier).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Reserved);
    test.end_first_right(id, &later).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Free);
}

#[tokio::test]
async fn one_group_grants_a_payment_to_one_request() {
    let test = TestLedger::new().await;
    let id = test.settled(1).await.id;
    let asked: Arc<[_]> = [(id, request("one")), (id, request("two"))].into();
    let granted = grant(test.granting.clone(), test.process(), asked).await;
    let granted: Vec<bool> = granted
        .unwrap()
        .into_iter()
        .map(|one| one.unwrap().is_some())
        .collect();
    assert_eq!(granted, [true, false]);
}

#[tokio::test]
async fn grant_answers_from_the_current_row() {
    let test = TestLedger::new().await;
    let id = test.settled(1).await.id;
    // After the caller has read its row, a reorg happens and the payment settles in another transaction.
    let elsewhere = location(2).transaction;
    test.set(id, &format!("transaction_hash = '\\x{elsewhere:x}'"))
        .await;
    let granted = test.grant(id, request("one")).await.unwrap().unwrap();
    assert_eq!(granted.state.transaction(), Some(elsewhere));
    assert!(!takes(&test, id, "another").await);
}

#[tokio::test]
async fn only_the_open_grant_of_its_request_is_closed() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    let id = test.settled(1).await.id;
    assert!(takes(&test, id, "one").await);
    test.close_grant(closing(id, "two", true)).await.unwrap();
    other.close_grant(closing(id, "one", true)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Open);
    test.close_grant(closing(id, "one", true)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Answered);
    test.close_grant(closing(id, "one", false)).await.unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Answered);
    assert_eq!(kinds(&test).await, "granted one, answered one");
}

#[tokio::test]
async fn late_arriving_lost_grant_takes_nothing() {
    let test = TestLedger::new().await;
    let id = test.settled(1).await.id;
    let lost = request("lost");
    test.void_lost_grant(id, &lost).await.unwrap();
    assert!(!takes(&test, id, "lost").await);
    assert!(takes(&test, id, "the next").await);
    // Another request's grant is not affected, and neither is one that was answered.
    test.void_lost_grant(id, &lost).await.unwrap();
    assert!(!takes(&test, id, "a third").await);
    test.close_grant(closing(id, "the next", true))
        .await
        .unwrap();
    test.void_lost_grant(id, &request("the next"))
        .await
        .unwrap();
    assert_eq!(grant_of(&test, id).await, GrantStatus::Answered);
    assert_eq!(kinds(&test).await, "granted the next, answered the next");
}

#[tokio::test]
async fn void_grant_of_another_request_admits_no_late_statement() {
    let test = TestLedger::new().await;
    let id = test.settled(1).await.id;
    for lost in ["another", "lost", "lost"] {
        test.void_lost_grant(id, &request(lost)).await.unwrap();
    }
    assert!(!takes(&test, id, "lost").await);
    assert!(takes(&test, id, "the next").await);
    assert_eq!(kinds(&test).await, "granted the next");
}

/// A commit may take long while its synchronous standby is away. The process has stopped waiting for it.
#[tokio::test]
async fn late_committed_lost_grant_is_void() {
    let test = TestLedger::new().await;
    let id = test.settled(1).await.id;
    let mut late = test.connection().await;
    let statement = format!(
        "begin; insert into grants (payment_id, process_id, request_id, caller) values ('{}', '{}', 'lost', 'a caller')",
        id.0,
        test.process().0
    );
    let insert = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
    insert.execute(&mut late).await.unwrap();
    let lost = request("lost");
    let committed = async {
        let waiting = "select exists (select from pg_stat_activity
            where wait_event = 'transactionid' and query like '%voided%' and datname = current_database())";
        while test.value(waiting).await == "false" {}
        let commit = sqlx::raw_sql("commit");
        commit.execute(&mut late).await.unwrap();
    };
    let committed = timeout(Duration::from_secs(8), committed);
    let (voided, committed) = tokio::join!(test.void_lost_grant(id, &lost), committed);
    committed.expect("the statement does not wait for the commit");
    voided.unwrap();
    assert!(takes(&test, id, "the next").await);
    assert_eq!(kinds(&test).await, "voided lost, granted the next");
}

#[tokio::test]
async fn verify_is_leased_to_one_request_at_a_time() {
    let test = TestLedger::new().await;
    let id = test.accepted(1).await.id;
    assert!(test.lease_verify(id, 60).await.unwrap());
    assert!(!test.lease_verify(id, 60).await.unwrap());
    test.end_verify_lease(id).await.unwrap();
    assert!(test.lease_verify(id, 60).await.unwrap());
    let expired = "update verify_leases set lease_until = now() - interval '1 second'";
    test.run(expired).await;
    // Ends the lease of this payment alone.
    let other = test.accepted(2).await.id;
    test.end_verify_lease(other).await.unwrap();
    assert_eq!(test.value("select count(*) from verify_leases").await, "1");
    assert!(test.lease_verify(id, 60).await.unwrap());
    assert!(!test.lease_verify(id, 60).await.unwrap());
}

#[tokio::test]
async fn unreadable_payment_fails_its_own_lookup_alone() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let keys: Arc<[_]> = [key(1), key(2), key(3), key(4)].into();
    let found = lookup(test.pool.clone(), keys).await.unwrap();
    let [one, two, three, absent] = found.try_into().unwrap();
    assert_eq!(one.unwrap().payment.unwrap().payment.id, first);
    let error: LedgerError = two.unwrap_err();
    assert_eq!(
        error.unreadable_payment().unwrap().id,
        unreadable.to_string()
    );
    assert_eq!(three.unwrap().payment.unwrap().payment.id, third);
    assert_eq!(absent.unwrap().payment, None);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn unreadable_session_fails_its_own_lookup_alone() {
    let test = TestLedger::new().await;
    let mut keys = Vec::new();
    for number in 1..=3 {
        let session = test.opened(number, Rail::Authorization).await;
        keys.push(AuthorizationKey {
            network: session.network,
            domain: session.asset,
            payer: session.payer,
            nonce: session.nonce,
        });
    }
    let spoil = "update sessions set accept_from_block = -1 where nonce =";
    test.run(&format!("{spoil} '\\x{:x}'", keys[1].nonce)).await;
    let found = lookup(test.pool.clone(), keys.into()).await.unwrap();
    let [one, two, three] = found.try_into().unwrap();
    assert!(one.unwrap().session.is_some());
    let error: LedgerError = two.unwrap_err();
    assert!(
        error.to_string().contains("sessions.accept_from_block"),
        "{error}"
    );
    assert!(three.unwrap().session.is_some());
}

#[tokio::test]
async fn unreadable_and_absent_payments_are_errors_of_their_own() {
    let test = TestLedger::new().await;
    let [first, unreadable, third] = test.one_unreadable_of_three().await;
    let absent = PaymentId(Uuid::nil());
    let ids: Arc<[_]> = [first, unreadable, absent, third].into();
    let found = payments_with_grants(test.pool.clone(), ids).await.unwrap();
    let [one, two, none, three] = found.try_into().unwrap();
    assert_eq!(one.unwrap().payment.id, first);
    let error: LedgerError = two.unwrap_err();
    assert_eq!(
        error.unreadable_payment().unwrap().id,
        unreadable.to_string()
    );
    assert!(matches!(none, Err(LedgerError::Conflict { .. })));
    assert_eq!(three.unwrap().payment.id, third);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn unreadable_payment_fails_its_own_grant_alone() {
    let test = TestLedger::new().await;
    let mut asked = Vec::new();
    for number in 1..=3 {
        asked.push((test.settled(number).await.id, request("one")));
    }
    let [first, unreadable, third] = [asked[0].0, asked[1].0, asked[2].0];
    test.make_unreadable(unreadable).await;
    let granted = grant(test.granting.clone(), test.process(), asked.into()).await;
    let [one, two, three] = granted.unwrap().try_into().unwrap();
    assert_eq!(one.unwrap().unwrap().id, first);
    let error: LedgerError = two.unwrap_err();
    assert_eq!(
        error.unreadable_payment().unwrap().id,
        unreadable.to_string()
    );
    assert_eq!(three.unwrap().unwrap().id, third);
    test.assert_quarantined(unreadable).await;
}

#[tokio::test]
async fn queued_payment_whose_success_was_told_is_read_as_told() {
    let test = TestLedger::new().await;
    let told = async |id| test.payment(id).await.unwrap().unwrap().told;
    let id = test.settled(1).await.id;
    assert!(takes(&test, id, "one").await);
    test.close_grant(closing(id, "one", true)).await.unwrap();
    assert!(!told(id).await, "it is not queued");
    test.set(
        id,
        "state = 'inflight', log_index = null, block_number = null, block_hash = null, block_time = null",
    )
    .await;
    test.set(id, "state = 'queued', transaction_hash = null")
        .await;
    assert!(told(id).await);
    // A grant that is open or void has told nobody.
    test.run("update grants set answered_at = null").await;
    assert!(!told(id).await);
    assert!(!told(test.accepted(2).await.id).await);
}
