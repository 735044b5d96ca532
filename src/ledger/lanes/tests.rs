use super::*;
use crate::ledger::testing::{LANE, NETWORK, OTHER_LANE, TestLedger, own};

/// Ends the leases of lanes, so many seconds ago.
async fn end_leases(test: &TestLedger, seconds: u32) {
    let end = "update lanes set lease_until = now() - interval";
    test.run(&format!("{end} '{seconds} seconds'")).await;
}

async fn serve(ledger: &Ledger) {
    ledger.renew_process(&[NETWORK]).await.unwrap();
}

async fn owner(test: &TestLedger, lane: LaneKey) -> Option<ProcessId> {
    let lanes = test.lanes().await.unwrap();
    lanes
        .into_iter()
        .find(|view| view.lane == lane)
        .unwrap()
        .owner
}

#[tokio::test]
async fn lane_is_owned_by_one_process_until_its_lease_ends() {
    let test = TestLedger::new().await;
    assert_eq!(test.claim_lane(LANE, 1).await.unwrap(), Claim::Unknown);
    let (_, lease) = test.owned_lane().await;
    let other = test.another_process().await;
    assert_eq!(other.claim_lane(LANE, 1).await.unwrap(), Claim::Taken);
    assert_eq!(owner(&test, LANE).await, Some(test.process()));
    // Its own lane can be claimed again, which counts as another owner.
    assert_eq!(own(&test, LANE).await.epoch, lease.epoch + 1);
    end_leases(&test, 1).await;
    assert_eq!(own(&other, LANE).await.epoch, lease.epoch + 2);
    assert_eq!(test.claim_lane(LANE, 1).await.unwrap(), Claim::Taken);
}

#[tokio::test]
async fn process_claims_its_share_until_a_lane_has_waited() {
    let test = TestLedger::new().await;
    serve(&test).await;
    serve(&test.another_process().await).await;
    test.owned_lane().await;
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    // Two processes serve the network, so one of the two lanes is its share.
    assert_eq!(test.claim_lane(OTHER_LANE, 2).await.unwrap(), Claim::Taken);
    let wait = "update lanes set lease_until = now() - interval '5 seconds' where owner is null";
    test.run(wait).await;
    let claim = test.claim_lane(OTHER_LANE, 2).await.unwrap();
    assert!(matches!(claim, Claim::Owned(_)), "{claim:?}");
}

#[tokio::test]
async fn lane_is_opened_once() {
    let test = TestLedger::new().await;
    test.open_lane(LANE, 7).await.unwrap();
    test.open_lane(LANE, 3).await.unwrap();
    assert_eq!(own(&test, LANE).await.next_nonce, 7);
    test.open_lane(LANE, 9).await.unwrap();
    assert_eq!(owner(&test, LANE).await, Some(test.process()));
    assert!(test.is_signer(LANE).await.unwrap());
    assert!(!test.is_signer(OTHER_LANE).await.unwrap());
}

#[tokio::test]
async fn lost_lease_is_not_renewed() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let other = test.another_process().await;
    let one = (1, false);
    assert_eq!(
        test.renew_lane(lane, lease, one).await.unwrap(),
        Renewal::Kept
    );
    assert_eq!(
        other.renew_lane(lane, lease, one).await.unwrap(),
        Renewal::Changed
    );
    end_leases(&test, 1).await;
    own(&other, lane).await;
    assert_eq!(
        test.renew_lane(lane, lease, one).await.unwrap(),
        Renewal::Changed
    );
    end_leases(&test, 1).await;
    own(&test, lane).await;
    // The lease of an earlier epoch of its own.
    assert_eq!(
        test.renew_lane(lane, lease, one).await.unwrap(),
        Renewal::Changed
    );
}

