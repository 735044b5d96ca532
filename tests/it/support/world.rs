//! Everything together.

use super::{Chain, Database, Facilitator, Proxy};

/// How to set the scene. The default: one signer, a block for each transaction, no further configuration.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) signers: usize,
    pub(crate) block_time_s: Option<u64>,
    /// Further environment variables.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// `x402d.toml`.
    pub(crate) toml: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            signers: 1,
            block_time_s: None,
            variables: Vec::new(),
            toml: String::new(),
        }
    }
}

/// A service that is ready, behind a proxy to its own chain, on its own database. The order of the fields is the order of their end.
pub(crate) struct World {
    pub(crate) facilitator: Facilitator,
    /// Held for its end.
    _database: Database,
    pub(crate) proxy: Proxy,
    pub(crate) chain: Chain,
}

impl World {
    /// The default.
    pub(crate) async fn new() -> Self {
        Setup::default().build().await
    }
}

impl Setup {
    pub(crate) async fn build(self) -> World {
        let chain = Chain::with_block_time(self.block_time_s).await;
        self.on(chain).await
    }

    /// On a chain that the test has prepared.
    pub(crate) async fn on(self, chain: Chain) -> World {
        let database = Database::fresh().await;
        let proxy = Proxy::before(chain.url()).await;
        let keys: Vec<_> = Chain::signers(self.signers)
            .iter()
            .map(|account| account.key)
            .collect();
        let mut variables = vec![
            database.variable(),
            ("X402D_NETWORK", "base-sepolia".to_owned()),
            ("X402D_RPC_URL", proxy.url()),
            ("X402D_SIGNER_KEYS", keys.join(",")),
        ];
        variables.extend(self.variables);
        let facilitator = Facilitator::start(variables, &self.toml).await;
        World {
            facilitator,
            _database: database,
            proxy,
            chain,
        }
    }
}
