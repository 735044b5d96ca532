//! Spellings of paths and hosts that servers behind the paywall, or readers of its challenges, could take for something else.

use crate::support::*;

/// Sends a request as it is; an HTTP client would normalise it. Returns the status.
pub(super) async fn status_of(address: &str, target: &str, hosts: &[&str]) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let hosts = hosts.iter().fold(String::new(), |hosts, host| {
        hosts + "host: " + host + "\r\n"
    });
    let request = format!("{target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer)
        .split(' ')
        .nth(1)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn every_spelling_of_a_priced_route_is_402_or_400() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let address = seller.trim_start_matches("http://").to_owned();
    for target in [
        "GET /report",
        "HEAD /report",
        "GET /report/",
        "GET //report",
        "GET /%72eport",
        "GET /report?x=1",
        "GET /report?x=a;b%2F",
    ] {
        let status = status_of(&address, target, &[&address]).await;
        assert_eq!(status, "402", "{target}");
    }
    for target in [
        "GET /./report",
        "GET /public/../report",
        "GET /public/..%2freport",
        "GET /public/%252e%252e%252freport",
        "GET /report;x=1",
        "GET /report%3bx=1",
        "GET /report%5c",
        "GET /report%00",
        "GET /report/%2e",
    ] {
        let status = status_of(&address, target, &[&address]).await;
        assert_eq!(status, "400", "{target}");
    }
    for target in ["GET /elsewhere", "GET /elsewhere/a%2Fb;c"] {
        assert_eq!(
            status_of(&address, target, &[&address]).await,
            "200",
            "{target}"
        );
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn implausible_host_gets_no_challenge() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let address = seller.trim_start_matches("http://").to_owned();
    for hosts in [
        vec!["shop.example/evil?"],
        vec!["user@shop.example"],
        vec!["shop.example\"><script>"],
        vec![""],
        vec!["shop.example", "evil.example"],
    ] {
        let status = status_of(&address, "GET /report", &hosts).await;
        assert_eq!(status, "400", "{hosts:?}");
    }
    for host in ["shop.example", "[::1]:3000"] {
        assert_eq!(
            status_of(&address, "GET /report", &[host]).await,
            "402",
            "{host}"
        );
    }
    // With a public URL the header counts for nothing.
    let facilitator = market.facilitator().await;
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .public_url("https://shop.example/".parse().unwrap())
        .route("GET /report", Price::dollars("0.01").unwrap());
    let router = Router::new().layer(paywall.build().unwrap());
    let url = format!(
        "{}/report",
        market
            .open(
                router
                    .route("/x", get(report))
                    .with_state(Arc::clone(&market.runs))
            )
            .await
    );
    let asked = reqwest::Client::new()
        .get(&url)
        .header("host", "evil.example")
        .send()
        .await
        .unwrap();
    assert_eq!(asked.status(), 402);
    let text = asked.headers()[PAYMENT_REQUIRED].to_str().unwrap();
    let required: PaymentRequired = header::decode(text).unwrap();
    assert_eq!(
        required.resource.unwrap().url,
        "https://shop.example/report"
    );
}
