use super::*;
use crate::payment::PaymentState;
use crate::payment::fixture::payment;

const PAYEE: Address = Address::repeat_byte(1);
const PAYER: Address = Address::repeat_byte(2);

fn budgets() -> Budgets {
    Budgets::new(GasBudget {
        wei_per_day: Some(U256::from(1_000)),
        wei_per_day_per_payee: Some(U256::from(500)),
        wei_per_day_per_payer: None,
    })
}

fn key() -> KeyId {
    KeyId::from_entropy([7; KeyId::LENGTH])
}

fn parties(payee: Address, payer: Address) -> GasParties {
    GasParties {
        payee: Some(payee),
        payer,
        caller: None,
    }
}

fn at(hour: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + time::Duration::hours(hour)
}

fn spent(hour: i64, wei: u64) -> GasHour {
    GasHour {
        hour: at(hour),
        spent_wei: U256::from(wei),
        reserved_wei: U256::ZERO,
    }
}

#[test]
fn transaction_counts_in_the_budgets_that_have_a_limit() {
    let of = |key: KeyId, payee| GasParties {
        caller: Some(Who::Key(key)),
        ..parties(payee, PAYER)
    };
    let unlimited = KeyId::from_entropy([8; KeyId::LENGTH]);
    let rows = [
        (of(key(), PAYEE), 3),
        (of(key(), PAYER), 4),
        (of(unlimited, PAYEE), 5),
        (parties(PAYEE, PAYER), 6),
    ];
    let budgets = budgets();
    budgets.key_limits().insert(key(), Some(U256::from(100)));
    let mut shares: Vec<_> = budgets
        .shares(rows.into_iter())
        .into_iter()
        .map(|share| (share.subject, share.gas))
        .collect();
    shares.sort_unstable();
    let expected = [
        (GasSubject::Network, 18),
        (GasSubject::Payee(PAYEE), 14),
        (GasSubject::Payee(PAYER), 4),
        (GasSubject::Key(key()), 7),
    ];
    assert_eq!(shares, expected);
}

#[test]
fn spent_budget_is_closed_until_its_oldest_hours_have_passed() {
    let budgets = budgets();
    let hours = [spent(10, 300), spent(11, 100), spent(20, 550)];
    budgets.refresh(GasSubject::Network, &hours, at(20));
    assert_eq!(budgets.check(parties(PAYEE, PAYER), at(20)), Ok(()));
    assert_eq!(budgets.room(), Some(U256::from(50)));
    budgets.note_refused(
        &[OverBudget {
            subject: GasSubject::Network,
            needs_wei: U256::from(400),
            left_wei: U256::from(50),
            limit_wei: U256::from(1_000),
            until: fits_at(&hours, U256::from(400), U256::from(1_000), at(20)),
        }],
        U256::MAX,
        at(20),
    );
    let refused = budgets.check(parties(PAYEE, PAYER), at(20)).unwrap_err();
    assert_eq!(refused.reason, Reason::SponsorshipExhausted);
    assert!(
        refused.message.contains("1970-01-02T12:00:00Z"),
        "{refused:?}"
    );
    budgets.refresh(GasSubject::Network, &hours, at(20));
    assert!(budgets.check(parties(PAYEE, PAYER), at(20)).is_err());
    // Receipts that cost less open it again.
    budgets.refresh(GasSubject::Network, &[spent(20, 600)], at(20));
    assert_eq!(budgets.check(parties(PAYEE, PAYER), at(20)), Ok(()));
}

#[test]
fn payment_that_needs_much_closes_no_budget_to_others() {
    let budgets = budgets();
    let wallet = OverBudget {
        subject: GasSubject::Network,
        needs_wei: U256::from(400),
        left_wei: U256::from(300),
        limit_wei: U256::from(1_000),
        until: Some(at(30)),
    };
    budgets.note_refused(std::slice::from_ref(&wallet), U256::from(150), at(20));
    assert_eq!(budgets.check(parties(PAYEE, PAYER), at(20)), Ok(()));
    let rest = OverBudget {
        left_wei: U256::from(149),
        ..wallet
    };
    budgets.note_refused(&[rest], U256::from(150), at(20));
    assert!(budgets.check(parties(PAYEE, PAYER), at(20)).is_err());
}

