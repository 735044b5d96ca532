//! Bodies of paid requests: little is read before the payment was verified, and everything that is held is bounded.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

use crate::support::*;

const MEBIBYTE: usize = 1024 * 1024;

/// A seller of `POST /count`, which answers the length of the body.
async fn seller(
    market: &mut Market,
    flow: Flow,
    adjust: impl FnOnce(Paywall) -> Paywall,
) -> String {
    let facilitator = market.facilitator().await;
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .flow(flow)
        .clock(clock())
        .route("POST /count", Price::dollars("0.01").unwrap());
    let runs = Arc::clone(&market.runs);
    let count = async move |body: String| {
        runs.fetch_add(1, Ordering::SeqCst);
        body.len().to_string()
    };
    let router = Router::new()
        .route("/count", post(count))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .layer(adjust(paywall).build().unwrap());
    format!("{}/count", market.open(router).await)
}

async fn payment_for(url: &str, number: usize) -> PaymentHeader {
    let asked = reqwest::Client::new().post(url).send().await.unwrap();
    let text = asked.headers()[PAYMENT_REQUIRED].to_str().unwrap();
    let challenge: PaymentRequired = header::decode(text).unwrap();
    unsigned_payment(&challenge, &format!("0x{number:064x}"))
}

async fn post_body(url: &str, payment: &PaymentHeader, bytes: usize) -> reqwest::Response {
    reqwest::Client::new()
        .post(url)
        .header(payment.name(), payment.value())
        .body("x".repeat(bytes))
        .send()
        .await
        .unwrap()
}

/// A connection that announces a body of `bytes` and has sent none of it.
async fn announce(url: &str, payment: &PaymentHeader, bytes: usize) -> TcpStream {
    let url: reqwest::Url = url.parse().unwrap();
    let address = format!("127.0.0.1:{}", url.port().unwrap());
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /count HTTP/1.1\r\nhost: {address}\r\n{}: {}\r\ncontent-length: {bytes}\r\n\r\n",
        payment.name(),
        payment.value()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn status(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') {
        let mut part = [0; 1024];
        let length = stream.read(&mut part).await.unwrap();
        assert!(length > 0, "the connection ended");
        answer.extend_from_slice(&part[..length]);
    }
    let answer = String::from_utf8_lossy(&answer);
    answer.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn long_body_is_read_only_for_a_valid_payment() {
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let mut market = Market::default();
        let url = seller(&mut market, flow, |paywall| paywall).await;
        let payment = payment_for(&url, 1).await;
        let refusal = json!({"isValid": false, "invalidReason": "invalid_exact_evm_signature"});
        market.respond([(200, refusal)]);
        let mut stream = announce(&url, &payment, MEBIBYTE).await;
        assert_eq!(
            status(&mut stream).await,
            "402",
            "{flow:?}: before a byte of the body came"
        );
        assert_eq!(
            (market.call_names(), market.runs()),
            (vec!["verify".to_owned()], 0)
        );
        // With a valid one the whole body arrives, and the facilitator verifies once.
        let served = post_body(&url, &payment, MEBIBYTE).await;
        assert_eq!(served.status(), 200, "{flow:?}");
        assert_eq!(served.text().await.unwrap(), MEBIBYTE.to_string());
        assert_eq!(
            market.call_names(),
            ["verify", "verify", "settle"],
            "{flow:?}"
        );
    }
}

#[tokio::test]
async fn short_body_costs_no_verify() {
    let mut market = Market::default();
    let url = seller(&mut market, Flow::Upfront, |paywall| paywall).await;
    let payment = payment_for(&url, 1).await;
    assert_eq!(post_body(&url, &payment, 64 * 1024).await.status(), 200);
    assert_eq!(market.call_names(), ["settle"]);
}

#[tokio::test]
async fn owed_purchase_with_a_long_body_is_served_although_it_is_not_valid_any_more() {
    let mut market = Market::default();
    let failing = Arc::new(AtomicUsize::new(1));
    let facilitator = market.facilitator().await;
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .clock(clock())
        .route("POST /count", Price::dollars("0.01").unwrap());
    let broken = async move |body: String| {
        if failing.swap(0, Ordering::SeqCst) == 1 {
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        } else {
            Ok(body.len().to_string())
        }
    };
    let router = Router::new()
        .route("/count", post(broken))
        .layer(paywall.build().unwrap());
    let url = format!("{}/count", market.open(router).await);
    let payment = payment_for(&url, 1).await;
    assert_eq!(post_body(&url, &payment, 100_000).await.status(), 500);
    assert_eq!(post_body(&url, &payment, 100_000).await.status(), 200);
    assert_eq!(market.call_names(), ["verify", "settle"]);
}

