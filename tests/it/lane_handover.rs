//! Replicas share the work: lanes are spread, handed over by a process without RPC, and settle payments accepted by other processes.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{Answer, Facilitator, Fault, Proxy, Purchase, Setup, eventually};

const PAYEE: Address = Address::repeat_byte(0x80);

async fn lanes_of(facilitator: &Facilitator) -> usize {
    let signers = facilitator.get("/signers").await.body;
    let signers = signers["signers"].as_array().unwrap().clone();
    signers
        .iter()
        .filter(|one| one["ownedHere"] == true)
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn process_without_rpc_hands_its_lane_over() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25").shortened();
    let world = setup.build().await;
    let good = Proxy::before(world.chain.url()).await;
    let mut replica = world.unstarted_replica(&[("X402D_RPC_URL", good.url())]);
    replica.restart(None).await;
    assert_eq!(lanes_of(&world.facilitator).await, 1);
    let payer = world.payer().await;
    world.proxy.all(Fault::RequestLost);
    let answer = replica
        .settle(&Purchase::new(&payer, PAYEE, 1).body())
        .await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(lanes_of(&replica).await, 1);
}

/// Time at which a payment entered a state, by the database's clock.
fn entered_at(row: &Value, state: &str) -> OffsetDateTime {
    let events = row["events"].as_array().unwrap();
    let event = events.iter().find(|event| event["to"] == state).unwrap();
    OffsetDateTime::parse(event["at"].as_str().unwrap(), &Rfc3339).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_accepted_without_a_lane_is_claimed_at_once() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25").shortened();
    let world = setup.build().await;
    let replica = world.replica().await;
    assert_eq!(lanes_of(&replica).await, 0);
    let payer = world.payer().await;
    let mut shortest = Duration::MAX;
    for amount in 1..=6 {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        let answer = replica.settle(&body).await;
        assert!(answer.succeeded(), "{answer:?}");
        let row = replica.payment(&answer).await;
        let waited = entered_at(&row, "inflight") - entered_at(&row, "queued");
        shortest = shortest.min(waited.unsigned_abs());
    }
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
    let bodies = (0..250).map(|number: u64| Purchase::new(&payer, PAYEE, 10 + number).body());
    let answers = replica.settle_all(bodies.collect()).await;
    let other = answers.iter().find(|answer| !answer.succeeded());
    assert!(other.is_none(), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_are_spread_over_live_processes() {
    let setup = Setup {
        signers: 4,
        ..Setup::default()
    };
    let world = setup
        .with("X402D_SETTLE_WAIT", "25")
        .shortened()
        .build()
        .await;
    eventually("all lanes", Duration::from_secs(20), async || {
        (lanes_of(&world.facilitator).await == 4).then_some(())
    })
    .await;
    let mut replica = world.replica().await;
    eventually("two lanes each", Duration::from_secs(30), async || {
        let lanes = (lanes_of(&world.facilitator).await, lanes_of(&replica).await);
        (lanes == (2, 2)).then_some(())
    })
    .await;
    let payer = world.payer().await;
    let bodies = (0..40).map(|number: u64| Purchase::new(&payer, PAYEE, 1 + number).body());
    let bodies: Vec<_> = bodies.collect();
    let (here, there) = tokio::join!(
        world.facilitator.settle_all(bodies[..20].to_vec()),
        replica.settle_all(bodies[20..].to_vec())
    );
    let answers = [here, there].concat();
    assert!(answers.iter().all(Answer::succeeded), "{answers:?}");
    replica.kill();
    eventually("all lanes again", Duration::from_secs(30), async || {
        (lanes_of(&world.facilitator).await == 4).then_some(())
    })
    .await;
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(820));
}
