use super::*;
use crate::ledger::testing::{LANE, NETWORK, TestLedger, attempt, block, mined, own, transaction};
use crate::ledger::{LaneLease, NewTransaction, Recorded};
use crate::payment::Payment;
use crate::payment::fixture::PAYEE;

/// What [`attempt`] may cost.
const COST: u64 = 200_000_000;
/// What the receipt of [`mined`] says it did.
const ACTUAL: u64 = 60_000 * 1_500 + 7;

fn share(subject: GasSubject, gas: u64, limit: Option<u64>) -> GasShare {
    GasShare {
        subject,
        gas,
        payments: 1,
        limit_wei: limit.map(U256::from),
    }
}

/// The network and the payee, which bears three quarters.
fn shares(network: Option<u64>, payee: Option<u64>) -> [GasShare; 2] {
    [
        share(GasSubject::Network, 4, network),
        share(GasSubject::Payee(PAYEE), 3, payee),
    ]
}

async fn write(
    test: &Ledger,
    (lease, nonce): (LaneLease, u64),
    payment: &Payment,
    shares: &[GasShare],
) -> Recorded {
    let attempt = attempt(nonce);
    let payments = [payment];
    let new = NewTransaction {
        shares,
        ..transaction(lease, nonce, &attempt, &payments)
    };
    test.record(&new).await.unwrap()
}

fn id_of(recorded: &Recorded) -> Uuid {
    let Recorded::Written(id, _) = recorded else {
        panic!("expected it to be written, got {recorded:?}")
    };
    *id
}

async fn ready() -> (TestLedger, LaneLease, Payment) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    (test, lease, payment)
}

/// Spent and reserved wei of a scope.
async fn counted(test: &TestLedger, scope: &str) -> (u64, u64) {
    let sum = async |column: &str| {
        let sum = format!("select sum({column}) from gas_spending where scope = '{scope}'");
        test.value(&sum).await.parse().unwrap()
    };
    (sum("spent_wei").await, sum("reserved_wei").await)
}

#[tokio::test]
async fn transaction_is_reserved_and_then_counted_as_its_receipt_says() {
    let (test, lease, payment) = ready().await;
    let written = write(&test, (lease, 0), &payment, &shares(None, None)).await;
    let Recorded::Written(id, mut uses) = written else {
        panic!("expected it to be written, got {written:?}");
    };
    uses.sort_by_key(|one| one.subject);
    let reserved = uses.iter().map(|one| one.reserved_wei);
    let expected = [COST, COST / 4 * 3].map(U256::from);
    assert_eq!(reserved.collect::<Vec<_>>(), expected);
    assert_eq!(counted(&test, "network").await, (0, COST));
    assert_eq!(counted(&test, "payee").await, (0, COST / 4 * 3));
    let mined = mined(id, 0, 1, &[payment.id]);
    test.record_mined(&mined).await.unwrap();
    test.record_mined(&mined).await.unwrap();
    assert_eq!(counted(&test, "network").await, (ACTUAL, 0));
    assert_eq!(counted(&test, "payee").await, (ACTUAL * 3 / 4, 0));
    // A reorg opens the transaction again.
    let gone = [block(1).hash];
    test.roll_back(NETWORK, &gone, 101).await.unwrap();
    assert_eq!(counted(&test, "network").await, (0, COST));
    assert_eq!(counted(&test, "payee").await, (0, COST / 4 * 3));
    test.record_mined(&mined).await.unwrap();
    assert_eq!(counted(&test, "network").await, (ACTUAL, 0));
}

