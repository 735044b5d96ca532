//! `/status`: what became of a payment, for whoever holds it, without a call to the chain.

use std::time::Duration;

use alloy::primitives::{Address, Bytes};
use serde_json::{Value, json};

use crate::callers::keys_only;
use crate::support::{
    Answer, Caller, Fault, OpenSession, Purchase, Setup, World, eventually, manually_mined,
};

const PAYEE: Address = Address::repeat_byte(0x57);
const SEND: &str = "eth_sendRawTransaction";
/// The calls by which a payment is looked at.
const LOOKS: [&str; 5] = [
    "eth_call",
    "eth_getTransactionReceipt",
    "eth_getLogs",
    "eth_getCode",
    "eth_getTransactionByHash",
];

async fn status(caller: &Caller, body: &Value) -> Value {
    let answer = caller.post("/status", body).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let next = answer.body["next"].as_str().unwrap();
    assert!(next.len() > 20, "{answer:?}");
    answer.body
}

/// Waits until the payment is in a state, and returns its status.
async fn in_state(world: &World, body: &Value, state: &str) -> Value {
    let limit = Duration::from_secs(40);
    eventually(state, limit, async || {
        let status = status(&world.facilitator, body).await;
        (status["state"] == state).then_some(status)
    })
    .await
}

/// Whether the money moved, whether it may move, and whether success was told.
fn facts(status: &Value) -> [bool; 3] {
    ["moneyMoved", "moneyMayMove", "successTold"].map(|name| status[name].as_bool().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_shown_from_unknown_to_final() {
    let (world, payer) = manually_mined("inflight_max = 1").await;
    let body = Purchase::new(&payer, PAYEE, 21).body();
    let unknown = status(&world.facilitator, &body).await;
    assert_eq!(unknown["known"], false);
    assert_eq!(facts(&unknown), [false, true, false], "{unknown}");
    assert!(unknown.get("state").is_none(), "{unknown}");

    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let inflight = in_state(&world, &body, "inflight").await;
    assert_eq!(inflight["transaction"], pending.transaction());
    assert_eq!(inflight["paymentId"], pending.body["extra"]["paymentId"]);
    assert_eq!(facts(&inflight), [false, true, false], "{inflight}");

    // One transaction at a time: the next payment waits, and is refused when nobody waits for it any more.
    let second = Purchase::new(&payer, PAYEE, 22).body();
    let waiting = world.facilitator.spawn_settle(&second);
    let queued = in_state(&world, &second, "queued").await;
    assert_eq!(facts(&queued), [false, true, false], "{queued}");
    let late = waiting.join_all().await.remove(0).unwrap();
    assert_eq!(late.reason(), "unexpected_settle_error", "{late:?}");
    let refused = in_state(&world, &second, "refused").await;
    assert_eq!(refused["reason"], "unexpected_settle_error", "{refused}");
    assert_eq!(facts(&refused), [false, true, false], "{refused}");

    world.resume_mining().await;
    let settled = in_state(&world, &body, "settled").await;
    assert_eq!(facts(&settled), [true, false, false], "nobody was told");
    assert!(settled.get("grantedTo").is_none(), "{settled}");
    let told = world.facilitator.settle_as(&body, "the-shops-own-id").await;
    assert!(told.succeeded(), "{told:?}");
    let told = eventually("the grant's end", Duration::from_secs(10), async || {
        let told = status(&world.facilitator, &body).await;
        (told["successTold"] == true).then_some(told)
    })
    .await;
    assert_eq!(told["grantedTo"], "the-shops-own-id", "{told}");
    assert_eq!(told["amount"], "21");
    assert_eq!(told["confirmationsRequired"], 1);

    world.chain.mine(70).await;
    let last = in_state(&world, &body, "final").await;
    assert_eq!(facts(&last), [true, false, true], "{last}");
    assert!(last["confirmations"].as_u64().unwrap() > 64, "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_in_a_block_waits_for_its_confirmations() {
    let setup = Setup::default().with("X402D_CONFIRMATIONS", "3");
    let world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 23).v1().body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let mined = in_state(&world, &body, "mined").await;
    assert_eq!(facts(&mined), [true, true, false], "{mined}");
    assert_eq!(mined["confirmations"], 1);
    assert_eq!(mined["confirmationsRequired"], 3);
    assert!(mined["blockNumber"].is_u64(), "{mined}");
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_that_failed_may_move_until_its_time_is_over() {
    let world = World::new().await;
    let (purchase, answer) = world.settle_cancelled(PAYEE, 24).await;
    assert!(!answer.succeeded(), "{answer:?}");
    let failed = in_state(&world, &purchase.body(), "failed").await;
    assert_eq!(facts(&failed), [false, true, false], "{failed}");
    assert_eq!(failed["reason"], answer.reason());
}

#[tokio::test(flavor = "multi_thread")]
async fn quarantined_payment_may_move_its_money() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 25).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
    let set = "update payments set quarantined_at = now(), quarantine_reason = 'a test'";
    sqlx::query(set)
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    let status = status(&world.facilitator, &body).await;
    assert_eq!(status["message"], "a test");
    assert_eq!(status["moneyMayMove"], true, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_asks_no_chain_and_changes_nothing() {
    let world = World::new().await;
    let payer = world.payer().await;
    let bodies = [
        Purchase::new(&payer, PAYEE, 26).body(),
        Purchase::new(&payer, PAYEE, 27).body(),
    ];
    let told = world.facilitator.settle(&bodies[0]).await;
    assert!(told.succeeded(), "{told:?}");
    eventually(
        "the record of the answer",
        Duration::from_secs(20),
        async || {
            let shown = status(&world.facilitator, &bodies[0]).await;
            (shown["successTold"] == true).then_some(())
        },
    )
    .await;
    let before = world.facilitator.payment(&told).await;
    let looks = || LOOKS.map(|method| world.proxy.calls(method));
    let (calls, mut answers) = (looks(), Vec::new());
    for _ in 0..50 {
        for body in &bodies {
            answers.push(status(&world.facilitator, body).await["known"] == true);
        }
    }
    assert_eq!(looks(), calls);
    assert_eq!(answers, [true, false].repeat(50));

    // No answer of the chain is needed either.
    world.proxy.all(Fault::Unavailable);
    for (body, known) in bodies.iter().zip([true, false]) {
        let status = status(&world.facilitator, body).await;
        assert_eq!(status["known"], known, "{status}");
    }
    world.proxy.all(Fault::None);
    let after = world.facilitator.payment(&told).await;
    assert_eq!(after["events"], before["events"]);
    let all = world.facilitator.get("/payments").await;
    assert_eq!(all.body["payments"].as_array().unwrap().len(), 1);
    assert_eq!(world.proxy.calls(SEND), 1);
}

/// Refused with this code, and nothing said about the money.
async fn refused(caller: &Caller, body: &Value) -> String {
    let answer = caller.post("/status", body).await.unwrap();
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.body["moneyMayMove"], true, "{answer:?}");
    answer.body["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_holders_of_a_payment_learn_of_it() {
    let world = World::new().await;
    let purchase = Purchase::new(&world.payer().await, PAYEE, 28);
    assert!(world.facilitator.settle(&purchase.body()).await.succeeded());
    let forged = Purchase {
        signature: Some(Bytes::from(vec![7; 65])),
        ..purchase.clone()
    };
    let code = refused(&world.facilitator, &forged.body()).await;
    assert_eq!(code, "invalid_exact_evm_signature");
    let other = Purchase {
        amount: purchase.amount + alloy::primitives::U256::from(1),
        ..purchase.clone()
    };
    let code = refused(&world.facilitator, &other.body()).await;
    assert!(code.contains("value") || code.contains("amount"), "{code}");
    let mut elsewhere = purchase.body();
    elsewhere["paymentRequirements"]["network"] = json!("eip155:1");
    let code = refused(&world.facilitator, &elsewhere).await;
    assert_eq!(code, "invalid_network");

    for path in ["/status", "/api/status"] {
        let text = purchase.body().to_string();
        let shown = world.facilitator.post_text(path, text).await;
        assert_eq!(shown.body["known"], true, "{shown:?}");
        let malformed = world.facilitator.post_text(path, "{}".to_owned()).await;
        assert_eq!(malformed.status, 400, "{malformed:?}");
        assert_eq!(malformed.body["code"], "invalid_body");
        assert_eq!(world.facilitator.get(path).await.status, 405);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_needs_no_key_and_has_a_rate() {
    let setup = Setup {
        toml: "[access]\nsettle = \"keys\"\n[limits]\nverify_per_second = 2\n".to_owned(),
        ..keys_only()
    };
    let world = setup.build().await;
    let shop = world.key("shop", PAYEE, &[]).await;
    let body = Purchase::new(&world.payer().await, PAYEE, 29).body();
    let settled = world.facilitator.with_key(&shop).settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    eventually(
        "the record of the answer",
        Duration::from_secs(20),
        async || {
            let shown = status(&world.facilitator, &body).await;
            (shown["grantedTo"] == settled.request_id.as_str()).then_some(())
        },
    )
    .await;
    let wrong = format!("x402d_0123456789ab_{}", "0".repeat(64));
    let wrong = world.facilitator.with_key(&wrong);
    assert_eq!(wrong.post("/status", &body).await.unwrap().status, 401);

    let mut answers: Vec<Answer> = Vec::new();
    for _ in 0..30 {
        answers.push(world.facilitator.post("/status", &body).await.unwrap());
    }
    let limited = answers.iter().find(|answer| answer.status == 429);
    let limited = limited.expect("a limited answer");
    assert_eq!(limited.body["code"], "rate_limited");
    assert!(limited.retry_after.is_some(), "{limited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shown_to_those_who_know_their_id() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let paid = OpenSession::open(&world.facilitator, &payer, "authorization", PAYEE, 31).await;
    let submitted = paid.submit(&world.facilitator, &paid.authorization()).await;
    assert_eq!(submitted.body["state"], "paid", "{submitted:?}");
    let code = refused(&world.facilitator, &paid.purchase().body()).await;
    assert_eq!(code, "session_id_required");
    let shown = status(&world.facilitator, &paid.presentation()).await;
    assert_eq!(facts(&shown), [true, false, false], "{shown}");

    let own = OpenSession::open(&world.facilitator, &payer, "transfer", PAYEE, 32).await;
    let (raw, hash) = own.transaction(0, None);
    let unknown = status(&world.facilitator, &own.proof(hash)).await;
    assert_eq!(unknown["known"], false);
    assert_eq!(facts(&unknown), [false, true, false], "{unknown}");
    world.send_raw(&raw).await;
    let told = world.facilitator.settle(&own.proof(hash)).await;
    assert!(told.succeeded(), "{told:?}");
    let shown = status(&world.facilitator, &own.proof(hash)).await;
    assert_eq!(shown["transaction"], hash.to_string());
    assert_eq!(shown["moneyMoved"], true, "{shown}");
}
