//! Invariants that hold after every history.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use alloy::primitives::U256;
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};
use uuid::Uuid;
use x402d::embedded::TEST_USDC;

use crate::play::{LEAST, Presented, Scene};
use crate::support::{Chain, World, eventually};

/// The payment as the API shows it, or null when the ledger has no row.
async fn life(world: &World, recorded: Option<&Recorded>) -> Value {
    match recorded {
        Some(row) => {
            world
                .facilitator
                .get(&format!("/payments/{}", row.id))
                .await
                .body
        }
        None => Value::Null,
    }
}

/// A payment's row in the ledger.
struct Recorded {
    id: Uuid,
    state: String,
    transaction: Option<String>,
    reorganised: bool,
}

/// Checks every invariant and returns the first violation.
pub(crate) async fn check_all(world: &World, scene: &Scene) -> Result<(), String> {
    let mut ledger = world.database.connection().await;
    let moved = moved(world, scene).await;
    let recorded = recorded(&mut ledger, scene).await;
    for (number, payment) in scene.payments.iter().enumerate() {
        let amount = LEAST + u64::try_from(number).unwrap();
        let (moved, recorded) = (moved.get(&amount), recorded.get(&amount));
        if let Err(why) = check_payment(payment, moved, recorded, scene.killed) {
            let life = life(world, recorded).await;
            return Err(format!("payment {number}: {why}; {life}"));
        }
    }
    check_balance(world, scene, &moved, &recorded).await?;
    check_nonces(world, &mut ledger).await
}

/// Waits until no transaction and no payment is open and no balance is held.
pub(crate) async fn wait_until_nothing_is_open(world: &World) {
    let mut ledger = world.database.connection().await;
    let open = "select (select count(*) from transactions where state = 'signed')
        + (select count(*) from payments where state in ('queued', 'inflight', 'mined'))
        + (select count(*) from payer_accounts where held <> 0)";
    eventually("nothing to be open", Duration::from_mins(3), async || {
        let open: i64 = sqlx::query_scalar(open)
            .fetch_one(&mut ledger)
            .await
            .unwrap();
        (open == 0).then_some(())
    })
    .await;
}

/// Transfers to the scene's payee: for each amount, the hashes of the transactions with such a Transfer.
async fn moved(world: &World, scene: &Scene) -> HashMap<u64, HashSet<String>> {
    let mut moved: HashMap<u64, HashSet<String>> = HashMap::new();
    for transfer in world.chain.transfers_to(TEST_USDC, scene.payee).await {
        // anvil keeps returning logs of blocks that it has replaced, including logs of transactions that fail in the new block. The
        // payee's balance is the actual sum.
        let block = json!([transfer["blockNumber"], false]);
        let block = world.chain.call("eth_getBlockByNumber", block).await;
        if block["hash"] == transfer["blockHash"] {
            let amount: U256 = transfer["data"].as_str().unwrap().parse().unwrap();
            let hash = transfer["transactionHash"].as_str().unwrap().to_owned();
            moved.entry(amount.to()).or_default().insert(hash);
        }
    }
    moved
}

async fn recorded(ledger: &mut PgConnection, scene: &Scene) -> HashMap<u64, Recorded> {
    let rows = sqlx::query(
        "select p.amount::bigint, p.state, '0x' || encode(p.transaction_hash, 'hex'), p.quarantine_reason,
            exists (select from events e where e.payment_id = p.id and e.kind = 'reorged'), p.id
        from payments p where p.payee = $1",
    )
    .bind(scene.payee.as_slice())
    .fetch_all(ledger)
    .await
    .unwrap();
    let rows = rows.into_iter().map(|row| {
        let quarantined: Option<String> = row.get(3);
        assert_eq!(quarantined, None, "every payment can be decided");
        let recorded = Recorded {
            id: row.get(5),
            state: row.get(1),
            transaction: row.get(2),
            reorganised: row.get(4),
        };
        (u64::try_from(row.get::<i64, _>(0)).unwrap(), recorded)
    });
    rows.collect()
}

/// Compares the callers' answers, the ledger and the chain for one payment.
fn check_payment(
    payment: &Presented,
    moved: Option<&HashSet<String>>,
    recorded: Option<&Recorded>,
    killed: bool,
) -> Result<(), String> {
    let told = payment.told.lock().unwrap().clone();
    let last = payment.last.as_ref().unwrap();
    let Some(recorded) = recorded else {
        // Never accepted: a submission by another account buys nothing here.
        let refused = told.is_empty() && !last.succeeded();
        return refused
            .then_some(())
            .ok_or_else(|| "success without a row".to_owned());
    };
    let settled = ["settled", "final", "late_settled"].contains(&recorded.state.as_str());
    if settled != moved.is_some() {
        return Err(format!(
            "{} in the ledger, {moved:?} on the chain",
            recorded.state
        ));
    }
    let good = last.succeeded() || last.reason() == "duplicate_settlement";
    if let Some(moved) = moved {
        let of_chain = |hash: &str| moved.contains(hash);
        if !recorded.transaction.as_deref().is_some_and(of_chain) {
            let named = &recorded.transaction;
            return Err(format!("{named:?} in the ledger, {moved:?} on the chain"));
        }
        if !good || recorded.transaction != Some(last.transaction()) {
            return Err(format!(
                "{moved:?} on the chain, and the answer is {last:?}"
            ));
        }
    }
    // Success after one confirmation can be undone by a reorg, and only by a reorg.
    if !settled && (!told.is_empty() || good) && !recorded.reorganised {
        return Err(format!(
            "successes {told:?}, then {last:?}, and no transfer"
        ));
    }
    // A kill between the socket flush and the commit permits one more success.
    if told.len() > 1 + usize::from(killed) {
        return Err(format!("success was answered {} times", told.len()));
    }
    Ok(())
}

/// The sum that the ledger calls settled is the payee's balance.
async fn check_balance(
    world: &World,
    scene: &Scene,
    moved: &HashMap<u64, HashSet<String>>,
    recorded: &HashMap<u64, Recorded>,
) -> Result<(), String> {
    let has = world.chain.usdc(scene.payee).await;
    let sum = U256::from(moved.keys().sum::<u64>());
    let settled = recorded
        .iter()
        .filter(|(_, row)| row.state.ends_with("settled") || row.state == "final");
    let settled: u64 = settled.map(|(amount, _)| *amount).sum();
    if has != sum || U256::from(settled) > sum {
        return Err(format!(
            "the payee has {has}, logs say {sum}, the ledger {settled}"
        ));
    }
    Ok(())
}

async fn check_nonces(world: &World, ledger: &mut PgConnection) -> Result<(), String> {
    for signer in Chain::signers(2) {
        let next: Option<i64> = sqlx::query_scalar(
            "select next_nonce from lanes where signer = $1 and stopped_reason is null",
        )
        .bind(signer.address.as_slice())
        .fetch_optional(&mut *ledger)
        .await
        .unwrap();
        let Some(next) = next else {
            return Err(format!("the lane of {} is stopped", signer.address));
        };
        let mined = world.chain.transaction_count(signer.address).await;
        let pending = world.chain.pending_count(signer.address).await;
        if u64::try_from(next).unwrap() != mined || mined != pending {
            return Err(format!(
                "next nonce {next}, mined {mined}, pending {pending}"
            ));
        }
    }
    Ok(())
}
