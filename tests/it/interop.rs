//! Unmodified official packages buy and sell through x402d.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use x402d::embedded::{LocalChain, TEST_USDC};

use crate::support::{BuyerReport, Seller, Setup, World, buy, buy_with, eventually};

const PAYEE: Address = Address::repeat_byte(0x5e);
/// Price of a report, in atomic units.
const PRICE: u64 = 10_000;

/// A world with a seller, and the key of a funded buyer.
async fn market(seller: &str) -> (World, Seller, &'static str) {
    market_of(Setup::default(), seller).await
}

async fn market_of(setup: Setup, seller: &str) -> (World, Seller, &'static str) {
    let world = setup.build().await;
    let buyer = &LocalChain::funded_keys()[9];
    world.chain.fund(buyer.address, 1_000_000).await;
    let seller = Seller::start(seller, world.facilitator.url(), &PAYEE.to_string()).await;
    (world, seller, buyer.key)
}

async fn assert_price_transferred_once(world: &World, bought: &BuyerReport) {
    assert_eq!(bought.status, 200, "{bought:?}");
    assert_eq!(bought.body["served"], 1, "{bought:?}");
    assert_eq!(bought.payment["success"], true, "{bought:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(PRICE));
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    assert_eq!(
        bought.payment["transaction"],
        transfers[0]["transactionHash"]
    );
    let ledger = world.facilitator.get("/payments").await.body;
    assert_eq!(
        ledger["payments"][0]["transaction"], bought.payment["transaction"],
        "both sides and the ledger hold one hash"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn official_v2_client_pays_once_at_official_v2_seller() {
    let (world, seller, key) = market("seller_v2.mjs").await;
    let url = format!("{}/report", seller.url);
    let bought = buy("buyer_v2.mjs", &url, key, None).await;
    assert_price_transferred_once(&world, &bought).await;

    let again = buy("buyer_v2.mjs", &url, key, Some(&bought.header)).await;
    assert_eq!(again.status, 402, "{again:?}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcard_evm_buyer_finds_payment_id_in_result_header() {
    let (world, seller, key) = market("seller_v2.mjs").await;
    let url = format!("{}/report", seller.url);
    let bought = buy("buyer_any_evm.mjs", &url, key, None).await;
    assert_price_transferred_once(&world, &bought).await;
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(
        bought.report["paymentId"], transfers[0]["transactionHash"],
        "{bought:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_pay_official_seller_on_both_rails_and_flows() {
    for (rail, route) in [
        ("authorization", "report"),
        ("authorization", "upfront"),
        ("transfer", "upfront"),
    ] {
        let (world, seller, key) = market("seller_v2.mjs").await;
        let url = format!("{}/{route}", seller.url);
        let variables = [("RAIL", rail), ("RPC_URL", world.chain.url())];
        let bought = buy_with("session_buyer.mjs", &url, key, None, &variables).await;
        assert_price_transferred_once(&world, &bought).await;
        let session = bought.payment["extra"]["sessionId"].as_str().unwrap();
        let session = world
            .facilitator
            .get(&format!("/sessions/{session}"))
            .await
            .body;
        assert_eq!(session["state"], "consumed", "{rail} {route}: {session}");
        assert_eq!(session["transaction"], bought.payment["transaction"]);

        let again = buy("session_buyer.mjs", &url, key, Some(&bought.header)).await;
        assert_eq!(again.status, 402, "{again:?}");
        assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_v1_client_pays_official_v1_seller() {
    let (world, seller, key) = market("seller_v1.mjs").await;
    let bought = buy("buyer_v1.mjs", &format!("{}/report", seller.url), key, None).await;
    assert_price_transferred_once(&world, &bought).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn official_python_client_pays_official_seller() {
    let (world, seller, key) = market("seller_v2.mjs").await;
    let bought = buy("buyer.py", &format!("{}/report", seller.url), key, None).await;
    assert_price_transferred_once(&world, &bought).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn same_header_completes_purchase_after_kill() {
    let setup = Setup {
        failpoint: Some("resultrecorded"),
        ..Setup::default()
    };
    let (mut world, seller, key) = market_of(setup, "seller_v2.mjs").await;
    let facilitator = world.facilitator.url().to_owned();
    let url = format!("{}/report", seller.url);
    let first = buy("buyer_v2.mjs", &url, key, None).await;
    assert_eq!(first.status, 402, "{first:?}");
    world.facilitator.wait_for_end().await;
    world.facilitator.restart_at(&facilitator, None).await;
    // The seller's first request may use a connection to the killed process.
    let limit = Duration::from_secs(40);
    let second = eventually("the resource for the same header", limit, async || {
        let again = buy("buyer_v2.mjs", &url, key, Some(&first.header)).await;
        (again.status == 200).then_some(again)
    })
    .await;
    assert_eq!(second.payment["success"], true, "{second:?}");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(PRICE));
}
