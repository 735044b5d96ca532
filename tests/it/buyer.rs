//! `x402d pay` against official sellers: killed, cut off and run again, it pays once.

use alloy::primitives::{Address, U256};
use serde_json::Value;
use x402d::embedded::{LocalChain, TEST_USDC};

use crate::support::{Middle, Passage, Seller, Setup, Shopper, Shown, World};

const PAYEE: Address = Address::repeat_byte(0x5e);
const PRICE: u64 = 10_000;

/// A world with an official seller in it, a man in the middle before that, and a shopper with money.
struct Market {
    world: World,
    middle: Middle,
    shopper: Shopper,
    route: &'static str,
    _seller: Seller,
}

impl Market {
    async fn open(setup: Setup, route: &'static str, passage: Passage) -> Self {
        let world = setup.build().await;
        let buyer = &LocalChain::funded_keys()[9];
        world.chain.fund(buyer.address, 1_000_000).await;
        let seller =
            Seller::start("seller_v2.mjs", world.facilitator.url(), &PAYEE.to_string()).await;
        let middle = Middle::before(&seller.url, passage).await;
        let shopper = Shopper::new(buyer.key);
        Self {
            world,
            middle,
            shopper,
            route,
            _seller: seller,
        }
    }

    fn url(&self) -> String {
        self.middle.url(self.route)
    }

    /// The hash of the only transfer that the payee ever got.
    async fn only_transfer(&self) -> String {
        let transfers = self.world.chain.transfers_to(TEST_USDC, PAYEE).await;
        assert_eq!(transfers.len(), 1);
        assert_eq!(self.world.chain.usdc(PAYEE).await, U256::from(PRICE));
        transfers[0]["transactionHash"].as_str().unwrap().to_owned()
    }