#[tokio::test]
async fn transaction_above_a_budget_is_not_written() {
    let (test, lease, payment) = ready().await;
    let other = test.accepted(2).await;
    let id = id_of(&write(&test, (lease, 0), &payment, &shares(Some(COST), None)).await);
    // What is reserved may still be given back.
    let limits = shares(Some(COST * 2 - 1), None);
    let refused = write(&test, (lease, 1), &other, &limits).await;
    let Recorded::OverBudget(over) = refused else {
        panic!("expected it to be refused, got {refused:?}");
    };
    let expected = OverBudget {
        subject: GasSubject::Network,
        needs_wei: U256::from(COST),
        left_wei: U256::from(COST - 1),
        limit_wei: U256::from(COST * 2 - 1),
        until: None,
    };
    assert_eq!(over, [expected]);
    assert_eq!(counted(&test, "network").await, (0, COST));
    assert_eq!(test.value("select next_nonce from lanes").await, "1");
    assert_eq!(test.state(other.id).await, "queued");
    // With its receipt there is room for one that costs a little less than the limit, and for none above it.
    test.record_mined(&mined(id, 0, 1, &[payment.id]))
        .await
        .unwrap();
    let limits = shares(Some(COST + ACTUAL - 1), None);
    let refused = write(&test, (lease, 1), &other, &limits).await;
    let Recorded::OverBudget(over) = refused else {
        panic!("expected it to be refused, got {refused:?}");
    };
    let hour =
        test.value("select hour + interval '25 hours' from gas_spending where scope = 'network' and spent_wei > 0");
    let hour = hour.await;
    let until = over[0].until.unwrap();
    let seconds = format!(
        "select timestamptz '{hour}' = to_timestamp({})",
        until.unix_timestamp()
    );
    assert_eq!(test.value(&seconds).await, "true", "{until} {hour}");
    let limits = shares(Some(COST + ACTUAL), None);
    id_of(&write(&test, (lease, 1), &other, &limits).await);
}

#[tokio::test]
async fn budget_of_a_payee_is_its_own() {
    let (test, lease, payment) = ready().await;
    let other = test.accepted(2).await;
    id_of(&write(&test, (lease, 0), &payment, &shares(None, Some(COST))).await);
    let refused = write(&test, (lease, 1), &other, &shares(None, Some(COST))).await;
    assert!(
        matches!(&refused, Recorded::OverBudget(over) if over[0].subject == GasSubject::Payee(PAYEE)),
        "{refused:?}"
    );
    let elsewhere = [
        share(GasSubject::Network, 4, None),
        share(GasSubject::Payee(Address::ZERO), 4, Some(COST)),
    ];
    id_of(&write(&test, (lease, 1), &other, &elsewhere).await);
}

#[tokio::test]
async fn budget_of_a_key_is_its_own() {
    let (test, lease, payment) = ready().await;
    let other = test.accepted(2).await;
    let of_key = |byte| {
        let subject = GasSubject::Key(KeyId::from_entropy([byte; KeyId::LENGTH]));
        [
            share(GasSubject::Network, 4, None),
            share(GasSubject::Payee(PAYEE), 4, None),
            share(subject, 3, Some(COST)),
        ]
    };
    let id = id_of(&write(&test, (lease, 0), &payment, &of_key(1)).await);
    assert_eq!(counted(&test, "key").await, (0, COST / 4 * 3));
    let refused = write(&test, (lease, 1), &other, &of_key(1)).await;
    assert!(
        matches!(&refused, Recorded::OverBudget(over) if over.len() == 1 && over[0].subject == of_key(1)[2].subject),
        "{refused:?}"
    );
    assert_eq!(counted(&test, "key").await, (0, COST / 4 * 3));
    assert_eq!(test.state(other.id).await, "queued");
    id_of(&write(&test, (lease, 1), &other, &of_key(2)).await);
    test.record_mined(&mined(id, 0, 1, &[payment.id]))
        .await
        .unwrap();
    let expected = (ACTUAL * 3 / 4, COST / 4 * 3);
    assert_eq!(counted(&test, "key").await, expected);
}

