//! Signers without gas money: callers are told at once, nothing else is affected, and a refill is noticed within seconds.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Chain, Permit2Purchase, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x6a);
/// Maximum time of an answer that needs no waiting.
const AT_ONCE: Duration = Duration::from_secs(3);

fn setup(signers: usize) -> Setup {
    let setup = Setup {
        signers,
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "20").shortened()
}

async fn set_balance(chain: &Chain, signer: Address, wei: U256) {
    chain.call("anvil_setBalance", json!([signer, wei])).await;
}

fn ether() -> U256 {
    U256::from(10).pow(U256::from(18))
}

async fn readyz(world: &World) -> Answer {
    world.facilitator.get("/readyz").await
}

async fn signer(world: &World, address: Address) -> Value {
    let signers = world.facilitator.get("/signers").await.body;
    let named = address.to_checksum(None);
    let signers = signers["signers"].as_array().unwrap().clone();
    let found = signers.into_iter().find(|one| one["signer"] == named);
    found.unwrap()
}

/// The answer says what is missing, with a `Retry-After`.
fn assert_missing_gas_reported(world: &World, answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    let text = answer.body["invalidMessage"].as_str();
    let text = text.or_else(|| answer.body["errorMessage"].as_str());
    let text = text.unwrap_or_default();
    assert!(
        text.contains("no signer of eip155:84532 has gas") && text.contains("has 0 ETH"),
        "{answer:?}"
    );
    assert!(
        world
            .facilitator
            .answers()
            .contains("\"retry-after\": \"5\"")
    );
}

