//! `x402d demo`: a whole economy on this machine, with real payments.

use std::net::SocketAddr;

use alloy::primitives::{Address, U256};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::buyer::{Client, PayOptions, Signer};
use crate::command::dev::{DevOptions, Local};
use crate::command::{CommandError, asked_to_stop, say};
use crate::embedded::LocalChain;
use crate::protocol::{Amount, Network, X402Version};
use crate::seller::{Payment, Paywall, Price};

/// Who is paid in the demonstration; nobody has its key.
const PAYEE: Address = Address::repeat_byte(0x5e);
/// The price of the report.
const PRICE: &str = "0.01";
/// What the smart wallet gets, in atomic units: 10 USDC.
const WALLET_ALLOWANCE: u64 = 10_000_000;

/// How to run the demonstration.
#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// End after three payments; everything listens on free ports.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    dev: DevOptions,
}

pub(super) async fn run(mut options: DemoOptions) -> Result<(), CommandError> {
    if options.once {
        options.dev.use_free_ports();
    }
    say("starting Postgres, a local chain and the facilitator …");
    let local = Local::start(&options.dev).await?;
    let played = play(&local).await;
    if played.is_ok() && !options.once {
        say("\nStill serving; Ctrl-C stops everything.");
        asked_to_stop().await;
    }
    local.stop().await?;
    played.map(drop)
}

/// Sells one report three ways. The seller serves for as long as its handle lives.
async fn play(local: &Local) -> Result<Seller, CommandError> {
    let seller = Seller::open(&format!("http://{}", local.service.address())).await?;
    say(&format!("facilitator  http://{}", local.service.address()));
    say(&format!("chain        {}", local.chain.rpc_url()));
    say(&format!("seller       {}/report  ($0.01)\n", seller.url));

    let [account, owner, ..] = LocalChain::funded_keys() else {
        return Err("the local chain has no accounts".into());
    };
    let wallet = local.chain.create_wallet(owner.address).await?;
    local
        .chain
        .mint(wallet, U256::from(WALLET_ALLOWANCE))
        .await?;

    let before = local.chain.balance(PAYEE).await?;
    say(&format!("payee {PAYEE} holds {} before", dollars(before)));
    let purchases = [
        ("x402 v2", Signer::from_key(account.key)?, X402Version::V2),
        ("x402 v1", Signer::from_key(account.key)?, X402Version::V1),
        (
            "a smart wallet",
            Signer::for_wallet(owner.key, wallet)?,
            X402Version::V2,
        ),
    ];
    for (name, signer, version) in purchases {
        let hash = buy(&seller, signer, version).await?;
        say(&format!("  paid {PRICE} by {name:<15} {hash}"));
    }
    let after = local.chain.balance(PAYEE).await?;
    say(&format!("payee {PAYEE} holds {} after\n", dollars(after)));
    show_ledger(local).await?;

    let expected = Amount::from_dollars(PRICE, 6)?.atomic() * U256::from(3);
    if after - before != expected {
        return Err(format!(
            "the payee should have got {}, it got {}",
            dollars(expected),
            dollars(after - before)
        )
        .into());
    }
    Ok(seller)
}

async fn buy(
    seller: &Seller,
    signer: Signer,
    version: X402Version,
) -> Result<String, CommandError> {
    let ceiling = Amount::from_dollars(PRICE, 6)?;
    let options = PayOptions {
        version: Some(version),
        ..PayOptions::up_to(ceiling)
    };
    let paid = Client::new(signer)?
        .get(&format!("{}/report", seller.url), &options)
        .await?;
    let payment = paid.payment.ok_or("the seller's answer names no payment")?;
    if !paid.status.is_success() || !payment.success {
        return Err(format!("the seller answered {}", paid.status).into());
    }
    Ok(payment.transaction)
}

async fn show_ledger(local: &Local) -> Result<(), CommandError> {
    let page: Value = reqwest::get(format!("http://{}/payments", local.service.address()))
        .await?
        .json()
        .await?;
    say("the ledger, newest first (GET /payments):");
    for row in page
        .get("payments")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let text = |name: &str| {
            row.get(name)
                .map(|value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                })
                .unwrap_or_default()
        };
        say(&format!(
            "  {}  v{}  {:<8}  {} of {}  {}",
            text("id"),
            text("x402Version"),
            text("state"),
            text("amount"),
            text("payer"),
            text("transaction")
        ));
    }
    Ok(())
}

/// A seller as anybody would write one with this crate.
#[derive(Debug)]
struct Seller {
    url: String,
    serving: JoinHandle<()>,
}

impl Seller {
    async fn open(facilitator: &str) -> Result<Self, CommandError> {
        let paywall = Paywall::new(facilitator)
            .network(Network::from_chain_id(crate::embedded::CHAIN_ID))
            .pay_to(PAYEE)
            .route("GET /report", Price::dollars(PRICE)?)
            .build()?;
        let app = Router::new().route("/report", get(report)).layer(paywall);
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let url = format!("http://{}", listener.local_addr()?);
        #[expect(
            clippy::disallowed_methods,
            reason = "the demonstration's seller ends with the process"
        )]
        let serving = tokio::spawn(async move {
            axum::serve(listener, app).await.ok();
        });
        Ok(Self { url, serving })
    }
}

impl Drop for Seller {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn report(payment: Payment) -> Json<Value> {
    Json(
        json!({ "report": "all is well", "paidBy": payment.payer.to_string(), "transaction": payment.payment_id }),
    )
}

fn dollars(atomic: U256) -> String {
    let (whole, rest) = atomic.div_rem(U256::from(1_000_000));
    format!("{whole}.{rest:06} USDC")
}
