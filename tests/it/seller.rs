//! Our own seller module with a real facilitator: whoever paid gets what they paid for, once.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::seller::Paywall;

use crate::support::{
    Line, Seller, Stall, World, buy, buy_with, eventually, payment_header, present, receipt,
};

const PAYEE: Address = Address::repeat_byte(0x5a);

async fn stall(world: &World) -> Stall {
    Stall::open(world.facilitator.url(), PAYEE, |paywall| paywall).await
}

async fn one_transfer(world: &World) -> String {
    let transfers = world.chain.transfers_to(TEST_USDC, PAYEE).await;
    assert_eq!(transfers.len(), 1);
    transfers[0]["transactionHash"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_handler_holds_the_hash_before_it_answers_and_a_delivered_header_buys_nothing_more() {
    let world = World::new().await;
    let payer = world.payer().await;
    let stall = stall(&world).await;
    let url = format!("{}/report", stall.url);
    let header = payment_header(&url, &payer).await;
    let bought = present(&url, &header).await.unwrap();
    assert_eq!(bought.status(), 200);
    assert_eq!(bought.headers()["cache-control"], "private");
    let receipt = receipt(&bought);
    let body: Value = bought.json().await.unwrap();
    let hash = one_transfer(&world).await;
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
    assert_eq!(stall.runs(), 1);
    let free = reqwest::get(format!("{}/free", stall.url)).await.unwrap();
    assert_eq!(
        (
            free.status().as_u16(),
            free.headers().get("payment-response")
        ),
        (200, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_copies_of_a_header_at_two_sellers_buy_one_resource() {
    let world = World::new().await;
    let payer = world.payer().await;
    for route in ["report", "after"] {
        let stalls = [stall(&world).await, stall(&world).await];
        let url = |index: usize| format!("{}/{route}", stalls[index % 2].url);
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
async fn a_handler_that_fails_after_the_settlement_runs_again_for_the_same_header_alone() {
    let world = World::new().await;
    let payer = world.payer().await;
    let stall = stall(&world).await;
    let url = format!("{}/report", stall.url);
    let header = payment_header(&url, &payer).await;
    stall.breaks(true);
    let failed = present(&url, &header).await.unwrap();
    assert_eq!(failed.status(), 503);
    let hash = one_transfer(&world).await;
    assert_eq!(
        receipt(&failed)["transaction"],
        hash,
        "the buyer holds the proof"
    );

    stall.breaks(false);
    let elsewhere = present(&format!("{}/large", stall.url), &header)
        .await
        .unwrap();
    assert_eq!(
        elsewhere.status(),
        402,
        "it is owed for the request that it was paid for"
    );
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["transaction"], hash);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
    assert_eq!(one_transfer(&world).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_who_hangs_up_while_the_payment_settles_gets_the_resource_when_they_come_back() {
    let world = World::new().await;
    let payer = world.payer().await;
    let stall = stall(&world).await;
    let line = Line::to(&stall.url).await;
    let header = payment_header(&format!("{}/report", stall.url), &payer).await;
    world.chain.automine(false).await;
    let asking = {
        let (url, header) = (format!("{}/report", line.url()), header.clone());
        TaskTracker::new().spawn(async move { present(&url, &header).await })
    };
    world.has_sent(1).await;
    line.cut();
    assert!(asking.await.unwrap().is_err(), "the buyer hears nothing");
    world.mine_on().await;
    let url = format!("{}/report", stall.url);
    let served = eventually("the resource", Duration::from_secs(20), async || {
        let again = present(&url, &header).await.unwrap();
        (again.status() == 200).then_some(again)
    })
    .await;
    assert_eq!(receipt(&served)["transaction"], one_transfer(&world).await);
    assert_eq!(stall.runs(), 1);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_fails_before_the_settlement_costs_nothing() {
    let world = World::new().await;
    let payer = world.payer().await;
    let stall = stall(&world).await;
    let url = format!("{}/after", stall.url);
    let header = payment_header(&url, &payer).await;
    stall.breaks(true);
    assert_eq!(present(&url, &header).await.unwrap().status(), 503);
    assert!(world.chain.transfers_to(TEST_USDC, PAYEE).await.is_empty());
    stall.breaks(false);
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["transaction"], one_transfer(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_broke_off_on_its_way_to_the_buyer_is_given_again() {
    let world = World::new().await;
    let payer = world.payer().await;
    let stall = stall(&world).await;
    let line = Line::to(&stall.url).await;
    let header = payment_header(&format!("{}/large", stall.url), &payer).await;
    let mut broken = present(&format!("{}/large", line.url()), &header)
        .await
        .unwrap();
    assert_eq!(broken.status(), 200);
    assert!(broken.chunk().await.unwrap().is_some());
    line.cut();
    while let Ok(Some(_)) = broken.chunk().await {}

    let url = format!("{}/large", stall.url);
    let served = eventually("the rest", Duration::from_secs(20), async || {
        let again = present(&url, &header).await.unwrap();
        (again.status() == 200).then_some(again)
    })
    .await;
    let hash = one_transfer(&world).await;
    assert_eq!(receipt(&served)["transaction"], hash);
    assert_eq!(served.bytes().await.unwrap().len(), 64 * 1024 * 1024);
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facilitator_whose_answer_never_came_is_asked_again_and_says_success() {
    let world = World::new().await;
    let payer = world.payer().await;
    let line = Line::to(world.facilitator.url()).await;
    let ours = Stall::open(&line.url(), PAYEE, |paywall| paywall).await;
    let official = Seller::start("seller_v2.mjs", &line.url(), &PAYEE.to_string()).await;
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
        world.has_sent(sent + 1).await;
        line.cut();
        let refused = asking.await.unwrap();
        assert!(matches!(refused, 402 | 502), "{url}: {refused}");
        world.mine_on().await;
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
async fn an_answer_that_left_the_facilitator_whole_and_never_arrived_still_buys_the_resource_once()
{
    let world = World::new().await;
    let payer = world.payer().await;
    let line = Line::to(world.facilitator.url()).await;
    let stall = Stall::open(&line.url(), PAYEE, |paywall| paywall).await;
    let elsewhere = Stall::open(world.facilitator.url(), PAYEE, |paywall| paywall).await;
    let url = format!("{}/report", stall.url);
    let header = payment_header(&url, &payer).await;
    line.swallow(true);
    let lost = present(&url, &header).await.unwrap();
    assert_eq!(lost.status(), 502);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
    line.swallow(false);
    let other = format!("{}/report", elsewhere.url);
    assert_eq!(present(&other, &header).await.unwrap().status(), 402);
    let served = present(&url, &header).await.unwrap();
    assert_eq!(served.status(), 200);
    assert_eq!(receipt(&served)["success"], true);
    served.bytes().await.unwrap();
    assert_eq!(present(&url, &header).await.unwrap().status(), 402);
    assert_eq!(stall.runs() + elsewhere.runs(), 1);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_that_is_killed_with_a_purchase_owed_serves_it_in_its_next_life() {
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
    let hash = one_transfer(&world).await;
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
    assert_eq!(again.status(), 402, "what was delivered is not owed");
    assert_eq!(one_transfer(&world).await, hash);
}

#[tokio::test(flavor = "multi_thread")]
async fn official_buyers_and_sessions_on_both_rails_buy_from_our_seller() {
    let world = World::new().await;
    let buyer = &LocalChain::funded_keys()[9];
    world.chain.fund(buyer.address, 1_000_000).await;
    let stall = stall(&world).await;
    let mut bought = Vec::new();
    for route in ["report", "after"] {
        let url = format!("{}/{route}", stall.url);
        bought.push(buy("buyer_v2.mjs", &url, buyer.key, None).await);
    }
    bought.push(
        buy(
            "buyer_v1.mjs",
            &format!("{}/report", stall.url),
            buyer.key,
            None,
        )
        .await,
    );
    for rail in ["authorization", "transfer"] {
        let url = format!("{}/report", stall.url);
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
async fn a_browser_sees_a_page_and_an_option_list_is_offered_in_order() {
    let world = World::new().await;
    let stall = Stall::open(world.facilitator.url(), PAYEE, |paywall: Paywall| {
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
        let response = reqwest::get(format!("{}{path}", stall.url)).await.unwrap();
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
        .get(format!("{}/report", stall.url))
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
