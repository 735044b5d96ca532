//! `x402d conformance`: plays the flows of official buyers and sellers against a facilitator, and says which parts of the wire it keeps.

mod chain;
mod check;
mod payment;
mod refusals;
mod settling;
mod supported;
mod wire;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alloy::primitives::{Address, B256, U256};
use alloy::signers::local::PrivateKeySigner;
use clap::Args;
use reqwest::Url;

use self::chain::Chain;
use self::check::Checks;
use self::payment::Buyer;
use self::settling::PAYMENTS_MAX;
use self::wire::Facilitator;
use crate::buyer::KeyError;
use crate::command::pay::secret;
use crate::command::shown::{network_name, parse_network};
use crate::command::{CommandError, for_terminal};
use crate::config::{Environment as _, ProcessEnvironment};
use crate::protocol::assets::{DefaultAsset, TransferMethod, decimal, default_assets};
use crate::protocol::{Amount, Network};

#[derive(Debug, Args)]
#[command(
    after_help = "The payer's key comes from X402D_BUYER_KEY or --key-file. The payer needs five payments of --amount in the network's default \
    token and no gas. Ends with 1 when a required part is not kept."
)]
pub(super) struct ConformanceOptions {
    /// The facilitator.
    url: Url,
    /// The network to pay on. One that is no test network needs --pay-to.
    #[arg(long, default_value = "base-sepolia", value_parser = parse_network)]
    network: Network,
    /// An RPC endpoint of the network, on which the transfers are looked up.
    #[arg(long, value_name = "URL")]
    rpc: Option<Url>,
    /// Who is paid. Required on mainnets; the default on a test network is an account without a known key.
    #[arg(long, value_name = "ADDRESS")]
    pay_to: Option<Address>,
    /// The amount of one payment, in atomic units of the token.
    #[arg(long, value_name = "UNITS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(2..))]
    amount: u64,
    /// A file with the payer's private key in hex.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A file with the key of a seller, where the facilitator asks for one; sent as a bearer token.
    #[arg(long, value_name = "FILE")]
    seller_key_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One run.
struct Run {
    facilitator: Facilitator,
    buyer: Buyer,
    chain: Option<Chain>,
    checks: Checks,
    /// What the settled payments cost, in atomic units.
    paid: U256,
}

impl Run {
    fn count(&mut self, paid: Amount) {
        self.paid = self.paid.saturating_add(paid.atomic());
    }
}

pub(super) async fn run(options: ConformanceOptions) -> Result<ExitCode, CommandError> {
    let network = options.network;
    let buyer = Buyer {
        key: payer_key(options.key_file.as_deref())?,
        network,
        asset: token(network)?,
        pay_to: payee(&options)?,
        amount: Amount::from_atomic(U256::from(options.amount)),
        refused_nonce: B256::random(),
    };
    announce(&buyer);
    let seller_key = options.seller_key_file.as_deref().map(secret).transpose()?;
    let chain = match options.rpc {
        Some(url) => Some(
            Chain::connect(url, network)
                .await
                .map_err(|why| format!("--rpc: {why}"))?,
        ),
        None => None,
    };
    let mut run = Run {
        facilitator: Facilitator::new(&options.url, seller_key)?,
        buyer,
        chain,
        checks: Checks::default(),
        paid: U256::ZERO,
    };
    let before = funds(&run).await?;
    if let Some(offer) = supported::check(&mut run).await {
        settling::check(&mut run, &offer).await?;
        refusals::check(&mut run, &offer).await?;
        settling::check_total(&mut run, before).await;
    }
    Ok(run.checks.report(options.json))
}

fn payer_key(file: Option<&Path>) -> Result<PrivateKeySigner, CommandError> {
    let key = match file {
        Some(file) => secret(file)?,
        None => ProcessEnvironment
            .get("X402D_BUYER_KEY")
            .ok_or("no payer key: set X402D_BUYER_KEY, or give --key-file")?,
    };
    // The library's error quotes a character of the key.
    Ok(key.trim().parse().map_err(|_| KeyError::Key)?)
}

fn token(network: Network) -> Result<&'static DefaultAsset, CommandError> {
    let mut tokens = default_assets(network);
    let token = tokens.find(|asset| asset.method == TransferMethod::Eip3009);
    token.ok_or_else(|| format!("{network}: no token with EIP-3009 is known there").into())
}

/// A mainnet needs `--pay-to`: there is no default payee for real money.
fn payee(options: &ConformanceOptions) -> Result<Address, CommandError> {
    match options.pay_to {
        Some(payee) => Ok(payee),
        None if options.network.is_test() => Ok(PrivateKeySigner::random().address()),
        None => {
            let most = most(token(options.network)?, options.amount);
            let name = network_name(options.network);
            Err(format!("{name} is no test network, and up to {most} of real money would be paid: name the payee with --pay-to").into())
        }
    }
}

/// The most that a run pays, as people write it.
fn most(asset: &DefaultAsset, amount: u64) -> String {
    let units = U256::from(amount).saturating_mul(U256::from(PAYMENTS_MAX));
    let amount = decimal(Amount::from_atomic(units), asset.decimals);
    format!("{amount} {}", asset.symbol)
}

/// Says before anything is sent what will be paid; on stderr, so that stdout has the report alone.
fn announce(buyer: &Buyer) {
    let amount = u64::try_from(buyer.amount.atomic()).unwrap_or(u64::MAX);
    let text = format!(
        "pays at most {} on {} from {} to {}",
        most(buyer.asset, amount),
        network_name(buyer.network),
        buyer.address(),
        buyer.pay_to
    );
    let mut out = std::io::stderr().lock();
    writeln!(out, "{}\n", for_terminal(&text)).ok();
}

/// The payer's balance, which must suffice: otherwise every check would fail for that reason alone.
async fn funds(run: &Run) -> Result<U256, CommandError> {
    let Some(chain) = &run.chain else {
        return Ok(U256::ZERO);
    };
    let (payer, asset) = (run.buyer.address(), run.buyer.asset);
    let balance = chain.balance(asset.address, payer).await;
    let balance = balance.map_err(|why| format!("--rpc: {why}"))?;
    let needed = run
        .buyer
        .amount
        .atomic()
        .saturating_mul(U256::from(PAYMENTS_MAX));
    if balance < needed {
        let [has, needs] =
            [balance, needed].map(|units| decimal(Amount::from_atomic(units), asset.decimals));
        let symbol = asset.symbol;
        return Err(format!("the payer {payer} has {has} {symbol} and needs {needs}").into());
    }
    Ok(balance)
}
