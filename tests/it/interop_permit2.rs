//! Unmodified official packages buy and sell by Permit2, in `exact` and in `upto`: each buyer at each seller.

use alloy::hex;
use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};
use x402d::embedded::{LocalChain, TEST_USDC};
use x402d::protocol::permit2::{EXACT_PROXY, UPTO_PROXY};

use crate::support::{BuyerReport, Seller, World, buy, buy_with};

const PAYEE: Address = Address::repeat_byte(0x5e);
/// Price of a report in atomic units; the maximum where the seller meters.
const PRICE: u64 = 10_000;
const BUYERS: [&str; 2] = ["buyer_schemes.mjs", "buyer.py"];
/// Sellers and their status for a missing Permit2 allowance. The Python package does not use 412.
const SELLERS: [(&str, u64); 2] = [("seller_schemes.mjs", 412), ("seller.py", 402)];

/// A payment method as the ledger names it, and the contract that transfers.
struct Way {
    scheme: &'static str,
    method: &'static str,
    contract: Address,
}

const BY_TOKEN: Way = Way {
    scheme: "exact",
    method: "eip3009",
    contract: TEST_USDC,
};
const BY_PERMIT2: Way = Way {
    scheme: "exact",
    method: "permit2",
    contract: EXACT_PROXY,
};
const METERED: Way = Way {
    scheme: "upto",
    method: "permit2",
    contract: UPTO_PROXY,
};

/// A world with every seller.
struct Market {
    world: World,
    sellers: Vec<(Seller, u64)>,
}

/// One buyer at one seller.
struct Visit<'a> {
    market: &'a Market,
    buyer: &'static str,
    seller: &'a Seller,
    /// The seller's status for a missing Permit2 allowance.
    unallowed: u64,
    key: String,
}

impl Market {
    async fn open() -> Self {
        let world = World::new().await;
        let mut sellers = Vec::new();
        for (seller, unallowed) in SELLERS {
            let seller = Seller::start(seller, world.facilitator.url(), &PAYEE.to_string()).await;
            sellers.push((seller, unallowed));
        }
        Self { world, sellers }
    }

    /// Each buyer at each seller, paying with `key`.
    fn visits(&self, key: &str) -> impl Iterator<Item = Visit<'_>> {
        let at = move |buyer| {
            self.sellers.iter().map(move |(seller, unallowed)| Visit {
                market: self,
                buyer,
                seller,
                unallowed: *unallowed,
                key: key.to_owned(),
            })
        };
        BUYERS.into_iter().flat_map(at)
    }

    /// Each buyer at the seller of its own language, for tests in which only the sellers differ.
    fn same_language_visits(&self, key: &str) -> impl Iterator<Item = Visit<'_>> {
        self.visits(key).step_by(SELLERS.len() + 1)
    }

    /// A funded account that has approved Permit2, by the approval transaction of the official package.
    async fn approved_key(&self) -> &'static str {
        let account = &LocalChain::funded_keys()[9];
        self.world.chain.fund(account.address, 1_000_000).await;
        let url = format!("{}/permit2", self.sellers[0].0.url);
        let variables = [("RPC_URL", self.world.chain.url()), ("APPROVE", "1")];
        let bought = buy_with("buyer_schemes.mjs", &url, account.key, None, &variables).await;
        self.assert_charged(&bought, PRICE, BY_PERMIT2, 1).await;
        account.key
    }

    /// The newest purchase transferred `amount` by one Transfer, the `sold`th in total, in a transaction that called the contract of `way`.
    /// Buyer and ledger have its hash.
    async fn assert_charged(&self, bought: &BuyerReport, amount: u64, way: Way, sold: usize) {
        assert_eq!(bought.status, 200, "{bought:?}");
        assert_eq!(bought.body["report"], "the weather is fine", "{bought:?}");
        assert_eq!(bought.payment["success"], true, "{bought:?}");
        assert_eq!(bought.payment["amount"], amount.to_string(), "{bought:?}");
        let transfers = self.world.chain.transfers_to(TEST_USDC, PAYEE).await;
        assert_eq!(transfers.len(), sold, "{bought:?}");
        let transfer = transfers.last().unwrap();
        let moved: U256 = transfer["data"].as_str().unwrap().parse().unwrap();
        assert_eq!(moved, U256::from(amount), "{bought:?}");
        let hash = bought.payment["transaction"].as_str().unwrap();
        assert_eq!(transfer["transactionHash"], hash);
        let receipt = self.world.chain.receipt(hash).await;
        let contract = json!(way.contract);
        let mut logs = receipt["logs"].as_array().unwrap().iter();
        assert!(logs.any(|log| log["address"] == contract), "{receipt}");
        let row = self.newest_payment().await;
        assert_eq!(row["transaction"], hash, "{row}");
        assert_eq!(row["amount"], amount.to_string(), "{row}");
        assert_eq!(row["state"], "settled", "{row}");
        assert_eq!(row["scheme"], way.scheme, "{row}");
        assert_eq!(row["method"], way.method, "{row}");
    }

    async fn newest_payment(&self) -> Value {
        let mut ledger = self.world.facilitator.get("/payments").await.body;
        ledger["payments"][0].take()
    }

    async fn sold(&self) -> usize {
        let transfers = self.world.chain.transfers_to(TEST_USDC, PAYEE).await;
        transfers.len()
    }

    /// An account with test USDC and no ether.
    async fn key_without_gas(&self) -> String {
        key_of(&self.world.payer().await)
    }
}

