//! Who the client is behind a proxy, and that nobody is the operator through one.

use std::net::{IpAddr, SocketAddr};

use alloy::primitives::Address;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{OpenSession, Purchase, Setup, WebServer, World};

const PAYEE: Address = Address::repeat_byte(0xee);
const NGINX: &str = include_str!("../../deploy/nginx.conf");
const CADDY: &str = include_str!("../../deploy/Caddyfile");
const PUBLIC_NAME: &str = "facilitator.example";

/// A world in which each client may have one open session, and the proxy is believed.
async fn one_session_each() -> World {
    let setup = Setup {
        toml: "trusted_proxies = [\"127.0.0.1\"]\n[sessions]\nopen_max_per_client = 1\n".to_owned(),
        ..Setup::default()
    };
    setup.build().await
}

fn upstream(world: &World) -> SocketAddr {
    let url = world.facilitator.url();
    url.trim_start_matches("http://").parse().unwrap()
}

fn from(last: u8) -> Client {
    let address = IpAddr::from([127, 0, 0, last]);
    let client = Client::builder().no_proxy().local_address(address);
    client.build().unwrap()
}

/// Opens a session through `address` with the headers of a caller.
async fn open(
    world: &World,
    client: &Client,
    address: SocketAddr,
    headers: &[(&str, &str)],
) -> StatusCode {
    let entry = OpenSession::entry(PAYEE, 5);
    let payer = world.payer().await.address();
    let body = OpenSession::request(&entry, payer, "authorization");
    let mut request = client
        .post(format!("http://{address}/sessions"))
        .header("host", PUBLIC_NAME)
        .json(&body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().status()
}

/// Two clients of a proxy are two, and neither can pose as a third one.
async fn assert_told_apart(world: &World, proxy: SocketAddr) {
    let (first, second) = (from(5), from(6));
    assert_eq!(open(world, &first, proxy, &[]).await, 201);
    for (name, value) in [
        ("x-other", "1"),
        ("x-forwarded-for", "203.0.113.7"),
        ("forwarded", "for=203.0.113.8"),
        ("x-real-ip", "203.0.113.9"),
    ] {
        let status = open(world, &first, proxy, &[(name, value)]).await;
        assert_eq!(status, 429, "{name}");
    }
    assert_eq!(open(world, &second, proxy, &[]).await, 201);
    assert_eq!(open(world, &second, proxy, &[]).await, 429);
}

/// Through a proxy nobody reads the history, although there is no token.
async fn assert_no_operator(world: &World, proxy: SocketAddr) {
    let purchase = Purchase::new(&world.payer().await, PAYEE, 5);
    let settled = world.facilitator.settle(&purchase.body()).await;
    assert!(settled.succeeded(), "{settled:?}");
    for path in [
        "/payments",
        "/payments?format=csv",
        "/signers",
        "/stats",
        "/metrics",
    ] {
        let request = from(1).get(format!("http://{proxy}{path}"));
        let answer = request.header("host", PUBLIC_NAME).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{path}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "operator_only", "{path}");
    }
}

