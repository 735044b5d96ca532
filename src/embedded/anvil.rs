//! A local chain with test money, for `demo`, `dev` and tests.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use alloy::primitives::{Address, U256};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::anvil_binary;
use super::error::EmbeddedError;
use super::genesis::{self, CHAIN_ID, DevAccount};
use super::json_rpc::JsonRpc;

/// How long the chain may take to answer after its start; usually a tenth of a second.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long one such call may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two calls to a chain that is starting.
const RETRY: Duration = Duration::from_millis(20);
/// A chain that does not end by itself in this time is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Another program can take a free port before the chain uses it.
const PORT_ATTEMPTS: u32 = 5;
/// Gas of one block, as much as Base allows.
const BLOCK_GAS: &str = "400000000";
/// Past states that the chain keeps, for calls at an earlier block and for reorgs.
const STATES_KEPT: &str = "64";
/// For how many blocks transactions and receipts stay readable.
const RECEIPT_BLOCKS: &str = "10000";
/// How much of the program's error output an error quotes, in bytes.
const QUOTE: u64 = 1_500;

#[derive(Debug, Clone, Copy, Default)]
pub struct LocalChainOptions {
    /// The port on the loopback address; `None` for a free one.
    pub port: Option<u16>,
    /// Seconds between blocks; `None` for a block with each transaction.
    pub block_time_s: Option<u64>,
}

/// A running local chain with chain id 84532 and a test USDC at the address that it has on Base Sepolia.
///
/// It ends with this value: in order by [`stop`](Self::stop), and also when the whole process is killed. Its state is in memory alone: the
/// last 64 states, and transactions and receipts of the last 10 000 blocks.
pub struct LocalChain {
    // Dropped first: the watch kills the node by its process id, which another process may have after the node was reaped.
    watch: Child,
    node: Child,
    rpc: JsonRpc,
}

impl LocalChain {
    /// Starts the chain and places the contracts. Fails when `anvil` is neither installed nor can be fetched, or when the port is in use.
    pub async fn start(options: LocalChainOptions) -> Result<Self, EmbeddedError> {
        let program = anvil_binary::find().await?;
        let mut attempt = 1;
        loop {
            let port = usable_port(options.port)?;
            match Self::start_on(&program, port, options.block_time_s).await {
                Err(EmbeddedError::PortTaken { .. })
                    if options.port.is_none() && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    /// The chain's JSON-RPC endpoint.
    pub fn rpc_url(&self) -> &str {
        self.rpc.url()
    }

    /// Accounts with native money. Their keys are public: anvil prints them at every start.
    pub fn funded_keys() -> &'static [DevAccount] {
        &genesis::DEV_ACCOUNTS
    }

    /// Mints test USDC, in atomic units (6 decimals).
    pub async fn mint(&self, to: Address, amount: U256) -> Result<(), EmbeddedError> {
        genesis::mint(&self.rpc, to, amount).await
    }

    /// Creates the contract wallet of `owner` (ERC-1271, by the wallet factory) and returns its address.
    pub async fn create_wallet(&self, owner: Address) -> Result<Address, EmbeddedError> {
        genesis::create_wallet(&self.rpc, owner).await
    }

    /// The balance of test USDC, in atomic units.
    pub async fn balance(&self, account: Address) -> Result<U256, EmbeddedError> {
        genesis::balance(&self.rpc, account).await
    }

    /// Ends the chain; its state is lost.
    pub async fn stop(mut self) {
        // If this fails, the drop does it: both children are killed with their handles.
        drop(self.watch.kill().await);
        let asked = pid_of(&self.node).is_some_and(|pid| kill(pid, Signal::SIGTERM).is_ok());
        if !asked || timeout(STOP_LIMIT, self.node.wait()).await.is_err() {
            drop(self.node.kill().await);
        }
    }

    /// The connection that this module uses.
    #[cfg(test)]
    pub(super) fn rpc(&self) -> &JsonRpc {
        &self.rpc
    }

    async fn start_on(
        program: &Path,
        port: u16,
        block_time_s: Option<u64>,
    ) -> Result<Self, EmbeddedError> {
        let mut error_output = scratch_file()?;
        let errors = error_output
            .try_clone()
            .map_err(EmbeddedError::io("share a scratch file"))?;
        let mut command = Command::new(program);
        command.env_clear().current_dir("/").arg("--quiet");
        command.args([
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--chain-id",
            &CHAIN_ID.to_string(),
        ]);
        command.args(["--gas-limit", BLOCK_GAS, "--prune-history", STATES_KEPT]);
        command.args(["--transaction-block-keeper", RECEIPT_BLOCKS]);
        if let Some(seconds) = block_time_s {
            command.args(["--block-time", &seconds.to_string()]);
        }
        // A process group of its own: Ctrl-C must reach x402d alone, which still needs the chain to finish its work.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true);
        let node = command.spawn().map_err(EmbeddedError::io("run anvil"))?;
        let watch = watch(&node)?;
        let mut chain = Self {
            watch,
            node,
            rpc: JsonRpc::local(port)?,
        };
        chain.wait_until_ready(port, &mut error_output).await?;
        genesis::place(&chain.rpc).await?;
        // The answers came from this node only if it is still running and has the port.
        chain.check_alive(port, &mut error_output)?;
        Ok(chain)
    }

    async fn wait_until_ready(
        &mut self,
        port: u16,
        error_output: &mut File,
    ) -> Result<(), EmbeddedError> {
        let deadline = Instant::now() + READY_LIMIT;
        let expected = format!("{CHAIN_ID:#x}");
        loop {
            // A short limit, because another program on the port may never answer.
            let answer = timeout(ANSWER_LIMIT, self.rpc.text("eth_chainId", json!([]))).await;
            self.check_alive(port, error_output)?;
            match answer {
                Ok(Ok(id)) if id == expected => return Ok(()),
                Ok(Ok(_)) => return Err(EmbeddedError::PortTaken { port }),
                Ok(Err(problem)) if Instant::now() >= deadline => return Err(problem),
                Err(_) if Instant::now() >= deadline => {
                    let what = "the start of the local chain".to_owned();
                    return Err(EmbeddedError::Late {
                        what,
                        limit: READY_LIMIT,
                    });
                }
                Ok(Err(_)) | Err(_) => sleep(RETRY).await,
            }
        }
    }

    fn check_alive(&mut self, port: u16, error_output: &mut File) -> Result<(), EmbeddedError> {
        let ended = self
            .node
            .try_wait()
            .map_err(EmbeddedError::io("look at anvil"))?;
        if ended.is_none() {
            return Ok(());
        }
        let mut output = String::new();
        let read = error_output
            .seek(SeekFrom::Start(0))
            .and_then(|_| error_output.take(QUOTE).read_to_string(&mut output));
        if read.is_err() {
            output.push_str("(its output cannot be read)");
        }
        if output.contains("Address already in use") {
            return Err(EmbeddedError::PortTaken { port });
        }
        Err(EmbeddedError::Failed {
            program: "anvil".to_owned(),
            output: output.trim().to_owned(),
        })
    }
}

impl fmt::Debug for LocalChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalChain")
            .field("pid", &self.node.id())
            .finish_non_exhaustive()
    }
}

