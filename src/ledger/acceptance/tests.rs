use uuid::Uuid;

use super::*;
use crate::ledger::Verdict;
use crate::ledger::testing::{
    NETWORK, TestLedger, candidate, key, location, mined, new_payment, permit2_candidate, verified,
};
use crate::payment::ChainFacts;
use crate::payment::fixture::{self, AMOUNT};
use crate::protocol::session::SessionId;
use crate::protocol::{Amount, Reason, Rejection, Scheme};

/// The same payer with another nonce.
fn further(nonce: u8, payer: u8) -> NewPayment {
    let mut further = candidate(nonce);
    further.terms.from = candidate(payer).terms.from;
    verified(further, &fixture::facts())
}

fn with_amount(mut candidate: Candidate, amount: u64) -> Candidate {
    candidate.terms.value = Amount::from_atomic(U256::from(amount));
    candidate
}

fn allowance(limit: u64) -> ChainFacts {
    ChainFacts {
        allowance: Some(U256::from(limit)),
        balance: None,
        ..fixture::facts()
    }
}

/// Facts of a payer that has enough for several payments.
fn plenty() -> ChainFacts {
    ChainFacts {
        balance: Some(U256::from(100 * AMOUNT)),
        ..fixture::facts()
    }
}

async fn refuse(test: &TestLedger, id: PaymentId) {
    let rejection = Rejection {
        reason: Reason::UnexpectedSettleError,
        message: "a test".to_owned(),
    };
    assert!(test.refuse(id, &rejection).await.unwrap());
}

/// A new payment of this caller.
fn new_payment_of(caller: Who) -> NewPayment {
    NewPayment {
        caller: Some(caller),
        ..new_payment(1)
    }
}

async fn accepted_of(test: &TestLedger, caller: Who) -> Payment {
    let accepted = test.accept(new_payment_of(caller)).await.unwrap();
    let Accepted::New(payment) = accepted else {
        panic!("expected a new payment, got {accepted:?}");
    };
    *payment
}

#[tokio::test]
async fn second_use_of_an_authorization_is_no_second_payment() {
    let test = TestLedger::new().await;
    let first = test.accepted(1).await;
    assert_eq!(first.state, PaymentState::Queued);
    // It counts in the promised amount already, and is not refused because of it.
    let second = test.accept(new_payment(1)).await.unwrap();
    assert_eq!(second, Accepted::AlreadyAccepted);
    assert_eq!(test.value("select count(*) from payments").await, "1");
    let held = test.value("select held from payer_accounts").await;
    assert_eq!(held, AMOUNT.to_string());
}

#[tokio::test]
async fn one_group_accepts_an_authorization_once() {
    let test = TestLedger::new().await;
    let twice: Arc<[_]> = [new_payment(1), new_payment(1)].into();
    let answers = accept(test.pool.clone(), test.process(), twice).await;
    let [first, second] = answers.unwrap().try_into().unwrap();
    assert!(matches!(first.unwrap(), Accepted::New(_)));
    assert_eq!(second.unwrap(), Accepted::AlreadyAccepted);
}

#[tokio::test]
async fn payer_cannot_promise_more_than_its_balance() {
    let test = TestLedger::new().await;
    let first = test.accepted(1).await;
    let held = U256::from(AMOUNT);
    let over = test.accept(further(2, 1)).await.unwrap();
    assert_eq!(over, Accepted::InsufficientBalance { held });
    // Another payer is not affected.
    test.accepted(3).await;
    // What cannot move money any more is not promised.
    refuse(&test, first.id).await;
    let next = test.accept(further(2, 1)).await.unwrap();
    assert!(matches!(next, Accepted::New(_)), "{next:?}");
}

#[tokio::test]
async fn balance_from_before_the_latest_payment_is_stale() {
    let test = TestLedger::new().await;
    // Settled above the block of the facts.
    test.settled(1).await;
    let stale = test.accept(further(2, 1)).await.unwrap();
    assert_eq!(stale, Accepted::Stale);
    let mut facts = fixture::facts();
    facts.block_number = location(1).block_number;
    let mut candidate = candidate(2);
    candidate.terms.from = key(1).payer;
    let current = test.accept(verified(candidate, &facts)).await.unwrap();
    assert!(matches!(current, Accepted::New(_)), "{current:?}");
}

