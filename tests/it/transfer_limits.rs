//! Transfers that payers sign: what no block can take is refused before it is written, and what waits costs little.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Fault, OpenSession, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0xcb);

async fn submit(world: &World, session: &OpenSession, raw: &Value) -> Answer {
    let path = format!("/sessions/{}/transfer", session.id);
    let body = json!({"rawTransaction": raw});
    world.facilitator.post(&path, &body).await.unwrap()
}

async fn open(world: &World, payer: &alloy::signers::local::PrivateKeySigner) -> OpenSession {
    OpenSession::open(&world.facilitator, payer, "transfer", PAYEE, 5).await
}

fn assert_unmineable(answer: &Answer, expected: &str) {
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.body["code"], "transfer_unmineable", "{answer:?}");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains(expected), "{expected}: {detail}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_that_no_block_can_take_is_refused_and_not_written() {
    let world = World::new().await;
    let sends = world.proxy.calls("eth_sendRawTransaction");
    for _ in 0..20 {
        let session = open(&world, &new_account()).await;
        let (bytes, _) = session.transaction(0, None);
        let refused = submit(&world, &session, &json!(bytes)).await;
        assert_unmineable(&refused, "fund the account");
        assert_eq!(session.read(&world.facilitator).await["state"], "open");
    }

    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer).await;
    let (gap, _) = session.transaction(3, None);
    let refused = submit(&world, &session, &json!(gap)).await;
    assert_unmineable(&refused, "sign it with 0");

    let poor = new_account();
    let wei = U256::from(10).pow(U256::from(18));
    let account = json!([poor.address(), wei]);
    world.chain.call("anvil_setBalance", account).await;
    let session = open(&world, &poor).await;
    let (bytes, _) = session.transaction(0, None);
    let refused = submit(&world, &session, &json!(bytes)).await;
    assert_unmineable(&refused, &TEST_USDC.to_string());

    // It pays 10 gwei for gas.
    world.raise_base_fee(20).await;
    let session = open(&world, &payer).await;
    let (bytes, _) = session.transaction(0, None);
    let refused = submit(&world, &session, &json!(bytes)).await;
    assert_unmineable(&refused, "higher fee");
    assert_eq!(world.proxy.calls("eth_sendRawTransaction"), sends);
    let payments = world.facilitator.get("/payments").await.body;
    assert_eq!(payments["payments"], json!([]), "{payments}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_whose_account_nonce_is_used_is_refused_unless_it_used_it_itself() {
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let (first, second) = (open(&world, &payer).await, open(&world, &payer).await);
    let (bytes, hash) = first.transaction(0, None);
    world.send_raw(&bytes).await;
    let (late, _) = second.transaction(0, None);
    let refused = submit(&world, &second, &json!(late)).await;
    assert_unmineable(&refused, "sign it with 1");
    let taken = submit(&world, &first, &json!(bytes)).await;
    assert_eq!(taken.status, 200, "{taken:?}");
    let paid = first.outcome(&world.facilitator).await;
    assert_eq!(paid["state"], "paid", "{paid}");
    assert_eq!(paid["transaction"], json!(hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn submitted_transfers_count_until_they_are_mined() {
    let setup = Setup {
        toml: "[sessions]\nopen_max_per_client = 3\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let mut payers = Vec::new();
    for _ in 0..3 {
        payers.push(world.payer_with_gas().await);
    }
    world.chain.automine(false).await;
    for payer in &payers {
        let session = open(&world, payer).await;
        let (bytes, _) = session.transaction(0, None);
        let taken = submit(&world, &session, &json!(bytes)).await;
        assert_eq!(taken.status, 200, "{taken:?}");
    }
    let entry = OpenSession::entry(PAYEE, 5);
    let body = OpenSession::request(&entry, new_account().address(), "transfer");
    let refused = world.facilitator.post("/sessions", &body).await.unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.body["code"], "too_many_sessions");
    world.resume_mining().await;
    eventually("room again", Duration::from_secs(20), async || {
        let opened = world.facilitator.post("/sessions", &body).await.unwrap();
        (opened.status == 201).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_at_unmined_transfers_go_back_and_fresh_ones_come_first() {
    const UNMINED: usize = 30;
    const BLOCKS: u64 = 40;
    let world = World::new().await;
    world
        .proxy
        .on("eth_sendRawTransaction", Fault::AcceptAndDrop);
    for _ in 0..UNMINED {
        let payer = world.payer_with_gas().await;
        let session = open(&world, &payer).await;
        let (bytes, _) = session.transaction(0, None);
        let taken = submit(&world, &session, &json!(bytes)).await;
        assert_eq!(taken.body["state"], "submitted", "{taken:?}");
    }
    let looks = || world.proxy.calls("eth_getTransactionReceipt");
    let before = looks();
    for _ in 0..BLOCKS {
        let seen = world.proxy.calls("eth_getBlockByNumber");
        world.chain.mine(1).await;
        world.proxy.called("eth_getBlockByNumber", seen + 1).await;
    }
    let made = looks() - before;
    // 1, 2, 4, 8, 16 and 32 blocks apart.
    assert!(made <= UNMINED * 10, "{made} looks in {BLOCKS} blocks");

    world.proxy.on("eth_sendRawTransaction", Fault::None);
    let session = open(&world, &world.payer_with_gas().await).await;
    let (bytes, hash) = session.transaction(0, None);
    submit(&world, &session, &json!(bytes)).await;
    let paid = session.outcome(&world.facilitator).await;
    assert_eq!(paid["state"], "paid", "{paid}");
    assert_eq!(paid["transaction"], json!(hash));
}

/// What can be asked for again and again costs no call each time.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_questions_cost_no_call() {
    const LOOK: &str = "eth_getTransactionByHash";
    let world = World::new().await;
    let payer = world.payer_with_gas().await;
    let session = open(&world, &payer).await;
    let unknown = B256::repeat_byte(0x5e);
    let path = format!("/sessions/{}/transfer", session.id);
    let body = json!({"transaction": unknown, "signature": session.claim(unknown)});
    let ask = async || {
        let answer = world.facilitator.post(&path, &body).await.unwrap();
        assert_eq!(answer.body["code"], "transfer_not_found", "{answer:?}");
    };
    ask().await;
    let before = world.proxy.calls(LOOK);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (caller, path, body) = ((*world.facilitator).clone(), path.clone(), body.clone());
        asking.spawn(async move { caller.post(&path, &body).await.unwrap() });
    }
    for answer in asking.join_all().await {
        assert_eq!(answer.body["code"], "transfer_not_found", "{answer:?}");
    }
    let made = world.proxy.calls(LOOK) - before;
    assert!(made <= 50 / 5, "{made} calls for 50 questions");

    // A session that has its payment is answered from the ledger.
    let (bytes, hash) = session.transaction(0, None);
    world.send_raw(&bytes).await;
    let sent = json!({"transaction": hash, "signature": session.claim(hash)});
    let taken = session.submit(&world.facilitator, &sent).await;
    assert_eq!(taken.body["state"], "paid", "{taken:?}");
    let before = world.proxy.calls(LOOK);
    for _ in 0..20 {
        let again = session.submit(&world.facilitator, &sent).await;
        assert_eq!(again.body["state"], "paid", "{again:?}");
        let other = session.submit(&world.facilitator, &body).await;
        assert_eq!(other.body["code"], "session_in_use", "{other:?}");
        assert_eq!(session.read(&world.facilitator).await["state"], "paid");
    }
    assert_eq!(world.proxy.calls(LOOK), before);
}
