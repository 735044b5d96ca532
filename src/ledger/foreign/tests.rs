use super::*;
use crate::ledger::testing::{
    LANE, NETWORK, OTHER_LANE, TestLedger, attempt, location, mined, own, transaction,
};
use crate::ledger::{Funding, Recorded};
use crate::payment::ApprovalLimits;

fn used(nonce: u64) -> [ForeignNonce; 1] {
    [ForeignNonce {
        nonce,
        transaction: None,
    }]
}

async fn uses(test: &TestLedger) -> String {
    test.value("select count(*) from foreign_nonces").await
}

#[tokio::test]
async fn process_without_the_lane_gives_up_no_nonces() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    test.signed(lease, 0, &[&payment]).await;
    let mut earlier = lease;
    earlier.epoch -= 1;
    let lost = test.lose_nonces(lane, earlier, &used(0), 1).await.unwrap();
    assert_eq!(lost, None);
    let other = test.another_process().await;
    let lost = other.lose_nonces(lane, lease, &used(0), 1).await.unwrap();
    assert_eq!(lost, None);
    assert_eq!(uses(&test).await, "0");
    assert_eq!(test.state(payment.id).await, "inflight");
}

#[tokio::test]
async fn payments_of_lost_nonces_are_queued_again_and_gas_money_can_be_sent_again() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let (payment, funded) = (test.accepted(1).await, test.accepted(2).await);
    let other = test.accepted(3).await;
    let lost = test.signed(lease, 0, &[&payment]).await;
    let funding = Funding {
        payment: funded.id,
        scheme: funded.terms.method.scheme(),
        payer: funded.terms.from,
        caller: funded.caller,
        wei: alloy::primitives::U256::from(5),
    };
    let limits = ApprovalLimits {
        wei_per_payer: 10,
        wei_per_day: 10,
    };
    let attempt = attempt(1);
    let new = transaction(lease, 1, &attempt, &[]);
    let recorded = test.record_funding(&new, funding, limits).await.unwrap();
    assert!(matches!(recorded, Some(Recorded::Written(..))));
    // Not among the lost nonces.
    test.signed(lease, 2, &[&other]).await;

    let foreign = [used(0), used(1)].concat();
    let result = test.lose_nonces(lane, lease, &foreign, 2).await.unwrap();
    let result = result.unwrap();
    assert_eq!(result.payments, [payment.id]);
    assert_eq!((result.next_nonce, result.times), (3, 1));
    assert_eq!(result.stopped, None);
    assert_eq!(test.state(payment.id).await, "queued");
    assert_eq!(test.state(other.id).await, "inflight");
    assert_eq!(test.value("select count(*) from fundings").await, "0");
    let state = format!("select state from transactions where id = '{lost}'");
    assert_eq!(test.value(&state).await, "lost");
    // Repeated, it changes nothing and counts nothing.
    let result = test.lose_nonces(lane, lease, &foreign, 2).await.unwrap();
    let result = result.unwrap();
    assert_eq!((result.payments, result.times), (vec![], 1));
    assert_eq!(uses(&test).await, "2");
}

#[tokio::test]
async fn mined_transaction_and_settled_payment_are_not_lost() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let (first, second) = (test.accepted(1).await, test.accepted(2).await);
    let id = test.signed(lease, 0, &[&first]).await;
    test.record_mined(&mined(id, 0, 1, &[first.id]))
        .await
        .unwrap();
    test.signed(lease, 1, &[&second]).await;
    // A foreign transaction has settled it; its row in our transaction is open.
    test.set(
        second.id,
        &format!(
            "state = 'settled', transaction_hash = '\\x{:x}', log_index = 1, block_number = 102, block_hash = '\\x{:x}', block_time = now()",
            location(2).transaction,
            location(2).block_hash
        ),
    )
    .await;
    let foreign = [used(0), used(1)].concat();
    let result = test.lose_nonces(lane, lease, &foreign, 2).await.unwrap();
    assert_eq!(result.unwrap().payments, []);
    assert_eq!(test.state(first.id).await, "mined");
    assert_eq!(test.state(second.id).await, "settled");
    let states = "select string_agg(state, ' ' order by nonce) from transactions";
    assert_eq!(test.value(states).await, "mined lost");
}

#[tokio::test]
async fn third_foreign_use_within_an_hour_stops_the_lane() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    let lose = async |nonce| {
        let lost = test.lose_nonces(lane, lease, &used(nonce), nonce + 1).await;
        let lost = lost.unwrap().unwrap();
        (lost.times, lost.stopped.is_some())
    };
    assert_eq!(lose(0).await, (1, false));
    assert_eq!(lose(1).await, (1, false), "found together");
    let earlier = "update foreign_nonces set found_at = found_at - interval";
    test.run(&format!("{earlier} '70 minutes'")).await;
    assert_eq!(lose(2).await, (1, false), "the others are too old");
    test.run(&format!("{earlier} '5 minutes'")).await;
    assert_eq!(lose(3).await, (2, false));
    test.run(&format!("{earlier} '5 minutes'")).await;
    assert_eq!(lose(4).await, (3, true));
    let stopped = test.stopped_lanes(NETWORK).await.unwrap();
    let signers: Vec<_> = stopped.iter().map(|stopped| stopped.signer).collect();
    assert_eq!(signers, [LANE.signer]);
    assert!(
        stopped[0].reason.contains("nonce 4 of this signer"),
        "{stopped:?}"
    );
    // The operator's reason stays.
    test.run("update lanes set stopped_reason = 'mine'").await;
    let lost = test.lose_nonces(lane, lease, &used(5), 0).await.unwrap();
    let lost = lost.unwrap();
    assert_eq!(
        (lost.stopped.as_deref(), lost.next_nonce),
        (Some("mine"), 5)
    );
    assert_eq!(own(&test, lane).await.next_nonce, 5);
}
