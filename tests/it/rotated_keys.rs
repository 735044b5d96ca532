//! A signer's key is removed from the configuration while its transactions are in flight: no payment is stranded.

use std::time::{Duration, Instant};

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::json;
use x402d::clock::{Clock, SystemClock};
use x402d::embedded::TEST_USDC;
use x402d::protocol::Amount;

use crate::support::{Chain, Permit2Purchase, Purchase, Setup, World, eventually, new_account};

const PAYEE: Address = Address::repeat_byte(0x4b);

#[tokio::test(flavor = "multi_thread")]
async fn sent_transactions_are_followed_without_their_key() {
    let setup = Setup::default().with("X402D_SETTLE_WAIT", "2");
    let mut world = setup.shortened().build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    let bodies: Vec<_> = (1..=3)
        .map(|amount| Purchase::new(&payer, PAYEE, amount).body())
        .collect();
    let mut hashes = Vec::new();
    for body in &bodies {
        let pending = world.facilitator.settle(body).await;
        assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");
        hashes.push(pending.transaction());
    }
    world.facilitator.terminate().await;
    let [old, new] = [0, 1].map(|index| &Chain::signers(2)[index]);
    let mut rotated = world.unstarted_replica(&[("X402D_SIGNER_KEYS", new.key.to_owned())]);
    rotated.restart(None).await;
    eventually("a warning", Duration::from_secs(30), async || {
        let log = rotated.log();
        let line = log
            .lines()
            .find(|line| line.contains("signer not configured"))?;
        let named = old.address.to_checksum(None);
        assert!(line.contains("WARN") && line.contains(&named), "{line}");
        Some(())
    })
    .await;
    let pending = rotated.settle(&bodies[0]).await;
    assert_eq!(pending.reason(), "settlement_pending", "{pending:?}");

    // Dropped transactions are sent again with the same bytes.
    let dropped = json!([]);
    world.chain.call("anvil_dropAllTransactions", dropped).await;
    eventually("the same bytes", Duration::from_secs(30), async || {
        (world.chain.pending_count(old.address).await == 3).then_some(())
    })
    .await;
    world.resume_mining().await;
    let began = Instant::now();
    for (body, hash) in bodies.iter().zip(&hashes) {
        let settled = eventually("success", Duration::from_secs(30), async || {
            let answer = rotated.settle(body).await;
            answer.succeeded().then_some(answer)
        })
        .await;
        assert_eq!(settled.transaction(), *hash);
    }
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    eventually("the recorded end", Duration::from_secs(30), async || {
        rotated
            .log()
            .contains("all its transactions have ended")
            .then_some(())
    })
    .await;
    let fresh = rotated
        .settle(&Purchase::new(&payer, PAYEE, 4).body())
        .await;
    assert!(fresh.succeeded(), "{fresh:?}");
    let receipt = world.chain.receipt(&fresh.transaction()).await;
    let from: Address = receipt["from"].as_str().unwrap().parse().unwrap();
    assert_eq!(from, new.address);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 4);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(10));
    let signers = rotated.get("/signers").await.body;
    for signer in signers["signers"].as_array().unwrap() {
        assert_eq!(signer["transactionsInFlight"], 0, "{signers}");
    }
}

/// The amount that the ledger holds for a payer.
async fn held_amount(world: &World, payer: &PrivateKeySigner) -> String {
    let payer = payer.address();
    let held = sqlx::query_scalar("select held::text from payer_accounts where payer = $1");
    let held: Option<String> = held
        .bind(payer.as_slice())
        .fetch_optional(&mut world.database.connection().await)
        .await
        .unwrap();
    held.unwrap_or_default()
}

/// An `upto` payment names its signer, and no lane of that signer is left to claim or refuse it.
#[tokio::test(flavor = "multi_thread")]
async fn payment_for_removed_signer_is_held_until_it_expires() {
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let down = folder.path().join("down");
    std::fs::write(&down, "").unwrap();
    let setup = setup.with("X402D_SIGNERS_DOWN", down.to_str().unwrap());
    let mut world = setup.shortened().build().await;
    let payer = new_account();
    world.chain.fund(payer.address(), 1_000).await;
    world
        .chain
        .approve(TEST_USDC, payer.address(), U256::MAX)
        .await;
    let pinned = Permit2Purchase::upto(&payer, PAYEE, 800).body();
    let waiting = world.facilitator.spawn_settle(&pinned);
    let limit = Duration::from_secs(30);
    eventually("a hold", limit, async || {
        (held_amount(&world, &payer).await == "800").then_some(())
    })
    .await;
    world.facilitator.kill();
    drop(waiting);
    std::fs::remove_file(&down).unwrap();
    let new = Chain::signers(2)[1];
    let mut rotated = world.unstarted_replica(&[("X402D_SIGNER_KEYS", new.key.to_owned())]);
    rotated.restart(None).await;
    let mut next = Purchase::new(&payer, PAYEE, 500);
    let later = U256::from(SystemClock.now().unix_timestamp() + 1_000);
    next.authorization.valid_before = Amount::from_atomic(later);
    let short = rotated.settle(&next.body()).await;
    let code = "invalid_exact_evm_insufficient_balance";
    assert_eq!(short.reason(), code, "{short:?}");

    world.chain.call("evm_increaseTime", json!([700])).await;
    world.chain.mine(1).await;
    eventually("the hold to end", limit, async || {
        (held_amount(&world, &payer).await == "0").then_some(())
    })
    .await;
    let settled = rotated.settle(&next.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
    let told = rotated.settle(&pinned).await;
    assert!(!told.succeeded() && told.status == 200, "{told:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(500));
}
