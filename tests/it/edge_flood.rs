//! Callers that take connections and give nothing for them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use alloy::primitives::Address;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::{Purchase, Setup, World, eventually, has_event};

const PAYEE: Address = Address::repeat_byte(0xed);
/// A head has ten seconds.
const HEAD_CLOSED: Duration = Duration::from_secs(20);
/// An answer that nobody receives has thirty.
const UNREAD_CLOSED: Duration = Duration::from_secs(100);
const PIPELINED: &str = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n";

async fn with(toml: &str) -> World {
    let setup = Setup {
        toml: toml.to_owned(),
        ..Setup::default()
    };
    setup.build().await
}

fn address(world: &World) -> SocketAddr {
    let url = world.facilitator.url();
    url.trim_start_matches("http://").parse().unwrap()
}

/// A connection from one of this machine's addresses, with a small buffer.
async fn connect(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

fn loopback(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

/// Sends the head of a request, a byte every two seconds. Returns when the service has closed the connection, and what it sent.
async fn trickle(mut stream: TcpStream) -> (Duration, Vec<u8>) {
    let began = Instant::now();
    let mut sending = tokio::time::interval(Duration::from_secs(2));
    let mut bytes = b"POST /settle HTTP/1.1\r\nx: "
        .iter()
        .chain(std::iter::repeat(&b'x'));
    let (mut received, mut buffer) = (Vec::new(), [0; 1024]);
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return (began.elapsed(), received),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
            },
            _ = sending.tick() => {
                // A failure shows in the next read.
                stream.write_all(&[*bytes.next().unwrap()]).await.ok();
            }
        }
    }
}

