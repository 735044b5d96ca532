//! `x402d pay` against official sellers pays once even when it is killed, disconnected and run again.

use alloy::primitives::{Address, U256};
use serde_json::Value;
use x402d::embedded::{LocalChain, TEST_USDC};

use crate::support::{BuyerProcess, Interception, PayOutput, Seller, SellerProxy, Setup, World};

const PAYEE: Address = Address::repeat_byte(0x5e);
const PRICE: u64 = 10_000;

/// A world with an official seller, a proxy before it, and a buyer with funds.
struct Market {
    world: World,
    proxy: SellerProxy,
    buyer: BuyerProcess,
    route: &'static str,
    _seller: Seller,
}

impl Market {
    async fn open(setup: Setup, route: &'static str, interception: Interception) -> Self {
        let world = setup.build().await;
        let buyer = &LocalChain::funded_keys()[9];
        world.chain.fund(buyer.address, 1_000_000).await;
        let seller =
            Seller::start("seller_v2.mjs", world.facilitator.url(), &PAYEE.to_string()).await;
        let proxy = SellerProxy::before(&seller.url, interception).await;
        let buyer = BuyerProcess::new(buyer.key);
        Self {
            world,
            proxy,
            buyer,
            route,
            _seller: seller,
        }
    }

    fn url(&self) -> String {
        self.proxy.url(self.route)
    }

    /// The hash of the only transfer to the payee.
    async fn only_transfer(&self) -> String {
        let transfers = self.world.chain.transfers_to(TEST_USDC, PAYEE).await;
        assert_eq!(transfers.len(), 1);
        assert_eq!(self.world.chain.usdc(PAYEE).await, U256::from(PRICE));
        transfers[0]["transactionHash"].as_str().unwrap().to_owned()
    }

