//! `x402d pay`: buys one URL. Killed and run again, it presents the same payment, because each payment is in a file before it is sent.

use std::fs::{self, DirBuilder};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alloy::primitives::Address;
use clap::Args;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use url::Url;

use crate::buyer::{
    BuyerError, Client, Journal, JournalError, Paid, PayOptions, Request, SessionUse,
    SignedPayment, Signer,
};
use crate::command::{CommandError, for_terminal, say};
use crate::config::{Environment, ProcessEnvironment};
use crate::embedded::{default_data_dir, running_as_root};
use crate::protocol::text::is_plain;
use crate::protocol::{Amount, Network, PaymentMethod, X402Version};

/// Decimals of every token that this command pays with.
const DECIMALS: u8 = 6;
/// Decimals of every network's currency.
const NATIVE_DECIMALS: u8 = 18;
/// How long to wait for another purchase that uses the journal, and how often to try.
const JOURNAL_WAIT: Duration = Duration::from_mins(3);
const JOURNAL_RETRY: Duration = Duration::from_millis(50);
/// The longest key file, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

#[derive(Debug, Args)]
#[command(
    after_help = "The payer's key comes from X402D_BUYER_KEY, or from one of --key-file, --mnemonic-file and --keystore; it is \
    never given on the command line. A keystore's password comes from X402D_KEYSTORE_PASSWORD or --password-file. With \
    X402D_BUYER_RPC_URL and --network, an expired payment is looked up on the chain, --transfer can send money, and a payment by Permit2 \
    is given the token's permit where it needs one and the seller has its gas sponsored."
)]
pub(super) struct PayArguments {
    /// What to buy.
    url: String,
    /// The most to pay, in dollars, such as 0.01. A metered price counts with its maximum.
    #[arg(long, value_name = "DOLLARS")]
    max: String,
    #[command(flatten)]
    session: SessionArguments,
    #[command(flatten)]
    transport: TransportArguments,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// The method of the request; POST when there is --data, else GET.
    #[arg(long, short = 'X')]
    method: Option<Method>,
    /// The body of the request; @FILE reads it from a file.
    #[arg(long, short = 'd', value_name = "TEXT")]
    data: Option<String>,
    /// A header of the request, such as 'accept: application/json'; may be repeated.
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Pay on this network alone, such as base-sepolia or eip155:84532.
    #[arg(long)]
    network: Option<String>,
    /// Use this version of x402 where the seller supports both.
    #[arg(long, value_name = "1|2")]
    x402_version: Option<u8>,
    /// Your own name for the purchase; without it method, URL and body tell purchases apart.
    #[arg(long, value_name = "NAME")]
    purchase_id: Option<String>,
    /// This is another purchase, although a payment to the same seller over the same amount is open and may still be settled.
    #[arg(long)]
    another: bool,
    /// An earlier payment for this purchase has expired, and you have made sure that it moved no money: sign another one.
    #[arg(long)]
    sign_again: bool,
    #[command(flatten)]
    payer: PayerArguments,
    /// The folder of the purchase journal.
    #[arg(long, value_name = "FOLDER", env = "X402D_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TransportArguments {
    /// Pay over plain http, where anybody on the way can change the payee; without it only on this machine.
    #[arg(long)]
    allow_http: bool,
}

#[derive(Debug, Args)]
struct SessionArguments {
    /// Open a payment session and pay before the paid request.
    #[arg(long)]
    session: bool,
    /// The same, but pay with a transaction that the payer sends.
    #[arg(long, conflicts_with = "session")]
    transfer: bool,
    /// Where to open the session; the seller's facilitator unless given.
    #[arg(long, value_name = "URL")]
    facilitator: Option<Url>,
    /// The most that the gas of --transfer may cost, in the network's currency, such as 0.0001.
    #[arg(long, value_name = "AMOUNT")]
    max_fee: Option<String>,
    /// What a unit of the network's currency costs; then the gas of --transfer may cost --max-fee-percent of the price.
    #[arg(long, value_name = "DOLLARS")]
    native_price: Option<String>,
    /// The most that the gas of --transfer may cost, relative to the price.
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 100,
        requires = "native_price"
    )]
    max_fee_percent: u16,
}

