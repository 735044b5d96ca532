//! Callers that disconnect before the answer do not use up the success.

use alloy::primitives::Address;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use x402d::embedded::TEST_USDC;

use crate::support::{Purchase, World};

const PAYEE: Address = Address::repeat_byte(0xb0);

#[tokio::test(flavor = "multi_thread")]
async fn next_presenter_gets_success_after_broken_connection() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 42).body();
    world.chain.automine(false).await;
    let waiting = world.facilitator.spawn_settle(&body);
    world.wait_until_sent(1).await;
    drop(waiting);
    world.resume_mining().await;

    assert!(world.facilitator.verify(&body).await.is_valid());
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
    let next = world.facilitator.settle(&body).await;
    assert_eq!(next.reason(), "duplicate_settlement");
    assert_eq!(next.transaction(), told.transaction());
    let kinds = event_kinds(&world.facilitator.payment(&told).await);
    assert_eq!(
        kinds.iter().filter(|kind| *kind == "answered").count(),
        1,
        "{kinds:?}"
    );
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn disconnected_callers_leave_success_to_the_remaining_one() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 43).body();
    world.chain.automine(false).await;
    let mut waiting: Vec<_> = (0..10)
        .map(|_| world.facilitator.spawn_settle(&body))
        .collect();
    world.wait_until_sent(1).await;
    let mut staying = waiting.pop().unwrap();
    drop(waiting);
    world.resume_mining().await;
    let answer = staying.join_next().await.unwrap().unwrap().unwrap();
    assert!(answer.succeeded(), "{answer:?}");
    let next = world.facilitator.settle(&body).await;
    assert_eq!(next.reason(), "duplicate_settlement");
    assert_eq!(world.transactions(1).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_request_settles_nothing_and_uses_nothing() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 44).body();
    let text = body.to_string();
    let head = format!(
        "POST /settle HTTP/1.1\r\nhost: x402d\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let address = world.facilitator.url().trim_start_matches("http://");
    let mut socket = TcpStream::connect(address).await.unwrap();
    let half = &text[..text.len() - 1];
    socket
        .write_all(format!("{head}{half}").as_bytes())
        .await
        .unwrap();
    drop(socket);
    let listed = world.facilitator.get("/payments").await;
    assert_eq!(listed.body["payments"], serde_json::json!([]));
    let answer = world.facilitator.settle(&body).await;
    assert!(answer.succeeded(), "{answer:?}");
    assert_eq!(world.transactions(1).await, 1);
}

fn event_kinds(payment: &serde_json::Value) -> Vec<String> {
    let events = payment["events"].as_array().unwrap();
    let kind = |event: &serde_json::Value| event["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).collect()
}
