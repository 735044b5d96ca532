//! Our own seller while its facilitator cannot be reached, and as a gateway: one payment buys one resource, whatever happens on the way.

use alloy::primitives::{Address, U256};
use axum::Router;
use serde_json::{Value, json};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::protocol::header;

use crate::support::{
    BuyerProcess, PaywallSeller, Seller, TcpProxy, World, payment_header, present, receipt,
};

const PAYEE: Address = Address::repeat_byte(0x5c);

/// A payment header whose payload says the same in other words.
fn respelled(payment: &str, number: usize) -> String {
    let mut payment: Value = header::decode(payment).unwrap();
    let payload = payment["payload"].as_object_mut().unwrap();
    payload.insert("x".to_owned(), json!(number));
    for member in ["/payload/authorization/nonce", "/payload/signature"] {
        let text = payment.pointer_mut(member).unwrap();
        if number % 2 == 1 {
            let upper = text.as_str().unwrap().to_uppercase().replace('X', "x");
            *text = upper.into();
        }
    }
    header::encode(&payment).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_that_bought_elsewhere_during_an_outage_buys_nothing_here() {
    let world = World::new().await;
    let payer = world.payer().await;
    let link = TcpProxy::to(world.facilitator.url()).await;
    let here = PaywallSeller::open(&link.url(), PAYEE, |paywall| paywall).await;
    let elsewhere = PaywallSeller::open(world.facilitator.url(), PAYEE, |paywall| paywall).await;
    for route in ["report", "after"] {
        let url = format!("{}/{route}", here.url);
        let payment = payment_header(&url, &payer).await;
        link.down(true);
        assert_eq!(present(&url, &payment).await.unwrap().status(), 502);
        let other = format!("{}/{route}", elsewhere.url);
        assert_eq!(present(&other, &payment).await.unwrap().status(), 200);
        link.down(false);
        let refused = present(&url, &payment).await.unwrap();
        assert_eq!(refused.status(), 402, "{route}");
        if route == "report" {
            let outcome = receipt(&refused);
            assert_eq!(outcome["errorReason"], "duplicate_settlement", "{outcome}");
            assert_ne!(outcome["transaction"], "", "the proof that the money moved");
        }
    }
    assert_eq!((here.runs(), elsewhere.runs()), (0, 2));
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn spellings_presented_during_an_outage_buy_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let link = TcpProxy::to(world.facilitator.url()).await;
    let seller = PaywallSeller::open(&link.url(), PAYEE, |paywall| paywall).await;
    let url = |number: usize| format!("{}/report?id={number}", seller.url);
    let payment = payment_header(&url(0), &payer).await;
    link.down(true);
    for number in 0..5 {
        let lost = present(&url(number), &respelled(&payment, number)).await;
        assert_eq!(lost.unwrap().status(), 502);
    }
    link.down(false);
    let mut statuses = Vec::new();
    for number in 0..5 {
        let answer = present(&url(number), &respelled(&payment, number)).await;
        statuses.push(answer.unwrap().status().as_u16());
    }
    assert_eq!(statuses, [200, 402, 402, 402, 402]);
    assert_eq!(seller.runs(), 1);
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_charges_by_itself_and_forwards_no_odd_path() {
    let world = World::new().await;
    let buyer = &LocalChain::funded_keys()[9];
    world.chain.fund(buyer.address, 1_000_000).await;
    let upstream = Router::new().fallback(async |uri: axum::http::Uri| {
        let overrides = [("settlement-overrides", r#"{"amount": "0"}"#)];
        (overrides, format!("{:>1234}", uri.to_string()))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let inner = format!("http://{}", listener.local_addr().unwrap());
    let _serving = AbortOnDropHandle::new(
        TaskTracker::new().spawn(async move { axum::serve(listener, upstream).await.unwrap() }),
    );
    let payee = PAYEE.to_string();
    let variables = [
        ("FACILITATOR_URL", world.facilitator.url()),
        ("PAY_TO", &payee),
        ("UPSTREAM", &inner),
        ("LISTEN", "127.0.0.1:0"),
    ];
    let gateway = Seller::of_example("gateway", &variables).await;
    let url = format!("{}/goods/a?x=1", gateway.url);
    let buying = BuyerProcess::new(buyer.key).with_chain(world.chain.url());
    let shown = buying.buy(&url, &["--network", "base-sepolia"]).await;
    assert!(shown.success, "{shown:?}");
    let body = shown.json["body"].as_str().unwrap();
    assert_eq!((body.len(), body.trim()), (1234, "/goods/a?x=1"));
    assert_eq!(shown.json["charged"], "1234", "{shown:?}");
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(1234));

    for path in ["goods/..%2fadmin", "goods;x=1", "goods%5cadmin"] {
        let answer = reqwest::get(format!("{}/{path}", gateway.url)).await;
        assert_eq!(answer.unwrap().status(), 400, "{path}");
    }
}