    async fn assert_bought_once(&self, shown: &PayOutput) -> String {
        assert!(shown.success, "{shown:?}");
        assert_eq!(shown.json["status"], 200, "{shown:?}");
        assert_eq!(shown.json["body"]["report"], "the weather is fine");
        assert_eq!(shown.json["paid"]["amount"], PRICE.to_string());
        let hash = self.only_transfer().await;
        assert_eq!(shown.json["transaction"], hash, "{shown:?}");
        assert_eq!(self.proxy.payments().len(), 1);
        hash
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rerun_after_kill_before_payment_pays_once() {
    for interception in [Interception::UnpaidHeld, Interception::PaidHeld] {
        let market = Market::open(Setup::default(), "/report", interception).await;
        for _ in 0..2 {
            let mut run = market.buyer.begin(&market.url());
            market.proxy.wait_until_held().await;
            run.kill().await.unwrap();
            market.proxy.set(interception);
        }
        market.proxy.set(Interception::Open);
        let shown = market.buyer.buy(&market.url(), &[]).await;
        market.assert_bought_once(&shown).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rerun_after_kill_after_payment_signs_nothing_more() {
    let market = Market::open(Setup::default(), "/report", Interception::AnswerHeld).await;
    let mut run = market.buyer.begin(&market.url());
    market.proxy.wait_until_held().await;
    run.kill().await.unwrap();
    market.proxy.set(Interception::Open);
    // This seller stores no answers: it reports the payment as used, and the buyer reports that.
    let shown = market.buyer.buy(&market.url(), &[]).await;
    assert!(!shown.success, "{shown:?}");
    assert_eq!(shown.json["error"]["code"], "payment_used", "{shown:?}");
    assert_eq!(shown.json["error"]["moneyMayHaveMoved"], true);
    market.only_transfer().await;
    assert_eq!(market.proxy.payments().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answer_is_recovered_within_the_same_call() {
    let setup = Setup {
        failpoint: Some("resultrecorded"),
        ..Setup::default()
    };
    let mut market = Market::open(setup, "/report", Interception::Open).await;
    let run = market.buyer.begin(&market.url());
    let url = market.world.facilitator.url().to_owned();
    market.world.facilitator.wait_for_end().await;
    market.world.facilitator.restart_at(&url, None).await;
    let output = run.wait_with_output().await.unwrap();
    let shown = PayOutput {
        success: output.status.success(),
        json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    market.assert_bought_once(&shown).await;
}

/// The session, the ledger and the chain have the hash that the buyer received.
async fn assert_hash_everywhere(market: &Market, shown: &PayOutput) {
    let hash = market.assert_bought_once(shown).await;
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
async fn session_pays_before_request_with_same_hash_everywhere() {
    let market = Market::open(Setup::default(), "/upfront", Interception::PaidHeld).await;
    let arguments = [market.url(), "--session".to_owned()];
    let shown = {
        let buying = market.buyer.buy(&arguments[0], &["--session"]);
        let watching = async {
            market.proxy.wait_until_held().await;
            market.only_transfer().await;
        };
        // Killed after the transfer and before the request was answered: the next run returns the resource.
        tokio::select! {
            shown = buying => panic!("the seller has not answered: {shown:?}"),
            () = watching => {}
        }
        market.proxy.set(Interception::Open);
        market.buyer.buy(&arguments[0], &["--session"]).await
    };
    assert_hash_everywhere(&market, &shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payers_own_transfer_buys_with_same_hash_everywhere() {
    let mut market = Market::open(Setup::default(), "/upfront", Interception::Open).await;
    let buyer = &LocalChain::funded_keys()[9];
    market.buyer = BuyerProcess::new(buyer.key).with_chain(market.world.chain.url());
    let more = ["--transfer", "--network", "base-sepolia"];
    let shown = market.buyer.buy(&market.url(), &more).await;
    assert_hash_everywhere(&market, &shown).await;
    assert_eq!(shown.json["paid"]["validBefore"], Value::Null);
    assert_eq!(
        market.world.transactions(1).await,
        0,
        "the payer paid for gas"
    );
    assert_eq!(market.world.chain.transaction_count(buyer.address).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_session_is_used_by_default() {
    let market = Market::open(Setup::default(), "/upfront", Interception::Open).await;
    let shown = market.buyer.buy(&market.url(), &[]).await;
    assert_hash_everywhere(&market, &shown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn price_above_maximum_costs_nothing_and_shows_no_key() {
    let market = Market::open(Setup::default(), "/report", Interception::Open).await;
    let url = market.url();
    let dear = market.buyer.buy(&url, &["--max", "0.009"]).await;
    assert!(!dear.success, "{dear:?}");
    assert_eq!(dear.json["error"]["code"], "above_ceiling", "{dear:?}");
    assert_eq!(dear.json["error"]["moneyMayHaveMoved"], false);
    assert!(market.proxy.payments().is_empty());
    let without_key = BuyerProcess::new("0x11").buy(&url, &[]).await;
    assert!(
        !without_key.success && without_key.stderr.contains("private key"),
        "{without_key:?}"
    );
    assert!(!without_key.stderr.contains("0x11"), "{without_key:?}");
    let words = market.buyer.folder.path().join("words");
    std::fs::write(
        &words,
        "test test test test test test test test test test test junk\n",
    )
    .unwrap();
    let file = words.to_str().unwrap();
    let paid = market
        .buyer
        .buy(&url, &["--mnemonic-file", file, "--account-index", "9"])
        .await;
    market.assert_bought_once(&paid).await;
    assert_eq!(
        paid.json["paid"]["payer"].as_str().unwrap().to_lowercase(),
        LocalChain::funded_keys()[9]
            .address
            .to_string()
            .to_lowercase()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_buy_once_and_within_budget() {
    let market = Market::open(Setup::default(), "/report", Interception::Open).await;
    let shown = market.buyer.run_example("buyer", &[&market.url()]).await;
    let hash = market.only_transfer().await;
    assert!(
        shown.contains("the weather is fine") && shown.contains(&hash),
        "{shown}"
    );

    let facilitator = market.world.facilitator.url();
    let second = Seller::start("seller_v2.mjs", facilitator, &PAYEE.to_string()).await;
    let other = format!("{}/upfront", second.url);
    let shown = market
        .buyer
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
