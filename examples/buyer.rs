//! Buys one URL. A payment is in the journal file before it is sent, so running this again after a crash presents the same payment.
//!
//!     X402D_BUYER_KEY=0x… cargo run --example buyer --features buyer -- http://127.0.0.1:3000/report

use std::error::Error;
use std::io::Write as _;
use std::path::Path;

use x402d::buyer::{Client, Journal, PayOptions, Signer};
use x402d::protocol::Amount;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("usage: buyer URL")?;
    let signer = Signer::from_key(&std::env::var("X402D_BUYER_KEY")?)?;
    let journal = Journal::open(Path::new("purchases.jsonl"))?;
    let client = Client::new(signer)?.journal(journal);
    let cent = PayOptions::up_to(Amount::from_dollars("0.01", 6)?);

    let mut out = std::io::stdout();
    match client.get(&url, &cent).await {
        Ok(paid) => {
            let body = String::from_utf8_lossy(&paid.body);
            let hash = paid.transaction().unwrap_or("nothing was paid");
            writeln!(out, "{} {body}\npaid with {hash}", paid.status)?;
        }
        Err(error) => {
            writeln!(out, "{}: {error}", error.code())?;
            writeln!(
                out,
                "may money have moved? {}",
                error.money_may_have_moved()
            )?;
            writeln!(out, "{}", error.advice())?;
        }
    }
    Ok(())
}
