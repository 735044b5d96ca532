use std::net::IpAddr;

use super::*;
use crate::clock::SystemClock;
use crate::payment::Who;

fn caller(number: usize) -> Caller {
    let number = u32::try_from(number).unwrap();
    Caller {
        who: Who::Anonymous,
        key: None,
        client: IpAddr::from(number.to_be_bytes()),
        request_id: "a-request".to_owned(),
        asked_as: "its-caller's-secret".to_owned(),
    }
}

fn note(refusals: &Refusals, number: usize, message: &str) {
    note_at(refusals, Instant::now(), number, message);
}

fn note_at(refusals: &Refusals, now: Instant, number: usize, message: &str) {
    let why = Rejection::new(Reason::InvalidPayload, message);
    let of = (Endpoint::Verify, &caller(number));
    refusals.note_at(now, of, RefusedPayment::default(), &why);
}

fn refusals() -> Refusals {
    Refusals::new(
        Arc::new(SystemClock),
        crate::telemetry::metrics::Metrics::new(std::iter::empty()),
    )
}

#[test]
fn one_caller_has_a_bounded_number_recorded_in_a_minute() {
    let refusals = refusals();
    let waiting = || refusals.waiting().first(usize::MAX).len();
    for _ in 0..500 {
        note(&refusals, 1, "again");
    }
    note(&refusals, 2, "once");
    assert_eq!(waiting(), 61);
    assert_eq!(refusals.dropped(), 440);
    // That they were written makes no room in the same minute.
    refusals.waiting().remove_first(usize::MAX);
    note(&refusals, 1, "again");
    assert_eq!(waiting(), 0);
    note_at(&refusals, Instant::now() + MINUTE, 1, "later");
    assert_eq!(waiting(), 1);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let refusals = refusals();
    for number in 0..WAITING_MAX + 5 {
        note(&refusals, number, "once");
    }
    assert_eq!(refusals.dropped(), 5);
    assert_eq!(refusals.waiting().first(usize::MAX).len(), WAITING_MAX);
    refusals.waiting().remove_first(10);
    let left = refusals.waiting().first(usize::MAX).len();
    assert_eq!(left, WAITING_MAX - 10);
    refusals.waiting().remove_first(usize::MAX);
    note(&refusals, 1, "once more");
    assert_eq!(refusals.waiting().first(usize::MAX).len(), 1);
}

#[test]
fn messages_are_storable_and_pending_payments_are_not_refused() {
    let refusals = refusals();
    note(
        &refusals,
        1,
        &format!("a\0b{}", "é".repeat(MESSAGE_BYTES_MAX)),
    );
    let pending = Rejection::new(Reason::SettlementPending, "wait");
    let of = (Endpoint::Settle, &caller(1));
    refusals.note(of, RefusedPayment::default(), &pending);
    let waiting = refusals.waiting().first(usize::MAX);
    assert_eq!(waiting.len(), 1);
    assert!(waiting[0].message.starts_with("a bé"));
    assert!(waiting[0].message.len() <= MESSAGE_BYTES_MAX);
    assert_eq!(waiting[0].request_id, "a-request");
}