#[tokio::test]
async fn too_long_and_too_slow_bodies_settle_nothing() {
    let mut market = Market::default();
    let url = seller(&mut market, Flow::Upfront, |paywall| paywall).await;
    let payment = payment_for(&url, 1).await;
    assert_eq!(post_body(&url, &payment, MEBIBYTE + 1).await.status(), 413);
    let small = seller(&mut market, Flow::Upfront, |paywall| {
        paywall
            .body_bytes_max(10)
            .body_deadline(Duration::from_millis(50))
    })
    .await;
    let payment = payment_for(&small, 2).await;
    assert_eq!(post_body(&small, &payment, 11).await.status(), 413);
    let mut stream = announce(&small, &payment, 10).await;
    assert_eq!(status(&mut stream).await, "408");
    assert!(market.call_names().is_empty(), "{:?}", market.call_names());
    assert_eq!(post_body(&small, &payment, 10).await.status(), 200);
}

#[tokio::test]
async fn bodies_that_are_held_are_bounded_together() {
    let mut market = Market::default();
    let adjust = |paywall: Paywall| paywall.held_bytes_max(100_000);
    let url = seller(&mut market, Flow::Upfront, adjust).await;
    let payment = payment_for(&url, 1).await;
    let alone = post_body(&url, &payment, 90_000).await;
    assert_eq!(alone.status(), 200);
    // A request that is being read holds most of the room.
    let reading = payment_for(&url, 2).await;
    let mut stream = announce(&url, &reading, 90_000).await;
    stream.write_all(&vec![b'x'; 80_000]).await.unwrap();
    let waiting = payment_for(&url, 3).await;
    let mut statuses = Vec::new();
    for _ in 0..500 {
        let status = post_body(&url, &waiting, 90_000).await.status().as_u16();
        statuses.push(status);
        if status == 503 {
            break;
        }
        market.respond([(200, failed("settlement_pending", HASH))]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(statuses.last(), Some(&503), "{statuses:?}");
    market.script.lock().unwrap().answers.clear();
    stream.write_all(&vec![b'x'; 10_000]).await.unwrap();
    assert_eq!(status(&mut stream).await, "200");
    let next = payment_for(&url, 4).await;
    assert_eq!(
        post_body(&url, &next, 90_000).await.status(),
        200,
        "there is room again"
    );
}

/// Announces long bodies of one payment, and waits until all but one of them are told to come again.
async fn begin_copies(
    url: &str,
    payment: &PaymentHeader,
    copies: usize,
) -> (JoinSet<String>, Vec<OwnedWriteHalf>) {
    let (mut answers, mut senders) = (JoinSet::new(), Vec::new());
    for _ in 0..copies {
        let stream = announce(url, payment, 90_000).await;
        let (mut receiver, sender) = stream.into_split();
        senders.push(sender);
        answers.spawn(async move { status(&mut receiver).await });
    }
    for _ in 1..copies {
        assert_eq!(answers.join_next().await.unwrap().unwrap(), "503");
    }
    (answers, senders)
}

/// Sends the body that is waited for, and returns its answer.
async fn end_copies((mut answers, mut senders): (JoinSet<String>, Vec<OwnedWriteHalf>)) -> String {
    for sender in &mut senders {
        // A copy that was answered takes none.
        sender.write_all(&vec![b'x'; 90_000]).await.ok();
    }
    answers.join_next().await.unwrap().unwrap()
}

#[tokio::test]
async fn payment_holds_the_room_of_one_body_at_a_time() {
    for (flow, is_known) in [
        (Flow::Upfront, false),
        (Flow::Upfront, true),
        (Flow::AfterHandler, false),
    ] {
        let mut market = Market::default();
        let adjust = |paywall: Paywall| paywall.held_bytes_max(300_000);
        let url = seller(&mut market, flow, adjust).await;
        let payment = payment_for(&url, 1).await;
        if is_known {
            let pending = (200, failed("settlement_pending", HASH));
            market.respond([pending.clone(), pending]);
            assert_eq!(post_body(&url, &payment, 10).await.status(), 402);
        }
        let copies = begin_copies(&url, &payment, 10).await;
        let other = payment_for(&url, 2).await;
        let served = post_body(&url, &other, 90_000).await;
        assert_eq!(served.status(), 200, "{flow:?}, known: {is_known}");
        let last = end_copies(copies).await;
        assert_eq!(last, "200", "{flow:?}, known: {is_known}");
        assert_eq!(market.runs(), 2);
    }
}

/// Whoever sends a long body slowly does not keep the buyer from presenting the payment.
#[tokio::test]
async fn short_body_is_served_while_a_long_one_of_its_payment_is_read() {
    let mut market = Market::default();
    let url = seller(&mut market, Flow::Upfront, |paywall| paywall).await;
    let payment = payment_for(&url, 1).await;
    let copies = begin_copies(&url, &payment, 2).await;
    assert_eq!(post_body(&url, &payment, 10).await.status(), 200);
    market.respond([(200, failed("duplicate_settlement", HASH))]);
    assert_eq!(end_copies(copies).await, "402");
}
