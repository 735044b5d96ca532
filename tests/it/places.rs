//! Places that one caller or payer may hold, and what costs nothing to ask again.

use std::time::Duration;

use alloy::primitives::{Address, Bytes};
use alloy::signers::SignerSync as _;
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    Caller, Fault, OpenSession, Permit2Purchase, Purchase, Setup, World, eventually, new_account,
};

const PAYEE: Address = Address::repeat_byte(0xf1);
const PATIENCE: Duration = Duration::from_mins(1);

async fn world_with(toml: &str) -> World {
    let rates =
        "verify_per_second = 100000\nsettle_per_second = 100000\nsessions_per_second = 100000\n";
    let setup = Setup {
        toml: toml.replace("[limits]\n", &format!("[limits]\n{rates}")),
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "3").build().await
}

/// A payment signed by another key than the payer's.
fn forged(payer: Address) -> Purchase {
    let mut purchase = Purchase::new(&new_account(), PAYEE, 1).paid_by(payer);
    let signature = new_account().sign_hash_sync(&purchase.digest()).unwrap();
    purchase.signature = Some(Bytes::from(signature.as_bytes()));
    purchase
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chain_refuses_holds_no_place_in_the_queue() {
    let world = world_with("[networks.base-sepolia]\nqueue_max = 1\n").await;
    let payer = world.payer().await;
    // Its looks at the chain take a second, in which it would hold the only place.
    world.proxy.on("eth_call", Fault::Slow(1_000));
    let calls = world.proxy.calls("eth_call");
    let empty = Purchase::new(&new_account(), PAYEE, 1).body();
    let mut settling = JoinSet::new();
    for _ in 0..3 {
        let (caller, body) = ((*world.facilitator).clone(), empty.clone());
        settling.spawn(async move { caller.settle(&body).await });
    }
    world.proxy.called("eth_call", calls).await;
    let honest = Purchase::new(&payer, PAYEE, 1).body();
    let settled = world.facilitator.settle(&honest).await;
    assert!(settled.succeeded(), "{settled:?}");
    for answer in settling.join_all().await {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.succeeded());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_payer_cannot_fill_the_queue() {
    let world = world_with(
        "[networks.base-sepolia]\ninflight_max = 1\nqueue_max = 100\nqueue_max_per_payer = 2\n",
    )
    .await;
    let (greedy, other) = (world.payer().await, world.payer().await);
    world.chain.automine(false).await;
    // One is in flight, the others wait.
    let first = world
        .facilitator
        .spawn_settle(&Purchase::new(&greedy, PAYEE, 1).body());
    world.wait_until_sent(1).await;
    let bodies = (0..8).map(|_| Purchase::new(&greedy, PAYEE, 1).body());
    let mut waiting = JoinSet::new();
    for body in bodies {
        let caller = (*world.facilitator).clone();
        waiting.spawn(async move { caller.settle(&body).await });
    }
    let busy = eventually("six refusals", PATIENCE, async || {
        let mut busy = Vec::new();
        while let Some(answer) = waiting.try_join_next() {
            busy.push(answer.unwrap());
        }
        (!busy.is_empty()).then_some(busy)
    })
    .await;
    for answer in &busy {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.retry_after, Some(1));
        let message = answer.body["errorMessage"].as_str().unwrap();
        assert!(message.contains("of this payer"), "{message}");
    }
    let spared = world
        .facilitator
        .spawn_settle(&Purchase::new(&other, PAYEE, 1).body());
    world.resume_mining().await;
    let answers = [first, spared].map(JoinSet::join_all);
    for answer in answers {
        let answer = answer.await.remove(0).unwrap();
        assert!(answer.succeeded(), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_left_behind_are_counted() {
    let world = world_with("[limits]\nunattended_per_caller = 2\n").await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let sends = |world: &World| world.proxy.calls("eth_sendRawTransaction");
    for _ in 0..2 {
        let before = sends(&world);
        let leaving = world
            .facilitator
            .spawn_settle(&Purchase::new(&payer, PAYEE, 1).body());
        world.proxy.called("eth_sendRawTransaction", before).await;
        drop(leaving);
    }
    // One that is admitted before the disconnections are noticed is known from then on, and never refused.
    let another = || Purchase::new(&payer, PAYEE, 1).body();
    eventually("a refusal", PATIENCE, async || {
        let answer = world.facilitator.settle(&another()).await;
        let message = answer.body["errorMessage"].as_str().unwrap_or_default();
        (answer.status == 503 && message.contains("disconnected")).then_some(())
    })
    .await;
    world.resume_mining().await;
    eventually("room again", PATIENCE, async || {
        let answer = world.facilitator.settle(&another()).await;
        answer.succeeded().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_reads_of_one_client_are_counted() {
    let world = world_with("[limits]\nwaits_per_caller = 3\n").await;
    let payer = new_account();
    let session = OpenSession::open(&world.facilitator, &payer, "authorization", PAYEE, 5).await;
    let path = format!("/sessions/{}?wait=30", session.id);
    let mut waiting = JoinSet::new();
    for _ in 0..3 {
        let (caller, path): (Caller, _) = ((*world.facilitator).clone(), path.clone());
        // The reads below take places too.
        waiting.spawn(async move { while caller.get(&path).await.status == 429 {} });
    }
    let refused = eventually("a refusal", PATIENCE, async || {
        let answer = world
            .facilitator
            .get(&format!("/sessions/{}?wait=1", session.id))
            .await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert_eq!(refused.body["code"], "rate_limited");
    assert_eq!(refused.retry_after, Some(1));
    assert_eq!(session.read(&world.facilitator).await["state"], "open");
    waiting.abort_all();
    eventually("room again", PATIENCE, async || {
        let answer = world
            .facilitator
            .get(&format!("/sessions/{}?wait=1", session.id))
            .await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_charge_needs_a_payer_who_could_pay_the_maximum() {
    let world = World::new().await;
    let (poor, rich) = (new_account(), world.payer().await);
    let without_money = Permit2Purchase::upto(&poor, PAYEE, 500_000).charging(0);
    let refused = world.facilitator.settle(&without_money.body()).await;
    assert_eq!(
        refused.reason(),
        "permit2_insufficient_balance",
        "{refused:?}"
    );
    let without_permission = Permit2Purchase::upto(&rich, PAYEE, 500_000).charging(0);
    let refused = world.facilitator.settle(&without_permission.body()).await;
    assert_eq!(
        refused.reason(),
        "permit2_allowance_required",
        "{refused:?}"
    );
    let payments = world.facilitator.get("/payments").await.body;
    assert_eq!(payments["payments"], json!([]), "{payments}");
    let with_permit = without_permission.with_permit(0);
    let settled = world.facilitator.settle(&with_permit.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_signatures_of_one_account_cost_one_look() {
    let world = World::new().await;
    let payer = new_account().address();
    let refused = world.facilitator.verify(&forged(payer).body()).await;
    assert_eq!(
        refused.reason(),
        "invalid_exact_evm_signature",
        "{refused:?}"
    );
    let before = world.proxy.calls("eth_call");
    for _ in 0..20 {
        let refused = world.facilitator.verify(&forged(payer).body()).await;
        assert_eq!(
            refused.reason(),
            "invalid_exact_evm_signature",
            "{refused:?}"
        );
    }
    let made = world.proxy.calls("eth_call") - before;
    assert!(made <= 2, "{made} calls for 20 forged signatures");
}

/// Postgres takes no NUL in a text.
#[tokio::test(flavor = "multi_thread")]
async fn nul_in_a_text_of_a_session_is_a_bad_request() {
    let world = World::new().await;
    let mut entry = OpenSession::entry(PAYEE, 5);
    entry["extra"]["resourceId"] = json!("a\0b");
    let body = OpenSession::request(&entry, new_account().address(), "authorization");
    let answer = world.facilitator.post("/sessions", &body).await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(answer.body["code"], "invalid_body", "{answer:?}");
}
