//! A whole test world.

use std::process::Output;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use serde_json::Value;
use x402d::embedded::TEST_USDC;

use super::{
    Answer, Chain, Database, Facilitator, Fault, Proxy, Purchase, TcpProxy, eventually,
    new_account, run,
};

/// How a world is built. The default: one signer, a block for each transaction, no further configuration.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) signers: usize,
    pub(crate) block_time_s: Option<u64>,
    /// Additional environment variables.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// Contents of `x402d.toml`.
    pub(crate) toml: String,
    /// The test sends SQL to the ledger.
    pub(crate) queryable: bool,
    /// The database is behind a TCP proxy that the test can break.
    pub(crate) database_proxied: bool,
    /// The failpoint of the first process.
    pub(crate) failpoint: Option<&'static str>,
    /// The RPC proxy's fault from the start.
    pub(crate) fault: Fault,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            signers: 1,
            block_time_s: None,
            variables: Vec::new(),
            toml: String::new(),
            queryable: false,
            database_proxied: false,
            failpoint: None,
            fault: Fault::None,
        }
    }
}

/// A ready service behind a proxy to its own chain, on its own database. The fields are dropped in this order.
pub(crate) struct World {
    pub(crate) facilitator: Facilitator,
    pub(crate) database: Database,
    pub(crate) proxy: Proxy,
    pub(crate) chain: Chain,
    /// Proxy to the database, if the setup asked for one.
    pub(crate) database_proxy: Option<TcpProxy>,
    variables: Vec<(&'static str, String)>,
    toml: String,
}

impl World {
    /// A world of the default setup.
    pub(crate) async fn new() -> Self {
        Setup::default().build().await
    }

    /// A further process on the same database with the same configuration. It must end before the world does.
    pub(crate) async fn replica(&self) -> Facilitator {
        let mut replica = Facilitator::new(self.variables.clone(), &self.toml);
        replica.restart(None).await;
        replica
    }

    /// The same with another `x402d.toml`.
    pub(crate) async fn replica_with(&self, toml: &str) -> Facilitator {
        let mut replica = Facilitator::new(self.variables.clone(), toml);
        replica.restart(None).await;
        replica
    }

    /// Runs a command on the world's database, and returns what it printed.
    pub(crate) fn command(&self, arguments: &[&str]) -> String {
        let (name, place) = self.database.variable();
        let output = run(arguments, &[(name, place.as_str())], "");
        let (said, errors) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(said.clone()).unwrap()
    }

    /// Runs a command with the service's environment and `toml` as its file; `further` variables replace those of the service.
    pub(crate) fn configured(
        &self,
        arguments: &[&str],
        further: &[(&str, &str)],
        toml: &str,
    ) -> Output {
        let own = self.variables.iter();
        let own = own.map(|(name, value)| (*name, value.as_str()));
        let variables: Vec<_> = own.chain(further.iter().copied()).collect();
        run(arguments, &variables, toml)
    }

    /// Creates a key for payments to `payee`, and waits until the service takes it.
    pub(crate) async fn key(&self, name: &str, payee: Address, further: &[&str]) -> String {
        let payee = payee.to_string();
        let mut arguments = vec!["keys", "create", name, "--payee", &payee];
        arguments.extend(further);
        let said = self.command(&arguments);
        let key = said.lines().next().unwrap().to_owned();
        let caller = self.facilitator.with_key(&key);
        let limit = Duration::from_secs(5);
        eventually("the new key to be known", limit, async || {
            (caller.get("/stats").await.status != 401).then_some(())
        })
        .await;
        key
    }

