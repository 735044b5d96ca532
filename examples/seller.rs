//! Sells two resources through an x402 facilitator. Owed purchases are in a file, so they survive a restart.
//!
//!     PAY_TO=0x… cargo run --example seller --features seller
//!
//! Further settings: `FACILITATOR_URL` (`http://127.0.0.1:4402`), `NETWORK` (`eip155:84532`), `LISTEN` (`127.0.0.1:3000`) and `OWED_FILE`
//! (`owed.jsonl`). With `OUT_OF_ORDER=1` the handler of the report fails: its buyers are charged, and get the report for the same payment
//! once the seller runs without the variable.

use std::env::var;
use std::error::Error;
use std::io::Write as _;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use x402d::seller::{Flow, Payment, Paywall, Price, Route};

async fn report(payment: Payment) -> Result<String, StatusCode> {
    if var("OUT_OF_ORDER").is_ok() {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    // The payment was settled before the handler runs, so the hash is known.
    let hash = payment.payment_id.unwrap_or_default();
    Ok(format!(
        "the weather is fine; {} paid with {hash}",
        payment.payer
    ))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str, default: &str| var(name).unwrap_or_else(|_| default.to_owned());
    let facilitator = setting("FACILITATOR_URL", "http://127.0.0.1:4402");
    let paywall = Paywall::new(&facilitator)
        .network(setting("NETWORK", "eip155:84532").parse()?)
        .pay_to(var("PAY_TO")?.parse()?)
        .sessions_at(facilitator.parse()?)
        .owed_in(setting("OWED_FILE", "owed.jsonl"))
        .sell(Route::new("GET /report", Price::dollars("0.01")?).description("Today's weather"))
        // The handler runs first, as with the official x402 SDKs, and its response is held back until the payment is settled.
        .sell(Route::new("GET /joke", Price::dollars("0.001")?).flow(Flow::AfterHandler))
        .build()?;
    let router = Router::new()
        .route(
            "/",
            get(async || "GET /report costs a cent, GET /joke a tenth of it"),
        )
        .route("/report", get(report))
        .route(
            "/joke",
            get(async || "a facilitator walks into a bar; it is settled"),
        )
        .layer(paywall);

    let listener = tokio::net::TcpListener::bind(setting("LISTEN", "127.0.0.1:3000")).await?;
    let listening = format!("http://{}", listener.local_addr()?);
    writeln!(std::io::stdout(), "{{\"listening\": \"{listening}\"}}")?;
    axum::serve(listener, router).await?;
    Ok(())
}
