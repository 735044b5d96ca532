//! `x402d dev`: a local chain and a facilitator, for tests of SDKs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use alloy::primitives::U256;
use clap::Args;

use crate::command::database::Database;
use crate::command::{CommandError, say, wait_for_stop_signal};
use crate::config::{Config, Environment, Flags};
use crate::embedded::{LocalChain, LocalChainOptions, SMART_WALLET_FACTORY, TEST_USDC};
use crate::server::{Service, check_address};

/// Signers of the local facilitator: the last of the well-known accounts.
const SIGNERS: usize = 3;
/// Accounts that get test USDC: all others.
const BUYERS: usize = 7;
/// The test USDC of each, in atomic units: 1000 USDC.
const ALLOWANCE: u64 = 1_000_000_000;

#[derive(Debug, Clone, Args)]
pub(super) struct DevOptions {
    /// Where the facilitator listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4402")]
    listen: SocketAddr,
    /// Port of the local chain; 0 for a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8545)]
    chain_port: u16,
    /// Seconds between blocks; without it every transaction gets its block at once.
    #[arg(long, value_name = "SECONDS")]
    block_time: Option<u64>,
    /// Where a private Postgres keeps its data.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

impl DevOptions {
    /// Lets the system choose every port, so that any number of them run side by side.
    pub(super) fn use_free_ports(&mut self) {
        self.listen.set_port(0);
        self.chain_port = 0;
    }
}

/// A local chain, its facilitator and its database.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) chain: LocalChain,
    pub(super) service: Service,
    database: Database,
}

impl Local {
    /// Starts all three. The ledger is empty, because the chain is new.
    pub(super) async fn start(options: &DevOptions) -> Result<Self, CommandError> {
        check_address(options.listen).await?;
        let port = (options.chain_port != 0).then_some(options.chain_port);
        let chain = LocalChain::start(LocalChainOptions {
            port,
            block_time_s: options.block_time,
        })
        .await?;
        for account in LocalChain::funded_keys().iter().take(BUYERS) {
            chain.mint(account.address, U256::from(ALLOWANCE)).await?;
        }
        let database = Database::open_for_local_chain(options.data_dir.as_deref()).await?;
        let flags = Flags {
            listen: Some(options.listen),
            ..Flags::default()
        };
        let config = Config::read_without_file(&flags, &LocalEnvironment::of(&chain))?;
        match Service::start(&config, database.place()).await {
            Ok(service) => Ok(Self {
                chain,
                service,
                database,
            }),
            Err(error) => {
                database.close().await?;
                chain.stop().await;
                Err(error.into())
            }
        }
    }

    pub(super) async fn stop(self) -> Result<(), CommandError> {
        self.service.stop().await;
        self.database.close().await?;
        self.chain.stop().await;
        Ok(())
    }
}

/// The local facilitator's configuration, in the form of environment variables.
#[derive(Debug)]
struct LocalEnvironment(BTreeMap<&'static str, String>);

impl LocalEnvironment {
    fn of(chain: &LocalChain) -> Self {
        let keys: Vec<_> = LocalChain::funded_keys()
            .iter()
            .rev()
            .take(SIGNERS)
            .map(|account| account.key)
            .collect();
        Self(BTreeMap::from([
            ("X402D_NETWORK", "base-sepolia".to_owned()),
            ("X402D_RPC_URL", chain.rpc_url().to_owned()),
            ("X402D_SIGNER_KEYS", keys.join(",")),
            ("X402D_EIP6492_FACTORIES", SMART_WALLET_FACTORY.to_string()),
        ]))
    }
}

impl Environment for LocalEnvironment {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().map(|name| (*name).to_owned()).collect()
    }
}

pub(super) async fn run(options: DevOptions) -> Result<(), CommandError> {
    let local = Local::start(&options).await?;
    say(&format!("facilitator  http://{}", local.service.address()));
    say(&format!(
        "API docs     http://{}/docs",
        local.service.address()
    ));
    say(&format!(
        "chain        {}  (eip155:84532, base-sepolia)",
        local.chain.rpc_url()
    ));
    say(&format!("test USDC    {TEST_USDC}"));
    say("\nBuyers with 1000 test USDC each; these keys are public, never use them elsewhere:");
    for account in LocalChain::funded_keys().iter().take(BUYERS) {
        say(&format!("  {}  {}", account.address, account.key));
    }
    say("\nCtrl-C stops everything; the chain and its ledger are gone then.");
    wait_for_stop_signal().await;
    local.stop().await
}
