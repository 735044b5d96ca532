//! An agent that buys from two sellers in turn until its budget is used up.
//!
//!     X402D_BUYER_KEY=0x… cargo run --example agent --features buyer -- 0.05 http://127.0.0.1:3000/report http://127.0.0.1:3001/report
//!
//! The ceiling limits each purchase, the budget all of them together: a signed payment that may still settle counts as spent.

use std::error::Error;
use std::io::Write as _;

use x402d::buyer::{BuyerError, Client, PayOptions, Signer};
use x402d::protocol::Amount;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(budget), Some(one), Some(two)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err("usage: agent BUDGET URL URL".into());
    };
    let client = Client::new(Signer::from_key(&std::env::var("X402D_BUYER_KEY")?)?)?
        .budget(Amount::from_dollars(&budget, 6)?)
        .before_payment(|proposed, url| {
            // Here an agent applies its own rules, or asks its owner.
            let is_testnet = proposed.network.to_string() == "eip155:84532";
            is_testnet
                .then_some(())
                .ok_or_else(|| format!("no test money: {} on {}", url.path(), proposed.network))
        });
    let cent = PayOptions::up_to(Amount::from_dollars("0.01", 6)?);

    let mut out = std::io::stdout();
    for url in [one, two].iter().cycle() {
        match client.get(url, &cent).await {
            Ok(paid) => {
                let hash = paid.transaction().unwrap_or("nothing");
                writeln!(out, "{} from {url}, paid with {hash}", paid.status)?;
            }
            Err(BuyerError::OverBudget {
                committed, budget, ..
            }) => {
                writeln!(
                    out,
                    "the budget is used up: {committed} of {budget} atomic units"
                )?;
                break;
            }
            Err(error) if error.money_may_have_moved() => {
                // Another call for the same URL would present the same payment. This agent stops instead.
                writeln!(out, "{url}: {error}; {}", error.advice())?;
                break;
            }
            Err(error) => {
                writeln!(out, "{url}: {error}; no money has moved")?;
                break;
            }
        }
    }
    Ok(())
}
