//! One payment's trouble affects no other payment.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use serde_json::{Value, json};

use crate::support::{Chain, Fault, Purchase, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0x0d);

fn queryable_setup(toml: &str) -> Setup {
    Setup {
        queryable: true,
        toml: format!("[networks.base-sepolia]\n{toml}\n"),
        ..Setup::default()
    }
}

/// While this file exists the keys are unavailable, which keeps payments queued.
fn signers_down() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    (folder, down)
}

async fn wait_for_queued(world: &World, count: usize) {
    eventually("the queue", Duration::from_secs(20), async || {
        let queued = world.facilitator.get("/payments?state=queued").await.body;
        (queued["payments"].as_array().unwrap().len() == count).then_some(())
    })
    .await;
}

/// Changes a payment's row to a state that no version of the program writes.
async fn make_unreadable(world: &World, amount: u64) {
    let changed = sqlx::query(
        "update payments set valid_after = timestamptz '1960-01-01' where amount = $1::text::numeric",
    )
    .bind(amount.to_string())
    .execute(&mut world.database.connection().await)
    .await
    .unwrap();
    assert_eq!(changed.rows_affected(), 1);
}

async fn wait_until_quarantined(world: &World, amount: u64) -> bool {
    sqlx::query_scalar(
        "select quarantined_at is not null from payments where amount = $1::text::numeric",
    )
    .bind(amount.to_string())
    .fetch_one(&mut world.database.connection().await)
    .await
    .unwrap()
}

async fn assert_settled(world: &World, body: &Value) {
    eventually("success", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(body).await;
        answer.succeeded().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_queued_row_is_quarantined_and_others_settle() {
    let setup = queryable_setup("inflight_max = 4");
    let (_folder, down) = signers_down();
    let setup = setup.with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let mut world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let payer = world.payer().await;
    let bodies: Vec<_> = (0..3)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    let waiting: Vec<_> = bodies
        .iter()
        .map(|body| world.facilitator.spawn_settle(body))
        .collect();
    wait_for_queued(&world, 3).await;
    world.facilitator.kill();
    drop(waiting);
    make_unreadable(&world, 2).await;
    std::fs::remove_file(&down).unwrap();
    world.facilitator.restart(None).await;
    // The unreadable payment together with the readable ones.
    let answers = world.facilitator.settle_all(bodies.clone()).await;
    let (good, failed): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.succeeded());
    assert_eq!((good.len(), failed.len()), (2, 1), "{answers:?}");
    assert_eq!(failed[0].reason(), "settlement_pending", "{failed:?}");
    assert!(wait_until_quarantined(&world, 2).await);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreadable_inflight_row_is_quarantined_and_lane_goes_on() {
    let setup = queryable_setup("inflight_max = 4");
    let mut world = setup.with("X402D_SETTLE_WAIT", "2").build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let bodies: Vec<_> = (0..2)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    for body in &bodies {
        let pending = world.facilitator.settle(body).await;
        assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    }
    world.facilitator.kill();
    make_unreadable(&world, 1).await;
    world.facilitator.restart(None).await;
    world.resume_mining().await;
    assert_settled(&world, &bodies[1]).await;
    assert!(wait_until_quarantined(&world, 1).await);
    let after = Purchase::new(&payer, PAYEE, 4).body();
    assert_settled(&world, &after).await;
}

/// Unpaid `/verify` requests whose simulations burn all the gas of a call.
#[tokio::test(flavor = "multi_thread")]
async fn gas_burning_wallets_do_not_affect_other_answers() {
    let world = Setup::default().build().await;
    let payer = world.payer().await;
    let ordinary = Purchase::new(&payer, PAYEE, 1).body();
    let mut bodies = Vec::new();
    for number in 1..=48_u8 {
        let wallet = Address::repeat_byte(number);
        world.chain.place("GasBurningWallet", wallet).await;
        world
            .chain
            .set_storage(wallet, 0, B256::with_last_byte(1))
            .await;
        let evil = Purchase::new(&new_account(), PAYEE, 1).paid_by(wallet);
        bodies.push(evil.body());
    }
    // Slow calls make the waiting requests share the next one.
    world.proxy.on("eth_call", Fault::Slow(100));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..3 {
        for body in &bodies {
            let (caller, body) = ((*world.facilitator).clone(), body.clone());
            asking.spawn(async move { drop(caller.verify(&body).await) });
        }
        let answer = world.facilitator.verify(&ordinary).await;
        assert!(answer.is_valid(), "{answer:?}");
    }
    asking.join_all().await;
}

/// The first payment is in the block that is just being read: the balance is already lower and the hold still exists.
#[tokio::test(flavor = "multi_thread")]
async fn just_paid_amount_is_not_counted_twice() {
    const RECEIPTS: &str = "eth_getBlockReceipts";
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "25");
    let world = setup.build().await;
    let payer = new_account();
    world.chain.fund(payer.address(), 200).await;
    let [one, two] = [1, 2].map(|_| Purchase::new(&payer, PAYEE, 100).body());
    world.chain.automine(false).await;
    let mut first = world.facilitator.spawn_settle(&one);
    world.wait_until_sent(1).await;
    world.proxy.on(RECEIPTS, Fault::Hold);
    let asked = world.proxy.calls(RECEIPTS);
    world.resume_mining().await;
    world.proxy.called(RECEIPTS, asked).await;
    let looks = world.proxy.calls("eth_call");
    let mut second = world.facilitator.spawn_settle(&two);
    world.proxy.called("eth_call", looks).await;
    // The second check: the first found too little.
    let again = tokio::time::timeout(
        Duration::from_millis(250),
        world.proxy.called("eth_call", looks + 1),
    );
    drop(again.await);
    world.proxy.on(RECEIPTS, Fault::None);
    for waiting in [&mut first, &mut second] {
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(200));
}

/// A payment that ends within two seconds would expire before its block.
#[tokio::test(flavor = "multi_thread")]
async fn nearly_expired_payment_is_not_sent() {
    let setup = queryable_setup("inflight_max = 4");
    let (_folder, down) = signers_down();
    let setup = setup.with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 1);
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    wait_for_queued(&world, 1).await;
    let end = purchase.authorization.valid_before.atomic().to::<u64>();
    let next = "evm_setNextBlockTimestamp";
    world.chain.call(next, json!([end - 3])).await;
    let looks = world.proxy.calls("eth_getBlockByNumber");
    world.chain.mine(1).await;
    world.proxy.called("eth_getBlockByNumber", looks + 2).await;
    std::fs::remove_file(&down).unwrap();
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    let code = "invalid_exact_evm_payload_authorization_valid_before";
    assert_eq!((answer.reason(), answer.transaction().as_str()), (code, ""));
    assert_eq!(world.transactions(1).await, 0, "no transaction was sent");
}