async fn assert_probes_logged_once(world: &World) {
    for _ in 0..20 {
        readyz(world).await;
    }
    let log = world.facilitator.log();
    let told = log
        .lines()
        .filter(|line| line.contains("nothing can be sold") && line.contains("no signer of"));
    assert_eq!(told.count(), 1, "one log line per change");
    assert_eq!(log.matches("response failed").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfunded_signers_are_reported_and_refill_is_seen() {
    let chain = Chain::start().await;
    for account in Chain::signers(2) {
        set_balance(&chain, account.address, ether()).await;
    }
    let world = setup(2).on(chain).await;
    let payer = world.payer().await;
    let before = Purchase::new(&payer, PAYEE, 1).body();
    let settled = world.facilitator.settle(&before).await;
    assert!(settled.succeeded(), "{settled:?}");
    for account in Chain::signers(2) {
        set_balance(&world.chain, account.address, U256::ZERO).await;
    }
    world.chain.mine(1).await;
    eventually(
        "/readyz to report it",
        Duration::from_secs(30),
        async || (readyz(&world).await.status == 503).then_some(()),
    )
    .await;

    let body = Purchase::new(&payer, PAYEE, 2).body();
    let began = Instant::now();
    assert_missing_gas_reported(&world, &world.facilitator.verify(&body).await);
    assert_missing_gas_reported(&world, &world.facilitator.settle(&body).await);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let known = world.facilitator.settle(&before).await;
    assert_eq!(known.reason(), "duplicate_settlement", "{known:?}");
    assert_eq!(known.transaction(), settled.transaction());
    let ready = readyz(&world).await;
    assert_eq!(ready.body["status"], "down", "{ready:?}");
    let named = Chain::signers(1)[0].address.to_checksum(None);
    assert!(ready.body.to_string().contains(&named), "{ready:?}");
    assert_eq!(
        signer(&world, Chain::signers(1)[0].address).await["paymentsLeft"],
        0
    );
    assert_probes_logged_once(&world).await;
    let supported = world.facilitator.get("/supported").await.body;
    assert!(!supported.to_string().contains("facilitatorAddress"));

    set_balance(&world.chain, Chain::signers(1)[0].address, ether()).await;
    let refilled = Instant::now();
    eventually(
        "the refill to be seen",
        Duration::from_secs(20),
        async || {
            world
                .facilitator
                .verify(&body)
                .await
                .is_valid()
                .then_some(())
        },
    )
    .await;
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    assert!(
        refilled.elapsed() < Duration::from_secs(15),
        "{:?}",
        refilled.elapsed()
    );
    let ready = readyz(&world).await;
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (200, &json!("degraded"))
    );
    assert!(world.facilitator.log().contains("it takes payments again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_without_gas_under_load_strands_no_payment() {
    let setup = Setup {
        block_time_s: Some(1),
        ..setup(1)
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let only = Chain::signers(1)[0].address;
    let mut answers = Vec::new();
    for round in 0..6_u64 {
        let bodies =
            (0..10).map(|number| Purchase::new(&payer, PAYEE, 100 * round + number + 1).body());
        let bodies: Vec<Value> = bodies.collect();
        if round == 2 {
            set_balance(&world.chain, only, U256::ZERO).await;
        }
        if round == 4 {
            set_balance(&world.chain, only, ether()).await;
        }
        let began = Instant::now();
        let settled = world.facilitator.settle_all(bodies.clone()).await;
        // Payments in flight when the money runs out stay in flight; no other caller waits for a refill.
        let took = began.elapsed();
        assert!(round != 3 || took < AT_ONCE, "round {round} took {took:?}");
        answers.extend(bodies);
        for answer in settled {
            let fine = answer.succeeded()
                || answer.status == 503
                || answer.reason() == "settlement_pending"
                || answer.reason() == "unexpected_settle_error";
            assert!(fine, "{answer:?}");
        }
    }
    // Rejected callers retry, and every accepted payment ends.
    for body in &answers {
        eventually("an outcome", Duration::from_mins(1), async || {
            let answer = world.facilitator.settle(body).await;
            (answer.succeeded() || answer.reason() == "duplicate_settlement").then_some(())
        })
        .await;
    }
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 60);
    assert_eq!(signer(&world, only).await["transactionsInFlight"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn upto_for_stopped_signer_is_refused_naming_another() {
    let setup = Setup {
        queryable: true,
        ..setup(2)
    };
    let world = setup.build().await;
    let payer = world.approved_payer().await;
    let [first, second] = [0, 1].map(|index| Chain::signers(2)[index].address);
    let told = async || {
        let supported = world.facilitator.get("/supported").await.body;
        supported["kinds"][2]["extra"]["facilitatorAddress"].clone()
    };
    assert_eq!(told().await, json!(first.to_checksum(None)));
    eventually("both lanes", Duration::from_secs(20), async || {
        let signers = world.facilitator.get("/signers").await.body;
        (signers["signers"].as_array()?.len() == 2).then_some(())
    })
    .await;
    sqlx::query("update lanes set stopped_reason = 'by the test' where signer = $1")
        .bind(first.as_slice())
        .execute(&mut world.database.connection().await)
        .await
        .unwrap();
    eventually("another facilitator", Duration::from_secs(20), async || {
        (told().await == json!(second.to_checksum(None))).then_some(())
    })
    .await;
    let named = |signer: Address, amount| {
        let payment = Permit2Purchase::upto(&payer, PAYEE, amount);
        payment
            .with(move |signed| signed.witness.facilitator = Some(signer))
            .body()
    };
    let began = Instant::now();
    let refused = world.facilitator.verify(&named(first, 7)).await;
    assert_eq!(
        (refused.status, refused.reason()),
        (200, "upto_facilitator_mismatch"),
        "{refused:?}"
    );
    assert!(
        refused.body.to_string().contains("by the test"),
        "{refused:?}"
    );
    let settled = world.facilitator.settle(&named(first, 8)).await;
    assert_eq!(settled.status, 503, "{settled:?}");
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    let body = named(second, 9);
    assert!(world.facilitator.verify(&body).await.is_valid());
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    let ready = readyz(&world).await;
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (200, &json!("degraded")),
        "{ready:?}"
    );
}
