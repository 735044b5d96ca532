//! Sells a metered resource: a request is charged per letter of its response, at most a cent.
//!
//!     PAY_TO=0x… cargo run --example metered --features seller
//!     export X402D_BUYER_RPC_URL=http://127.0.0.1:8545 # lets the buyer check its allowance to Permit2
//!     x402d pay http://127.0.0.1:3000/shout -d 'how much is a word?' --max 0.01 --network base-sepolia
//!
//! Further settings: `FACILITATOR_URL` (`http://127.0.0.1:4402`), `NETWORK` (`eip155:84532`) and `LISTEN` (`127.0.0.1:3000`).

use std::env::var;
use std::error::Error;
use std::io::Write as _;

use alloy::primitives::U256;
use axum::Router;
use axum::response::IntoResponse;
use axum::routing::post;
use x402d::protocol::Amount;
use x402d::seller::{Charge, Paywall, Price};

/// In atomic units of USDC: millionths of a dollar.
const PRICE_OF_A_LETTER: u64 = 20;

/// The text is cut so that its charge never exceeds the maximum: with a higher charge nothing would be settled.
async fn shout(text: String) -> impl IntoResponse {
    let text: String = text.chars().take(500).collect();
    let letters = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
    let units = U256::from(letters).saturating_mul(U256::from(PRICE_OF_A_LETTER));
    let charge = Charge::atomic(Amount::from_atomic(units));
    (charge, text.to_uppercase())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str, default: &str| var(name).unwrap_or_else(|_| default.to_owned());
    let paywall = Paywall::new(setting("FACILITATOR_URL", "http://127.0.0.1:4402"))
        .network(setting("NETWORK", "eip155:84532").parse()?)
        .pay_to(var("PAY_TO")?.parse()?)
        // Buyers need no allowance to Permit2: they sign a permit, and the facilitator pays its gas.
        .sponsors_gas()
        .route("POST /shout", Price::dollars("0.01")?.metered())
        .build()?;
    let router = Router::new().route("/shout", post(shout)).layer(paywall);

    let listener = tokio::net::TcpListener::bind(setting("LISTEN", "127.0.0.1:3000")).await?;
    let listening = format!("http://{}", listener.local_addr()?);
    writeln!(std::io::stdout(), "{{\"listening\": \"{listening}\"}}")?;
    axum::serve(listener, router).await?;
    Ok(())
}
