//! Several endpoints of one network, one of which fails.

use std::time::{Duration, Instant};

use alloy::primitives::Address;
use alloy::signers::local::PrivateKeySigner;
use x402d::embedded::TEST_USDC;

use crate::support::{Chain, Fault, Proxy, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x9c);
const READ: &str = "eth_call";
const SEND: &str = "eth_sendRawTransaction";

/// A world that reads through two endpoints; the first is preferred.
struct Pool {
    world: World,
    first: Proxy,
    second: Proxy,
    payer: PrivateKeySigner,
}

impl Pool {
    async fn new() -> Self {
        let chain = Chain::start().await;
        let first = Proxy::before(chain.url()).await;
        let second = Proxy::before(chain.url()).await;
        let urls = format!("{},{}", first.url(), second.url());
        let setup = Setup::default().with("X402D_RPC_URL", urls);
        let world = setup.on(chain).await;
        let payer = world.payer().await;
        Self {
            world,
            first,
            second,
            payer,
        }
    }

    async fn assert_settles(&self, amount: u64) {
        let body = Purchase::new(&self.payer, PAYEE, amount).body();
        let answer = self.world.facilitator.settle(&body).await;
        assert!(answer.succeeded(), "{answer:?}");
    }

    async fn time_verify(&self) -> Duration {
        let began = Instant::now();
        let body = Purchase::new(&self.payer, PAYEE, 1).body();
        let answer = self.world.facilitator.verify(&body).await;
        assert!(answer.is_valid(), "{answer:?}");
        began.elapsed()
    }

    /// Waits until payments are verified without the first endpoint, or with it again.
    async fn wait_until_first_is_read(&self, wanted: bool) {
        let what = format!("reads from the first endpoint: {wanted}");
        eventually(&what, Duration::from_secs(30), async || {
            let before = self.first.calls(READ);
            self.time_verify().await;
            ((self.first.calls(READ) > before) == wanted).then_some(())
        })
        .await;
    }

    async fn logged(&self, text: &str) {
        eventually(text, Duration::from_secs(30), async || {
            self.world.facilitator.log().contains(text).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_35_stale_endpoint_is_not_read_and_causes_no_storm() {
    let pool = Pool::new().await;
    pool.assert_settles(1).await;
    let height = pool
        .world
        .chain
        .transaction_count(Chain::signers(1)[0].address)
        .await;
    pool.world.chain.mine(12).await;
    pool.first.all(Fault::StoppedAt(height));
    pool.wait_until_first_is_read(false).await;
    for amount in 2..6 {
        pool.assert_settles(amount).await;
    }
    assert_eq!(
        pool.world.chain.transfers_to(TEST_USDC, PAYEE).await.len(),
        5
    );
    let log = pool.world.facilitator.log();
    assert!(!log.contains("reorg:"), "no reorganisation");
    pool.first.all(Fault::None);
    pool.second.all(Fault::Unavailable);
    pool.wait_until_first_is_read(true).await;
    pool.assert_settles(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_36_endpoint_returning_with_other_chain_is_not_used() {
    let pool = Pool::new().await;
    pool.first.on("eth_chainId", Fault::Answer("0x1"));
    pool.logged("endpoint excluded: it serves another chain")
        .await;
    let before = pool.first.calls(READ);
    pool.assert_settles(1).await;
    pool.time_verify().await;
    assert_eq!(pool.first.calls(READ), before);
    pool.first.on("eth_chainId", Fault::None);
    pool.logged("endpoint used again").await;
    pool.second.all(Fault::Unavailable);
    pool.assert_settles(2).await;
    assert!(pool.first.calls(READ) > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn scenario_37_silent_endpoint_costs_one_hedge_then_is_avoided() {
    let pool = Pool::new().await;
    pool.assert_settles(1).await;
    pool.first.all(Fault::RequestLost);
    let took = pool.time_verify().await;
    assert!(took < Duration::from_millis(2_500), "{took:?}");
    let began = Instant::now();
    pool.assert_settles(2).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    pool.wait_until_first_is_read(false).await;
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        slowest = slowest.max(pool.time_verify().await);
    }
    assert!(slowest < Duration::from_millis(2_500), "{slowest:?}");
    pool.first.all(Fault::None);
    pool.second.all(Fault::RequestLost);
    pool.wait_until_first_is_read(true).await;
    pool.assert_settles(3).await;
}

/// A sequencer's own endpoint or a private relay: it accepts transactions and answers nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn send_only_endpoint_gets_transactions_and_no_reads() {
    let chain = Chain::start().await;
    let sequencer = Proxy::before(chain.url()).await;
    let setup = Setup {
        toml: format!(
            "[networks.base-sepolia]\nsend_urls = [\"{}\"]\n",
            sequencer.url()
        ),
        ..Setup::default()
    };
    let world = setup.on(chain).await;
    let payer = world.payer().await;
    let body = Purchase::new(&payer, PAYEE, 1).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
    assert_eq!(sequencer.calls(SEND), 1);
    world.proxy.on(SEND, Fault::Unavailable);
    let body = Purchase::new(&payer, PAYEE, 2).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
    assert_eq!(
        sequencer.all_calls(),
        sequencer.calls(SEND),
        "and nothing else"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_keep_to_their_budget() {
    const A_SECOND: u32 = 10;
    let setup = Setup {
        toml: format!("[networks.base-sepolia]\nrpc_calls_per_second = {A_SECOND}\n"),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = world.payer().await;
    let (began, before) = (Instant::now(), world.proxy.all_calls());
    for amount in 1..40 {
        let body = Purchase::new(&payer, PAYEE, amount).body();
        assert!(world.facilitator.verify(&body).await.is_valid());
    }
    let calls = u32::try_from(world.proxy.all_calls() - before).unwrap();
    assert!(calls >= 39, "{calls}");
    let allowed = began.elapsed() + Duration::from_secs(2);
    assert!(
        Duration::from_secs(1) * calls / A_SECOND <= allowed,
        "{calls} calls in {allowed:?}"
    );
    let body = Purchase::new(&payer, PAYEE, 99).body();
    assert!(world.facilitator.settle(&body).await.succeeded());
}
