//! A payment moves money once and buys one resource, however many present it and however many come at a time.

use alloy::primitives::{Address, U256};
use x402d::embedded::TEST_USDC;

use crate::support::{Purchase, World, new_account};

const PAYEE: Address = Address::repeat_byte(0x5e);

#[tokio::test(flavor = "multi_thread")]
async fn twenty_who_present_one_payment_at_once_get_one_transfer_and_one_success() {
    let world = World::new().await;
    let payer = new_account();
    world.chain.fund(payer.address(), 1_000_000).await;
    let body = Purchase::new(&payer, PAYEE, 250_000).body();
    let answers = world.facilitator.settle_at_once(vec![body; 20]).await;
    let (successes, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer.succeeded());
    assert_eq!(successes.len(), 1, "{answers:?}");
    let hash = successes[0].transaction();
    for other in others {
        assert_eq!(
            (other.status, other.reason()),
            (200, "duplicate_settlement")
        );
        assert_eq!(other.transaction(), hash);
    }
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(transfers[0]["transactionHash"], hash.as_str());
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(250_000));
}