#[tokio::test]
async fn hours_count_for_a_day_and_are_then_forgotten() {
    let (test, lease, payment) = ready().await;
    let spend = async |hours: u32| {
        test.run(&format!(
            "insert into gas_spending (network, scope, subject, hour, spent_wei)
            values ('{NETWORK}', 'network', '', date_trunc('hour', now()) - interval '{hours} hours', 1000)"
        ))
        .await;
    };
    spend(25).await;
    spend(24).await;
    spend(80).await;
    let days = test.gas_hours(NETWORK, &[GasSubject::Payee(PAYEE), GasSubject::Network]);
    let days = days.await.unwrap();
    assert!(days[0].is_empty());
    assert_eq!(days[1].len(), 1, "{days:?}");
    let limits = |limit| [share(GasSubject::Network, 1, Some(limit))];
    let refused = write(&test, (lease, 0), &payment, &limits(COST + 999)).await;
    assert!(matches!(refused, Recorded::OverBudget(_)), "{refused:?}");
    id_of(&write(&test, (lease, 0), &payment, &limits(COST + 1_000)).await);
    test.forget_gas_spending().await.unwrap();
    let left = "select count(*) from gas_spending where scope = 'network' and spent_wei > 0";
    assert_eq!(test.value(left).await, "2");
    let kept = "select count(*) from gas_reservations";
    assert_eq!(test.value(kept).await, "1");
    // A reservation outlives its transaction's day as long as the transaction is open.
    let old = "01900000-0000-7000-8000-000000000000";
    test.run(&format!(
        "update gas_reservations set transaction_id = '{old}'; update transaction_payments set transaction_id = '{old}';
        update attempts set transaction_id = '{old}'; update transactions set id = '{old}'"
    ))
    .await;
    test.forget_gas_spending().await.unwrap();
    assert_eq!(test.value(kept).await, "1");
    let mined = mined(old.parse().unwrap(), 0, 1, &[payment.id]);
    test.record_mined(&mined).await.unwrap();
    test.forget_gas_spending().await.unwrap();
    assert_eq!(test.value(kept).await, "0");
}

#[tokio::test]
async fn replacement_is_counted_even_above_the_budget() {
    let (test, lease, payment) = ready().await;
    let id = id_of(&write(&test, (lease, 0), &payment, &shares(Some(COST), None)).await);
    let mut bump = attempt(7);
    bump.cost_wei = U256::from(COST * 2);
    assert!(
        test.record_attempt((LANE, lease.epoch), id, &bump)
            .await
            .unwrap()
    );
    assert_eq!(counted(&test, "network").await, (0, COST * 2));
    assert_eq!(counted(&test, "payee").await, (0, COST * 2 / 4 * 3));
    // One attempt alone can be mined: a cheaper one reserves nothing.
    let mut cheaper = attempt(8);
    cheaper.cost_wei = U256::from(1);
    assert!(
        test.record_attempt((LANE, lease.epoch), id, &cheaper)
            .await
            .unwrap()
    );
    assert_eq!(counted(&test, "network").await, (0, COST * 2));
    let mut mined = mined(id, 0, 1, &[payment.id]);
    mined.hash = bump.hash;
    test.record_mined(&mined).await.unwrap();
    assert_eq!(counted(&test, "network").await, (ACTUAL, 0));
}

#[tokio::test]
async fn lanes_that_write_at_once_stay_within_the_budget_together() {
    let (test, lease, payment) = ready().await;
    let other = test.accepted(2).await;
    let second = crate::ledger::testing::OTHER_LANE;
    test.open_lane(second, 0).await.unwrap();
    let second_lease = own(&test, second).await;
    let limits = shares(Some(COST * 2 - 1), None);
    let (attempt, other_attempt) = (attempt(0), attempt(1));
    let (first_payments, second_payments) = ([&payment], [&other]);
    let first = NewTransaction {
        shares: &limits,
        ..transaction(lease, 0, &attempt, &first_payments)
    };
    let second = NewTransaction {
        lane: second,
        shares: &limits,
        ..transaction(second_lease, 0, &other_attempt, &second_payments)
    };
    let (first, second) = tokio::join!(test.record(&first), test.record(&second));
    let written = [first.unwrap(), second.unwrap()];
    let written = written
        .iter()
        .filter(|one| matches!(one, Recorded::Written(..)));
    assert_eq!(written.count(), 1);
    assert_eq!(counted(&test, "network").await, (0, COST));
}

#[tokio::test]
async fn transaction_that_lost_its_nonce_costs_nothing() {
    let (test, lease, payment) = ready().await;
    id_of(&write(&test, (lease, 0), &payment, &shares(None, None)).await);
    let foreign = [crate::ledger::ForeignNonce {
        nonce: 0,
        transaction: None,
    }];
    let lost = test.lose_nonces(LANE, lease, &foreign, 1).await.unwrap();
    assert!(lost.is_some());
    assert_eq!(counted(&test, "network").await, (0, 0));
    assert_eq!(counted(&test, "payee").await, (0, 0));
}