#[tokio::test]
async fn limited_allowance_bounds_the_promises_of_its_payer_alone() {
    let test = TestLedger::new().await;
    let new = |nonce, payer: u8, amount| {
        let mut candidate = with_amount(permit2_candidate(Scheme::Upto, nonce), amount);
        candidate.terms.from = key(payer).payer;
        verified(candidate, &allowance(AMOUNT))
    };
    // One statement counts the promises of all payers.
    let group: Arc<[_]> = [new(1, 1, 8_000), new(2, 2, 8_000), new(3, 3, 8_000)].into();
    let answers = accept(test.pool.clone(), test.process(), group).await;
    for answer in answers.unwrap() {
        assert!(matches!(answer.unwrap(), Accepted::New(_)));
    }
    let group: Arc<[_]> = [new(4, 1, 7_000), new(5, 2, 2_000), new(6, 3, 7_000)].into();
    let answers = accept(test.pool.clone(), test.process(), group).await;
    let [first, second, third] = answers.unwrap().try_into().unwrap();
    let promised = U256::from(8_000);
    let short = Accepted::InsufficientAllowance { promised };
    assert_eq!(first.unwrap(), short);
    assert!(matches!(second.unwrap(), Accepted::New(_)));
    assert_eq!(third.unwrap(), short);
}

#[tokio::test]
async fn charge_of_nothing_is_settled_without_a_transaction() {
    let test = TestLedger::new().await;
    let candidate = with_amount(permit2_candidate(Scheme::Upto, 1), 0);
    let new = verified(candidate, &fixture::facts());
    let accepted = test.accept(new.clone()).await.unwrap();
    let Accepted::New(payment) = accepted else {
        panic!("{accepted:?}")
    };
    assert_eq!(payment.state, PaymentState::Uncharged);
    assert_eq!(test.payment(new.id).await.unwrap().unwrap(), *payment);
}

#[tokio::test]
async fn session_needs_its_id_once_it_was_submitted_or_presented_with_it() {
    let test = TestLedger::new().await;
    let needs_id = async |id: &SessionId| test.session(id).await.unwrap().unwrap().needs_id;
    let mut opened = Vec::new();
    for number in 1..=3 {
        opened.push(test.opened(number, Rail::Authorization).await);
    }
    let presented = [None, Some(opened[1].id.clone()), Some(opened[0].id.clone())];
    for (session, id) in opened.iter().zip(presented) {
        let mut paying = candidate(1);
        paying.terms.from = session.payer;
        paying.terms.nonce = session.nonce;
        paying.session = id;
        let accepted = test.accept(verified(paying, &plenty())).await.unwrap();
        assert!(matches!(accepted, Accepted::New(_)), "{accepted:?}");
    }
    assert!(!needs_id(&opened[0].id).await);
    assert!(needs_id(&opened[1].id).await);
    assert!(
        !needs_id(&opened[2].id).await,
        "the id is another session's"
    );
    test.need_session_id(&opened[0].id).await.unwrap();
    assert!(needs_id(&opened[0].id).await);
    assert!(!needs_id(&opened[2].id).await);
    let proven = test.opened(4, Rail::Transfer).await;
    test.need_session_id(&proven.id).await.unwrap();
    assert!(!needs_id(&proven.id).await, "its proof names it anyway");
}

#[tokio::test]
async fn only_an_authorization_of_its_terms_pays_a_session() {
    let test = TestLedger::new().await;
    let open = test.opened(1, Rail::Authorization).await;
    let paying = |amount| {
        let mut paying = with_amount(fixture::candidate(), amount);
        paying.terms.nonce = open.nonce;
        verified(paying, &fixture::facts())
    };
    let less = paying(AMOUNT - 1);
    assert!(matches!(
        test.accept(less.clone()).await,
        Ok(Accepted::New(_))
    ));
    let unpaid = test.session(&open.id).await.unwrap().unwrap();
    assert_eq!(unpaid.payment, None);

    test.run("delete from payments; delete from payer_accounts")
        .await;
    let exact = paying(AMOUNT);
    assert!(matches!(
        test.accept(exact.clone()).await,
        Ok(Accepted::New(_))
    ));
    let paid = test.session(&open.id).await.unwrap().unwrap();
    assert_eq!(paid.payment, Some(exact.id));
}

#[tokio::test]
async fn transferred_authorization_is_accepted_once_and_promises_nothing() {
    let test = TestLedger::new().await;
    let settled = test.settled(1).await;
    assert_eq!(settled.state, PaymentState::Settled(location(1)));
    assert_eq!(test.value("select held from payer_accounts").await, "0");
    let candidate = candidate(1);
    let again = AlreadyTransferred {
        id: PaymentId(Uuid::now_v7()),
        candidate: &candidate,
        confirmations: 2,
        location: &location(2),
        confirmed: true,
        caller: None,
    };
    assert!(!test.accept_transferred(&again).await.unwrap());
    assert_eq!(test.payment(settled.id).await.unwrap(), Some(settled));
}

