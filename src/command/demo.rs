//! `x402d demo`: database, chain, facilitator, seller and buyer on this machine, with real payments.

use std::net::SocketAddr;

use alloy::primitives::{Address, U256};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::buyer::{Client, PayOptions, Signer};
use crate::command::dev::{DevOptions, Local};
use crate::command::{CommandError, say, wait_for_stop_signal};
use crate::embedded::LocalChain;
use crate::protocol::{Amount, Network, X402Version};
use crate::seller::{Charge, Payment, Paywall, Price};

/// The payee of the demonstration; its key does not exist.
const PAYEE: Address = Address::repeat_byte(0x5e);
/// The price of a report, and the most that a metered one costs.
const PRICE: &str = "0.01";
/// The charge of a metered report.
const CHARGE: &str = "0.003";
/// The balance of the smart wallet, in atomic units: 10 USDC.
const WALLET_ALLOWANCE: u64 = 10_000_000;

/// How to run the demonstration.
#[derive(Debug, Args)]
pub(super) struct DemoOptions {
    /// End after five payments; everything listens on free ports.
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
    let outcome = sell_reports(&local).await;
    if outcome.is_ok() && !options.once {
        say("\nStill serving; Ctrl-C stops everything.");
        wait_for_stop_signal().await;
    }
    local.stop().await?;
    outcome.map(drop)
}

/// Sells one report by each payment method. The seller serves for as long as its handle lives.
async fn sell_reports(local: &Local) -> Result<Seller, CommandError> {
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
    let mut expected = U256::ZERO;
    for purchase in purchases(account.key, Signer::for_wallet(owner.key, wallet)?)? {
        let hash = buy(local, &seller, &purchase).await?;
        say(&format!(
            "  paid {:<5} by {:<15} {hash}",
            purchase.costs, purchase.name
        ));
        expected += Amount::from_dollars(purchase.costs, 6)?.atomic();
    }
    let after = local.chain.balance(PAYEE).await?;
    say(&format!("payee {PAYEE} holds {} after\n", dollars(after)));
    show_ledger(local).await?;

    if after - before != expected {
        return Err(format!(
            "the payee should have received {}, but received {}",
            dollars(expected),
            dollars(after - before)
        )
        .into());
    }
    Ok(seller)
}

/// One way to buy the report.
struct Purchase {
    name: &'static str,
    path: &'static str,
    signer: Signer,
    version: X402Version,
    costs: &'static str,
}

fn purchases(key: &str, wallet: Signer) -> Result<[Purchase; 5], CommandError> {
    let by_key = |name, path, version, costs| -> Result<Purchase, CommandError> {
        Ok(Purchase {
            name,
            path,
            signer: Signer::from_key(key)?,
            version,
            costs,
        })
    };
    Ok([
        by_key("x402 v2", "report", X402Version::V2, PRICE)?,
        by_key("x402 v1", "report", X402Version::V1, PRICE)?,
        Purchase {
            name: "a smart wallet",
            path: "report",
            signer: wallet,
            version: X402Version::V2,
            costs: PRICE,
        },
        by_key("Permit2", "permit2", X402Version::V2, PRICE)?,
        by_key("a meter", "metered", X402Version::V2, CHARGE)?,
    ])
}

async fn buy(local: &Local, seller: &Seller, purchase: &Purchase) -> Result<String, CommandError> {
    let ceiling = Amount::from_dollars(PRICE, 6)?;
    let options = PayOptions {
        version: Some(purchase.version),
        ..PayOptions::up_to(ceiling)
    };
    // The client asks the chain whether the payer has allowed Permit2 to take the token; if not, it sends the payer's permit with the
    // payment.
    let network = Network::from_chain_id(crate::embedded::CHAIN_ID);
    let paid = Client::new(purchase.signer.clone())?
        .chain(network, local.chain.rpc_url().parse()?)
        .get(&format!("{}/{}", seller.url, purchase.path), &options)
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
            "  {}  v{} {:<5} {:<8} {:<7}  {:>5} of {}  {}",
            text("id"),
            text("x402Version"),
            text("scheme"),
            text("method"),
            text("state"),
            text("amount"),
            text("payer"),
            text("transaction")
        ));
    }
    Ok(())
}

/// A seller, written with this crate's `seller` module.
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
            .sponsors_gas()
            .route("GET /report", Price::dollars(PRICE)?)
            .route("GET /permit2", Price::dollars(PRICE)?.by_permit2())
            .route("GET /metered", Price::dollars(PRICE)?.metered())
            .build()?;
        let app = Router::new()
            .route("/report", get(report))
            .route("/permit2", get(report))
            .route("/metered", get(metered))
            .layer(paywall);
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

/// A handler that returns its charge with the response.
async fn metered() -> Result<(Charge, Json<Value>), StatusCode> {
    let charge = Charge::dollars(CHARGE).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok((
        charge,
        Json(json!({ "report": "all is well, in few words" })),
    ))
}

fn dollars(atomic: U256) -> String {
    let (whole, rest) = atomic.div_rem(U256::from(1_000_000));
    format!("{whole}.{rest:06} USDC")
}
