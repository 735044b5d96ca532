use time::Duration;
use time::macros::datetime;

use super::*;
use crate::ledger::testing::TestLedger;
use crate::payment::fixture::AMOUNT;

const LONG_AGO: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

#[tokio::test]
async fn transferred_money_is_summed_by_hour_and_payee() {
    let test = TestLedger::new().await;
    let (first, second, third) = (
        test.settled(1).await,
        test.settled(2).await,
        test.settled(3).await,
    );
    test.accepted(4).await;
    for (id, at) in [
        (first.id, "2026-01-01 10:00:00+00"),
        (second.id, "2026-01-01 10:59:59+00"),
        (third.id, "2026-01-01 11:00:00+00"),
    ] {
        test.set(id, &format!("created_at = '{at}'")).await;
    }
    let bars = test.bars(None, LONG_AGO, 3600).await.unwrap();
    let shown: Vec<_> = bars.iter().map(|bar| (bar.at, bar.payments)).collect();
    let hour = datetime!(2026-01-01 10:00 UTC);
    assert_eq!(shown, [(hour, 2), (hour + Duration::HOUR, 1)]);
    assert_eq!(bars[0].amount, (2 * AMOUNT).to_string());
    let later = test.bars(None, hour + Duration::HOUR, 60).await.unwrap();
    assert_eq!(later.len(), 1);

    let earned = test.earned(LONG_AGO, 10).await.unwrap();
    assert_eq!((earned.len(), earned[0].payments), (1, 3));
    let payee = earned[0].payee.parse().unwrap();
    let own = test.bars(Some(payee), LONG_AGO, 86_400).await.unwrap();
    assert_eq!((own.len(), own[0].payments), (1, 3));
    let others = test.bars(Some(Address::ZERO), LONG_AGO, 60).await.unwrap();
    assert_eq!(others, []);
}

#[tokio::test]
async fn settle_times_are_those_of_granted_payments() {
    let test = TestLedger::new().await;
    assert_eq!(test.settle_times(10).await.unwrap(), None);
    test.settled(1).await;
    test.run(
        "insert into grants (payment_id, process_id, request_id, caller, granted_at)
        select p.id, o.id, 'r', 'c', p.created_at + interval '1.5 seconds' from payments p, (select id from processes limit 1) o",
    )
    .await;
    let times = test.settle_times(10).await.unwrap().unwrap();
    assert_eq!(
        (times.payments, times.median_ms, times.slow_ms),
        (1, 1500, 1500)
    );
}

#[tokio::test]
async fn refusals_and_costs_are_counted_since_a_time() {
    let test = TestLedger::new().await;
    let at = datetime!(2026-01-02 00:00 UTC);
    for (code, minutes) in [("a", -1), ("a", 1), ("b", 2), ("b", 3)] {
        let at = at + Duration::minutes(minutes);
        let id = first_id(at);
        test.run(&format!(
            "insert into refusals (id, at, request_id, endpoint, code, message, caller)
            values ('{id}', to_timestamp({}), 'r', 'settle', '{code}', 'm', 'anonymous')",
            at.unix_timestamp()
        ))
        .await;
    }
    let codes = test.refusals_by_code(at, 10).await.unwrap();
    let codes: Vec<_> = codes
        .iter()
        .map(|one| (one.code.as_str(), one.refusals))
        .collect();
    assert_eq!(codes, [("b", 2), ("a", 1)]);

    let payment = test.accepted(1).await;
    let (lane, lease) = test.owned_lane().await;
    test.signed(lease, 0, &[&payment]).await;
    test.run("update transactions set spent_wei = 7").await;
    let costs = test.signer_costs(LONG_AGO).await.unwrap();
    let cost = SignerCost {
        network: lane.network,
        signer: lane.signer,
        transactions: 1,
        wei: U256::from(7),
    };
    assert_eq!(costs, [cost]);
    let none = test.signer_costs(datetime!(2200-01-01 00:00 UTC));
    assert_eq!(none.await.unwrap(), []);
}