/// Sends requests and reads no answer. Returns how long the service bears it.
async fn never_read(mut stream: TcpStream) -> Duration {
    let began = Instant::now();
    while stream.write_all(PIPELINED.as_bytes()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    began.elapsed()
}

/// Sends what is no request and returns the status that it gets.
async fn garbage(mut stream: TcpStream, garbage: &[u8]) -> String {
    stream.write_all(garbage).await.ok();
    let mut answer = Vec::new();
    timeout(HEAD_CLOSED, stream.read_to_end(&mut answer))
        .await
        .expect("the connection to be closed")
        .ok();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Keeps asking as an honest caller until all of `flood` has ended.
async fn ask_during<T: 'static>(world: &World, mut flood: JoinSet<T>) -> Vec<T> {
    let body = Purchase::new(&world.payer().await, PAYEE, 1).body();
    let (mut ended, mut asked, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    while !flood.is_empty() {
        let began = Instant::now();
        assert_eq!(world.facilitator.get("/healthz").await.status, 200);
        let elapsed = began.elapsed();
        slowest = slowest.max(elapsed);
        assert!(world.facilitator.verify(&body).await.is_valid());
        asked += 1;
        let pause = tokio::time::sleep(Duration::from_millis(200));
        tokio::select! {
            one = flood.join_next() => ended.extend(one.map(Result::unwrap)),
            () = pause => {}
        }
        while let Some(one) = flood.try_join_next() {
            ended.push(one.unwrap());
        }
    }
    assert!(asked > 3, "{asked} questions during the flood");
    // Alone on a machine it takes milliseconds. Beside other tests it shares the processors with them and with the flood.
    println!("/healthz took {slowest:?} at most");
    assert!(
        slowest < Duration::from_secs(15),
        "/healthz took {slowest:?}"
    );
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn trickled_heads_are_closed_while_honest_callers_are_served() {
    let world = with("connections_max = 500\nconnections_max_per_proxy = 80\n").await;
    let to = address(&world);
    let mut flood = JoinSet::new();
    for number in 0..300_u16 {
        flood.spawn(trickle(
            connect(loopback(2 + u8::try_from(number / 75).unwrap()), to).await,
        ));
    }
    for text in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
    ] {
        assert_eq!(garbage(connect(loopback(9), to).await, text).await, "400");
    }
    let closed = ask_during(&world, flood).await;
    assert_eq!(closed.len(), 300);
    let late = closed.iter().map(|(after, _)| *after).max().unwrap();
    assert!(late < HEAD_CLOSED, "closed after {late:?}");
    let early = closed.iter().map(|(after, _)| *after).min().unwrap();
    assert!(early > Duration::from_secs(5), "closed after {early:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_a_limited_number_of_connections() {
    let world = with("connections_max_per_proxy = 20\n").await;
    let to = address(&world);
    let mut flood = JoinSet::new();
    for _ in 0..50 {
        flood.spawn(trickle(connect(loopback(2), to).await));
    }
    let closed = ask_during(&world, flood).await;
    let refused: Vec<_> = closed
        .iter()
        .filter(|(after, _)| *after < Duration::from_secs(5))
        .collect();
    assert_eq!(refused.len(), 30);
    for (_, answer) in refused {
        // A refusal may be lost when the caller goes on sending.
        let answer = String::from_utf8_lossy(answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 429 "),
            "{answer}"
        );
    }
    let log = world.facilitator.log();
    let lines = log.matches("connections refused: too many are open");
    assert_eq!(lines.count(), 1, "one line a minute");
    // Its places are free again.
    garbage(connect(loopback(2), to).await, b"GET\r\n\r\n").await;
}

/// The flood comes from an address that is not a loopback one, and takes all places that such callers have.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_on_loopback_when_all_places_are_taken() {
    let setup = Setup {
        toml: "connections_max = 30\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.with("X402D_LISTEN", "0.0.0.0:0").build().await;
    let port = address(&world).port();
    let own = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing: it only chooses the address that reaches others.
    own.connect("192.0.2.1:9").unwrap();
    let own = own.local_addr().unwrap().ip();
    let to = SocketAddr::new(own, port);
    let mut flood = JoinSet::new();
    for _ in 0..60 {
        flood.spawn(trickle(connect(own, to).await));
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let asked = Instant::now();
        assert_eq!(world.facilitator.get("/healthz").await.status, 200);
        assert!(asked.elapsed() < Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let closed = flood.join_all().await;
    let refused = closed
        .iter()
        .filter(|(after, _)| *after < Duration::from_secs(5));
    assert!(refused.count() >= 30, "{closed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_are_given_up() {
    let world = with("connections_max_per_proxy = 80\n").await;
    let to = address(&world);
    let mut flood = JoinSet::new();
    for _ in 0..5 {
        flood.spawn(never_read(connect(loopback(2), to).await));
    }
    for after in ask_during(&world, flood).await {
        assert!(after < UNREAD_CLOSED, "closed after {after:?}");
        assert!(after > Duration::from_secs(20), "closed after {after:?}");
    }
}

/// The caller leaves so much unread that the service holds its answer to `/settle` and those to the requests behind it, then takes the first
/// completely and resets the connection. It was told all the same.
#[tokio::test(flavor = "multi_thread")]
async fn answer_counts_as_given_whatever_is_pipelined_behind_it() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 7)
        .body()
        .to_string();
    let settle = format!(
        "POST /settle HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let pipelined = PIPELINED.repeat(3) + &settle + &PIPELINED.repeat(6);
    let mut stream = connect(loopback(1), address(&world)).await;
    stream.write_all(pipelined.as_bytes()).await.unwrap();
    // It may be granted before anything is read, depending on how much the service holds.
    let granted = eventually("the grant", Duration::from_mins(1), async || {
        let listed = world.facilitator.get("/payments").await;
        let id = listed.body["payments"][0]["id"].as_str()?.to_owned();
        let shown = world.facilitator.get(&format!("/payments/{id}")).await;
        has_event(&shown.body, "granted").then_some(())
    });
    timeout(Duration::from_secs(5), granted).await.ok();

    let (mut received, mut buffer) = (String::new(), [0; 512]);
    while !has_whole_success(&received) {
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0, "{received}");
        received.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    stream.set_zero_linger().unwrap();
    drop(stream);
    let again = eventually("a final answer", Duration::from_secs(20), async || {
        let answer = world.facilitator.post_text("/settle", body.clone()).await;
        (answer.reason() != "settlement_pending").then_some(answer)
    })
    .await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
}

/// Whether all of the answer that says success was received.
fn has_whole_success(received: &str) -> bool {
    let Some((before, rest)) = received.split_once("\"success\":true") else {
        return false;
    };
    let head = before.rfind("HTTP/1.1 200").unwrap();
    let (head, begun) = before[head..].split_once("\r\n\r\n").unwrap();
    let (_, length) = head.split_once("content-length: ").unwrap();
    let length: usize = length.split('\r').next().unwrap().parse().unwrap();
    begun.len() + "\"success\":true".len() + rest.len() >= length
}
