//! The RPC is down: an outage is not a refusal, nothing is lost, and nothing secret is said about it.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;
use x402d::embedded::CHAIN_ID;

use crate::support::{Chain, Fault, Purchase, SECRET, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x0f);

/// Answers within seconds, and logs all that it would ever log.
fn talkative() -> Setup {
    Setup::default()
        .with("X402D_SETTLE_WAIT", "3")
        .with("X402D_LOG", "x402d=trace,warn")
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_rpc_is_down_nothing_is_called_invalid_and_when_it_returns_the_payment_settles() {
    let mut world = talkative().build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 600);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.settling(&purchase.body());
    world.has_sent(1).await;
    world.proxy.all(Fault::Unavailable);
    let pending = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(pending.reason(), "settlement_pending");
    is_an_outage_for(&world, &payer).await;
    let readiness = unready(&world).await;
    let parts = readiness["parts"].as_array().unwrap();
    let part = |name: &str| parts.iter().find(|part| part["name"] == name).unwrap();
    assert_eq!(part(&format!("eip155:{CHAIN_ID}"))["ready"], false);
    assert_eq!(part("ledger")["ready"], true);

    // What was accepted before is known without the chain.
    assert!(world.facilitator.verify(&purchase.body()).await.is_valid());
    world.mine_on().await;
    world.proxy.all(Fault::None);
    let settled = eventually("success", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction(), pending.transaction());
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(answer.reason(), "duplicate_settlement");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(600));
    world.facilitator.wait_until_ready().await;
    says_nothing_secret(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rpc_that_talks_nonsense_or_hangs_is_an_outage() {
    let world = talkative().build().await;
    let payer = world.payer().await;
    for fault in [Fault::Nonsense, Fault::Error("boom"), Fault::RequestLost] {
        world.proxy.all(fault);
        is_an_outage_for(&world, &payer).await;
    }
    world.proxy.all(Fault::None);
    let purchase = Purchase::new(&payer, PAYEE, 601);
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(
        world.transactions(1).await,
        1,
        "the refused ones left nothing"
    );
    says_nothing_secret(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_starts_while_the_rpc_is_down_waits_for_it_and_completes_what_was_in_flight()
{
    let mut world = talkative().build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 602);
    world.chain.automine(false).await;
    let waiting = world.facilitator.settling(&purchase.body());
    world.has_sent(1).await;
    world.facilitator.kill();
    drop(waiting);
    world.proxy.all(Fault::Unavailable);
    world.facilitator.spawn(None).await;
    assert_eq!(world.facilitator.get("/healthz").await.status, 200);
    assert_eq!(world.facilitator.get("/readyz").await.status, 503);
    is_an_outage_for(&world, &payer).await;
    let pending = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");

    world.mine_on().await;
    world.proxy.all(Fault::None);
    world.facilitator.wait_until_ready().await;
    let settled = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
    says_nothing_secret(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_28_without_the_ledger_nothing_is_accepted_and_what_was_accepted_is_not_lost() {
    let setup = Setup {
        lined: true,
        ..talkative()
    };
    let world = setup.build().await;
    let line = world.line.as_ref().unwrap();
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 628);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.settling(&purchase.body());
    world.has_sent(1).await;
    line.down(true);
    is_an_outage_for(&world, &payer).await;
    let unsure = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(!unsure.succeeded() && unsure.status == 503, "{unsure:?}");
    // It is mined while nothing can be written, for long enough to look like somebody else's.
    world.mine_on().await;
    let receipts = "eth_getTransactionReceipt";
    let asked = world.proxy.calls(receipts);
    eventually("looks in vain", Duration::from_mins(1), async || {
        (world.proxy.calls(receipts) > asked + 2).then_some(())
    })
    .await;
    line.down(false);
    let settled = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction().len(), 66);
    let signers = world.facilitator.get("/signers").await.body;
    assert_eq!(signers["signers"][0]["stoppedReason"], Value::Null);
    assert_eq!(
        world.transactions(1).await,
        1,
        "what was refused left nothing"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(628));
    says_nothing_secret(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_43_receipts_that_cannot_be_read_leave_a_payment_pending_and_then_settle_it() {
    let world = talkative().build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 643).body();
    for method in ["eth_getBlockReceipts", "eth_getTransactionReceipt"] {
        world.proxy.on(method, Fault::Unavailable);
    }
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    assert_eq!(
        world.chain.usdc(PAYEE).await,
        U256::from(643),
        "the chain has it"
    );
    for method in ["eth_getBlockReceipts", "eth_getTransactionReceipt"] {
        world.proxy.on(method, Fault::None);
    }
    let settled = eventually("success", Duration::from_secs(20), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
}

/// The ledger has committed, and its answer is lost: whether it has is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_43_a_result_whose_commit_was_not_heard_is_recorded_once() {
    let setup = Setup {
        lined: true,
        ..talkative()
    };
    let world = setup.build().await;
    let line = world.line.as_ref().unwrap();
    let purchase = Purchase::new(&world.payer().await, PAYEE, 644);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.settling(&purchase.body());
    world.has_sent(1).await;
    line.swallow(true);
    world.mine_on().await;
    let unsure = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(!unsure.succeeded(), "{unsure:?}");
    line.swallow(false);
    let settled = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    let row = world.facilitator.payment(&settled).await;
    let settlements = row["events"].as_array().unwrap();
    let settlements = settlements.iter().filter(|event| event["to"] == "settled");
    assert_eq!(settlements.count(), 1, "{row}");
    assert_eq!(world.transactions(1).await, 1);
}

/// A new payment can be judged by nobody now.
async fn is_an_outage_for(world: &World, payer: &PrivateKeySigner) {
    let body = Purchase::new(payer, PAYEE, 1).body();
    let verdict = world.facilitator.verify(&body).await;
    assert_eq!(
        (verdict.status, verdict.reason()),
        (503, "unexpected_verify_error")
    );
    assert!(!verdict.is_valid());
    let answer = world.facilitator.settle(&body).await;
    assert_eq!(
        (answer.status, answer.reason()),
        (503, "unexpected_settle_error")
    );
    assert_eq!(
        (answer.succeeded(), answer.transaction()),
        (false, String::new())
    );
}

async fn unready(world: &World) -> Value {
    eventually("/readyz to tell", Duration::from_secs(20), async || {
        let answer = world.facilitator.get("/readyz").await;
        (answer.status == 503).then_some(answer.body)
    })
    .await
}

fn says_nothing_secret(world: &World, purchases: &[&Purchase]) {
    let said = (world.facilitator.log() + &world.facilitator.answers()).to_lowercase();
    assert!(
        said.contains("settlement") && said.len() > 1_000,
        "there is something to look at"
    );
    let mut secrets = vec![
        SECRET.to_owned(),
        format!(":{}/", world.proxy.port()),
        format!("127.0.0.1:{}", world.proxy.port()),
    ];
    secrets.extend(
        Chain::signers(1)
            .iter()
            .map(|signer| signer.key[2..].to_owned()),
    );
    secrets.extend(purchases.iter().map(|purchase| {
        let signature = purchase.own_signature().to_string();
        signature[2..].to_owned()
    }));
    for secret in secrets {
        assert!(!said.contains(&secret.to_lowercase()), "it said {secret}");
    }
}
