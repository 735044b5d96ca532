//! What strangers can make the signers spend in a day is a number that was configured.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::json;

use crate::support::{Answer, Caller, Chain, Purchase, Setup, World, eventually, has_event};

const EXHAUSTED: &str = "sponsorship_exhausted";
/// Keeps what a payment costs from falling with the base fee of an idle chain.
const TIP: &str = "priority_fee_wei = 1000000000\nmax_fee_wei = 20000000000";

const fn payee(number: u8) -> Address {
    Address::repeat_byte(0xd0 + number)
}

async fn with_budget(budget: &str) -> World {
    let setup = Setup {
        toml: format!("[networks.base-sepolia]\n{TIP}\n[networks.base-sepolia.budget]\n{budget}\n"),
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "25").build().await
}

/// Native balance of the signer.
async fn balance(world: &World) -> U256 {
    let signer = Chain::signers(1)[0].address;
    let balance = json!([signer, "latest"]);
    let balance = world.chain.call("eth_getBalance", balance).await;
    serde_json::from_value(balance).unwrap()
}

/// Settles payments to a payee until one is refused; returns how many settled, and the refused one with its answer.
async fn spend(world: &World, payee: Address) -> (usize, Purchase, Answer) {
    spend_as(&world.facilitator, world, payee).await
}

async fn spend_as(caller: &Caller, world: &World, payee: Address) -> (usize, Purchase, Answer) {
    for settled in 0..100 {
        let purchase = Purchase::new(&world.payer().await, payee, 1);
        let answer = caller.settle(&purchase.body()).await;
        if !answer.succeeded() {
            return (settled, purchase, answer);
        }
    }
    panic!("100 payments to {payee} settled");
}

