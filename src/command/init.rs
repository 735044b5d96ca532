//! `x402d init`: writes a commented x402d.toml, with a new signer key unless one is given, and says how much gas money to send where.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use alloy::hex;
use alloy::primitives::{Address, U256};
use alloy::signers::local::PrivateKeySigner;
use clap::Args;
use url::Url;

use crate::command::shown::{network_name, parse_network};
use crate::command::{CommandError, for_terminal, probe, say};
use crate::config::{Config, Flags, NetworkConfig, ProcessEnvironment};
use crate::protocol::Network;
use crate::protocol::assets::default_assets;
use crate::protocol::response::checksummed;
use crate::server::network_rpc;
use crate::settlement::{PAYMENTS_LOW, payment_cost};
use crate::telemetry::causes;

const DEFAULT_FILE: &str = "x402d.toml";
const DEFAULT_NETWORK: &str = "base-sepolia";

#[derive(Debug, Args)]
#[command(after_help = "What is not given is asked for. An existing file is never overwritten.")]
pub(super) struct InitOptions {
    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// The network to serve, such as base-sepolia.
    #[arg(long, value_parser = parse_network)]
    network: Option<Network>,
    /// An RPC endpoint of the network; may be repeated.
    #[arg(long, value_name = "URL")]
    rpc: Vec<Url>,
    /// Who may be paid; may be repeated. On a test network anybody, unless given.
    #[arg(long, value_name = "ADDRESS")]
    pay_to: Vec<Address>,
    /// A file with the signers' private keys in hex, one on a line, that only its owner can read; a new key is made unless given.
    #[arg(long, value_name = "FILE")]
    signer_keys_file: Option<PathBuf>,
    /// Ask nothing: take the default of what is not given.
    #[arg(long)]
    yes: bool,
}

/// What goes into the file.
struct Choices {
    network: Network,
    rpc: Vec<Url>,
    pay_to: Vec<Address>,
    signers: Signers,
}

enum Signers {
    /// A new key in hex.
    New(String),
    InFile(PathBuf),
}

pub(super) async fn run(options: InitOptions) -> Result<(), CommandError> {
    let file = options.config.clone();
    if file.exists() {
        return Err(exists(&file).into());
    }
    let choices = choices(options)?;
    write(&file, &choices.as_toml())?;
    let flags = Flags {
        file: Some(file.clone()),
        ..Flags::default()
    };
    let config = match Config::read(&flags, &ProcessEnvironment) {
        Ok(config) => config,
        Err(error) => {
            // It holds nothing yet that anybody has sent money to.
            fs::remove_file(&file)?;
            return Err(error.into());
        }
    };
    say(&format!("{} is written", file.display()));
    for network in &config.networks {
        say(&gas_money(network).await);
    }
    let shown = file.display();
    say(&format!(
        "then: x402d doctor --config {shown}\n      x402d serve --config {shown}"
    ));
    Ok(())
}

fn exists(file: &Path) -> String {
    format!(
        "{} exists: remove it, or name another with --config",
        file.display()
    )
}

fn choices(options: InitOptions) -> Result<Choices, CommandError> {
    let quiet = options.yes;
    let network = if let Some(network) = options.network {
        network
    } else {
        let question = format!("network [{DEFAULT_NETWORK}]");
        parse_network(&ask(&question, quiet, DEFAULT_NETWORK)?)?
    };
    if default_assets(network).next().is_none() {
        return Err(format!("{network}: no token is known there; write the file by hand, as docs/configuration.md says").into());
    }
    let mut rpc = options.rpc;
    if rpc.is_empty() {
        let text = ask("URL of an RPC endpoint", quiet, "")?;
        rpc.push(Url::parse(&text).map_err(|_| "no RPC endpoint: expected a URL; give --rpc")?);
    }
    let pay_to = match options.pay_to {
        none if none.is_empty() => payee(network, quiet)?.into_iter().collect(),
        given => given,
    };
    Ok(Choices {
        network,
        rpc,
        pay_to,
        signers: signers(options.signer_keys_file)?,
    })
}

/// Who may be paid; on a test network `None` for anybody.
fn payee(network: Network, quiet: bool) -> Result<Option<Address>, CommandError> {
    let is_test = network.is_test();
    let default = if is_test { " [anybody]" } else { "" };
    let text = ask(&format!("address that may be paid{default}"), quiet, "")?;
    if text.is_empty() && is_test {
        return Ok(None);
    }
    let wrong = "who may be paid: expected an address, 0x and 40 digits of hex; give --pay-to";
    Ok(Some(text.parse().map_err(|_| wrong)?))
}