    /// The same, not started yet, with additional variables.
    pub(crate) fn unstarted_replica(&self, further: &[(&'static str, String)]) -> Facilitator {
        let mut variables = self.variables.clone();
        variables.extend_from_slice(further);
        Facilitator::new(variables, &self.toml)
    }

    /// A payer with a hundred test USDC.
    pub(crate) async fn payer(&self) -> PrivateKeySigner {
        let payer = new_account();
        self.chain.fund(payer.address(), 100_000_000).await;
        payer
    }

    /// The same, with an unlimited approval of Permit2.
    pub(crate) async fn approved_payer(&self) -> PrivateKeySigner {
        let payer = self.payer().await;
        self.chain
            .approve(TEST_USDC, payer.address(), U256::MAX)
            .await;
        payer
    }

    /// Settles a new payer's payment whose cancellation is mined first.
    pub(crate) async fn settle_cancelled(&self, payee: Address, amount: u64) -> (Purchase, Answer) {
        const SEND: &str = "eth_sendRawTransaction";
        let purchase = Purchase::new(&self.payer().await, payee, amount);
        self.proxy.on(SEND, Fault::Hold);
        let sends = self.proxy.calls(SEND);
        let mut waiting = self.facilitator.spawn_settle(&purchase.body());
        self.proxy.called(SEND, sends).await;
        self.chain.cancel(&purchase).await;
        self.proxy.on(SEND, Fault::None);
        let answer = waiting.join_next().await.unwrap().unwrap().unwrap();
        (purchase, answer)
    }

    /// The payment settled by exactly one Transfer of `amount` to `payee`, and answer and ledger name its transaction.
    pub(crate) async fn assert_transferred_once(
        &self,
        payee: Address,
        answer: &Answer,
        amount: u64,
    ) {
        assert!(answer.succeeded(), "{answer:?}");
        assert_eq!(answer.body["amount"], amount.to_string(), "{answer:?}");
        let transfers = self.chain.transfers_to(TEST_USDC, payee).await;
        assert_eq!(transfers.len(), 1, "{transfers:?}");
        let hash = answer.transaction();
        assert_eq!(transfers[0]["transactionHash"], hash.as_str());
        assert_eq!(self.chain.usdc(payee).await, U256::from(amount));
        let row = self.facilitator.payment(answer).await;
        assert_eq!(row["transaction"], hash.as_str(), "{row}");
        assert_eq!(row["amount"], amount.to_string(), "{row}");
    }

    /// A later presentation of the same header gets the hash and no success.
    pub(crate) async fn assert_duplicate_rejected(&self, body: &Value, first: &Answer) {
        let verdict = self.facilitator.verify(body).await;
        assert_eq!(verdict.reason(), "duplicate_settlement", "{verdict:?}");
        let again = self.facilitator.settle(body).await;
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
        assert_eq!(again.transaction(), first.transaction());
    }

    /// Verify and settle reject the body with `code` and a readable message, and nothing is sent.
    pub(crate) async fn assert_rejected_at_both(&self, body: &Value, code: &str) {
        let verdict = self.facilitator.verify(body).await;
        assert_eq!(
            (verdict.status, verdict.reason()),
            (200, code),
            "verify: {verdict:?}"
        );
        let settled = self.facilitator.settle(body).await;
        assert_eq!(
            (settled.status, settled.reason()),
            (200, code),
            "settle: {settled:?}"
        );
        assert_eq!(settled.transaction(), "");
        for message in [
            &verdict.body["invalidMessage"],
            &settled.body["errorMessage"],
        ] {
            assert!(
                message.as_str().is_some_and(|text| text.len() > 10),
                "{message}"
            );
        }
    }

    /// Mined transactions of the first `signers` signers.
    pub(crate) async fn transactions(&self, signers: usize) -> u64 {
        let mut sum = 0;
        for signer in Chain::signers(signers) {
            sum += self.chain.transaction_count(signer.address).await;
        }
        sum
    }

    /// The same including pending ones.
    pub(crate) async fn pending(&self, signers: usize) -> u64 {
        let mut sum = 0;
        for signer in Chain::signers(signers) {
            sum += self.chain.pending_count(signer.address).await;
        }
        sum
    }

    /// Waits until the first signer has `count` transactions, mined or pending.
    pub(crate) async fn wait_until_sent(&self, count: u64) {
        let signer = Chain::signers(1)[0].address;
        eventually(
            "a transaction in the pool",
            Duration::from_secs(20),
            async || (self.chain.pending_count(signer).await == count).then_some(()),
        )
        .await;
    }

    /// Raises the base fee and waits until the service has seen it.
    pub(crate) async fn raise_base_fee(&self, gwei: u64) {
        self.chain.next_base_fee(gwei).await;
        // The second reading that starts after this point ends later than the block. One more, because a reading may take two calls.
        let looks = self.proxy.calls("eth_getBlockByNumber");
        self.proxy.called("eth_getBlockByNumber", looks + 2).await;
    }

    /// Resumes automatic mining and mines one block.
    pub(crate) async fn resume_mining(&self) {
        self.chain.automine(true).await;
        self.chain.mine(1).await;
    }
}

impl Setup {
    pub(crate) async fn build(self) -> World {
        let chain = Chain::with_block_time(self.block_time_s).await;
        self.on(chain).await
    }

    /// With an additional environment variable.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// With the engine's durations (`src/timing.rs`) divided by three, for a test that waits for several of them.
    pub(crate) fn shortened(self) -> Self {
        self.with("X402D_TIMES_SHORTER", "3")
    }

    /// With a fault of the RPC proxy from the start.
    pub(crate) const fn behind(mut self, fault: Fault) -> Self {
        self.fault = fault;
        self
    }

    /// On a chain that the test has prepared.
    pub(crate) async fn on(self, chain: Chain) -> World {
        let database = if self.queryable || self.database_proxied {
            Database::queryable().await
        } else {
            Database::fresh().await
        };
        let (database_proxy, database_variable) = if self.database_proxied {
            let (proxy, variable) = database.proxied().await;
            (Some(proxy), variable)
        } else {
            (None, database.variable())
        };
        let proxy = Proxy::before(chain.url()).await;
        proxy.all(self.fault);
        let keys: Vec<_> = Chain::signers(self.signers)
            .iter()
            .map(|account| account.key)
            .collect();
        let mut variables = vec![
            database_variable,
            ("X402D_NETWORK", "base-sepolia".to_owned()),
            ("X402D_RPC_URL", proxy.url()),
            ("X402D_SIGNER_KEYS", keys.join(",")),
        ];
        variables.extend(self.variables);
        let mut facilitator = Facilitator::new(variables.clone(), &self.toml);
        facilitator.restart(self.failpoint).await;
        World {
            facilitator,
            database,
            proxy,
            chain,
            database_proxy,
            variables,
            toml: self.toml,
        }
    }
}

/// A world whose blocks the test mines.
pub(crate) async fn manually_mined(toml: &str) -> (World, PrivateKeySigner) {
    let setup = Setup {
        toml: format!("[networks.base-sepolia]\n{toml}\n"),
        ..Setup::default()
    };
    let setup = setup.with("X402D_SETTLE_WAIT", "2").shortened();
    let world = setup.build().await;
    let payer = world.payer().await;
    world.chain.automine(false).await;
    (world, payer)
}

/// Settles until the answer is final.
pub(crate) async fn settle_until_final(world: &World, body: &Value) -> Answer {
    eventually("an outcome", Duration::from_secs(30), async || {
        let answer = world.facilitator.settle(body).await;
        (answer.reason() != "settlement_pending").then_some(answer)
    })
    .await
}

/// The payment's attempts, as the operator sees them.
pub(crate) async fn attempts(world: &World, answer: &Answer) -> Vec<Value> {
    let row = world.facilitator.payment(answer).await;
    row["attempts"].as_array().unwrap().clone()
}