/// Its time would move on for ever.
#[test]
fn budget_smaller_than_one_payment_says_so() {
    let (budgets, of) = (budgets(), parties(PAYEE, PAYER));
    let over = OverBudget {
        subject: GasSubject::Network,
        needs_wei: U256::from(1_001),
        left_wei: U256::from(1_000),
        limit_wei: U256::from(1_000),
        until: Some(at(44)),
    };
    budgets.note_refused(&[over], U256::MAX, at(20));
    let refused = budgets.check(of, at(20)).unwrap_err();
    assert_eq!(refused.reason, Reason::SponsorshipExhausted);
    assert!(
        refused.message.contains("1001 wei") && refused.message.contains("1000 wei"),
        "{refused:?}"
    );
    assert!(!refused.message.contains("1970"), "{refused:?}");
    assert_eq!(budgets.check_queued(of, at(20)), Err(refused));
}

/// Its ledger may not answer when the time has come.
#[test]
fn closed_budget_is_open_from_its_time_on_without_another_reading() {
    let (budgets, of) = (budgets(), parties(PAYEE, PAYER));
    let over = |until| OverBudget {
        subject: GasSubject::Network,
        needs_wei: U256::from(400),
        left_wei: U256::ZERO,
        limit_wei: U256::from(1_000),
        until,
    };
    budgets.note_refused(&[over(Some(at(30)))], U256::MAX, at(20));
    let before = at(30) - time::Duration::SECOND;
    assert!(budgets.check(of, before).is_err());
    assert!(budgets.check_queued(of, before).is_err());
    assert_eq!(budgets.check(of, at(30)), Ok(()));
    assert_eq!(budgets.check_queued(of, at(30)), Ok(true));
    // Open transactions reserve the rest.
    budgets.note_refused(&[over(None)], U256::MAX, at(30));
    assert!(budgets.check(of, at(30)).is_err());
    assert_eq!(budgets.check_queued(of, at(30)), Ok(false));
    let rechecked = at(30) + RECHECK_AFTER;
    assert_eq!(budgets.check(of, rechecked), Ok(()));
    assert_eq!(budgets.check_queued(of, rechecked), Ok(true));
}

#[test]
fn payee_without_budget_leaves_other_payees_alone() {
    let budgets = budgets();
    budgets.refresh(GasSubject::Payee(PAYEE), &[spent(20, 500)], at(20));
    assert!(budgets.check(parties(PAYEE, PAYER), at(20)).is_err());
    assert_eq!(budgets.check(parties(PAYER, PAYEE), at(20)), Ok(()));
}

#[test]
fn key_without_budget_leaves_other_callers_alone() {
    let budgets = budgets();
    budgets.key_limits().insert(key(), Some(U256::from(100)));
    let subject = GasSubject::Key(key());
    budgets.refresh(subject, &[spent(20, 100)], at(20));
    let of = |caller| GasParties {
        caller,
        ..parties(PAYEE, PAYER)
    };
    let refused = budgets
        .check(of(Some(Who::Key(key()))), at(20))
        .unwrap_err();
    assert!(refused.message.contains("key 777777777777"), "{refused:?}");
    let other = KeyId::from_entropy([8; KeyId::LENGTH]);
    for caller in [None, Some(Who::Anonymous), Some(Who::Key(other))] {
        assert_eq!(budgets.check(of(caller), at(20)), Ok(()), "{caller:?}");
    }
    // A budget without a limit is not watched any more.
    budgets.key_limits().clear();
    budgets.refresh(subject, &[spent(20, 100)], at(20));
    assert_eq!(budgets.check(of(Some(Who::Key(key()))), at(20)), Ok(()));
}

#[test]
fn reservations_alone_close_no_budget() {
    let hours = [GasHour {
        reserved_wei: U256::from(5_000),
        ..spent(20, 999)
    }];
    let limit = U256::from(1_000);
    assert_eq!(fits_at(&hours, U256::ONE, limit, at(20)), None);
    let never = fits_at(&hours, U256::from(1_001), limit, at(20));
    assert_eq!(never, Some(at(45)), "more than the whole budget");
}

#[test]
fn key_is_known_once_it_was_read_with_a_limit_or_without_one() {
    let budgets = budgets();
    let of = |caller| Payment {
        caller,
        ..payment(PaymentState::Queued)
    };
    let of_key = of(Some(Who::Key(key())));
    assert!(!budgets.knows_key_of(&of_key));
    for caller in [None, Some(Who::Anonymous), Some(Who::Operator)] {
        assert!(budgets.knows_key_of(&of(caller)), "{caller:?}");
    }
    for limit in [None, Some(U256::ZERO)] {
        *budgets.key_limits() = [(key(), limit)].into();
        assert!(budgets.knows_key_of(&of_key), "{limit:?}");
    }
}