#[derive(Debug, Args)]
#[group(multiple = true)]
struct PayerArguments {
    /// A file with the private key in hex.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mnemonic_file", "keystore"])]
    key_file: Option<PathBuf>,
    /// A file with a BIP-39 mnemonic.
    #[arg(long, value_name = "FILE", conflicts_with = "keystore")]
    mnemonic_file: Option<PathBuf>,
    /// Which account of the mnemonic: m/44'/60'/0'/0/INDEX.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    account_index: u32,
    /// An encrypted keystore file (Web3 v3 JSON).
    #[arg(long, value_name = "FILE")]
    keystore: Option<PathBuf>,
    /// A file with the keystore's password.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The contract wallet that pays; the key is its owner's.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["mnemonic_file", "keystore"])]
    wallet: Option<Address>,
}

pub(super) async fn run(arguments: PayArguments) -> Result<(), CommandError> {
    let request = arguments.request()?;
    let network = arguments.network.as_deref().map(network).transpose()?;
    let options = arguments.options(network)?;
    let signer = arguments.payer.signer(&ProcessEnvironment)?;
    let folder = buyer_folder(arguments.data_dir.as_deref())?;
    let journal = journal(&folder).await?;
    let mut client = arguments
        .session
        .limit_fees(Client::new(signer)?.journal(journal))?;
    if arguments.transport.allow_http {
        client = client.allow_http();
    }
    if let Some(url) = &arguments.session.facilitator {
        client = client.facilitator(url.clone());
    }
    if let (Some(url), Some(network)) = (ProcessEnvironment.get("X402D_BUYER_RPC_URL"), network) {
        let url = Url::parse(&url).map_err(|_| "X402D_BUYER_RPC_URL: expected a URL")?;
        client = client.chain(network, url);
    }
    match client.send(request, &options).await {
        Ok(paid) => {
            if arguments.json {
                say(&result_json(&paid).to_string());
            } else {
                show(&paid, &folder);
            }
            let failed = || format!("the seller answered {}", paid.status).into();
            paid.status.is_success().then_some(()).ok_or_else(failed)
        }
        Err(error) => {
            if arguments.json {
                say(&error_json(&error).to_string());
            } else {
                explain(&error);
            }
            Err(error.into())
        }
    }
}

impl PayArguments {
    fn request(&self) -> Result<Request, CommandError> {
        let body = match self
            .data
            .as_deref()
            .map(|data| (data, data.strip_prefix('@')))
        {
            Some((_, Some(file))) => {
                Some(fs::read(file).map_err(|error| format!("--data: {file}: {error}"))?)
            }
            Some((text, None)) => Some(text.as_bytes().to_vec()),
            None => None,
        };
        let usual = if body.is_some() {
            Method::POST
        } else {
            Method::GET
        };
        let mut headers = HeaderMap::new();
        for text in &self.header {
            let expected = "--header: expected 'name: value'";
            let (name, value) = text.split_once(':').ok_or(expected)?;
            let name: HeaderName = name.trim().parse().map_err(|_| expected)?;
            headers.append(
                name,
                HeaderValue::from_str(value.trim()).map_err(|_| expected)?,
            );
        }
        let method = self.method.clone().unwrap_or(usual);
        let request = Request::new(method, &self.url)?.headers(headers)?;
        Ok(request.body(body.unwrap_or_default()))
    }

    fn options(&self, network: Option<Network>) -> Result<PayOptions, CommandError> {
        let ceiling =
            Amount::from_dollars(&self.max, DECIMALS).map_err(|error| format!("--max: {error}"))?;
        let version = match self.x402_version {
            None => None,
            Some(1) => Some(X402Version::V1),
            Some(2) => Some(X402Version::V2),
            Some(_) => return Err("--x402-version: expected 1 or 2".into()),
        };
        let sessions = match (self.session.session, self.session.transfer) {
            (_, true) => SessionUse::Transfer,
            (true, false) => SessionUse::PayFirst,
            (false, false) => SessionUse::Offered,
        };
        Ok(PayOptions {
            version,
            network,
            purchase_id: self.purchase_id.clone(),
            sessions,
            another: self.another,
            sign_again: self.sign_again,
            ..PayOptions::up_to(ceiling)
        })
    }
}

