//! Two endpoints of one network, one of which forges heads, receipts and account nonces.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;

use crate::support::{Chain, Fault, Proxy, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x1e);
const SEND: &str = "eth_sendRawTransaction";

struct Pair {
    world: World,
    honest: Proxy,
    liar: Proxy,
    payer: PrivateKeySigner,
}

impl Pair {
    /// The liar begins to lie once the service runs.
    async fn new(liar_first: bool) -> Self {
        let chain = Chain::with_block_time(Some(1)).await;
        let honest = Proxy::before(chain.url()).await;
        let liar = Proxy::before(chain.url()).await;
        let urls = if liar_first {
            [liar.url(), honest.url()]
        } else {
            [honest.url(), liar.url()]
        };
        let setup = Setup {
            toml: "[networks.base-sepolia]\nconfirm_with = 2\n".to_owned(),
            ..Setup::default()
        };
        let setup = setup
            .with("X402D_RPC_URL", urls.join(","))
            .with("X402D_SETTLE_WAIT", "6");
        let world = setup.on(chain).await;
        let payer = world.payer().await;
        Self {
            world,
            honest,
            liar,
            payer,
        }
    }

    async fn settles(&self, amount: u64) {
        let body = Purchase::new(&self.payer, PAYEE, amount).body();
        let before = self.world.chain.usdc(PAYEE).await;
        eventually("an honest payment", Duration::from_mins(1), async || {
            let answer = self.world.facilitator.settle(&body).await;
            answer.succeeded().then_some(())
        })
        .await;
        let moved = self.world.chain.usdc(PAYEE).await - before;
        assert_eq!(moved, U256::from(amount));
    }

    /// No lane is stopped, and every nonce that was given out is used.
    async fn lanes_are_whole(&self) {
        let signers = self.world.facilitator.get("/signers").await;
        let lane = &signers.body["signers"][0];
        assert!(lane["stoppedReason"].is_null(), "{lane}");
        let log = self.world.facilitator.log();
        assert!(!log.contains("lane stopped"), "{log}");
        let signer = Chain::signers(1)[0].address;
        let used = self.world.chain.transaction_count(signer).await;
        assert_eq!(self.world.chain.pending_count(signer).await, used);
        assert_eq!(lane["nextNonce"], used, "{lane}");
    }
}

/// What both endpoints took and no block ever held is no success, whatever one of them shows.
async fn no_success_without_money(liar_first: bool) {
    let mut pair = Pair::new(liar_first).await;
    pair.settles(1).await;
    pair.liar.all(Fault::Lies);
    pair.honest.on(SEND, Fault::Pretend);
    let body = Purchase::new(&pair.payer, PAYEE, 2).body();
    for _ in 0..2 {
        let answer = pair.world.facilitator.settle(&body).await;
        assert_eq!(answer.reason(), "settlement_pending", "{answer:?}");
    }
    assert_eq!(pair.world.chain.usdc(PAYEE).await, U256::ONE);

    pair.honest.on(SEND, Fault::None);
    eventually("success", Duration::from_mins(1), async || {
        let answer = pair.world.facilitator.settle(&body).await;
        answer.succeeded().then_some(())
    })
    .await;
    assert_eq!(pair.world.chain.usdc(PAYEE).await, U256::from(3));
    for amount in 3..6 {
        pair.settles(amount).await;
    }
    pair.lanes_are_whole().await;

    // Who claims a lane anew asks for its nonce first.
    pair.world.facilitator.kill();
    pair.world.facilitator.restart(None).await;
    pair.settles(6).await;
    pair.lanes_are_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_forges_makes_no_success_without_money() {
    no_success_without_money(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_forges_makes_no_success_even_where_it_is_listed_first() {
    no_success_without_money(true).await;
}
