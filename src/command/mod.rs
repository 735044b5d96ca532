//! The command line.
//!
//! The only module that uses the service, the embedded programs, the buyer and the seller.

mod backup;
mod conformance;
mod database;
mod demo;
mod dev;
mod doctor;
mod events;
mod finding;
mod init;
mod keys;
mod migrate;
mod networks;
mod pay;
mod payments;
mod probe;
mod serve;
mod shown;
mod signers;
mod status;
mod webhooks;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

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
    /// Say whether all is well, on one page: networks, signers, queue, budgets. Ends with 0, 1 (degraded) or 2 (down).
    Status(status::StatusOptions),
    /// Check everything that the service depends on, and say what to do about what is wrong.
    Doctor(doctor::DoctorOptions),
    /// Play the flows of official sellers against a facilitator on a test network, and say which parts of the wire it keeps.
    Conformance(Box<conformance::ConformanceOptions>),
    /// Write a commented x402d.toml, with a new signer key unless one is given, and say how much gas money to send where.
    Init(init::InitOptions),
    /// List the signers, pause or drain one, and resume one that is paused or stopped.
    Signers(signers::SignersOptions),
    /// Show what happened to payments, signers, networks, budgets and keys, and with --follow what happens.
    Events(events::EventsOptions),
    /// Have events sent to URLs, signed by Standard Webhooks.
    Webhooks(webhooks::WebhooksOptions),
    /// List, show and export payments, and release one from quarantine.
    Payments(payments::PaymentsOptions),
    /// Print what a shell needs to complete the commands of x402d.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write a backup of the ledger, also while the service runs.
    Backup(backup::BackupOptions),
    /// Put a backup into a new database.
    Restore(backup::BackupOptions),
    /// Run psql on the ledger, read-only unless told otherwise.
    Psql(backup::PsqlOptions),
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

/// Runs the command of a command line. The code is for a command that has more to tell than success or an error.
pub async fn run(line: CommandLine) -> Result<ExitCode, CommandError> {
    let _log = telemetry::begin(ProcessEnvironment.get("X402D_LOG").as_deref())?;
    let done = match line.command {
        Command::Serve(options) => Box::pin(serve::run(options.flags())).await,
        Command::Dev(options) => Box::pin(dev::run(options)).await,
        Command::Demo(options) => Box::pin(demo::run(options)).await,
        Command::Pay(arguments) => pay::run(*arguments).await,
        Command::Keys(options) => keys::run(options).await,
        Command::Status(options) => return status::run(options).await,
        Command::Doctor(options) => doctor::run(options).await,
        Command::Conformance(options) => return conformance::run(*options).await,
        Command::Init(options) => init::run(options).await,
        Command::Signers(options) => signers::run(options).await,
        Command::Events(options) => events::run(options).await,
        Command::Webhooks(options) => webhooks::run(options).await,
        Command::Payments(options) => payments::run(options).await,
        Command::Completions { shell } => {
            print_completions(shell);
            Ok(())
        }
        Command::Backup(options) => backup::backup(options).await,
        Command::Restore(options) => backup::restore(options).await,
        Command::Psql(options) => return backup::psql(options).await,
        Command::Migrate(options) => migrate::run(options.config).await,
        Command::Networks(options) => networks::run(options).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn print_completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "x402d", &mut script);
    // A closed stdout is no reason to fail.
    std::io::stdout().lock().write_all(&script).ok();
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