impl SessionArguments {
    /// Sets what the gas of a transfer may cost.
    fn limit_fees(&self, mut client: Client) -> Result<Client, CommandError> {
        if let Some(fee) = &self.max_fee {
            let wei = Amount::from_dollars(fee, NATIVE_DECIMALS)
                .map_err(|error| format!("--max-fee: {error}"))?;
            client = client.transfer_fee_max(wei.atomic());
        }
        if let Some(price) = &self.native_price {
            let price = Amount::from_dollars(price, DECIMALS)
                .map_err(|error| format!("--native-price: {error}"))?;
            client = client.transfer_fee_share(price, self.max_fee_percent);
        }
        Ok(client)
    }
}

impl PayerArguments {
    fn signer(&self, environment: &dyn Environment) -> Result<Signer, CommandError> {
        if let Some(file) = &self.keystore {
            let password = match &self.password_file {
                Some(file) => secret(file)?,
                None => environment
                    .get("X402D_KEYSTORE_PASSWORD")
                    .ok_or("--keystore: its password comes from X402D_KEYSTORE_PASSWORD or --password-file")?,
            };
            return Ok(Signer::from_keystore(file, &password)?);
        }
        if let Some(file) = &self.mnemonic_file {
            return Ok(Signer::from_mnemonic(&secret(file)?, self.account_index)?);
        }
        let key = match &self.key_file {
            Some(file) => secret(file)?,
            None => environment.get("X402D_BUYER_KEY").ok_or(
                "no payer key: set X402D_BUYER_KEY, or give --key-file, --mnemonic-file or --keystore",
            )?,
        };
        Ok(match self.wallet {
            Some(wallet) => Signer::for_wallet(&key, wallet)?,
            None => Signer::from_key(&key)?,
        })
    }
}

/// The text of a small file, without the end of its line.
pub(super) fn secret(file: &Path) -> Result<String, CommandError> {
    let unreadable = |error: std::io::Error| format!("{}: {error}", file.display());
    if fs::metadata(file).map_err(unreadable)?.len() > SECRET_BYTES_MAX {
        return Err(format!("{}: longer than {SECRET_BYTES_MAX} bytes", file.display()).into());
    }
    let text = fs::read_to_string(file).map_err(unreadable)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn network(text: &str) -> Result<Network, CommandError> {
    Network::from_name(text).ok_or_else(|| {
        format!("--network: expected a name such as base-sepolia or eip155:84532, got {text:?}")
            .into()
    })
}

/// The buyer's folder in the data directory.
fn buyer_folder(data_dir: Option<&Path>) -> Result<PathBuf, CommandError> {
    let environment = |name: &str| ProcessEnvironment.get(name);
    let folder = default_data_dir(data_dir, &environment, running_as_root());
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let folder = folder.join("buyer");
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(format!("{}: {error}", folder.display()).into());
        }
        Ok(()) | Err(_) => {}
    }
    Ok(folder)
}

