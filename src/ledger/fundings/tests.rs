use super::*;
use crate::ledger::testing::{
    NETWORK, TestLedger, attempt, mined, new_payment, own, request, transaction,
};
use crate::ledger::{LaneLease, MinedTransaction};
use crate::payment::Payment;

const LIMITS: ApprovalLimits = ApprovalLimits {
    wei_per_payer: 10,
    wei_per_day: 15,
};

async fn fund(
    test: &TestLedger,
    lane: (LaneLease, u64),
    payment: &Payment,
    wei: u64,
) -> Option<Recorded> {
    fund_within(test, lane, (payment, wei), LIMITS).await
}

/// The funding costs no gas until it is mined.
async fn fund_within(
    test: &TestLedger,
    (lease, nonce): (LaneLease, u64),
    (payment, wei): (&Payment, u64),
    limits: ApprovalLimits,
) -> Option<Recorded> {
    let funding = Funding {
        payment: payment.id,
        scheme: payment.terms.method.scheme(),
        payer: payment.terms.from,
        caller: payment.caller,
        wei: U256::from(wei),
    };
    let mut attempt = attempt(nonce);
    attempt.cost_wei = U256::from(wei);
    let new = transaction(lease, nonce, &attempt, &[]);
    test.record_funding(&new, funding, limits).await.unwrap()
}

async fn ready() -> (TestLedger, LaneLease) {
    let test = TestLedger::new().await;
    let (_, lease) = test.owned_lane().await;
    (test, lease)
}

fn written(recorded: Option<Recorded>) -> uuid::Uuid {
    match recorded {
        Some(Recorded::Written(id, _)) => id,
        refused => panic!("expected it to be written, got {refused:?}"),
    }
}

async fn nothing_written(test: &TestLedger) {
    let rows = "select (select count(*) from fundings) + (select count(*) from transactions)";
    assert_eq!(test.value(rows).await, "0");
    assert_eq!(test.value("select next_nonce from lanes").await, "0");
}

#[tokio::test]
async fn payment_is_funded_once() {
    let (test, lease) = ready().await;
    let payment = test.accepted(1).await;
    assert_eq!(
        test.funding_state(payment.id).await.unwrap(),
        FundingState::Never
    );
    written(fund(&test, (lease, 0), &payment, 1).await);
    assert_eq!(
        test.funding_state(payment.id).await.unwrap(),
        FundingState::Sent
    );
    assert_eq!(fund(&test, (lease, 1), &payment, 1).await, None);
    assert_eq!(test.value("select count(*) from fundings").await, "1");
    assert_eq!(test.value("select next_nonce from lanes").await, "1");
}

#[tokio::test]
async fn payment_that_is_not_queued_is_not_funded() {
    let (test, lease) = ready().await;
    let payment = test.settled(1).await;
    assert_eq!(fund(&test, (lease, 0), &payment, 1).await, None);
    let mut absent = payment;
    absent.id = new_payment(2).id;
    assert_eq!(fund(&test, (lease, 0), &absent, 1).await, None);
    nothing_written(&test).await;
}

#[tokio::test]
async fn funding_above_a_limit_is_not_written() {
    let (test, lease) = ready().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    assert_eq!(fund(&test, (lease, 0), &first, 11).await, None);
    nothing_written(&test).await;
    written(fund(&test, (lease, 0), &first, 10).await);
    assert_eq!(
        fund(&test, (lease, 1), &second, 6).await,
        None,
        "the day's limit"
    );
    written(fund(&test, (lease, 1), &second, 5).await);
    // What is a day old does not count any more.
    let day_ago = "update fundings set created_at = now() - interval '24 hours'";
    test.run(day_ago).await;
    written(fund(&test, (lease, 2), &test.accepted(3).await, 10).await);
}

#[tokio::test]
async fn funding_of_a_lost_lane_is_not_written() {
    let (test, lease) = ready().await;
    let payment = test.accepted(1).await;
    own(&test, crate::ledger::testing::LANE).await;
    let refused = fund(&test, (lease, 0), &payment, 1).await;
    assert_eq!(refused, Some(Recorded::LaneLost));
    nothing_written(&test).await;
}

#[tokio::test]
async fn reverted_and_replaced_fundings_gave_nothing() {
    let (test, lease) = ready().await;
    let mut payments = Vec::new();
    for (nonce, number) in (0..).zip(1..=3_u8) {
        let payment = test.accepted(number).await;
        let limits = ApprovalLimits {
            wei_per_day: u64::MAX,
            ..LIMITS
        };
        let funded = fund_within(&test, (lease, nonce), (&payment, 5), limits);
        let id = written(funded.await);
        let mined = MinedTransaction {
            succeeded: number != 2,
            ..mined(id, nonce, number, &[])
        };
        test.record_mined(&mined).await.unwrap();
        payments.push(payment);
    }
    let replaced = attempt(2).hash;
    let replace = format!(
        "update attempts set empty = true where hash = '\\x{replaced:x}'; update transactions set spent_wei = spent_wei - 5 where nonce = 2"
    );
    test.run(&replace).await;
    let mut states = Vec::new();
    for payment in &payments {
        states.push(test.funding_state(payment.id).await.unwrap());
    }
    let failed = FundingState::Failed;
    assert_eq!(states, [FundingState::Mined, failed, failed]);
    let payer = payments[1].terms.from;
    let totals = test.funding_totals(NETWORK, payer).await.unwrap();
    let expected = FundingTotals {
        payer: U256::ZERO,
        // The first one's money, and the gas of all three.
        all: U256::from(5 + 3 * (60_000 * 1_500 + 7)),
    };
    assert_eq!(totals, expected);
}

#[tokio::test]
async fn unreadable_funding_stops_the_fundings_of_its_network() {
    let (test, lease) = ready().await;
    let payment = test.accepted(1).await;
    written(fund(&test, (lease, 0), &payment, 1).await);
    test.run("update fundings set wei = repeat('9', 78)::numeric")
        .await;
    // The sum is unknown, so it is not known to be within the limits.
    let totals = test.funding_totals(NETWORK, Address::ZERO).await;
    let unreadable = totals.unwrap_err();
    assert!(
        matches!(unreadable, LedgerError::Inconsistent(_)),
        "{unreadable:?}"
    );
    let elsewhere = Network::from_chain_id(8_453);
    assert!(test.funding_totals(elsewhere, Address::ZERO).await.is_ok());
    // Payments without gas money go on.
    test.accepted(2).await;
    let settled = test.settled(3).await;
    let granted = test.grant(settled.id, request("one")).await.unwrap();
    assert!(granted.is_some());
}