fn signers(file: Option<PathBuf>) -> Result<Signers, CommandError> {
    let Some(file) = file else {
        let key = PrivateKeySigner::random();
        return Ok(Signers::New(hex::encode_prefixed(key.to_bytes())));
    };
    // The service may start in another folder.
    let whole = fs::canonicalize(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(Signers::InFile(whole))
}

/// Asks on stderr and reads a line; `default` is for an empty one, and when nothing is asked.
fn ask(question: &str, quiet: bool, default: &str) -> Result<String, CommandError> {
    if quiet {
        return Ok(default.to_owned());
    }
    let mut out = std::io::stderr().lock();
    write!(out, "{}: ", for_terminal(question))
        .and_then(|()| out.flush())
        .ok();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let answer = line.trim();
    Ok(if answer.is_empty() { default } else { answer }.to_owned())
}

/// Only its owner may read the file: RPC URLs and keys are secrets.
fn write(file: &Path, text: &str) -> Result<(), CommandError> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(file);
    let written = opened.and_then(|mut open| {
        open.write_all(text.as_bytes())?;
        open.sync_all()
    });
    written.map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            exists(file).into()
        } else {
            format!("{}: {error}", file.display()).into()
        }
    })
}

impl Choices {
    fn as_toml(&self) -> String {
        let name = network_name(self.network);
        let rpc = list(self.rpc.iter().map(Url::to_string));
        let (signers, payees) = (self.signers_line(), self.payees_line());
        let callers = if self.network.is_test() {
            "# On a test network anybody may call. Elsewhere sellers get a key: x402d keys create NAME --payee 0x…\n"
        } else {
            "# Sellers need a key: x402d keys create NAME --payee 0x…\n"
        };
        // The amount is for networks whose currency is ether.
        let off = if self.network.native_symbol() == Some("ETH") {
            ""
        } else {
            "# "
        };
        format!(
            "# Configuration of x402d; docs/configuration.md has every key. `x402d doctor` checks it.\n\n\
             # Where the API listens. Before others can reach it, read docs/going-live.md.\n\
             listen = \"127.0.0.1:4402\"\n\n\
             # Without database_url (DATABASE_URL) x402d runs a private Postgres in its data directory.\n\
             # database_url = \"postgres://…\"\n\n{callers}\n\
             [networks.{name}]\n\
             # Several endpoints are used together; for real money take two or three, of different providers.\n\
             rpc_urls = {rpc}\n{signers}{payees}\n\
             # What strangers can make you spend on gas in 24 hours.\n\
             {off}[networks.{name}.budget]\n\
             {off}wei_per_day = \"0.01eth\"\n"
        )
    }

    fn signers_line(&self) -> String {
        match &self.signers {
            Signers::New(key) => format!(
                "# Pays for gas, and must be used for nothing else. Whoever has this key has its money: keep a copy in a safe place.\n\
                 signer_keys = {}\n",
                list([key.clone()].into_iter())
            ),
            Signers::InFile(file) => format!(
                "# The keys of the accounts that pay for gas.\nsigner_keys_file = {}\n",
                quoted(&file.display().to_string())
            ),
        }
    }

    fn payees_line(&self) -> String {
        if self.pay_to.is_empty() {
            return "# Who may be paid; without it anybody.\n# payees = [\"0x…\"]\n".to_owned();
        }
        let payees = list(self.pay_to.iter().copied().map(checksummed));
        format!("# Who may be paid.\npayees = {payees}\n")
    }
}

fn list(texts: impl Iterator<Item = String>) -> String {
    let quoted: Vec<_> = texts.map(|text| quoted(&text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A basic string of TOML, which has the escapes of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The signers of a network, and what each needs to pay for gas.
async fn gas_money(config: &NetworkConfig) -> String {
    let network = config.policy.network;
    let needed = match gas_for(config).await {
        Ok(wei) => format!(
            "at least {} (gas for {PAYMENTS_LOW} payments at today's price)",
            probe::native(network, wei)
        ),
        Err(why) => format!(
            "some {}, how much is not known yet: {why}",
            network.native_symbol().unwrap_or("ETH")
        ),
    };
    let signers = config
        .signers
        .iter()
        .map(|key| format!("  {}", checksummed(key.address())));
    let signers = signers.collect::<Vec<_>>().join("\n");
    format!(
        "send each signer on {} {needed}:\n{signers}",
        network_name(network)
    )
}

async fn gas_for(config: &NetworkConfig) -> Result<U256, String> {
    let rpc = network_rpc(config).map_err(|error| causes(&error))?;
    let fees = async {
        rpc.check_chain().await?;
        let head = rpc.newest().await?;
        Ok((probe::fees(&rpc, config, &head).await?, head))
    };
    let (fees, head) = fees
        .await
        .map_err(|error: crate::chain::RpcError| causes(&error))?;
    let fees = fees.quote(&head).map_err(|error| causes(&error))?;
    Ok(payment_cost(fees.max_fee_wei).saturating_mul(U256::from(PAYMENTS_LOW)))
}