/// The journal of this user, once no other purchase uses it.
async fn journal(folder: &Path) -> Result<Journal, CommandError> {
    let path = folder.join("purchases.jsonl");
    let deadline = Instant::now() + JOURNAL_WAIT;
    loop {
        match Journal::open(&path) {
            Err(JournalError::InUse(_)) if Instant::now() < deadline => {
                tokio::time::sleep(JOURNAL_RETRY).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Writes the body to stdout and the details of the payment to stderr. A body that a terminal would obey goes to a file.
fn show(paid: &Paid, folder: &Path) {
    let mut lines = vec![format!("status       {}", paid.status)];
    let mut out = std::io::stdout().lock();
    if !out.is_terminal() || is_printable(&paid.body) {
        out.write_all(&paid.body).and_then(|()| out.flush()).ok();
    } else {
        let file = folder.join("last-body");
        let kept = match fs::write(&file, &paid.body) {
            Ok(()) => format!("is in {}", file.display()),
            Err(error) => format!("could not be kept in {}: {error}", file.display()),
        };
        let bytes = paid.body.len();
        lines.push(format!(
            "body         is no plain text, so the terminal does not get it: {bytes} bytes, {kept}"
        ));
    }
    drop(out);
    if let Some(signed) = &paid.signed {
        lines.push(format!(
            "paid         {} atomic units of {} on {}",
            price(signed, paid.charged()),
            signed.asset,
            signed.network
        ));
        lines.push(format!("to           {}", signed.pay_to));
        let none = match paid.charged() {
            Some(charged) if charged.is_zero() => "none: nothing was charged",
            Some(_) | None => "none named by the seller",
        };
        lines.push(format!(
            "transaction  {}",
            paid.transaction().unwrap_or(none)
        ));
    }
    if let Some(session) = &paid.session {
        lines.push(format!("session      {}", session.id));
    }
    write_to_stderr(&lines);
}

/// Whether a terminal may be given a body as it is: text of lines and tabs, without anything that a terminal obeys.
fn is_printable(body: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(body) else {
        return false;
    };
    text.split('\n').all(|line| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        line.chars()
            .all(|letter| letter == '\t' || is_plain(letter))
    })
}

/// The charge, where it is known; for scheme `upto` also the permitted maximum.
fn price(signed: &SignedPayment, charged: Option<Amount>) -> String {
    match (signed.method, charged) {
        (PaymentMethod::Metered, Some(charged)) => {
            format!("{charged} of at most {}", signed.amount)
        }
        (PaymentMethod::Metered, None) => format!("at most {}", signed.amount),
        (PaymentMethod::Authorization | PaymentMethod::Permit2, _) => signed.amount.to_string(),
    }
}

fn explain(error: &BuyerError) {
    let mut lines = Vec::new();
    if let Some(signed) = error.signed() {
        lines.push(format!(
            "{} atomic units of {} on {} may have moved to {}",
            price(signed, None),
            signed.asset,
            signed.network,
            signed.pay_to
        ));
        lines.push(format!("nonce        {}", signed.nonce));
        if let Some(end) = until(signed) {
            lines.push(format!("until        {end}"));
        }
        if let Some(hash) = error.transaction() {
            lines.push(format!("transaction  {hash} (named by the seller)"));
        }
    } else {
        lines.push("no money has moved".to_owned());
    }
    lines.push(error.advice().to_owned());
    write_to_stderr(&lines);
}

/// Details for people go to stderr, so that stdout has only what a program reads.
fn write_to_stderr(lines: &[String]) {
    let mut out = std::io::stderr().lock();
    writeln!(out, "\n{}", for_terminal(&lines.join("\n"))).ok();
}

/// When a payment expires.
fn until(signed: &SignedPayment) -> Option<String> {
    let end = OffsetDateTime::from_unix_timestamp(signed.valid_before?).ok()?;
    end.format(&Rfc3339).ok()
}

fn signed_json(signed: &SignedPayment) -> Value {
    json!({"network": signed.network, "asset": signed.asset, "payer": signed.payer, "payTo": signed.pay_to, "amount": signed.amount,
        "means": signed.method, "nonce": signed.nonce, "validBefore": until(signed)})
}

fn result_json(paid: &Paid) -> Value {
    let body = paid
        .json()
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&paid.body).into_owned()));
    let session = paid.session.as_ref().map(|session| {
        json!({"id": session.id, "facilitator": session.facilitator, "transaction": session.transaction})
    });
    json!({"status": paid.status.as_u16(), "transaction": paid.transaction(), "paid": paid.signed.as_ref().map(signed_json),
        "charged": paid.charged(), "payment": paid.payment, "session": session, "body": body})
}

fn error_json(error: &BuyerError) -> Value {
    json!({"error": {"code": error.code(), "message": error.to_string(), "moneyMayHaveMoved": error.money_may_have_moved(),
        "transaction": error.transaction(), "signed": error.signed().map(signed_json), "advice": error.advice()}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_gets_plain_text_alone() {
        for body in ["", "the weather is fine\n", "a\tb\r\nc", "größe 日本"] {
            assert!(is_printable(body.as_bytes()), "{body:?}");
        }
        for body in [
            "\u{1b}[2Kno money has moved",
            "\u{1b}]52;c;eA==\u{7}",
            "paid\rfree",
            "\u{9b}2K",
            "\u{202e}fdp.exe",
            "a\0b",
        ] {
            assert!(!is_printable(body.as_bytes()), "{body:?}");
        }
        assert!(!is_printable(&[0xff, 0xfe]));
    }
}
