use super::*;
use crate::ledger::testing::{LANE, NETWORK, OTHER_LANE, TestLedger, own};

#[tokio::test]
async fn process_begins_once() {
    let test = TestLedger::new().await;
    let again = test.begin_process().await.unwrap_err();
    assert_eq!(again.constraint(), Some("processes_pkey"));
}

#[tokio::test]
async fn only_the_own_lease_is_renewed() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    test.run("update processes set lease_until = now() - interval '1 second'")
        .await;
    test.renew_process(&[NETWORK]).await.unwrap();
    let alive = "select string_agg(id || ' ' || serves::text, ',') from processes where lease_until > now()";
    let renewed = format!("{} {{{NETWORK}}}", test.process().0);
    assert_eq!(test.value(alive).await, renewed);
    // Without a row nothing is renewed, and the clock is not set.
    test.run(&format!(
        "delete from processes where id = '{}'",
        other.process().0
    ))
    .await;
    other.renew_process(&[NETWORK]).await.unwrap();
    assert_eq!(test.value("select count(*) from processes").await, "1");
}

#[tokio::test]
async fn ended_process_releases_its_own_lanes() {
    let test = TestLedger::new().await;
    let other = test.another_process().await;
    test.owned_lane().await;
    other.open_lane(OTHER_LANE, 0).await.unwrap();
    own(&other, OTHER_LANE).await;
    test.end_process().await.unwrap();
    let lanes = test.lanes().await.unwrap();
    let owners: Vec<_> = lanes.iter().map(|view| (view.lane, view.owner)).collect();
    assert_eq!(owners, [(LANE, None), (OTHER_LANE, Some(other.process()))]);
    let ended = "select string_agg(id::text, ',') from processes where ended_at is not null";
    assert_eq!(test.value(ended).await, test.process().0.to_string());
    own(&other, LANE).await;
}

#[tokio::test]
async fn network_is_the_chain_of_its_first_genesis_block() {
    let test = TestLedger::new().await;
    let (genesis, another) = (B256::repeat_byte(1), B256::repeat_byte(2));
    test.check_genesis(NETWORK, genesis).await.unwrap();
    let refused = test.check_genesis(NETWORK, another).await.unwrap_err();
    assert!(
        matches!(refused, LedgerError::OtherChain { .. }),
        "{refused:?}"
    );
    test.check_genesis(NETWORK, genesis).await.unwrap();
    let elsewhere = Network::from_chain_id(1);
    test.check_genesis(elsewhere, another).await.unwrap();
}

#[tokio::test]
async fn proxies_are_recorded_for_a_known_network() {
    let test = TestLedger::new().await;
    let found = Proxies {
        exact: true,
        upto: false,
    };
    test.note_proxies(NETWORK, found).await.unwrap();
    assert_eq!(test.proxies(NETWORK).await.unwrap(), Proxies::default());
    assert_eq!(test.value("select count(*) from networks").await, "0");

    let elsewhere = Network::from_chain_id(1);
    for network in [NETWORK, elsewhere] {
        test.check_genesis(network, B256::ZERO).await.unwrap();
    }
    test.note_proxies(NETWORK, found).await.unwrap();
    assert_eq!(test.proxies(NETWORK).await.unwrap(), found);
    assert_eq!(test.proxies(elsewhere).await.unwrap(), Proxies::default());
    // What is recorded already is not written again.
    let written = "select xmin from networks where exact_proxy";
    let before = test.value(written).await;
    test.note_proxies(NETWORK, found).await.unwrap();
    assert_eq!(test.value(written).await, before);
}