    async fn bought_once(&self, shown: &Shown) -> String {
        assert!(shown.success, "{shown:?}");
        assert_eq!(shown.json["status"], 200, "{shown:?}");
        assert_eq!(shown.json["body"]["report"], "the weather is fine");
        assert_eq!(shown.json["paid"]["amount"], PRICE.to_string());
        let hash = self.only_transfer().await;
        assert_eq!(shown.json["transaction"], hash, "{shown:?}");
        assert_eq!(self.middle.payments().len(), 1);
        hash
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_that_is_killed_before_its_payment_arrives_pays_once_when_it_is_run_again() {
    for passage in [Passage::UnpaidHeld, Passage::PaidHeld] {
        let market = Market::open(Setup::default(), "/report", passage).await;
        for _ in 0..2 {
            let mut run = market.shopper.begin(&market.url());
            market.middle.holds().await;
            run.kill().await.unwrap();
            market.middle.set(passage);
        }
        market.middle.set(Passage::Open);
        let shown = market.shopper.buy(&market.url(), &[]).await;
        market.bought_once(&shown).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_that_is_killed_after_its_payment_names_the_one_transfer_and_signs_nothing_more()
{
    let market = Market::open(Setup::default(), "/report", Passage::AnswerHeld).await;
    let mut run = market.shopper.begin(&market.url());
    market.middle.holds().await;
    run.kill().await.unwrap();
    market.middle.set(Passage::Open);
    // This seller keeps no answers: it says that the payment has been used, and the buyer says so.
    let shown = market.shopper.buy(&market.url(), &[]).await;
    assert!(!shown.success, "{shown:?}");
    assert_eq!(shown.json["error"]["code"], "payment_used", "{shown:?}");
    assert_eq!(shown.json["error"]["moneyMayHaveMoved"], true);
    market.only_transfer().await;
    assert_eq!(market.middle.payments().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_with_the_facilitator_is_recovered_within_the_same_call() {
    let setup = Setup {
        failpoint: Some("settled"),
        ..Setup::default()
    };
    let mut market = Market::open(setup, "/report", Passage::Open).await;
    let run = market.shopper.begin(&market.url());
    let url = market.world.facilitator.url().to_owned();
    market.world.facilitator.wait_for_end().await;
    market.world.facilitator.restart_at(&url, None).await;
    let output = run.wait_with_output().await.unwrap();
    let shown = Shown {
        success: output.status.success(),
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        aside: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    market.bought_once(&shown).await;
}

/// The hash in the session, in the ledger and on the chain is the one that the buyer was told.
async fn every_side_has_the_hash(market: &Market, shown: &Shown) {
    let hash = market.bought_once(shown).await;
    assert_eq!(shown.json["session"]["transaction"], hash);
    let id = shown.json["session"]["id"].as_str().unwrap();
    let facilitator = &market.world.facilitator;
    let session = facilitator.get(&format!("/sessions/{id}")).await.body;
    assert_eq!(
        (session["state"].as_str(), session["transaction"].as_str()),
        (Some("consumed"), Some(hash.as_str()))
    );
    let ledger = facilitator.get("/payments").await.body;
    assert_eq!(ledger["payments"][0]["transaction"], hash);
    assert_eq!(ledger["payments"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_the_money_before_the_request_and_every_side_has_the_same_hash() {
    let market = Market::open(Setup::default(), "/upfront", Passage::PaidHeld).await;
    let arguments = [market.url(), "--session".to_owned()];
    let shown = {
        let buying = market.shopper.buy(&arguments[0], &["--session"]);
        let watching = async {
            market.middle.holds().await;
            market.only_transfer().await;
        };
        // Killed with the money moved and the request unanswered: the next run brings the resource.
        tokio::select! {
            shown = buying => panic!("the seller has not answered: {shown:?}"),
            () = watching => {}
        }
        market.middle.set(Passage::Open);
        market.shopper.buy(&arguments[0], &["--session"]).await
    };
    every_side_has_the_hash(&market, &shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_the_payer_sends_buys_the_resource_and_every_side_has_the_same_hash() {
    let mut market = Market::open(Setup::default(), "/upfront", Passage::Open).await;
    let buyer = &LocalChain::funded_keys()[9];
    market.shopper = Shopper::new(buyer.key).with_chain(market.world.chain.url());
    let more = ["--transfer", "--network", "base-sepolia"];
    let shown = market.shopper.buy(&market.url(), &more).await;
    every_side_has_the_hash(&market, &shown).await;
    assert_eq!(shown.json["paid"]["validBefore"], Value::Null);
    assert_eq!(
        market.world.transactions(1).await,
        0,
        "the payer paid for gas"
    );
    assert_eq!(market.world.chain.transaction_count(buyer.address).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_for_a_session_that_the_seller_announces_is_used() {
    let market = Market::open(Setup::default(), "/upfront", Passage::Open).await;
    let shown = market.shopper.buy(&market.url(), &[]).await;
    every_side_has_the_hash(&market, &shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_dear_or_has_no_payer_costs_nothing_and_no_key_is_ever_shown() {
    let market = Market::open(Setup::default(), "/report", Passage::Open).await;
    let url = market.url();
    let dear = market.shopper.buy(&url, &["--max", "0.009"]).await;
    assert!(!dear.success, "{dear:?}");
    assert_eq!(dear.json["error"]["code"], "above_ceiling", "{dear:?}");
    assert_eq!(dear.json["error"]["moneyMayHaveMoved"], false);
    assert!(market.middle.payments().is_empty());
    let nobody = Shopper::new("0x11").buy(&url, &[]).await;
    assert!(
        !nobody.success && nobody.aside.contains("private key"),
        "{nobody:?}"
    );
    assert!(!nobody.aside.contains("0x11"), "{nobody:?}");
    let words = market.shopper.folder.path().join("words");
    std::fs::write(
        &words,
        "test test test test test test test test test test test junk\n",
    )
    .unwrap();
    let file = words.to_str().unwrap();
    let paid = market
        .shopper
        .buy(&url, &["--mnemonic-file", file, "--account-index", "9"])
        .await;
    market.bought_once(&paid).await;
    assert_eq!(
        paid.json["paid"]["payer"].as_str().unwrap().to_lowercase(),
        LocalChain::funded_keys()[9]
            .address
            .to_string()
            .to_lowercase()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_buy_once_and_from_two_sellers_under_a_budget() {
    let market = Market::open(Setup::default(), "/report", Passage::Open).await;
    let shown = market.shopper.run_example("buyer", &[&market.url()]).await;
    let hash = market.only_transfer().await;
    assert!(
        shown.contains("the weather is fine") && shown.contains(&hash),
        "{shown}"
    );

    let facilitator = market.world.facilitator.url();
    let second = Seller::start("seller_v2.mjs", facilitator, &PAYEE.to_string()).await;
    let other = format!("{}/upfront", second.url);
    let shown = market
        .shopper
        .run_example("agent", &["0.035", &market.url(), &other])
        .await;
    assert_eq!(shown.matches("200 OK from").count(), 3, "{shown}");
    assert_eq!(shown.matches(&other).count(), 1, "{shown}");
    assert!(shown.contains("30000 of 35000"), "{shown}");
    assert_eq!(
        market
            .world
            .chain
            .transfers_to(TEST_USDC, PAYEE)
            .await
            .len(),
        4
    );
}
