//! Who is told that a payment succeeded. After its broadcast a payment's header is public: a thief reads it from the pending block and
//! presents copies.

use alloy::primitives::Address;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::support::{Answer, Caller, OpenSession, Purchase, Setup, Thief, World, has_event};

const PAYEE: Address = Address::repeat_byte(0x70);
const RAIL: &str = "authorization";

/// How many purchases are stolen from; more with `X402D_THEFT_ROUNDS`.
fn rounds() -> usize {
    let more = std::env::var("X402D_THEFT_ROUNDS").ok();
    more.map_or(12, |rounds| rounds.parse().unwrap())
}

async fn timed_world() -> World {
    let setup = Setup {
        block_time_s: Some(1),
        ..Setup::default()
    };
    setup.build().await
}

/// What became of the buyer and of the thief in some rounds.
#[derive(Debug, Default)]
struct Tally {
    buyer: usize,
    thief: usize,
}

impl Tally {
    fn count(&mut self, buyer: &Answer, thieves: &[Answer]) {
        self.buyer += usize::from(buyer.succeeded());
        self.thief += thieves.iter().filter(|answer| answer.succeeded()).count();
    }
}

/// Buys at `shop` while a thief presents copies at `thief_at`.
async fn steal_from(world: &World, shop: &Caller, thief_at: &Caller, rounds: usize) -> Tally {
    let payer = world.payer().await;
    let public = Purchase::new(&payer, PAYEE, 1_000).body();
    let thief = Thief::of(&world.chain, thief_at, public);
    let mut tally = Tally::default();
    for _ in 0..rounds {
        let purchase = Purchase::new(&payer, PAYEE, 1_000);
        let buyer = shop.settle(&purchase.body()).await;
        let stolen = thief.presented(purchase.authorization.nonce).await;
        tally.count(&buyer, &stolen);
    }
    println!("{rounds} rounds: {tally:?}");
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn header_theft_from_the_pending_block_tells_the_thief_nothing() {
    let (world, rounds) = (timed_world().await, rounds());
    let here = &world.facilitator;
    let tally = steal_from(&world, here, here, rounds).await;
    assert_eq!((tally.buyer, tally.thief), (rounds, 0));
}

/// The thief is at the process that settles, which learns of the outcome first.
#[tokio::test(flavor = "multi_thread")]
async fn header_theft_at_another_process_tells_the_thief_nothing() {
    let (world, rounds) = (timed_world().await, rounds());
    let replica = world.replica().await;
    let tally = steal_from(&world, &replica, &world.facilitator, rounds).await;
    assert_eq!((tally.buyer, tally.thief), (rounds, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn header_theft_of_a_session_paid_early_tells_the_thief_nothing() {
    let (world, rounds) = (timed_world().await, rounds());
    let payer = world.payer().await;
    let public = Purchase::new(&payer, PAYEE, 900).body();
    let thief = Thief::of(&world.chain, &world.facilitator, public);
    let mut tally = Tally::default();
    for _ in 0..rounds {
        let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 900).await;
        let paid = session
            .submit(&world.facilitator, &session.authorization())
            .await;
        assert_eq!(paid.body["state"], "paid", "{}", paid.body);
        // The thief is done before the buyer begins.
        let stolen = thief.presented(session.nonce()).await;
        let buyer = world.facilitator.settle(&session.presentation()).await;
        tally.count(&buyer, &stolen);
    }
    println!("{rounds} sessions: {tally:?}");
    assert_eq!((tally.buyer, tally.thief), (rounds, 0));
}

/// Starts a settle under an id of the caller's own.
fn ask(caller: &Caller, body: &Value, id: &str) -> JoinSet<Answer> {
    let (caller, body, id) = (caller.clone(), body.clone(), id.to_owned());
    let mut one = JoinSet::new();
    one.spawn(async move { caller.settle_as(&body, &id).await });
    one
}

async fn only(mut asked: JoinSet<Answer>) -> Answer {
    asked.join_next().await.unwrap().unwrap()
}

/// Waits until what was asked before stands in line: several looks at the chain take longer than a look-up in the ledger.
async fn in_line(world: &World) {
    const LOOK: &str = "eth_getBlockByNumber";
    let looks = world.proxy.calls(LOOK);
    world.proxy.called(LOOK, looks + 5).await;
}

/// Copies of a header that stand in line.
async fn copies(world: &World, body: &Value, count: usize) -> JoinSet<Answer> {
    let mut copies = JoinSet::new();
    for _ in 0..count {
        let (caller, body) = (Caller::clone(&world.facilitator), body.clone());
        copies.spawn(async move { caller.settle(&body).await });
    }
    in_line(world).await;
    copies
}

#[tokio::test(flavor = "multi_thread")]
async fn presenters_are_told_in_the_order_in_which_they_came() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 10).body();
    world.chain.automine(false).await;
    let first = ask(&world.facilitator, &body, "first");
    world.wait_until_sent(1).await;
    let second = ask(&world.facilitator, &body, "second");
    in_line(&world).await;
    let later = copies(&world, &body, 10).await;
    // The connection of the request that had it accepted breaks: the next in line is the one that came first.
    drop(first);
    world.resume_mining().await;
    let told = only(second).await;
    assert!(told.succeeded(), "{told:?}");
    for answer in later.join_all().await {
        assert_eq!(answer.reason(), "duplicate_settlement", "{answer:?}");
        assert_eq!(answer.body["extra"]["grantedTo"], "second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_is_repeated_under_its_own_id_goes_before_copies() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 11).body();
    world.chain.automine(false).await;
    let broken = ask(&world.facilitator, &body, "only-the-seller-knows");
    world.wait_until_sent(1).await;
    drop(broken);
    let copies = copies(&world, &body, 10).await;
    let again = ask(&world.facilitator, &body, "only-the-seller-knows");
    in_line(&world).await;
    world.resume_mining().await;
    let told = only(again).await;
    assert!(told.succeeded(), "{told:?}");
    for answer in copies.join_all().await {
        assert_eq!(answer.reason(), "duplicate_settlement", "{answer:?}");
    }
}

/// A thief presents first after the restart. What only the seller or the buyer knows decides all the same.
#[tokio::test(flavor = "multi_thread")]
async fn killed_before_its_answer_the_facilitator_tells_who_knows_the_secret() {
    let setup = Setup {
        failpoint: Some("broadcast"),
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let payer = world.payer().await;
    let body = Purchase::new(&payer, PAYEE, 12).body();
    let killed = world
        .facilitator
        .try_settle_as(&body, "only-the-seller-knows");
    assert!(killed.await.is_err(), "it was killed");
    world.facilitator.wait_for_end().await;
    world.facilitator.restart(None).await;
    let copies = copies(&world, &body, 20).await;
    let told = world
        .facilitator
        .settle_as(&body, "only-the-seller-knows")
        .await;
    assert!(told.succeeded(), "{told:?}");
    for answer in copies.join_all().await {
        assert_eq!(answer.reason(), "duplicate_settlement", "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_its_answer_the_facilitator_tells_who_knows_the_session() {
    let setup = Setup {
        failpoint: Some("broadcast"),
        ..Setup::default()
    };
    let mut world = setup.build().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 13).await;
    let killed = world.facilitator.try_settle(&session.presentation()).await;
    assert!(killed.is_err(), "it was killed, but answered {killed:?}");
    world.facilitator.wait_for_end().await;
    world.facilitator.restart(None).await;
    let copies = world
        .facilitator
        .settle_all(vec![session.purchase().body(); 20]);
    for answer in copies.await {
        assert_eq!(answer.reason(), "session_id_required", "{answer:?}");
    }
    let told = world.facilitator.settle(&session.presentation()).await;
    assert!(told.succeeded(), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_submitted_for_a_session_needs_the_sessions_id() {
    let world = World::new().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 14).await;
    let other = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 14).await;
    let paid = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert_eq!(paid.body["state"], "paid", "{}", paid.body);
    let with_id = |id: Value| {
        let mut body = session.purchase().body();
        body["paymentPayload"]["payload"]["sessionId"] = id;
        body
    };
    let id = session.id.as_str();
    for wrong in [
        session.purchase().body(),
        with_id(json!(other.id)),
        with_id(json!(7)),
        with_id(json!(id.to_uppercase())),
    ] {
        let verdict = world.facilitator.verify(&wrong).await;
        assert_eq!(verdict.reason(), "session_id_required", "{verdict:?}");
        let refused = world.facilitator.settle(&wrong).await;
        assert_eq!(refused.reason(), "session_id_required", "{refused:?}");
        let message = refused.body["errorMessage"].as_str().unwrap();
        let hash = paid.body["transaction"].as_str().unwrap();
        assert!(message.contains("payload.sessionId"), "{message}");
        assert!(message.contains(hash), "{message}");
        assert!(!message.contains(id), "{message}");
    }
    let right = with_id(json!(id));
    assert!(world.facilitator.verify(&right).await.is_valid());
    let told = world.facilitator.settle(&right).await;
    assert!(told.succeeded(), "{told:?}");
}

/// A submission that was turned away has changed nothing: the header alone is a payment like any other.
#[tokio::test(flavor = "multi_thread")]
async fn submission_that_was_turned_away_asks_for_no_session_id() {
    let world = World::new().await;
    let payer = world.payer().await;
    let strict = world
        .replica_with("[networks.base-sepolia]\nminimum_dollars = \"0.002\"\n")
        .await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 16).await;
    let path = format!("/sessions/{}/transfer", session.id);
    let by_gate = strict.post(&path, &session.authorization()).await.unwrap();
    assert_eq!(by_gate.body["code"], "amount_below_minimum", "{by_gate:?}");
    let other = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 16).await;
    let mut forged = session.authorization();
    forged["signature"] = other.authorization()["signature"].take();
    let by_check = world.facilitator.post(&path, &forged).await.unwrap();
    assert_eq!(by_check.status, 422, "{by_check:?}");
    let plain = session.purchase().body();
    assert!(world.facilitator.verify(&plain).await.is_valid());
    let told = world.facilitator.settle(&plain).await;
    assert!(told.succeeded(), "{told:?}");
}

/// What another client calls `sessionId` is none of our sessions.
#[tokio::test(flavor = "multi_thread")]
async fn session_id_of_another_kind_in_a_plain_payment_is_ignored() {
    let world = World::new().await;
    let mut body = Purchase::new(&world.payer().await, PAYEE, 15).body();
    body["paymentPayload"]["payload"]["sessionId"] = json!("abc");
    let told = world.facilitator.settle(&body).await;
    assert!(told.succeeded(), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_names_the_request_that_was_told() {
    let world = World::new().await;
    let payer = world.payer().await;
    let granted_to = async |id: Option<&str>| {
        let body = Purchase::new(&payer, PAYEE, 16).body();
        let told = match id {
            Some(id) => world.facilitator.settle_as(&body, id).await,
            None => world.facilitator.settle(&body).await,
        };
        assert!(told.succeeded(), "{told:?}");
        assert_eq!(told.body["extra"]["grantedTo"], Value::Null);
        let again = world.facilitator.settle_as(&body, "another").await;
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
        let granted = again.body["extra"]["grantedTo"]
            .as_str()
            .unwrap()
            .to_owned();
        (told.request_id, granted)
    };
    let (ours, granted) = granted_to(Some("order-7/try:1~")).await;
    assert_eq!(granted, "order-7/try:1~");
    assert_ne!(ours, granted, "the id in the log is ours");
    for unusable in [None, Some("with blank"), Some(&*"x".repeat(129))] {
        let (ours, granted) = granted_to(unusable).await;
        assert_eq!(ours, granted, "{unusable:?}");
    }
    let log = world.facilitator.log();
    assert!(!log.contains("order-7"), "{log}");
}

/// Two presenters may choose the same id. Each grant is still one request's own.
#[tokio::test(flavor = "multi_thread")]
async fn same_id_of_two_requests_confuses_no_grants() {
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 17).body();
    world.chain.automine(false).await;
    let broken = ask(&world.facilitator, &body, "same");
    world.wait_until_sent(1).await;
    let staying = ask(&world.facilitator, &body, "same");
    in_line(&world).await;
    drop(broken);
    world.resume_mining().await;
    let told = only(staying).await;
    assert!(told.succeeded(), "{told:?}");
    let again = world.facilitator.settle_as(&body, "same").await;
    assert_eq!(again.reason(), "duplicate_settlement");
    assert_eq!(again.body["extra"]["grantedTo"], "same");
    let row = world.facilitator.payment(&told).await;
    assert!(has_event(&row, "answered"), "{row}");
}

/// A caller pipelines further requests behind its settle, reads the answer, and breaks the connection off with the rest unread.
#[tokio::test(flavor = "multi_thread")]
async fn answer_that_could_be_read_is_answered_whatever_stands_behind_it() {
    const FURTHER: usize = 200;
    let world = World::new().await;
    let body = Purchase::new(&world.payer().await, PAYEE, 18).body();
    let further = "GET /openapi.json HTTP/1.1\r\nhost: x402d\r\n\r\n".repeat(FURTHER);
    let text = body.to_string();
    let settle = format!(
        "POST /settle HTTP/1.1\r\nhost: x402d\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let address = world.facilitator.url().trim_start_matches("http://");
    let stream = socket.connect(address.parse().unwrap()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let requests = format!("{further}{settle}{further}");
    let mut sending = JoinSet::new();
    sending.spawn(async move {
        // The server stops reading when nobody reads its answers.
        drop(writing.write_all(requests.as_bytes()).await);
        writing
    });
    let mut heard = Vec::new();
    let mut part = [0; 512];
    let found = loop {
        let read = reading.read(&mut part).await.unwrap();
        assert!(read > 0, "closed");
        heard.extend_from_slice(&part[..read]);
        let tail = heard.len().saturating_sub(2_048);
        if let Some(at) = find(&heard[tail..], b"\"success\":true") {
            break tail + at;
        }
    };
    while find(&heard[found..], b"}}").is_none() {
        let read = reading.read(&mut part).await.unwrap();
        heard.extend_from_slice(&part[..read]);
    }
    sending.shutdown().await;
    drop(reading);
    let again = world.facilitator.settle(&body).await;
    assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
