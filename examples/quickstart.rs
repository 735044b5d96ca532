//! The seller of the README: `GET /report` costs a cent.
use axum::{Router, routing::get};
use x402d::seller::{Payment, Paywall, Price};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let env =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let paywall = Paywall::new(env("FACILITATOR_URL", "http://127.0.0.1:4402"))
        .network("eip155:84532".parse()?)
        .pay_to(std::env::var("PAY_TO")?.parse()?)
        .route("GET /report", Price::dollars("0.01")?)
        .build()?;
    let report = get(async |payment: Payment| payment.payment_id.unwrap_or_default());
    let app = Router::new().route("/report", report).layer(paywall);
    let address = format!("127.0.0.1:{}", env("PORT", "3000"));
    axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?;
    Ok(())
}