/// Starts a watch that ends the chain when this process dies, even by `kill -9`: the kernel then closes this process's end of the pipe that
/// the watch reads. The chain's process id cannot be reused before that, because only this process can reap it.
fn watch(node: &Child) -> Result<Child, EmbeddedError> {
    let pid = node.id().map(|pid| pid.to_string()).unwrap_or_default();
    let mut command = Command::new("/bin/sh");
    command
        .env_clear()
        .args(["-c", "read -r line; kill -9 \"$1\"", "sh", &pid])
        .current_dir("/");
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command.spawn().map_err(EmbeddedError::io("run /bin/sh"))
}

fn pid_of(child: &Child) -> Option<Pid> {
    child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .map(Pid::from_raw)
}

/// The wanted port if it is free; without a wanted port, a free one.
fn usable_port(wanted: Option<u16>) -> Result<u16, EmbeddedError> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted.unwrap_or(0)))
        .and_then(|socket| socket.local_addr());
    match (free, wanted) {
        (Ok(address), _) => Ok(address.port()),
        (Err(problem), Some(port)) if problem.kind() == ErrorKind::AddrInUse => {
            Err(EmbeddedError::PortTaken { port })
        }
        (Err(problem), _) => Err(EmbeddedError::io("listen on 127.0.0.1")(problem)),
    }
}

/// A file without a name, for output that is read only after a failure.
fn scratch_file() -> Result<File, EmbeddedError> {
    let path = std::env::temp_dir().join(format!("x402d-{}.tmp", uuid::Uuid::now_v7()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(EmbeddedError::io(format!("create {}", path.display())))?;
    std::fs::remove_file(&path).map_err(EmbeddedError::io(format!("unlink {}", path.display())))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chain_on_a_free_port_answers_until_it_is_stopped() {
        let chain = LocalChain::start(LocalChainOptions::default())
            .await
            .unwrap();
        let rpc = chain.rpc.clone();
        let [account, ..] = LocalChain::funded_keys() else {
            panic!("no accounts")
        };
        let balance = rpc
            .text("eth_getBalance", json!([account.address, "latest"]))
            .await
            .unwrap();
        assert_eq!(
            balance.parse::<U256>().unwrap(),
            U256::from(10_000) * U256::from(10).pow(U256::from(18))
        );
        chain.stop().await;
        assert!(rpc.call("eth_chainId", json!([])).await.is_err());
    }

    #[tokio::test]
    async fn port_in_use_is_refused_with_the_flag_to_change_it() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let options = LocalChainOptions {
            port: Some(port),
            block_time_s: None,
        };
        let refused = LocalChain::start(options).await.unwrap_err().to_string();
        assert!(
            refused.contains("--chain-port") && refused.contains(&port.to_string()),
            "{refused}"
        );
        let program = anvil_binary::find().await.unwrap();
        let refused_by_anvil = LocalChain::start_on(&program, port, None)
            .await
            .unwrap_err();
        assert!(
            matches!(refused_by_anvil, EmbeddedError::PortTaken { .. }),
            "{refused_by_anvil}"
        );
    }

    #[tokio::test]
    async fn watch_ends_the_chain_when_its_pipe_breaks() {
        let mut chain = LocalChain::start(LocalChainOptions::default())
            .await
            .unwrap();
        drop(chain.watch.stdin.take());
        timeout(Duration::from_secs(10), chain.node.wait())
            .await
            .unwrap()
            .unwrap();
        assert!(chain.rpc.call("eth_chainId", json!([])).await.is_err());
    }
}
