//! The command line.
//!
//! The only module that uses the service, the embedded programs, the buyer and the seller.

mod database;
mod demo;
mod dev;
mod keys;
mod migrate;
mod networks;
mod pay;
mod serve;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{Environment as _, Flags, ProcessEnvironment};
use crate::protocol::text::escaped;
use crate::telemetry;

/// A self-hosted x402 payment facilitator.
#[derive(Debug, Parser)]
#[command(name = "x402d", version, about)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service, from x402d.toml and the environment.
    Serve(ServeOptions),
    /// Run a local chain with test USDC and a facilitator for it, and print funded keys.
    Dev(dev::DevOptions),
    /// Run database, chain, facilitator, seller and buyer on this machine, with real payments.
    Demo(demo::DemoOptions),
    /// Buy a URL: pay what its seller asks for, up to a ceiling, exactly once.
    Pay(Box<pay::PayArguments>),
    /// Make, show and revoke the keys by which sellers call the service.
    Keys(keys::KeysOptions),
    /// Migrate the database and exit.
    Migrate(MigrateOptions),
    /// Show the networks and tokens that x402d knows, or check the configured ones against their chains.
    Networks(networks::NetworksOptions),
}

/// Where the URL of the database is configured, besides the environment.
#[derive(Debug, Args)]
struct MigrateOptions {
    /// The configuration; x402d.toml in the working directory unless given.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Where the configuration is, besides the environment.
#[derive(Debug, Args)]
struct ServeOptions {
    /// The configuration; x402d.toml in the working directory unless given.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen, such as 127.0.0.1:4402.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where a private Postgres keeps its data.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

impl ServeOptions {
    fn flags(self) -> Flags {
        Flags {
            file: self.config,
            listen: self.listen,
            data_dir: self.data_dir,
        }
    }
}

/// Why a command failed; shown to the operator as it is.
pub type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command of a command line.
pub async fn run(line: CommandLine) -> Result<(), CommandError> {
    telemetry::begin(ProcessEnvironment.get("X402D_LOG").as_deref())?;
    match line.command {
        Command::Serve(options) => serve::run(options.flags()).await,
        Command::Dev(options) => dev::run(options).await,
        Command::Demo(options) => demo::run(options).await,
        Command::Pay(arguments) => pay::run(*arguments).await,
        Command::Keys(options) => keys::run(options).await,
        Command::Migrate(options) => migrate::run(options.config).await,
        Command::Networks(options) => networks::run(options).await,
    }
}

/// Writes lines to stdout. Texts of others are in them, so everything that a terminal obeys is escaped. A closed stdout is no reason to stop.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", for_terminal(text))
        .and_then(|()| out.flush())
        .ok();
}

/// Lines as a terminal may show them.
pub fn for_terminal(text: &str) -> String {
    let lines = text.split('\n').map(escaped);
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns at Ctrl-C or SIGTERM.
async fn wait_for_stop_signal() {
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}
