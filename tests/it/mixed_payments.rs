//! Payments of four kinds at once: v1 and v2 by EIP-3009, `exact` by Permit2, and `upto`.

use alloy::primitives::{Address, U64, U256};
use serde_json::Value;
use tokio::task::JoinSet;
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Permit2Purchase, Purchase, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x4d);
const PAYMENTS: u64 = 80;
/// Permitted amount in `upto`; less is charged.
const PERMITTED: u64 = 50_000;

/// One Transfer: transaction hash, log index, amount.
type Transfer = (String, u64, U256);

/// The bodies of a payment's `/verify` and `/settle`.
struct Bodies {
    verify: Value,
    settle: Value,
}

impl Bodies {
    fn same(body: Value) -> Self {
        Self {
            verify: body.clone(),
            settle: body,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eighty_mixed_payments_each_settle_once() {
    let setup = Setup {
        signers: 3,
        block_time_s: Some(1),
        ..Setup::default()
    };
    // A long wait, because a busy machine makes its blocks late.
    let world = setup.with("X402D_SETTLE_WAIT", "25").build().await;
    // One payer, so that all payments share its balance and those by Permit2 its allowance.
    let payer = world.approved_payer().await;
    let payments = (0..PAYMENTS).map(|number| {
        // Two of each kind have the same amount and look alike in the logs.
        let amount = 1_000 + number % (PAYMENTS / 2);
        match number % 4 {
            0 => Bodies::same(Purchase::new(&payer, PAYEE, amount).v1().body()),
            1 => Bodies::same(Purchase::new(&payer, PAYEE, amount).body()),
            2 => Bodies::same(Permit2Purchase::exact(&payer, PAYEE, amount).body()),
            _ => {
                let payment = Permit2Purchase::upto(&payer, PAYEE, PERMITTED);
                Bodies {
                    verify: payment.body(),
                    settle: payment.charging(amount).body(),
                }
            }
        }
    });
    let mut sales = JoinSet::new();
    for bodies in payments {
        let caller = world.facilitator.clone();
        sales.spawn(async move {
            let before = caller.verify(&bodies.verify).await;
            let settled = caller.settle(&bodies.settle).await;
            let after = caller.verify(&bodies.verify).await;
            (before, settled, after)
        });
    }
    for (before, settled, after) in sales.join_all().await {
        assert!(before.is_valid(), "{before:?}");
        assert!(settled.succeeded(), "{settled:?}");
        assert_eq!(after.reason(), "duplicate_settlement", "{after:?}");
    }
    let moved = transfers_on_chain(&world).await;
    assert_eq!(moved.len(), 80);
    let ledger = world.facilitator.get("/payments?limit=500").await;
    assert_eq!(transfers_in_ledger(&ledger), moved);
    let sum = U256::from((0..40).map(|number| 2 * (1_000 + number)).sum::<u64>());
    assert_eq!(world.chain.usdc(PAYEE).await, sum);
    let left = U256::from(100_000_000) - sum;
    assert_eq!(world.chain.usdc(payer.address()).await, left);
    for (kind, count) in [
        ("1 exact eip3009", 20),
        ("2 exact eip3009", 20),
        ("2 exact permit2", 20),
        ("2 upto permit2", 20),
    ] {
        let rows = ledger.body["payments"].as_array().unwrap().iter();
        assert_eq!(rows.filter(|row| kind_of(row) == kind).count(), count);
    }
}

async fn transfers_on_chain(world: &World) -> Vec<Transfer> {
    let moved = |log: &Value| {
        let hash = log["transactionHash"].as_str().unwrap();
        let index: U64 = serde_json::from_value(log["logIndex"].clone()).unwrap();
        let amount = log["data"].as_str().unwrap().parse().unwrap();
        (hash.to_owned(), index.to(), amount)
    };
    let logs = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    let mut moved: Vec<Transfer> = logs.iter().map(moved).collect();
    moved.sort();
    moved
}

fn transfers_in_ledger(ledger: &Answer) -> Vec<Transfer> {
    let moved = |row: &Value| {
        assert_eq!(row["state"], "settled", "{row}");
        let hash = row["transaction"].as_str().unwrap();
        let index = row["logIndex"].as_u64().unwrap();
        let amount = row["amount"].as_str().unwrap().parse().unwrap();
        (hash.to_owned(), index, amount)
    };
    let rows = ledger.body["payments"].as_array().unwrap().iter();
    let mut moved: Vec<Transfer> = rows.map(moved).collect();
    moved.sort();
    moved
}

fn kind_of(row: &Value) -> String {
    let text = |member: &str| row[member].as_str().unwrap();
    format!(
        "{} {} {}",
        row["x402Version"],
        text("scheme"),
        text("method")
    )
}
