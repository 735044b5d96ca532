use super::*;
use crate::ledger::testing::{
    LANE, NETWORK, OTHER_LANE, TestLedger, attempt, own, permit2_candidate, transaction, verified,
};
use crate::ledger::{Recorded, Renewal};
use crate::payment::fixture;
use crate::protocol::Scheme;

async fn lane_view(test: &TestLedger) -> (Option<bool>, Option<String>) {
    let lanes = test.lanes().await.unwrap();
    let view = lanes.into_iter().find(|view| view.lane == LANE).unwrap();
    (view.pause.map(|pause| pause.draining), view.stopped_reason)
}

#[tokio::test]
async fn paused_lane_writes_nothing_from_the_pause_on() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    assert!(!test.pause_lane(OTHER_LANE, false).await.unwrap());
    assert!(test.pause_lane(lane, false).await.unwrap());
    assert!(!test.pause_lane(lane, false).await.unwrap());
    assert_eq!(lane_view(&test).await, (Some(false), None));
    let attempt = attempt(0);
    let payments = [&payment];
    let late = transaction(lease, 0, &attempt, &payments);
    assert_eq!(test.record(&late).await.unwrap(), Recorded::LaneLost);
    let renewed = test.renew_lane(lane, lease, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Changed);
    let paused = own(&test, lane).await;
    assert!(paused.stopped);
    let renewed = test.renew_lane(lane, paused, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Kept);
    let stopped = test.stopped_lanes(NETWORK).await.unwrap();
    assert!(
        stopped[0].reason.contains("paused by the operator"),
        "{stopped:?}"
    );

    assert!(test.resume_lane(lane, None).await.unwrap());
    assert!(!test.resume_lane(lane, None).await.unwrap());
    assert_eq!(test.stopped_lanes(NETWORK).await.unwrap(), []);
    let renewed = test.renew_lane(lane, paused, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Changed);
    let resumed = own(&test, lane).await;
    assert!(!resumed.stopped);
    test.signed(resumed, 0, &[&payment]).await;
}

#[tokio::test]
async fn draining_lane_keeps_its_owner_and_takes_no_new_payments() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    assert!(test.pause_lane(lane, true).await.unwrap());
    assert!(!test.pause_lane(lane, true).await.unwrap());
    assert_eq!(lane_view(&test).await, (Some(true), None));
    assert_eq!(test.stopped_lanes(NETWORK).await.unwrap().len(), 1);
    let renewed = test.renew_lane(lane, lease, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Kept);
    test.signed(lease, 0, &[&payment]).await;
    assert!(test.pause_lane(lane, false).await.unwrap());
    let renewed = test.renew_lane(lane, lease, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Changed);
    let drain = "update lanes set paused_at = null, draining = true";
    let refused = test.try_run(drain).await.unwrap_err();
    assert!(
        refused.to_string().contains("lanes_drain_is_a_pause"),
        "{refused}"
    );
}

#[tokio::test]
async fn stop_is_ended_for_the_reason_that_was_seen() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    assert!(!test.resume_lane(lane, None).await.unwrap());
    assert!(test.stop_lane(lane, lease, 3, "mine").await.unwrap());
    assert!(!test.resume_lane(lane, None).await.unwrap());
    assert!(!test.resume_lane(lane, Some("theirs")).await.unwrap());
    // A pause does not hide why the lane was stopped.
    assert!(test.pause_lane(lane, false).await.unwrap());
    assert_eq!(
        lane_view(&test).await,
        (Some(false), Some("mine".to_owned()))
    );
    assert!(test.resume_lane(lane, Some("mine")).await.unwrap());
    assert_eq!(lane_view(&test).await, (None, None));
}

#[tokio::test]
async fn payments_that_name_a_signer_wait_for_its_lane() {
    let test = TestLedger::new().await;
    let (lane, _) = test.owned_lane().await;
    let waiting = |naming, all, others_work| Waiting {
        naming,
        all,
        others_work,
    };
    assert_eq!(test.waiting_for(lane).await.unwrap(), waiting(0, 0, false));
    test.accepted(1).await;
    let metered = verified(permit2_candidate(Scheme::Upto, 2), &fixture::facts());
    test.accept(metered).await.unwrap();
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    assert_eq!(test.waiting_for(lane).await.unwrap(), waiting(1, 2, false));
    assert_eq!(
        test.waiting_for(OTHER_LANE).await.unwrap(),
        waiting(0, 1, true)
    );
    own(&test, OTHER_LANE).await;
    assert_eq!(test.waiting_for(lane).await.unwrap(), waiting(1, 2, true));
    test.pause_lane(OTHER_LANE, true).await.unwrap();
    assert_eq!(test.waiting_for(lane).await.unwrap(), waiting(1, 2, false));
}
