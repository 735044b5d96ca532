//! Our own seller module with a real facilitator: every paid request gets its resource once.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::seller::Paywall;

use crate::support::{
    PaywallSeller, Seller, TcpProxy, World, buy, buy_with, eventually, payment_header, present,
    receipt,
};

const PAYEE: Address = Address::repeat_byte(0x5a);

async fn open_seller(world: &World) -> PaywallSeller {
    PaywallSeller::open(world.facilitator.url(), PAYEE, |paywall| paywall).await
}

async fn only_transfer(world: &World) -> String {
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    transfers[0]["transactionHash"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_has_the_hash_and_delivered_header_buys_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let seller = open_seller(&world).await;
    let url = format!("{}/report", seller.url);
    let header = payment_header(&url, &payer).await;
    let bought = present(&url, &header).await.unwrap();
    assert_eq!(bought.status(), 200);
    assert_eq!(bought.headers()["cache-control"], "private");
    let receipt = receipt(&bought);
    let body: Value = bought.json().await.unwrap();
    let hash = only_transfer(&world).await;
    assert_eq!(
        (&body["paymentId"], &receipt["transaction"]),
        (&hash.clone().into(), &hash.into())
    );
    assert_eq!(body["id"], receipt["extra"]["paymentId"]);
    for _ in 0..3 {
        let again = present(&url, &header).await.unwrap();
        assert_eq!(again.status(), 402);
        assert_eq!(again.headers()["cache-control"], "no-store");
    }
    assert_eq!(seller.runs(), 1);
    let free = reqwest::get(format!("{}/free", seller.url)).await.unwrap();
    assert_eq!(
        (
            free.status().as_u16(),
            free.headers().get("payment-response")
        ),
        (200, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_copies_of_a_header_at_two_sellers_buy_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    for route in ["report", "after"] {
        let sellers = [open_seller(&world).await, open_seller(&world).await];
        let url = |index: usize| format!("{}/{route}", sellers[index % 2].url);
        let header = payment_header(&url(0), &payer).await;
        let mut asking = JoinSet::new();
        for index in 0..50 {
            let (url, header) = (url(index), header.clone());
            asking.spawn(async move { present(&url, &header).await.unwrap().status().as_u16() });
        }
        let statuses = asking.join_all().await;
        let served = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(served, 1, "{route}: {statuses:?}");
        assert!(
            statuses.iter().all(|status| matches!(status, 200 | 402)),
            "{statuses:?}"
        );
    }
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_handler_runs_again_for_the_same_header_only() {
    let world = World::new().await;
    let payer = world.payer().await;
    let seller = open_seller(&world).await;
    let url = format!("{}/report", seller.url);
    let header = payment_header(&url, &payer).await;
    seller.set_broken(true);
    let failed = present(&url, &header).await.unwrap();
    assert_eq!(failed.status(), 503);
    let hash = only_transfer(&world).await;
    assert_eq!(
        receipt(&failed)["transaction"],
        hash,
        "the buyer holds the proof"
    );

    seller.set_broken(false);
    let elsewhere = present(&format!("{}/large", seller.url), &header)
        .await
        .unwrap();
    assert_eq!(
        elsewhere.status(),
        402,
        "it is owed only for the request that was paid"
    );
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["transaction"], hash);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
    assert_eq!(only_transfer(&world).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_buyer_gets_the_resource_on_retry() {
    let world = World::new().await;
    let payer = world.payer().await;
    let seller = open_seller(&world).await;
    let link = TcpProxy::to(&seller.url).await;
    let header = payment_header(&format!("{}/report", seller.url), &payer).await;
    world.chain.automine(false).await;
    let asking = {
        let (url, header) = (format!("{}/report", link.url()), header.clone());
        TaskTracker::new().spawn(async move { present(&url, &header).await })
    };
    world.wait_until_sent(1).await;
    link.cut();
    assert!(asking.await.unwrap().is_err(), "the buyer gets no answer");
    world.resume_mining().await;
    let url = format!("{}/report", seller.url);
    let served = eventually("the resource", Duration::from_secs(20), async || {
        let again = present(&url, &header).await.unwrap();
        (again.status() == 200).then_some(again)
    })
    .await;
    assert_eq!(receipt(&served)["transaction"], only_transfer(&world).await);
    assert_eq!(seller.runs(), 1);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_failing_before_settlement_costs_nothing() {
    let world = World::new().await;
    let payer = world.payer().await;
    let seller = open_seller(&world).await;
    let url = format!("{}/after", seller.url);
    let header = payment_header(&url, &payer).await;
    seller.set_broken(true);
    assert_eq!(present(&url, &header).await.unwrap().status(), 503);
    assert!(world.chain.transfers_to(TEST_USDC, PAYEE).await.is_empty());
    seller.set_broken(false);
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["transaction"], only_transfer(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_answer_is_given_again() {
    let world = World::new().await;
    let payer = world.payer().await;
    let seller = open_seller(&world).await;
    let link = TcpProxy::to(&seller.url).await;
    let header = payment_header(&format!("{}/large", seller.url), &payer).await;
    let mut broken = present(&format!("{}/large", link.url()), &header)
        .await
        .unwrap();
    assert_eq!(broken.status(), 200);
    assert!(broken.chunk().await.unwrap().is_some());
    link.cut();
    while let Ok(Some(_)) = broken.chunk().await {}

    let url = format!("{}/large", seller.url);
    let served = eventually("the rest", Duration::from_secs(20), async || {
        let again = present(&url, &header).await.unwrap();
        (again.status() == 200).then_some(again)
    })
    .await;
    let hash = only_transfer(&world).await;
    assert_eq!(receipt(&served)["transaction"], hash);
    assert_eq!(served.bytes().await.unwrap().len(), 64 * 1024 * 1024);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
}

#[tokio::test(flavor = "multi_thread")]
async fn settle_is_retried_after_a_lost_facilitator_answer() {
    let world = World::new().await;
    let payer = world.payer().await;
    let link = TcpProxy::to(world.facilitator.url()).await;
    let ours = PaywallSeller::open(&link.url(), PAYEE, |paywall| paywall).await;
    let official = Seller::start("seller_v2.mjs", &link.url(), &PAYEE.to_string()).await;
    for (number, url) in [
        format!("{}/report", ours.url),
        format!("{}/upfront", official.url),
    ]
    .iter()
    .enumerate()
    {
        let sent = u64::try_from(number).unwrap();
        let header = payment_header(url, &payer).await;
        world.chain.automine(false).await;
        let asking = {
            let (url, header) = (url.clone(), header.clone());
            TaskTracker::new()
                .spawn(async move { present(&url, &header).await.unwrap().status().as_u16() })
        };
        world.wait_until_sent(sent + 1).await;
        link.cut();
        let refused = asking.await.unwrap();
        assert!(matches!(refused, 402 | 502), "{url}: {refused}");
        world.resume_mining().await;
        let served = eventually("the resource", Duration::from_secs(30), async || {
            let again = present(url, &header).await.unwrap();
            (again.status() == 200).then_some(again)
        })
        .await;
        assert_eq!(receipt(&served)["success"], true);
        assert_eq!(present(url, &header).await.unwrap().status(), 402, "{url}");
        let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
        assert_eq!(transfers.len(), number + 1, "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn swallowed_facilitator_answer_still_buys_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let link = TcpProxy::to(world.facilitator.url()).await;
    let seller = PaywallSeller::open(&link.url(), PAYEE, |paywall| paywall).await;
    let elsewhere = PaywallSeller::open(world.facilitator.url(), PAYEE, |paywall| paywall).await;
    let url = format!("{}/report", seller.url);
    let header = payment_header(&url, &payer).await;
    link.swallow(true);
    let lost = present(&url, &header).await.unwrap();
    assert_eq!(lost.status(), 502);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    link.swallow(false);
    let other = format!("{}/report", elsewhere.url);
    assert_eq!(present(&other, &header).await.unwrap().status(), 402);
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["success"], true);
    served.bytes().await.unwrap();
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
    assert_eq!(seller.runs() + elsewhere.runs(), 1);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_seller_serves_owed_purchase_after_restart() {
    let world = World::new().await;
    let payer = world.payer().await;
    let folder = tempfile::tempdir().unwrap();
    let owed = folder.path().join("owed.jsonl");
    let life = async |variables: &[(&str, &str)]| {
        let file = [
            ("OWED_FILE", owed.to_str().unwrap()),
            ("LISTEN", "127.0.0.1:0"),
        ];
        let variables = [variables, file.as_slice()].concat();
        Seller::example(world.facilitator.url(), &PAYEE.to_string(), &variables).await
    };
    let first = life(&[("OUT_OF_ORDER", "1")]).await;
    let header = payment_header(&format!("{}/report", first.url), &payer).await;
    let failed = present(&format!("{}/report", first.url), &header)
        .await
        .unwrap();
    assert_eq!(failed.status(), 503);
    let hash = only_transfer(&world).await;
    first.kill().await;

    let second = life(&[]).await;
    let url = format!("{}/report", second.url);
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert!(served.text().await.unwrap().contains(&hash));
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
    second.kill().await;
    let third = life(&[]).await;
    let again = present(&format!("{}/report", third.url), &header)
        .await
        .unwrap();
    assert_eq!(again.status(), 402, "a delivered resource is not owed");
    assert_eq!(only_transfer(&world).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn official_buyers_and_sessions_buy_from_our_seller() {
    let world = World::new().await;
    let buyer = &LocalChain::funded_keys()[9];
    world.chain.fund(buyer.address, 1_000_000).await;
    let seller = open_seller(&world).await;
    let mut bought = Vec::new();
    for route in ["report", "after"] {
        let url = format!("{}/{route}", seller.url);
        bought.push(buy("buyer_v2.mjs", &url, buyer.key, None).await);
    }
    bought.push(
        buy(
            "buyer_v1.mjs",
            &format!("{}/report", seller.url),
            buyer.key,
            None,
        )
        .await,
    );
    for rail in ["authorization", "transfer"] {
        let url = format!("{}/report", seller.url);
        let variables = [("RAIL", rail), ("RPC_URL", world.chain.url())];
        let paid = buy_with("session_buyer.mjs", &url, buyer.key, None, &variables).await;
        assert_eq!(
            paid.body["paymentId"], paid.payment["transaction"],
            "{rail}: {paid:?}"
        );
        assert_eq!(
            paid.body["sessionId"], paid.payment["extra"]["sessionId"],
            "{rail}"
        );
        assert!(paid.body["sessionId"].is_string(), "{rail}");
        bought.push(paid);
    }
    for paid in &bought {
        assert_eq!(
            (paid.status, &paid.payment["success"]),
            (200, &true.into()),
            "{paid:?}"
        );
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(50_000));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn browser_sees_a_page_and_options_keep_their_order() {
    let world = World::new().await;
    let seller = PaywallSeller::open(world.facilitator.url(), PAYEE, |paywall: Paywall| {
        use x402d::seller::{Price, Route, Terms};
        let terms = |cents: &str| {
            let price = Price::dollars(cents).unwrap();
            Terms::new("eip155:84532".parse().unwrap(), PAYEE, price)
        };
        let other = Terms::new(
            "eip155:8453".parse().unwrap(),
            PAYEE,
            Price::dollars("0.02").unwrap(),
        );
        let by_query = move |parts: &axum::http::request::Parts| {
            let double = parts.uri.query() == Some("double");
            vec![terms(if double { "0.02" } else { "0.01" })]
        };
        paywall
            .sell(
                Route::new("GET /many", Price::dollars("0.01").unwrap())
                    .or(other)
                    .resource_id("many"),
            )
            .sell(Route::computed("GET /computed", by_query))
    })
    .await;
    let asked = async |path: &str| {
        let response = reqwest::get(format!("{}{path}", seller.url)).await.unwrap();
        let challenge = response.headers()["payment-required"].to_str().unwrap();
        x402d::protocol::header::decode::<Value>(challenge).unwrap()
    };
    let many = asked("/many").await;
    let networks: Vec<_> = many["accepts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["network"].as_str().unwrap())
        .collect();
    assert_eq!(networks, ["eip155:84532", "eip155:8453"]);
    assert_eq!(many["accepts"][0]["extra"]["resourceId"], "many");
    let announced = &many["extensions"]["payment-session"]["info"]["url"];
    assert_eq!(announced.as_str(), Some(world.facilitator.url()));
    assert_eq!(asked("/computed").await["accepts"][0]["amount"], "10000");
    assert_eq!(
        asked("/computed?double").await["accepts"][0]["amount"],
        "20000"
    );

    let browser = reqwest::Client::builder()
        .user_agent("Mozilla/5.0")
        .build()
        .unwrap();
    let page = browser
        .get(format!("{}/report", seller.url))
        .header("accept", "text/html,*/*")
        .send()
        .await
        .unwrap();
    assert_eq!(page.status(), 402);
    assert!(page.headers().contains_key("payment-required"));
    assert!(
        page.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/html")
    );
    assert!(
        page.text()
            .await
            .unwrap()
            .contains("10000 atomic units of USDC")
    );
}
