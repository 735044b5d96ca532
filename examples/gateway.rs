//! A paid gateway: sells what another HTTP server answers, at a metered price.
//!
//!     PAY_TO=0x… UPSTREAM=http://127.0.0.1:8080 cargo run --example gateway --features seller
//!
//! Further settings: `FACILITATOR_URL` (`http://127.0.0.1:4402`), `NETWORK` (`eip155:84532`), `LISTEN` (`127.0.0.1:3000`) and `PUBLIC_URL`, the URL
//! at which buyers reach it.

use std::env::var;
use std::error::Error;
use std::io::Write as _;

use alloy::primitives::U256;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use x402d::protocol::Amount;
use x402d::seller::{Charge, Paywall, Price};

/// The price of the route, in atomic units of USDC: the maximum. An answer costs one unit a byte.
const MAXIMUM: usize = 10_000;

#[derive(Clone)]
struct Upstream {
    url: String,
    http: reqwest::Client,
}

async fn forward(
    State(upstream): State<Upstream>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    body: Bytes,
) -> Response {
    let target = format!("{}{uri}", upstream.url);
    // No header of the buyer goes upstream: the payment is for this server alone.
    let request = upstream.http.request(method, target).body(body);
    let answered = async {
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        reqwest::Result::Ok((status, headers, answer.bytes().await?))
    };
    let Ok((status, headers, body)) = answered.await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    // The charge is this server's own. `Settlement-Overrides` of the upstream server must never set it: who can choose an answer of that
    // server, or have a header of the request repeated there, could choose what it pays.
    let units = U256::from(body.len().min(MAXIMUM));
    let charge = Charge::atomic(Amount::from_atomic(units));
    (status, charge, passed_on(&headers), body).into_response()
}

/// The few headers that concern the content. `Settlement-Overrides` is not one of them.
fn passed_on(upstream: &HeaderMap) -> HeaderMap {
    const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::ETAG, header::LAST_MODIFIED];
    let kept = KEPT
        .into_iter()
        .filter_map(|name| Some((name.clone(), upstream.get(&name)?.clone())));
    kept.collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let setting = |name: &str, default: &str| var(name).unwrap_or_else(|_| default.to_owned());
    let mut paywall = Paywall::new(setting("FACILITATOR_URL", "http://127.0.0.1:4402"))
        .network(setting("NETWORK", "eip155:84532").parse()?)
        .pay_to(var("PAY_TO")?.parse()?)
        .sponsors_gas()
        .route("/{*path}", Price::dollars("0.01")?.metered());
    if let Ok(url) = var("PUBLIC_URL") {
        paywall = paywall.public_url(url.parse()?);
    }
    let upstream = Upstream {
        url: var("UPSTREAM")?.trim_end_matches('/').to_owned(),
        http: reqwest::Client::new(),
    };
    let router = Router::new()
        .route("/{*path}", any(forward))
        .with_state(upstream)
        .layer(paywall.build()?);

    let listener = tokio::net::TcpListener::bind(setting("LISTEN", "127.0.0.1:3000")).await?;
    let listening = format!("http://{}", listener.local_addr()?);
    writeln!(std::io::stdout(), "{{\"listening\": \"{listening}\"}}")?;
    axum::serve(listener, router).await?;
    Ok(())
}
