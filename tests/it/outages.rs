//! RPC outages: an outage is not a rejection, nothing is lost, and no secret is shown.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;
use x402d::embedded::CHAIN_ID;

use crate::support::{Chain, Fault, Purchase, SECRET, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x0f);

/// Short waits, and the most verbose log level.
fn verbose_setup() -> Setup {
    Setup::default()
        .with("X402D_SETTLE_WAIT", "3")
        .with("X402D_LOG", "x402d=trace,warn")
}

#[tokio::test(flavor = "multi_thread")]
async fn rpc_outage_is_no_rejection_and_payment_settles_later() {
    let mut world = verbose_setup().build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 600);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    world.proxy.all(Fault::Unavailable);
    let pending = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(pending.reason(), "settlement_pending");
    assert_outage_for(&world, &payer).await;
    let readiness = unready_body(&world).await;
    let parts = readiness["parts"].as_array().unwrap();
    let part = |name: &str| parts.iter().find(|part| part["name"] == name).unwrap();
    assert_eq!(part(&format!("eip155:{CHAIN_ID}"))["ready"], false);
    assert_eq!(part("ledger")["ready"], true);

    // Payments accepted before are known without the chain.
    assert!(world.facilitator.verify(&purchase.body()).await.is_valid());
    world.resume_mining().await;
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
    assert_no_secrets(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_or_invalid_rpc_is_an_outage() {
    let world = verbose_setup().build().await;
    let payer = world.payer().await;
    for fault in [Fault::NotJson, Fault::Error("boom"), Fault::RequestLost] {
        world.proxy.all(fault);
        assert_outage_for(&world, &payer).await;
    }
    world.proxy.all(Fault::None);
    let purchase = Purchase::new(&payer, PAYEE, 601);
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(
        world.transactions(1).await,
        1,
        "refused payments leave no row"
    );
    assert_no_secrets(&world, &[&purchase]);
}

/// Also the libraries' own log lines.
#[tokio::test(flavor = "multi_thread")]
async fn no_log_level_shows_a_secret() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "3");
    let world = setup.with("X402D_LOG", "trace").build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 603);
    let answer = world.facilitator.settle(&purchase.body()).await;
    assert!(answer.succeeded(), "{answer:?}");
    world.proxy.all(Fault::Unavailable);
    assert_outage_for(&world, &payer).await;
    assert!(world.facilitator.log().contains("DEBUG"));
    assert_no_secrets(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn start_without_rpc_waits_and_completes_inflight_payments() {
    let mut world = verbose_setup().build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 602);
    world.chain.automine(false).await;
    let waiting = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    world.facilitator.kill();
    drop(waiting);
    world.proxy.all(Fault::Unavailable);
    world.facilitator.spawn(None).await;
    assert_eq!(world.facilitator.get("/healthz").await.status, 200);
    assert_eq!(world.facilitator.get("/readyz").await.status, 503);
    assert_outage_for(&world, &payer).await;
    let pending = world.facilitator.settle(&purchase.body()).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");

    world.resume_mining().await;
    world.proxy.all(Fault::None);
    world.facilitator.wait_until_ready().await;
    let settled = eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(&purchase.body()).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_eq!(settled.transaction(), pending.transaction());
    assert_eq!(world.transactions(1).await, 1);
    assert_no_secrets(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_28_ledger_outage_accepts_and_loses_nothing() {
    let setup = Setup {
        database_proxied: true,
        ..verbose_setup()
    };
    let world = setup.build().await;
    let link = world.database_proxy.as_ref().unwrap();
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 628);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    link.down(true);
    assert_outage_for(&world, &payer).await;
    let unsure = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(!unsure.succeeded() && unsure.status == 503, "{unsure:?}");
    // Mined while the ledger cannot be written, for long enough to resemble foreign use.
    world.resume_mining().await;
    let receipts = "eth_getTransactionReceipt";
    let asked = world.proxy.calls(receipts);
    eventually("failed reads", Duration::from_mins(1), async || {
        (world.proxy.calls(receipts) > asked + 2).then_some(())
    })
    .await;
    link.down(false);
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
        "refused payments leave no row"
    );
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(628));
    assert_no_secrets(&world, &[&purchase]);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_43_unreadable_receipts_leave_payment_pending() {
    let world = verbose_setup().build().await;
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

/// The ledger has committed but its answer is lost, so the outcome is unknown.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_43_result_with_unknown_commit_is_recorded_once() {
    let setup = Setup {
        database_proxied: true,
        ..verbose_setup()
    };
    let world = setup.build().await;
    let link = world.database_proxy.as_ref().unwrap();
    let purchase = Purchase::new(&world.payer().await, PAYEE, 644);
    world.chain.automine(false).await;
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    world.wait_until_sent(1).await;
    link.swallow(true);
    world.resume_mining().await;
    let unsure = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(!unsure.succeeded(), "{unsure:?}");
    link.swallow(false);
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

/// A new payment cannot be judged during the outage.
async fn assert_outage_for(world: &World, payer: &PrivateKeySigner) {
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

async fn unready_body(world: &World) -> Value {
    eventually(
        "/readyz to report it",
        Duration::from_secs(20),
        async || {
            let answer = world.facilitator.get("/readyz").await;
            (answer.status == 503).then_some(answer.body)
        },
    )
    .await
}

fn assert_no_secrets(world: &World, purchases: &[&Purchase]) {
    let said = (world.facilitator.log() + &world.facilitator.answers()).to_lowercase();
    assert!(
        said.contains("settlement") && said.len() > 1_000,
        "the text is not empty"
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
