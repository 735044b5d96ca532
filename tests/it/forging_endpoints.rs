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
    forger: Proxy,
    payer: PrivateKeySigner,
}

impl Pair {
    /// The forger begins once the service runs.
    async fn new(forger_first: bool) -> Self {
        let chain = Chain::with_block_time(Some(1)).await;
        let honest = Proxy::before(chain.url()).await;
        let forger = Proxy::before(chain.url()).await;
        let urls = if forger_first {
            [forger.url(), honest.url()]
        } else {
            [honest.url(), forger.url()]
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
            forger,
            payer,
        }
    }

    async fn assert_settles(&self, amount: u64) {
        let body = Purchase::new(&self.payer, PAYEE, amount).body();
        let before = self.world.chain.usdc(PAYEE).await;
        eventually("a payment to settle", Duration::from_mins(1), async || {
            let answer = self.world.facilitator.settle(&body).await;
            answer.succeeded().then_some(())
        })
        .await;
        let moved = self.world.chain.usdc(PAYEE).await - before;
        assert_eq!(moved, U256::from(amount));
    }

    /// No lane is stopped, and every assigned nonce is used.
    async fn assert_lanes_intact(&self) {
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

/// A transaction that both endpoints accepted but no block holds is no success, whatever one of them shows.
async fn assert_no_success_without_transfer(forger_first: bool) {
    let mut pair = Pair::new(forger_first).await;
    pair.assert_settles(1).await;
    pair.forger.all(Fault::Forges);
    pair.honest.on(SEND, Fault::AcceptAndDrop);
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
        pair.assert_settles(amount).await;
    }
    pair.assert_lanes_intact().await;

    // A lane that is claimed again first asks for its account nonce.
    pair.world.facilitator.kill();
    pair.world.facilitator.restart(None).await;
    pair.assert_settles(6).await;
    pair.assert_lanes_intact().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forging_endpoint_causes_no_false_success() {
    assert_no_success_without_transfer(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forging_endpoint_listed_first_causes_no_false_success() {
    assert_no_success_without_transfer(true).await;
}
