//! Replicas that share the work: lanes are spread, given up by who is blind, and fed with what others accepted.

use std::time::Duration;

use alloy::primitives::{Address, U256};

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
async fn a_process_whose_rpc_is_silent_gives_its_lane_to_one_that_sees_the_chain() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25");
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

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_without_a_lane_accepts_is_settled_as_soon_as_anything_else() {
    let setup = Setup {
        block_time_s: Some(1),
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "8").build().await;
    let replica = world.replica().await;
    assert_eq!(lanes_of(&replica).await, 0);
    let payer = world.payer().await;
    let bodies = (0..600).map(|number: u64| Purchase::new(&payer, PAYEE, 1 + number).body());
    let answers = replica.settle_at_once(bodies.collect()).await;
    let settled = answers.iter().filter(|answer| answer.succeeded()).count();
    let other = answers.iter().find(|answer| !answer.succeeded());
    assert_eq!(settled, 600, "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_are_spread_over_the_processes_that_live() {
    let setup = Setup {
        signers: 4,
        ..Setup::default()
    };
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    assert_eq!(lanes_of(&world.facilitator).await, 4);
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
        world.facilitator.settle_at_once(bodies[..20].to_vec()),
        replica.settle_at_once(bodies[20..].to_vec())
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