/// A transfer sent with our own signer's key is recorded while the payer's account gets its first hold.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_foreign_transfer_leaves_holds_unchanged() {
    let world = queryable_setup("").build().await;
    let payer = world.payer().await;
    let purchase = Purchase::new(&payer, PAYEE, 1_000);
    let signer = Chain::signers(1)[0].address;
    let mut submission = Chain::submission(&purchase);
    submission["from"] = json!(signer);
    let params = json!([submission]);
    let hash = world.chain.call("eth_sendTransaction", params).await;
    let hash = hash.as_str().unwrap().to_owned();
    eventually("a block", Duration::from_secs(20), async || {
        (!world.chain.receipt(&hash).await.is_null()).then_some(())
    })
    .await;
    // Like an acceptance in another process that has not committed yet.
    let mut ledger = world.database.connection().await;
    sqlx::raw_sql("begin").execute(&mut ledger).await.unwrap();
    sqlx::query("insert into payer_accounts (network, asset, payer, held) values ('eip155:84532', $1, $2, 7)")
        .bind(purchase.asset.as_slice())
        .bind(payer.address().as_slice())
        .execute(&mut ledger)
        .await
        .unwrap();
    let mut waiting = world.facilitator.spawn_settle(&purchase.body());
    let mut other = world.database.connection().await;
    eventually("a lock wait, or the recorded payment", Duration::from_secs(20), async || {
        let waits: bool = sqlx::query_scalar(
            "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')",
        )
        .fetch_one(&mut other)
        .await
        .unwrap();
        let done = world.facilitator.get("/payments").await.body;
        let done = !done["payments"].as_array().unwrap().is_empty();
        (waits || done).then_some(())
    })
    .await;
    sqlx::raw_sql("commit").execute(&mut ledger).await.unwrap();
    let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    let held: String = sqlx::query_scalar("select held::text from payer_accounts")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(held, "7");
}