/// The shipped file, without TLS and with other ports.
fn shipped_nginx(listen: SocketAddr, upstream: SocketAddr) -> String {
    let lines = NGINX.lines().filter(|line| {
        let line = line.trim();
        !line.starts_with("ssl_") && !line.starts_with("listen [::]")
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    assert!(text.contains("443 ssl http2") && text.contains("127.0.0.1:4402"));
    text.replace("443 ssl http2", &listen.to_string())
        .replace("127.0.0.1:4402", &upstream.to_string())
}

/// A body as long as they may be, in a call that is refused before it is read.
fn unread_post(client: &Client, address: SocketAddr) -> reqwest::RequestBuilder {
    let post = client.post(format!("http://{address}/settle"));
    post.header("host", PUBLIC_NAME)
        .header("content-type", "application/json")
        .body(vec![b'x'; 60_000])
}

/// Callers without a key, whose bodies nobody reads, do not make nginx take the processes behind it for broken. The limits of nginx itself
/// and `max_fails=0` are left out: x402d alone is tested.
#[tokio::test(flavor = "multi_thread")]
async fn refused_callers_take_no_process_out_of_nginx() {
    let setup = Setup {
        toml: "trusted_proxies = [\"127.0.0.1\"]\n[access]\nsettle = \"keys\"\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let upstream = upstream(&world);
    let nginx = WebServer::nginx(|listen| {
        let text = shipped_nginx(listen, upstream).replace(" max_fails=0", "");
        let line = format!("server {upstream};");
        assert!(text.contains(&line));
        let text = text.replace(&line, &format!("{line} {line}"));
        let lines = text
            .lines()
            .filter(|line| !line.trim().starts_with("limit_req "));
        lines.collect::<Vec<_>>().join("\n")
    })
    .await;
    let mut refused = tokio::task::JoinSet::new();
    for last in 1..5 {
        let address = nginx.address;
        refused.spawn(async move {
            let client = from(last);
            let mut statuses = Vec::new();
            for _ in 0..50 {
                statuses.push(unread_post(&client, address).send().await.unwrap().status());
            }
            statuses
        });
    }
    for _ in 0..200 {
        let request = from(9).get(format!("http://{}/supported", nginx.address));
        let answer = request.header("host", PUBLIC_NAME).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    }
    for statuses in refused.join_all().await {
        assert_eq!(statuses, [StatusCode::UNAUTHORIZED; 50]);
    }
}

/// The response waits for the rest of the body, and the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn refused_caller_reads_the_answer_after_its_whole_body() {
    let setup = Setup {
        toml: "[access]\nsettle = \"keys\"\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let mut stream = TcpStream::connect(upstream(&world)).await.unwrap();
    for _ in 0..2 {
        let head = "POST /settle HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 60000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..60 {
            stream.write_all(&[b'x'; 1_000]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "closed");
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(answer.contains("key_required"), "{answer}");
    }
}

fn shipped_caddy(listen: SocketAddr, upstream: SocketAddr) -> String {
    let site = format!("{PUBLIC_NAME} {{");
    assert!(CADDY.contains(&site) && CADDY.contains("127.0.0.1:4402"));
    CADDY
        .replace("127.0.0.1:4402", &upstream.to_string())
        .replace(
            &site,
            &format!(
                "http://{PUBLIC_NAME}:{} {{\n\tbind 127.0.0.1",
                listen.port()
            ),
        )
        .replacen(
            "\tservers {",
            "\tadmin off\n\tauto_https off\n\tservers {",
            1,
        )
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_apart_behind_the_shipped_nginx() {
    let world = one_session_each().await;
    let upstream = upstream(&world);
    let nginx = WebServer::nginx(|listen| shipped_nginx(listen, upstream)).await;
    assert_told_apart(&world, nginx.address).await;
    assert_no_operator(&world, nginx.address).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_apart_behind_the_shipped_caddy() {
    let world = one_session_each().await;
    let upstream = upstream(&world);
    let caddy = WebServer::caddy(|listen| shipped_caddy(listen, upstream)).await;
    assert_told_apart(&world, caddy.address).await;
    assert_no_operator(&world, caddy.address).await;
}

/// The least that proxies are configured with: none of these adds a header by which it could be recognised.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_the_operator_through_an_nginx_without_headers() {
    let world = World::new().await;
    let upstream = upstream(&world);
    for settings in [
        String::new(),
        "proxy_set_header Host $host;".to_owned(),
        "proxy_set_header Host $host; proxy_http_version 1.1;".to_owned(),
    ] {
        let nginx = WebServer::nginx(|listen| {
            format!("server {{ listen {listen}; location / {{ proxy_pass http://{upstream}; {settings} }} }}")
        })
        .await;
        assert_no_operator(&world, nginx.address).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_is_a_program_on_this_machine_and_no_page() {
    let world = World::new().await;
    let (client, url) = (from(1), world.facilitator.url().to_owned());
    let port = upstream(&world).port();
    for (headers, status) in [
        (vec![], 200),
        (vec![("host", format!("localhost:{port}"))], 200),
        (vec![("sec-fetch-site", "same-origin".to_owned())], 200),
        (vec![("host", "evil.example".to_owned())], 401),
        (vec![("host", format!("evil.example:{port}"))], 401),
        (vec![("origin", "http://evil.example".to_owned())], 401),
        (vec![("sec-fetch-site", "cross-site".to_owned())], 401),
        (
            vec![("x-envoy-external-address", "10.0.0.1".to_owned())],
            401,
        ),
        (vec![("cf-ray", "1".to_owned())], 401),
    ] {
        for path in [
            "/payments",
            "/payments?format=csv",
            "/signers",
            "/stats",
            "/metrics",
        ] {
            let mut request = client.get(format!("{url}{path}"));
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            let got = request.send().await.unwrap().status();
            assert_eq!(got, status, "{path} {headers:?}");
        }
    }
}

/// A page of another origin can post a form or plain text without asking first. It has to ask for JSON.
#[tokio::test(flavor = "multi_thread")]
async fn page_must_say_that_it_posts_json() {
    let world = World::new().await;
    let (client, url) = (from(1), world.facilitator.url().to_owned());
    let body = Purchase::new(&world.payer().await, PAYEE, 9)
        .body()
        .to_string();
    let post = async |path: &str, origin: Option<&str>, content_type: Option<&str>| {
        let mut request = client.post(format!("{url}{path}")).body(body.clone());
        for (name, value) in [("origin", origin), ("content-type", content_type)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let page = Some("https://page.example");
    for path in ["/verify", "/settle", "/sessions", "/api/settle"] {
        for content_type in [None, Some("text/plain"), Some("application/jsonp")] {
            let (status, text) = post(path, page, content_type).await;
            assert_eq!(status, 415, "{path} {content_type:?}");
            assert!(text.contains("Content-Type: application/json"), "{text}");
        }
    }
    assert_eq!(world.transactions(1).await, 0);
    for (origin, content_type) in [
        (page, Some("application/json; charset=utf-8")),
        (page, Some("Application/JSON")),
        (None, Some("text/plain")),
        (None, None),
    ] {
        let (status, text) = post("/verify", origin, content_type).await;
        assert!(status == 200 && text.contains("\"isValid\":true"), "{text}");
    }
}