#[tokio::test]
async fn transfer_log_of_another_payment_is_not_accepted_for_a_second_one() {
    let test = TestLedger::new().await;
    test.settled(1).await;
    let candidate = candidate(2);
    let second = AlreadyTransferred {
        id: PaymentId(Uuid::now_v7()),
        candidate: &candidate,
        confirmations: 2,
        location: &location(1),
        confirmed: true,
        caller: None,
    };
    assert!(test.accept_transferred(&second).await.unwrap());
    let payment = test.payment(second.id).await.unwrap().unwrap();
    assert_eq!(payment.state, PaymentState::Queued);
    let why = payment.quarantine.unwrap();
    assert_eq!(why, "its Transfer log is recorded for another payment");
}

#[tokio::test]
async fn only_a_refused_payment_is_queued_again() {
    let test = TestLedger::new().await;
    let payment = test.accepted(1).await;
    let again = |id| NewPayment {
        id,
        ..new_payment(1)
    };
    // Queued: its own promise counts, so the balance must allow for two.
    let rich = ChainFacts {
        balance: None,
        ..fixture::facts()
    };
    let queued = NewPayment {
        id: payment.id,
        ..verified(candidate(1), &rich)
    };
    let answer = test.queue_again(queued.clone()).await.unwrap();
    assert_eq!(answer, Accepted::AlreadyAccepted);

    refuse(&test, payment.id).await;
    let quarantined = "quarantined_at = now(), quarantine_reason = 'a test'";
    test.set(payment.id, quarantined).await;
    let answer = test.queue_again(queued).await.unwrap();
    assert_eq!(answer, Accepted::AlreadyAccepted);
    assert_eq!(test.state(payment.id).await, "refused");

    let released = "quarantined_at = null, quarantine_reason = null";
    test.set(payment.id, released).await;
    let answer = test.queue_again(again(payment.id)).await.unwrap();
    assert!(matches!(answer, Accepted::New(_)), "{answer:?}");
    assert_eq!(test.state(payment.id).await, "queued");
    assert_eq!(test.payment_value(payment.id, "reason").await, "-");
}

#[tokio::test]
async fn payment_queued_again_must_fit_the_balance() {
    let test = TestLedger::new().await;
    let payment = test.accepted(1).await;
    refuse(&test, payment.id).await;
    let other = test.accept(further(2, 1)).await.unwrap();
    assert!(matches!(other, Accepted::New(_)), "{other:?}");
    let again = NewPayment {
        id: payment.id,
        ..new_payment(1)
    };
    let held = U256::from(AMOUNT);
    let answer = test.queue_again(again.clone()).await.unwrap();
    assert_eq!(answer, Accepted::InsufficientBalance { held });
    assert_eq!(test.state(payment.id).await, "refused");

    test.run("update payer_accounts set held = 0, settled_block = 101")
        .await;
    assert_eq!(test.queue_again(again).await.unwrap(), Accepted::Stale);
    assert_eq!(test.state(payment.id).await, "refused");
}

#[tokio::test]
async fn payment_belongs_to_the_caller_that_presents_it_while_it_is_not_refused() {
    let test = TestLedger::new().await;
    let payment = accepted_of(&test, Who::Operator).await;
    assert_eq!(payment.caller, Some(Who::Operator));
    assert_eq!(
        test.payment(payment.id).await.unwrap(),
        Some(payment.clone())
    );
    let other = test.accept(new_payment_of(Who::Anonymous)).await.unwrap();
    assert_eq!(other, Accepted::AlreadyAccepted);
    assert_eq!(test.payment_value(payment.id, "caller").await, "operator");

    refuse(&test, payment.id).await;
    let again = NewPayment {
        id: payment.id,
        ..new_payment_of(Who::Anonymous)
    };
    test.queue_again(again).await.unwrap();
    assert_eq!(test.payment_value(payment.id, "caller").await, "anonymous");
}

#[tokio::test]
async fn payment_that_was_broadcast_stays_its_owners_after_a_refusal() {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = accepted_of(&test, Who::Operator).await;
    let id = test.signed(lease, 0, &[&payment]).await;
    test.record_mined(&mined(id, 0, 1, &[])).await.unwrap();
    let rows = test.undecided(NETWORK, 10).await.unwrap();
    let rejection = Rejection::new(Reason::UnexpectedSettleError, "a test");
    let refused = test.decide(&rows[0], &Verdict::Refuse(rejection)).await;
    assert!(refused.unwrap().is_some());
    let again = NewPayment {
        id: payment.id,
        ..new_payment_of(Who::Anonymous)
    };
    let queued = test.queue_again(again).await.unwrap();
    assert!(matches!(queued, Accepted::New(_)), "{queued:?}");
    assert_eq!(test.payment_value(payment.id, "caller").await, "operator");
}
