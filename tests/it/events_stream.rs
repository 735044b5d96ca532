//! `/events` as a stream: a reader that loses its connection again and again misses nothing and is told nothing twice.

use std::collections::HashSet;
use std::time::Duration;

use alloy::primitives::Address;
use reqwest::Client;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::callers::{BOTH, REVOCATION, keys_only, verdict};
use crate::events::payment_id;
use crate::support::{Caller, Purchase, Setup, eventually};

const PAYEE: Address = Address::repeat_byte(0x5f);
const OTHER: Address = Address::repeat_byte(0x6e);
const PAYMENTS: usize = 150;
const CONNECTIONS: usize = 50;
/// Transactions of other tests on the same server hold the feed back.
const TOLD: Duration = Duration::from_mins(2);

/// A reader of a stream, as a browser's `EventSource` is one.
struct Reader {
    http: Client,
    query: String,
    key: Option<String>,
    last: Option<String>,
    answer: Option<reqwest::Response>,
    unread: String,
}

impl Reader {
    fn new(query: &str, key: Option<&str>) -> Self {
        Self {
            http: Client::builder().no_proxy().build().unwrap(),
            query: query.to_owned(),
            key: key.map(str::to_owned),
            last: None,
            answer: None,
            unread: String::new(),
        }
    }

    /// Connects where it left off. What was not read to the end is lost with the old connection.
    async fn connect(&mut self, url: &str) {
        let mut request = self.http.get(format!("{url}/events{}", self.query));
        request = request.header("accept", "text/event-stream");
        if let Some(last) = &self.last {
            request = request.header("last-event-id", last);
        }
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        self.unread.clear();
        self.answer = Some(answer);
    }