#[tokio::test]
async fn renewal_tells_what_has_changed() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    test.run("update lanes set reopened = 2").await;
    let renewed = test.renew_lane(lane, lease, (1, false)).await.unwrap();
    assert_eq!(renewed, Renewal::Reopened(2));
    // Without blocks it keeps the lane only while no other process serves the network.
    let blind = test.renew_lane(lane, lease, (1, true)).await.unwrap();
    assert_eq!(blind, Renewal::Reopened(2));
    serve(&test.another_process().await).await;
    let blind = test.renew_lane(lane, lease, (1, true)).await.unwrap();
    assert_eq!(blind, Renewal::Surplus);
    test.run("update lanes set stopped_reason = 'a test'").await;
    let stopped = test.renew_lane(lane, lease, (1, false)).await.unwrap();
    assert_eq!(stopped, Renewal::Changed);
}

#[tokio::test]
async fn lane_is_released_by_its_owner_alone() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let other = test.another_process().await;
    other.release_lane(lane, lease).await.unwrap();
    let mut earlier = lease;
    earlier.epoch -= 1;
    test.release_lane(lane, earlier).await.unwrap();
    assert_eq!(owner(&test, lane).await, Some(test.process()));
    test.release_lane(lane, lease).await.unwrap();
    assert_eq!(owner(&test, lane).await, None);
    own(&other, lane).await;
}

#[tokio::test]
async fn lane_is_stopped_by_its_owner_alone() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    test.open_lane(OTHER_LANE, 0).await.unwrap();
    let other = test.another_process().await;
    assert!(!other.stop_lane(lane, lease, 9, "theirs").await.unwrap());
    let mut earlier = lease;
    earlier.epoch -= 1;
    assert!(!test.stop_lane(lane, earlier, 9, "earlier").await.unwrap());
    assert_eq!(test.stopped_lanes(NETWORK).await.unwrap(), []);
    assert!(test.stop_lane(lane, lease, 5, "mine").await.unwrap());
    let stopped = [StoppedLane {
        signer: lane.signer,
        reason: "mine".to_owned(),
        is_draining: false,
        is_paused: false,
    }];
    assert_eq!(test.stopped_lanes(NETWORK).await.unwrap(), stopped);
    // A nonce is never used twice.
    assert!(test.stop_lane(lane, lease, 2, "mine").await.unwrap());
    let lease = own(&test, lane).await;
    assert_eq!((lease.next_nonce, lease.stopped), (5, true));
}

#[tokio::test]
async fn unreadable_lane_is_left_out() {
    let test = TestLedger::new().await;
    let (lane, lease) = test.owned_lane().await;
    let payment = test.accepted(1).await;
    test.signed(lease, 0, &[&payment]).await;
    let [unreadable, short] = [0x55_u8, 0x66].map(|byte| LaneKey {
        network: NETWORK,
        signer: Address::repeat_byte(byte),
    });
    test.open_lane(unreadable, 0).await.unwrap();
    test.open_lane(short, 0).await.unwrap();
    test.run(&format!(
        "update lanes set network = 'eip155:99999999999999999999999' where signer = '\\x{:x}';
        alter table lanes drop constraint lanes_signer_has_20_bytes;
        insert into transactions (id, network, signer, nonce, epoch, kind, state)
        values (gen_random_uuid(), 'eip155:84532', '\\x66', 0, 1, 'direct', 'signed');
        update lanes set signer = '\\x66', stopped_reason = 'a test' where signer = '\\x{:x}'",
        unreadable.signer, short.signer,
    ))
    .await;
    let views = test.lanes().await.unwrap();
    let lanes: Vec<_> = views
        .iter()
        .map(|view| (view.lane, view.open, view.payments))
        .collect();
    assert_eq!(lanes, [(lane, 1, 1)]);
    let open = test.unconfigured(NETWORK, &[]).await.unwrap();
    assert_eq!(open, [(lane.signer, 1)]);
    assert_eq!(
        test.unconfigured(NETWORK, &[lane.signer]).await.unwrap(),
        []
    );
    assert!(test.stop_lane(lane, lease, 0, "a test").await.unwrap());
    assert_eq!(test.stopped_lanes(NETWORK).await.unwrap().len(), 1);
}
