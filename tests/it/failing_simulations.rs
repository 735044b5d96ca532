//! Payments that fail in simulations use no nonce of a signer.

use alloy::primitives::{Address, U64};
use serde_json::json;

use crate::support::{Purchase, Setup, World, new_account};
use crate::wasted_gas::{paid_by, wallet};

const PAYEE: Address = Address::repeat_byte(0xc4);
const HONEST: Address = Address::repeat_byte(0xc5);

/// What the chain and the ledger have of the only signer: its next nonce on the chain with pending transactions, its lane's next nonce, and
/// the transactions that were written. And how many accepted payments were refused before they were sent.
async fn nonces(world: &World) -> ((u64, i64, i64), i64) {
    let mut ledger = world.database.connection().await;
    let sql = "select next_nonce, (select count(*) from transactions),
        (select count(*) from payments where state = 'refused') from lanes";
    let (next, written, refused) = sqlx::query_as(sql).fetch_one(&mut ledger).await.unwrap();
    ((world.pending(1).await, next, written), refused)
}

/// Half of them fail in the simulation for the caller, half in that of the lane: the wallet's code tells calls from transactions.
#[tokio::test(flavor = "multi_thread")]
async fn thousand_failing_simulations_use_no_nonce() {
    const WALLETS: u8 = 25;
    const PAYMENTS: usize = 20;
    let setup = Setup {
        queryable: true,
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let first = Purchase::new(&payer, HONEST, 1).body();
    assert!(world.facilitator.settle(&first).await.succeeded());
    assert_eq!(nonces(&world).await, ((1, 1, 1), 0));
    let mut wallets = Vec::new();
    for number in 1..=WALLETS {
        let address = Address::with_last_byte(0x80 + number);
        wallets.push(wallet(&world, "SimulationAwareWallet", address).await);
    }
    let mut refused = 0;
    for _ in 0..PAYMENTS {
        let mut bodies = Vec::new();
        for wallet in &wallets {
            bodies.push(paid_by(*wallet).body());
            bodies.push(Purchase::new(&new_account(), PAYEE, 1).body());
        }
        for answer in world.facilitator.settle_all(bodies).await {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.transaction(), "", "{answer:?}");
            let code = answer.reason();
            assert!(code.starts_with("invalid_exact_evm_"), "{answer:?}");
        }
        refused += i64::from(WALLETS);
        assert_eq!(nonces(&world).await, ((1, 1, 1), refused));
    }
    let next = Purchase::new(&payer, HONEST, 1).body();
    let settled = world.facilitator.settle(&next).await;
    assert!(settled.succeeded(), "{settled:?}");
    let hash = json!([settled.transaction()]);
    let transaction = world.chain.call("eth_getTransactionByHash", hash).await;
    assert_eq!(transaction["nonce"], json!(U64::from(1)));
    assert_eq!(nonces(&world).await, ((2, 2, 2), refused));
}