    /// The next event; `None` when the stream ends.
    async fn next(&mut self) -> Option<Value> {
        loop {
            while let Some((message, rest)) = self.unread.split_once("\n\n") {
                let (message, rest) = (message.to_owned(), rest.to_owned());
                self.unread = rest;
                let field = |name: &str| {
                    let found = message.lines().find_map(|line| line.strip_prefix(name));
                    found.map(|value| value.trim().to_owned())
                };
                self.last = field("id:").or_else(|| self.last.take());
                if let Some(data) = field("data:") {
                    return Some(serde_json::from_str(&data).unwrap());
                }
            }
            let chunk = self.answer.as_mut()?.chunk().await.ok()??;
            self.unread.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

async fn place(caller: &Caller) -> String {
    let mut after = String::new();
    loop {
        let answer = caller.get(&format!("/events{after}")).await;
        let cursor = answer.body["nextCursor"].as_str().unwrap().to_owned();
        if answer.body["more"] == false {
            return cursor;
        }
        after = format!("?after={cursor}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_connects_fifty_times_is_told_everything_once() {
    let setup = Setup {
        signers: 2,
        block_time_s: Some(1),
        ..Setup::default()
    };
    let world = setup.build().await;
    let replica = world.replica().await;
    let replicas = [Caller::clone(&world.facilitator), Caller::clone(&replica)];
    let mut reader = Reader::new("?types=payment.*", None);
    reader.last = Some(place(&replicas[0]).await);
    let payer = world.payer().await;
    let mut settling = JoinSet::new();
    for number in 0..PAYMENTS {
        let (caller, body) = (
            replicas[number % 2].clone(),
            Purchase::new(&payer, PAYEE, 1).body(),
        );
        settling.spawn(async move { caller.settle(&body).await });
    }
    let mut told: Vec<Value> = Vec::new();
    for turn in 0..CONNECTIONS {
        reader.connect(replicas[turn % 2].url()).await;
        // Some connections end in the middle, and some before anything was told.
        for _ in 0..turn % 9 {
            let next = timeout(TOLD, reader.next())
                .await
                .expect("an event in time");
            told.push(next.expect("a stream that goes on"));
        }
    }
    let settled: HashSet<String> = settling.join_all().await.iter().map(payment_id).collect();
    assert_eq!(settled.len(), PAYMENTS);
    reader.connect(replicas[0].url()).await;
    while told.len() < 4 * PAYMENTS {
        let next = timeout(TOLD, reader.next())
            .await
            .expect("an event in time");
        told.push(next.expect("a stream that goes on"));
    }
    let ids: HashSet<&str> = told
        .iter()
        .map(|event| event["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), told.len(), "nothing is told twice");
    for id in &settled {
        let of_payment = told.iter().filter(|event| event["payment"] == **id);
        let types: Vec<_> = of_payment
            .map(|event| event["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            types,
            [
                "payment.accepted",
                "payment.sent",
                "payment.settled",
                "payment.granted"
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_of_a_key_has_its_payees_alone_and_ends_with_the_service() {
    let mut world = keys_only().build().await;
    let shop = world.key("shop", PAYEE, BOTH).await;
    let other = world.key("other", OTHER, BOTH).await;
    let mut reader = Reader::new("", Some(&shop));
    reader.connect(world.facilitator.url()).await;
    let payer = world.payer().await;
    let foreign = world.facilitator.with_key(&other);
    let foreign = foreign
        .settle(&Purchase::new(&payer, OTHER, 1).body())
        .await;
    let own = world.facilitator.with_key(&shop);
    let own = own.settle(&Purchase::new(&payer, PAYEE, 2).body()).await;
    assert!(foreign.succeeded() && own.succeeded());
    for _ in 0..4 {
        let event = timeout(TOLD, reader.next()).await.unwrap().unwrap();
        assert_eq!(event["payment"], payment_id(&own));
    }
    let (status, _) = world.facilitator.terminate().await;
    assert!(status.success());
    assert_eq!(timeout(TOLD, reader.next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_of_a_revoked_key_ends_and_streams_are_limited() {
    let world = keys_only().build().await;
    let shop = world.key("shop", PAYEE, BOTH).await;
    let caller = world.facilitator.with_key(&shop);
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = Reader::new("", Some(&shop));
        reader.connect(world.facilitator.url()).await;
        readers.push(reader);
    }
    let http = Client::builder().no_proxy().build().unwrap();
    let request = http.get(format!("{}/events", world.facilitator.url()));
    let request = request
        .header("accept", "text/event-stream")
        .bearer_auth(&shop);
    let refused = request.send().await.unwrap();
    assert_eq!(refused.status(), 429);
    world.command(&["keys", "revoke", "shop"]);
    eventually("the revocation", REVOCATION * 4, async || {
        (verdict(&caller.get("/events").await).0 == 401).then_some(())
    })
    .await;
    for reader in &mut readers {
        assert_eq!(timeout(TOLD, reader.next()).await.unwrap(), None);
    }
}

/// Also when there is always something to tell, and for a key that makes its holder the operator.
#[tokio::test(flavor = "multi_thread")]
async fn busy_stream_ends_with_its_key() {
    let world = keys_only().build().await;
    let twin = world.key("twin", PAYEE, BOTH).await;
    let shop = world.key("shop", PAYEE, BOTH).await;
    let made = world.command(&["keys", "create", "second", "--scope", "admin", "--json"]);
    let made: Value = serde_json::from_str(&made).unwrap();
    let admin = made["key"].as_str().unwrap().to_owned();
    let paid = world.facilitator.with_key(&twin);
    for (name, key) in [("shop", &shop), ("second", &admin)] {
        let caller = world.facilitator.with_key(key);
        eventually("the key", REVOCATION * 4, async || {
            (verdict(&caller.get("/events").await).0 == 200).then_some(())
        })
        .await;
        let mut reader = Reader::new("?types=payment.*", Some(key));
        reader.connect(world.facilitator.url()).await;
        let mut ending = JoinSet::new();
        ending.spawn(async move { while reader.next().await.is_some() {} });
        world.command(&["keys", "revoke", name]);
        let payer = world.payer().await;
        // More often than a silent stream says that it is there.
        eventually("the end of the stream", TOLD, async || {
            let body = Purchase::new(&payer, PAYEE, 1).body();
            assert!(paid.settle(&body).await.succeeded());
            ending.try_join_next().map(Result::unwrap)
        })
        .await;
    }
}
