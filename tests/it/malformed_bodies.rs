//! Malformed bodies: too long, too deep, not UTF-8, duplicate members, control characters.

use alloy::primitives::Address;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::bad_input::{ACCEPTED, PAYLOAD, REQUIRED, SIGNED, assert_payment_count, with};
use crate::support::{Facilitator, Purchase, World};

const PAYEE: Address = Address::repeat_byte(0x5e);

/// Sends raw bytes and reads until a complete answer or the end of the connection.
async fn send_raw(facilitator: &Facilitator, request: Vec<u8>) -> String {
    let address = facilitator.url().trim_start_matches("http://");
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let mut answer = Vec::new();
    let read = async {
        let whole = |answer: &[u8]| {
            answer.ends_with(b"}") && answer.windows(4).any(|end| end == b"\r\n\r\n")
        };
        while !whole(&answer)
            && reader
                .read_buf(&mut answer)
                .await
                .is_ok_and(|read| read > 0)
        {}
    };
    // The service may answer and close before it has read everything.
    tokio::select! {
        () = read => {}
        () = async { writer.write_all(&request).await.ok(); std::future::pending().await } => {}
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_rejected_with_413() {
    let world = World::new().await;
    let long = "x".repeat(10 * 1024 * 1024);
    for path in ["/settle", "/api/verify"] {
        let announced = world.facilitator.post_text(path, long.clone()).await;
        assert_eq!(announced.status, 413, "{announced:?}");
        let error = announced.body["error"].as_str().unwrap();
        assert!(error.contains("65536"), "{announced:?}");

        let chunks = format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len());
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
        let said = send_raw(&world.facilitator, (head + &chunks).into_bytes()).await;
        assert!(said.starts_with("HTTP/1.1 413 "), "{said}");
        assert!(
            said.contains("65536") && said.contains("x-request-id"),
            "{said}"
        );
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn incomplete_body_is_not_waited_for() {
    let world = World::new().await;
    for (headers, status) in [
        ("content-length: 1000\r\n\r\n{\"x402Version\":", "408"),
        (
            "transfer-encoding: chunked\r\n\r\nno length\r\n{}\r\n0\r\n\r\n",
            "4",
        ),
        ("content-length: -1\r\n\r\n{}", "400"),
        ("content-length: 2\r\ncontent-length: 3\r\n\r\n{}", "400"),
    ] {
        let request = format!("POST /settle HTTP/1.1\r\nhost: x\r\n{headers}");
        let said = send_raw(&world.facilitator, request.into_bytes()).await;
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{headers}: {said}"
        );
        assert!(!said.contains("success"), "{headers}: {said}");
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn non_utf8_bytes_get_400() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let mut broken = good.to_string().into_bytes();
    let at = good.to_string().find("seller.test").unwrap();
    broken[at] = 0xff;
    for body in [
        broken,
        vec![0xff, 0xfe, 0, 0],
        vec![0; 1000],
        b"\x1f\x8b\x08".to_vec(),
    ] {
        let head = format!(
            "POST /settle HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let said = send_raw(&world.facilitator, [head.into_bytes(), body].concat()).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
        assert!(said.contains(r#"{"error":""#), "{said}");
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_members_that_matter_are_rejected() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let text = good.to_string();
    for (place, member, code) in [
        (SIGNED, "value", "invalid_payload"),
        (SIGNED, "from", "invalid_payload"),
        (PAYLOAD, "signature", "invalid_payload"),
        ("/paymentPayload", "payload", "invalid_payload"),
        (ACCEPTED, "network", "invalid_payload"),
        (REQUIRED, "amount", "invalid_payment_requirements"),
        (REQUIRED, "payTo", "invalid_payment_requirements"),
        (REQUIRED, "network", "invalid_payment_requirements"),
    ] {
        // The object with the member repeated at its end, as text, because a JSON value cannot hold it twice.
        let object = good.pointer(place).unwrap().to_string();
        let value = good.pointer(&format!("{place}/{member}")).unwrap();
        let open = object.strip_suffix('}').unwrap();
        let twice = format!("{open},\"{member}\":{value}}}");
        // `accepted` and the requirement are equal; the requirement comes last.
        let at = if place == REQUIRED {
            text.rfind(&object)
        } else {
            text.find(&object)
        }
        .unwrap();
        let body = format!("{}{twice}{}", &text[..at], &text[at + object.len()..]);
        for path in ["/verify", "/settle"] {
            let answer = world.facilitator.post_text(path, body.clone()).await;
            let found = (answer.status, answer.reason());
            assert_eq!(found, (200, code), "{place}/{member}: {answer:?}");
        }
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_or_long_members_get_a_short_answer() {
    let world = World::new().await;
    let good = Purchase::new(&world.payer().await, PAYEE, 10_000).body();
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let objects = format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
    let long = format!("\"{}\"", "\\u0000é".repeat(7_000));
    let places = [
        REQUIRED,
        ACCEPTED,
        PAYLOAD,
        SIGNED,
        "/paymentRequirements/extra",
        "/paymentRequirements/extra/name",
        "/paymentRequirements/network",
        "/paymentRequirements/scheme",
        "/paymentRequirements/amount",
        "/paymentPayload/accepted/network",
        "/paymentPayload/payload/signature",
        "/paymentPayload/payload/authorization/nonce",
    ];
    for place in places {
        let marked = with(&good, place, json!("MARK")).to_string();
        for value in [&deep, &objects, &long] {
            let body = marked.replacen("\"MARK\"", value, 1);
            for path in ["/verify", "/settle"] {
                let answer = world.facilitator.post_text(path, body.clone()).await;
                let shown: String = value.chars().take(8).collect();
                let refused = answer.status == 200 && !answer.reason().is_empty();
                assert!(
                    refused || answer.status == 400,
                    "{place} {shown}: {answer:?}"
                );
                assert!(
                    !answer.is_valid() && !answer.succeeded(),
                    "{place} {shown}: {answer:?}"
                );
                let length = answer.body.to_string().len();
                assert!(length < 2_000, "{place} {shown}: {length} bytes");
            }
        }
    }
    assert_payment_count(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_members_may_be_anything_and_output_is_clean() {
    let world = World::new().await;
    let payer = world.payer().await;
    let unusual = "https://seller.test/\u{0}\r\n\u{1b}[31m\u{202e}ö";
    let mut body = Purchase::new(&payer, PAYEE, 10_000).body();
    body["paymentPayload"]["resource"]["url"] = json!(unusual);
    body["paymentPayload"]["extensions"] = json!({"a": ["\u{0}", 1e300, -1, null]});
    body["paymentRequirements"]["extra"]["more"] = json!("\u{0}");
    let text = body.to_string().replacen("1e300", "1e999999", 1);
    let text = text.replacen("\"more\":\"\\u0000\"", "\"more\":\"\\ud800\"", 1);
    let lone = world.facilitator.post_text("/verify", text).await;
    assert!(
        !lone.is_valid() && lone.status == 200,
        "half a letter: {lone:?}"
    );
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{settled:?}");
    let shown = world.facilitator.payment(&settled).await;
    let resource = shown["resource"].as_str().unwrap();
    assert!(resource.starts_with("https://seller.test/") && resource.ends_with('ö'));
    assert!(!resource.contains(char::is_control), "{resource:?}");
    assert_payment_count(&world, 1).await;
}
