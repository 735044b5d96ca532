//! Signers in trouble: a key that is used elsewhere, and too little gas money.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Facilitator, Fault, Permit2Purchase, Purchase, Setup, eventually};

const PAYEE: Address = Address::repeat_byte(0x1a);
const SEND: &str = "eth_sendRawTransaction";

fn two_signers() -> Setup {
    let setup = Setup {
        signers: 2,
        ..Setup::default()
    };
    setup.with("X402D_SETTLE_WAIT", "3")
}

async fn signer(facilitator: &Facilitator, address: Address) -> Value {
    let answer = facilitator.get("/signers").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let signers = answer.body["signers"].as_array().unwrap();
    let named = address.to_checksum(None);
    let found = signers
        .iter()
        .find(|signer| signer["signer"] == named.as_str());
    found.unwrap().clone()
}

async fn logged(facilitator: &Facilitator, text: &str) {
    eventually(text, Duration::from_secs(30), async || {
        facilitator.log().contains(text).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_14_foreign_nonce_is_skipped_and_payment_settles() {
    let world = two_signers().shortened().build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let body = Purchase::new(&payer, PAYEE, 14).body();
    let pending = world.facilitator.settle(&body).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
    let row = world.facilitator.payment(&pending).await;
    let robbed: Address = row["attempts"][0]["signer"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();

    world.proxy.on(SEND, Fault::RequestLost);
    world
        .chain
        .call("anvil_dropAllTransactions", json!([]))
        .await;
    let foreign = json!([{"from": robbed, "to": PAYEE, "value": "0x1", "nonce": "0x0"}]);
    world.chain.call("eth_sendTransaction", foreign).await;
    world.chain.mine(1).await;
    world.proxy.on(SEND, Fault::None);
    world.resume_mining().await;

    let settled = eventually("success", Duration::from_secs(40), async || {
        let answer = world.facilitator.settle(&body).await;
        answer.succeeded().then_some(answer)
    })
    .await;
    assert_ne!(settled.transaction(), pending.transaction());
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    let robbed = signer(&world.facilitator, robbed).await;
    assert_eq!(
        robbed["stoppedReason"],
        json!(null),
        "one foreign use stops no lane"
    );
    assert_eq!(robbed["transactionsInFlight"], 0);
    logged(&world.facilitator, "signer key used elsewhere").await;
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["attempts"].as_array().unwrap().len(), 2);
}

/// Payments of methods that name their signer. The test sets the signer by SQL, while gas is too expensive to send.
#[tokio::test(flavor = "multi_thread")]
async fn scenario_33_payment_naming_its_signer_uses_only_that_lane() {
    let setup = Setup {
        queryable: true,
        ..two_signers()
    };
    let world = setup.build().await;
    let payer = world.approved_payer().await;
    let named = Chain::signers(2)[1].address;
    let bodies = (0..8).map(|number| {
        let payment = Permit2Purchase::upto(&payer, PAYEE, 1 << number);
        payment
            .with(|signed| signed.witness.facilitator = Some(named))
            .body()
    });
    for answer in world.facilitator.settle_all(bodies.collect()).await {
        assert!(answer.succeeded(), "{answer:?}");
        let receipt = world.chain.receipt(&answer.transaction()).await;
        let from: Address = receipt["from"].as_str().unwrap().parse().unwrap();
        assert_eq!(from, named);
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(255));
    let mut ledger = world.database.connection().await;

    // The schema rejects a payment in another signer's transaction.
    let insertion = sqlx::query(
        "with other as (
            insert into transactions (id, network, signer, nonce, epoch, kind, state)
            select gen_random_uuid(), network, signer, 999, 1, 'direct', 'signed' from lanes where signer <> $1 returning id
        )
        insert into transaction_payments (transaction_id, position, payment_id)
        select other.id, 0, p.id from other, (select id from payments limit 1) p",
    )
    .bind(named.as_slice())
    .execute(&mut ledger)
    .await;
    let refused = insertion.unwrap_err();
    let constraint = refused.as_database_error().unwrap().constraint();
    assert_eq!(
        constraint,
        Some("transaction_payments_ride_with_their_signer")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_34_unfunded_signer_pauses_and_resumes_on_refill() {
    let chain = Chain::start().await;
    let unfunded = Chain::signers(2)[0].address;
    let set = "anvil_setBalance";
    chain.call(set, json!([unfunded, U256::from(1_000)])).await;
    let world = two_signers().on(chain).await;
    logged(
        &world.facilitator,
        "it takes no payments until it is refilled",
    )
    .await;
    let payer = world.payer().await;
    for number in 0..4 {
        let body = Purchase::new(&payer, PAYEE, 340 + number).body();
        let answer = world.facilitator.settle(&body).await;
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert_eq!(world.chain.transaction_count(unfunded).await, 0);
    assert_eq!(
        signer(&world.facilitator, unfunded).await["balanceWei"],
        "1000"
    );

    let plenty = U256::from(10).pow(U256::from(18));
    world.chain.call(set, json!([unfunded, plenty])).await;
    logged(&world.facilitator, "signer balance sufficient again").await;
    let bodies = (0..40).map(|number| Purchase::new(&payer, PAYEE, 400 + number).body());
    for answer in world.facilitator.settle_all(bodies.collect()).await {
        assert!(answer.succeeded(), "{answer:?}");
    }
    assert!(
        world.chain.transaction_count(unfunded).await > 0,
        "the signer sends again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_42_unavailable_keys_write_nothing_then_settle_all() {
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let setup = two_signers().with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let world = setup.build().await;
    let payer = world.payer().await;
    let bodies: Vec<_> = (0..5)
        .map(|number| Purchase::new(&payer, PAYEE, 1 << number).body())
        .collect();
    for answer in world.facilitator.settle_all(bodies.clone()).await {
        assert_eq!(answer.reason(), "unexpected_settle_error", "{answer:?}");
        assert_eq!(answer.transaction(), "");
    }
    let failures = world.facilitator.log();
    let failures = failures.matches("the key cannot be used now").count();
    assert!(
        (1..=8).contains(&failures),
        "the lanes back off: {failures}"
    );
    for account in Chain::signers(2) {
        let signer = signer(&world.facilitator, account.address).await;
        assert_eq!(signer["nextNonce"], 0, "{signer}");
    }
    std::fs::remove_file(&down).unwrap();
    for body in &bodies {
        let settled = eventually("success", Duration::from_secs(20), async || {
            let answer = world.facilitator.settle(body).await;
            answer.succeeded().then_some(answer)
        })
        .await;
        assert_eq!(settled.transaction().len(), 66);
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(31));
}

#[tokio::test(flavor = "multi_thread")]
async fn signers_endpoint_shows_nonces_balance_and_owner() {
    let world = two_signers().build().await;
    let payer = world.payer().await;
    let settled = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1).body())
        .await;
    assert!(settled.succeeded(), "{settled:?}");
    // The service is ready as soon as one of its lanes is.
    let signers = eventually("both lanes", Duration::from_secs(20), async || {
        let answer = world.facilitator.get("/signers").await;
        let signers = answer.body["signers"].as_array().unwrap().clone();
        let owned = signers.iter().filter(|one| one["ownedHere"] == true);
        (owned.count() == 2).then_some(signers)
    })
    .await;
    assert_eq!(signers.len(), 2);
    for signer in &signers {
        assert_eq!(signer["network"], "eip155:84532");
        assert_eq!(
            (&signer["configured"], &signer["ownedHere"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(signer["headNonce"], signer["nextNonce"]);
        assert_eq!(signer["pendingNonce"], signer["nextNonce"]);
        assert_eq!(signer["transactionsInFlight"], 0);
        assert!(signer["balanceWei"].as_str().unwrap().len() > 18);
    }
    let nonces = signers.iter().map(|signer| signer["nextNonce"].as_u64());
    assert_eq!(nonces.flatten().sum::<u64>(), 1);
}
