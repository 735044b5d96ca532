//! Sponsored gas transfers that revert.

use alloy::primitives::{Address, U256};
use serde_json::json;

use crate::support::{Permit2Purchase, Setup};

const PAYEE: Address = Address::repeat_byte(0x9a);
/// Maximum cost of one approval in wei: 70,000 gas at 5 gwei, plus half of that for rollup data fees.
const COST: u64 = 525_000_000_000_000;
/// Room for one of them and for the gas of two fundings.
const DAY: u64 = COST + COST / 2;

#[tokio::test(flavor = "multi_thread")]
async fn reverted_gas_funding_is_not_counted() {
    let setup = Setup {
        toml: format!(
            "[networks.base-sepolia.approvals]\nwei_per_payer = {COST}\nwei_per_day = {DAY}\n"
        ),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let payment = Permit2Purchase::exact(&payer, PAYEE, 10_000);
    let payment = payment.clone().with_approval(&payment.approval());
    world.chain.automine(false).await;
    let mut settling = world.facilitator.spawn_settle(&payment.body());
    world.wait_until_sent(1).await;
    // Meanwhile the payer's account gets code that rejects native currency.
    world.chain.place("RevertBomb", payer.address()).await;
    world.resume_mining().await;
    let ended = settling.join_next().await.unwrap().unwrap().unwrap();
    let code = "erc20_approval_insufficient_eth_for_gas";
    assert_eq!(ended.reason(), code, "{ended:?}");
    let message = ended.body["errorMessage"].as_str().unwrap();
    assert!(message.contains("did not get"), "{message}");
    let code = json!([payer.address(), "0x"]);
    world.chain.call("anvil_setCode", code).await;
    let balance = world
        .chain
        .call("eth_getBalance", json!([payer.address(), "latest"]))
        .await;
    let balance: U256 = serde_json::from_value(balance).unwrap();
    assert_eq!(balance, U256::ZERO);

    // Of the reverted transfer only the gas counts against the daily budget.
    let other = world.payer().await;
    let payment = Permit2Purchase::exact(&other, PAYEE, 10_000);
    let payment = payment.clone().with_approval(&payment.approval());
    let settled = world.facilitator.settle(&payment.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
}