fn assert_exhausted(answer: &Answer, subject: &str) {
    assert_eq!(answer.reason(), EXHAUSTED, "{answer:?}");
    assert_eq!((answer.status, answer.transaction().as_str()), (200, ""));
    let message = answer.body["errorMessage"].as_str().unwrap();
    let starts = format!("the gas budget of {subject} for 24 hours is spent");
    assert!(message.starts_with(&starts), "{message}");
    let until = message.split("again from ").nth(1).unwrap();
    assert!(until.len() > 20 && until.contains('T'), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_refuses_its_payee_alone_and_outlives_the_process() {
    let mut world =
        with_budget("wei_per_day = \"0.002eth\"\nwei_per_day_per_payee = \"0.0006eth\"").await;
    let before = balance(&world).await;
    let first = Purchase::new(&world.payer().await, payee(1), 1);
    let told = world.facilitator.settle(&first.body()).await;
    assert!(told.succeeded(), "{told:?}");

    let (settled, refused, answer) = spend(&world, payee(1)).await;
    assert!(settled >= 1, "{answer:?}");
    assert_exhausted(&answer, &format!("payee {}", payee(1)));
    let verdict = world.facilitator.verify(&refused.body()).await;
    assert_eq!(verdict.reason(), EXHAUSTED, "{verdict:?}");
    let spent = before - balance(&world).await;
    let limit = U256::from(600_000_000_000_000_u64);
    assert!(spent <= limit && spent > limit / U256::from(4), "{spent}");
    // What is known is still answered, and another payee is served.
    world.assert_duplicate_rejected(&first.body(), &told).await;
    let other = Purchase::new(&world.payer().await, payee(2), 1);
    let served = world.facilitator.settle(&other.body()).await;
    assert!(served.succeeded(), "{served:?}");

    world.facilitator.kill();
    world.facilitator.restart(None).await;
    // Blocks may be cheaper by now, so that one or two more fit.
    let (_, _, again) = spend(&world, payee(1)).await;
    assert_exhausted(&again, &format!("payee {}", payee(1)));
    let spent = before - balance(&world).await;
    assert!(
        spent <= limit * U256::from(2),
        "{spent}, with the other payee's"
    );
    let mut network = None;
    for number in 2..10 {
        let (_, _, answer) = spend(&world, payee(number)).await;
        let message = answer.body["errorMessage"].to_string();
        if message.contains("of the network") {
            network = Some(answer);
            break;
        }
    }
    assert_exhausted(&network.expect("the network's budget ends"), "the network");
    let spent = before - balance(&world).await;
    let limit = U256::from(2_000_000_000_000_000_u64);
    assert!(spent <= limit && spent > limit / U256::from(2), "{spent}");
    let log = world.facilitator.log();
    assert!(log.contains("budget low: 80 %"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exhausted_budget_of_a_key_refuses_its_payments_alone() {
    const LIMIT: u64 = 600_000_000_000_000;
    let mut world = with_budget("").await;
    let large_key = world.key("large", payee(1), &[]).await;
    let limit = ["--gas-per-day", "0.0006eth"];
    // Its first payments come before the process may have read its limit.
    let small_key = world.key("small", payee(1), &limit).await;
    let key_name = format!("key {}", &small_key[6..18]);
    let small = world.facilitator.with_key(&small_key);
    let large = world.facilitator.with_key(&large_key);

    let before = balance(&world).await;
    let (settled, refused, answer) = spend_as(&small, &world, payee(1)).await;
    assert!(settled >= 2, "{answer:?}");
    assert_exhausted(&answer, &key_name);
    let spent = before - balance(&world).await;
    let limit = U256::from(LIMIT);
    assert!(spent <= limit && spent > limit / U256::from(4), "{spent}");
    let verdict = small.verify(&refused.body()).await;
    assert_eq!(verdict.reason(), EXHAUSTED, "{verdict:?}");
    // The same payment is taken from another caller.
    assert!(large.verify(&refused.body()).await.is_valid());
    let taken = large.settle(&refused.body()).await;
    assert!(taken.succeeded(), "{taken:?}");

    // A process that knows nothing of it yet finds out where it writes a transaction, also with payments of both.
    world.facilitator.kill();
    world.facilitator.restart(None).await;
    let small = world.facilitator.with_key(&small_key);
    let large = world.facilitator.with_key(&large_key);
    let mut bodies = Vec::new();
    for _ in 0..24 {
        bodies.push(Purchase::new(&world.payer().await, payee(1), 1).body());
    }
    let of_large = bodies.split_off(12);
    let (of_small, of_large) = tokio::join!(small.settle_all(bodies), large.settle_all(of_large));
    assert!(of_large.iter().all(Answer::succeeded), "{of_large:?}");
    let refused: Vec<_> = of_small.iter().filter(|one| !one.succeeded()).collect();
    assert!(!refused.is_empty(), "{of_small:?}");
    for answer in refused {
        assert_exhausted(answer, &key_name);
    }
    let log = world.facilitator.log();
    assert!(log.contains(&key_name) && !log.contains(&small_key[19..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_at_once_stay_within_the_budget() {
    let world = with_budget("wei_per_day = \"0.002eth\"").await;
    let before = balance(&world).await;
    let mut bodies = Vec::new();
    for _ in 0..12 {
        let payer = world.payer().await;
        bodies.extend((0..5).map(|_| Purchase::new(&payer, payee(1), 1).body()));
    }
    let answers = world.facilitator.settle_all(bodies).await;
    // On a slow machine a request may end before its transaction is mined.
    let was_sent = |answer: &&Answer| answer.succeeded() || answer.reason() == "settlement_pending";
    let (settled, refused): (Vec<_>, Vec<_>) = answers.iter().partition(was_sent);
    let spent = before - balance(&world).await;
    assert!(spent <= U256::from(2_000_000_000_000_000_u64), "{spent}");
    assert!(
        settled.len() >= 10,
        "{} settled, {refused:?}",
        settled.len()
    );
    for answer in &refused {
        // Some wait for receipts that leave room until their own time is over.
        if answer.reason() != "unexpected_settle_error" {
            assert_exhausted(answer, "the network");
        }
    }
    println!(
        "{} of {} settled for {spent} wei",
        settled.len(),
        answers.len()
    );
}

/// Who was told that a payment succeeded gave the goods for it: no budget stops it after a reorg.
#[tokio::test(flavor = "multi_thread")]
async fn told_payment_that_is_queued_again_is_sent_whatever_the_budget_says() {
    let toml = format!(
        "[networks.base-sepolia]\n{TIP}\n[networks.base-sepolia.budget]\nwei_per_day_per_payee = \"0.0006eth\"\n"
    );
    let setup = Setup {
        toml,
        queryable: true,
        ..Setup::default()
    };
    let world = setup.shortened().build().await;
    let (first, second) = (world.payer().await, world.payer().await);
    let told = Purchase::new(&first, payee(1), 7).body();
    let answer = world.facilitator.settle(&told).await;
    assert!(answer.succeeded(), "{answer:?}");
    let payee_spends =
        "update gas_spending set spent_wei = spent_wei + 1000000000000000 where scope = 'payee'";
    sqlx::query(payee_spends)
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    let new = Purchase::new(&second, payee(1), 1).body();
    let refused = world.facilitator.settle(&new).await;
    assert_exhausted(&refused, &format!("payee {}", payee(1)));

    let signer = Chain::signers(1)[0].address;
    let foreign = json!({"from": signer, "to": payee(9), "value": "0x1"});
    world.chain.reorg_with(1, &[foreign]).await;
    let row = eventually("a second settlement", Duration::from_mins(1), async || {
        let row = world.facilitator.payment(&answer).await;
        let is_over = row["state"] == "settled" || row["state"] == "refused";
        (has_event(&row, "reorged") && is_over).then_some(row)
    })
    .await;
    assert_eq!(row["state"], "settled", "{row}");
    assert_ne!(row["transaction"], answer.transaction().as_str(), "{row}");
    assert_eq!(world.chain.usdc(payee(1)).await, U256::from(7));
    // It is counted all the same, and others stay refused.
    let again = world.facilitator.settle(&new).await;
    assert_exhausted(&again, &format!("payee {}", payee(1)));
    let counted: String = sqlx::query_scalar(
        "select string_agg(distinct r.scope, ' ' order by r.scope) from gas_reservations r
        join transactions t on t.id = r.transaction_id and t.state = 'mined'",
    )
    .fetch_one(&mut world.database.connection().await)
    .await
    .unwrap();
    assert_eq!(counted, "network payee");
}