impl Visit<'_> {
    async fn buy(&self, path: &str) -> BuyerReport {
        buy(self.buyer, &self.url(path), &self.key, None).await
    }

    /// Like `buy`, with an RPC endpoint for the buyer.
    async fn buy_with_rpc(&self, path: &str) -> BuyerReport {
        let variables = [("RPC_URL", self.market.world.chain.url())];
        buy_with(self.buyer, &self.url(path), &self.key, None, &variables).await
    }

    /// Presents the header of a purchase again.
    async fn replay(&self, path: &str, bought: &BuyerReport) -> BuyerReport {
        buy(self.buyer, &self.url(path), &self.key, Some(&bought.header)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.seller.url)
    }
}

fn key_of(signer: &PrivateKeySigner) -> String {
    hex::encode_prefixed(signer.to_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_pay_by_permit2_with_an_allowance() {
    let market = Market::open().await;
    let key = market.approved_key().await;
    for visit in market.visits(key) {
        let sold = market.sold().await;
        let bought = visit.buy("/permit2").await;
        market
            .assert_charged(&bought, PRICE, BY_PERMIT2, sold + 1)
            .await;
        let again = visit.replay("/permit2", &bought).await;
        assert_eq!(again.status, 402, "{again:?}");
        assert_eq!(market.sold().await, sold + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_pay_by_eip2612_permit_without_ether() {
    let market = Market::open().await;
    let key = market.key_without_gas().await;
    for visit in market.visits(&key) {
        let sold = market.sold().await;
        let exact = visit.buy_with_rpc("/sponsored").await;
        market
            .assert_charged(&exact, PRICE, BY_PERMIT2, sold + 1)
            .await;
        let upto = visit.buy_with_rpc("/metered-sponsored?charge=10000").await;
        market.assert_charged(&upto, PRICE, METERED, sold + 2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_without_allowance_are_told_so() {
    let market = Market::open().await;
    let key = market.key_without_gas().await;
    for visit in market.visits(&key) {
        for path in ["/permit2", "/metered"] {
            let refused = visit.buy(path).await;
            assert_eq!(refused.status, visit.unallowed, "{path}: {refused:?}");
            let code = &refused.report["refusal"];
            assert_eq!(code, "permit2_allowance_required", "{path}: {refused:?}");
            assert_eq!(refused.payment, Value::Null, "{path}: {refused:?}");
        }
    }
    assert_eq!(market.sold().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn official_sellers_charge_units_shares_and_dollars() {
    let market = Market::open().await;
    let key = market.approved_key().await;
    for visit in market.same_language_visits(key) {
        for (path, amount) in [
            ("/metered", PRICE),
            ("/metered?charge=1234", 1_234),
            ("/metered?charge=50%25", 5_000),
            ("/metered?charge=33.33%25", 3_333),
            ("/metered?charge=%240.003", 3_000),
        ] {
            let sold = market.sold().await;
            let bought = visit.buy(path).await;
            market
                .assert_charged(&bought, amount, METERED, sold + 1)
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_charge_succeeds_and_its_header_buys_nothing_again() {
    let market = Market::open().await;
    let key = market.approved_key().await;
    for visit in market.same_language_visits(key) {
        let sold = market.sold().await;
        let free = visit.buy("/metered?charge=0").await;
        assert_eq!(free.status, 200, "{free:?}");
        assert_eq!(free.payment["success"], true, "{free:?}");
        assert_eq!(free.payment["transaction"], "", "{free:?}");
        assert_eq!(free.payment["amount"], "0", "{free:?}");
        let row = market.newest_payment().await;
        assert_eq!(row["amount"], "0", "{row}");
        assert_eq!(row["state"], "settled", "{row}");
        assert_eq!(row.get("transaction"), None, "{row}");

        // A replay cannot change the charge: neither to zero nor to the whole price, which the payer has signed.
        for path in ["/metered?charge=0", "/metered"] {
            let again = visit.replay(path, &free).await;
            assert_eq!(again.status, 402, "{again:?}");
        }
        assert_eq!(market.sold().await, sold, "nothing moved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn charge_above_permitted_amount_gets_nothing() {
    let market = Market::open().await;
    let key = market.approved_key().await;
    for visit in market.same_language_visits(key) {
        let sold = market.sold().await;
        for path in ["/metered?charge=10001", "/metered?charge=100.01%25"] {
            let refused = visit.buy(path).await;
            assert_eq!(refused.status, 402, "{refused:?}");
            let code = &refused.payment["errorReason"];
            assert_eq!(
                code, "invalid_upto_evm_payload_settlement_exceeds_amount",
                "{refused:?}"
            );
        }
        assert_eq!(market.sold().await, sold);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn official_seller_offers_exact_and_upto_on_two_routes() {
    let market = Market::open().await;
    let key = market.approved_key().await;
    for visit in market.visits(key) {
        let sold = market.sold().await;
        let exact = visit.buy("/report").await;
        market
            .assert_charged(&exact, PRICE, BY_TOKEN, sold + 1)
            .await;
        let upto = visit.buy("/metered?charge=4321").await;
        market.assert_charged(&upto, 4_321, METERED, sold + 2).await;
    }
}
