//! Reorgs during an RPC outage, after which the chain has grown by more blocks than the watch follows one by one.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;

use crate::support::{Answer, Fault, Purchase, Setup, World, eventually, has_event};

const PAYEE: Address = Address::repeat_byte(0x4f);
/// More blocks than the watch keeps (128), so that it begins anew at the newest one.
const MANY_BLOCKS: u64 = 200;

/// The newest block is orphaned and many follow, while the RPC does not answer.
async fn reorg_unseen(world: &World) {
    world.proxy.all(Fault::Unavailable);
    world.chain.reorg(1).await;
    world.chain.mine(MANY_BLOCKS).await;
    world.proxy.all(Fault::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_of_block_orphaned_during_outage_settles_again() {
    let world = World::new().await;
    let told = settle(&world, 910).await;
    assert!(told.succeeded(), "{told:?}");
    reorg_unseen(&world).await;
    let row = eventually("a second settlement", Duration::from_secs(40), async || {
        let row = world.facilitator.payment(&told).await;
        (has_event(&row, "reorged") && row["state"] == "settled").then_some(row)
    })
    .await;
    assert_eq!(row["transaction"], told.transaction(), "{row}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(910));
    assert_eq!(world.transactions(1).await, 1);
}

/// No payment names the orphaned block: the transaction in it transferred nothing. Its nonce is free again, and later ones wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn nonce_of_block_orphaned_during_outage_is_used_again() {
    let mut world = Setup::default()
        .with("X402D_SETTLE_WAIT", "25")
        .build()
        .await;
    let (_, cancelled) = world.settle_cancelled(PAYEE, 909).await;
    let code = "invalid_exact_evm_nonce_already_used";
    assert_eq!(cancelled.reason(), code, "{cancelled:?}");
    assert_eq!(world.transactions(1).await, 1);
    reorg_unseen(&world).await;
    assert_eq!(world.transactions(1).await, 0);
    world.facilitator.wait_until_ready().await;
    let told = settle(&world, 911).await;
    assert!(told.succeeded(), "{told:?}");
    assert_eq!(world.transactions(1).await, 2);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(911));
}

async fn settle(world: &World, amount: u64) -> Answer {
    let purchase = Purchase::new(&world.payer().await, PAYEE, amount);
    world.facilitator.settle(&purchase.body()).await
}
