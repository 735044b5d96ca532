//! Webhooks: every receiver gets every event, signed and in order per payment, whatever is slow, down or killed.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use alloy::primitives::Address;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{Caller, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x5f);
const OTHER: Address = Address::repeat_byte(0x6e);
const PAYMENTS: usize = 24;
/// With this number of payments in the environment, the test of all receivers is run at that size, has the database for itself, and says how
/// late the fine receiver was. `X402D_WEBHOOK_PAYMENTS=2500` makes 10,000 events.
const PAYMENTS_VARIABLE: &str = "X402D_WEBHOOK_PAYMENTS";
/// How late the fine receiver may be at that size.
const LATE_MAX: Duration = Duration::from_secs(2);
/// How long a receiver is down at that size.
const DOWN_FOR: Duration = Duration::from_mins(1);
/// Transactions of other tests on the same server hold events back, and a failed delivery waits before it is tried again.
const TOLD: Duration = Duration::from_mins(5);
/// Steps of a payment that is settled.
const STEPS: [&str; 4] = [
    "payment.accepted",
    "payment.sent",
    "payment.settled",
    "payment.granted",
];

#[derive(Debug, Clone)]
struct Message {
    /// From the event to its arrival.
    late: Duration,
    headers: Value,
    body: String,
    event: Value,
}

/// A receiver of webhooks; closed on drop.
struct Receiver {
    url: String,
    taken: Arc<Mutex<Vec<Message>>>,
    is_up: Arc<AtomicBool>,
    _server: JoinSet<()>,
}

impl Receiver {
    /// A receiver that takes `delay` for each event.
    async fn open(delay: Duration) -> Self {
        let taken: Arc<Mutex<Vec<Message>>> = Arc::default();
        let is_up = Arc::new(AtomicBool::new(true));
        let (taking, up) = (Arc::clone(&taken), Arc::clone(&is_up));
        let take = async move |headers: HeaderMap, body: String| {
            tokio::time::sleep(delay).await;
            if !up.load(Ordering::Relaxed) {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let header = |name: &str| headers[name].to_str().unwrap().to_owned();
            let names = ["webhook-id", "webhook-timestamp", "webhook-signature"];
            let headers: HashMap<&str, String> = names.map(|name| (name, header(name))).into();
            taking.lock().unwrap().push(Message {
                late: age(&headers["webhook-id"]),
                headers: json!(headers),
                event: serde_json::from_str(&body).unwrap(),
                body,
            });
            StatusCode::NO_CONTENT
        };
        let moved = async || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/")]);
        let router = Router::new()
            .route("/", post(take))
            .route("/moved", post(moved));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            taken,
            is_up,
            _server: server,
        }
    }

    fn taken(&self) -> Vec<Message> {
        self.taken.lock().unwrap().clone()
    }

    fn ids(&self) -> HashSet<String> {
        let taken = self.taken().into_iter();
        taken
            .map(|message| message.headers["webhook-id"].as_str().unwrap().to_owned())
            .collect()
    }

    async fn until_taken(&self, what: &str, count: usize) {
        eventually(what, TOLD, async || {
            (self.ids().len() >= count).then_some(())
        })
        .await;
    }

    /// Every event once under its id and with its body, and those of a payment first taken in their order.
    fn assert_complete(&self, payments: usize) {
        let mut bodies: HashMap<String, String> = HashMap::new();
        let mut steps: HashMap<String, Vec<String>> = HashMap::new();
        for message in self.taken() {
            let id = message.headers["webhook-id"].as_str().unwrap().to_owned();
            assert_eq!(message.event["id"], *id);
            let before = bodies.insert(id, message.body.clone());
            assert!(
                before.as_ref().is_none_or(|before| *before == message.body),
                "{before:?}"
            );
            if before.is_none() {
                let text = |name: &str| message.event[name].as_str().unwrap().to_owned();
                steps.entry(text("payment")).or_default().push(text("type"));
            }
        }
        assert_eq!(steps.len(), payments);
        for (payment, steps) in steps {
            assert_eq!(steps, STEPS, "{payment}");
        }
    }
}

/// Adds a receiver; returns its id and its secret.
fn add(world: &World, url: &str, events: &str, further: &[&str]) -> (String, String) {
    let mut arguments = vec![
        "webhooks",
        "add",
        url,
        "--events",
        events,
        "--insecure-http",
        "--json",
    ];
    arguments.extend(further);
    let said: Value = serde_json::from_str(&world.command(&arguments)).unwrap();
    let text = |name: &str| said[name].as_str().unwrap().to_owned();
    (text("id"), text("secret"))
}

fn deliveries(world: &World, receiver: &str) -> Vec<Value> {
    let said = world.command(&["webhooks", "deliveries", receiver, "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    said["deliveries"].as_array().unwrap().clone()
}

/// The time since an event, from its id.
fn age(id: &str) -> Duration {
    // A test has no time in its id.
    let micros = id.split('_').nth(1).unwrap().parse();
    let since = micros.map(|micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros));
    since.map_or(Duration::ZERO, |since| since.elapsed().unwrap_or_default())
}

/// Has the official package check each message.
fn verify(messages: &[(&str, Message)]) {
    let program =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/verify_webhooks.mjs");
    let mut node = Command::new("node");
    let mut node = node
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = node.stdin.take().unwrap();
    for (secret, message) in messages {
        let line = json!({ "secret": secret, "headers": message.headers, "body": message.body });
        writeln!(stdin, "{line}").unwrap();
    }
    drop(stdin);
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["good"], messages.len());
}

/// Fifty a second.
async fn settle(callers: &[Caller], payments: &[Value]) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for together in payments.chunks(50) {
        second.tick().await;
        let mut settling = JoinSet::new();
        for (number, body) in together.iter().enumerate() {
            let (caller, body) = (callers[number % callers.len()].clone(), body.clone());
            settling.spawn(async move { caller.settle(&body).await });
        }
        for answer in settling.join_all().await {
            assert!(answer.succeeded(), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_get_everything_in_order_though_one_is_down_one_slow_and_a_process_killed() {
    let asked = std::env::var(PAYMENTS_VARIABLE).ok();
    let asked: Option<usize> = asked.map(|asked| asked.parse().unwrap());
    let count = asked.unwrap_or(PAYMENTS);
    let delay = asked.map_or(Duration::from_secs(3), |_| Duration::from_millis(100));
    let mut world = Setup::default().build().await;
    let replica = world.replica().await;
    let fine = Receiver::open(Duration::ZERO).await;
    let slow = Receiver::open(delay).await;
    let down = Receiver::open(Duration::ZERO).await;
    down.is_up.store(false, Ordering::Relaxed);
    let secrets = [&fine, &slow, &down]
        .map(|receiver| add(&world, &receiver.url, "payment.*", &["--allow-private"]).1);
    let payer = world.payer().await;
    let began = Instant::now();
    let bodies: Vec<Value> = (0..count)
        .map(|_| Purchase::new(&payer, PAYEE, 1).body())
        .collect();
    let (first, second) = bodies.split_at(count / 2);
    let both = [Caller::clone(&world.facilitator), Caller::clone(&replica)];
    settle(&both, first).await;
    world.facilitator.kill();
    settle(&both[1..], second).await;
    world.facilitator.restart(None).await;
    let events = count * STEPS.len();
    fine.until_taken("the fine one to get everything", events)
        .await;
    assert!(
        slow.ids().len() < events && down.ids().is_empty(),
        "the fine one waits for nobody"
    );
    if asked.is_some() {
        let mut late: Vec<_> = fine.taken().iter().map(|message| message.late).collect();
        late.sort_unstable();
        let (half, most) = (late[late.len() / 2], late[late.len() - 1]);
        println!("{events} events, {half:?} late at the median, {most:?} at most");
        assert!(most <= LATE_MAX, "{most:?}");
        tokio::time::sleep_until((began + DOWN_FOR).into()).await;
    }
    down.is_up.store(true, Ordering::Relaxed);
    down.until_taken("the one that was down to get everything", events)
        .await;
    slow.until_taken("the slow one to get everything", events)
        .await;
    let mut messages = Vec::new();
    for (receiver, secret) in [&fine, &slow, &down].into_iter().zip(&secrets) {
        receiver.assert_complete(count);
        let taken = receiver.taken().into_iter();
        messages.extend(taken.map(|message| (secret.as_str(), message)));
    }
    verify(&messages);
    assert_eq!(fine.ids(), down.ids());
    let log = world.facilitator.log() + &replica.log();
    assert!(!log.contains("whsec_"), "a secret is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_is_tested_shown_replayed_and_removed() {
    let world = World::new().await;
    let receiver = Receiver::open(Duration::ZERO).await;
    let (id, secret) = add(
        &world,
        &receiver.url,
        "signer.*,payment.settled",
        &["--allow-private"],
    );
    world.command(&["webhooks", "test", &id]);
    receiver.until_taken("the test", 1).await;
    assert_eq!(receiver.taken()[0].event["type"], "webhook.test");
    let payer = world.payer().await;
    let payments = [PAYEE, OTHER].map(|payee| Purchase::new(&payer, payee, 1).body());
    settle(&[Caller::clone(&world.facilitator)], &payments).await;
    receiver.until_taken("both payments", 3).await;
    let listed = world.command(&["webhooks", "list"]);
    assert!(
        listed.contains(&id) && !listed.contains(&secret[6..]),
        "{listed}"
    );
    let found = eventually("three that are delivered", TOLD, async || {
        let found = deliveries(&world, &id);
        found
            .iter()
            .all(|one| one["state"] == "delivered")
            .then_some(found)
    })
    .await;
    let [newest, ..] = found.as_slice() else {
        panic!("expected deliveries, got {found:?}");
    };
    world.command(&["webhooks", "replay", &id, &newest["id"].to_string()]);
    eventually("the replay", TOLD, async || {
        (receiver.taken().len() == 4).then_some(())
    })
    .await;
    let mut taken = receiver.taken();
    let again = taken.pop().unwrap();
    assert_eq!(again.headers["webhook-id"], newest["event"]);
    let is_first = |first: &Message| first.headers["webhook-id"] == again.headers["webhook-id"];
    let first = taken.iter().find(|first| is_first(first)).unwrap();
    assert_eq!(first.body, again.body);
    world.command(&["webhooks", "remove", &id]);
    let own = Receiver::open(Duration::ZERO).await;
    add(
        &world,
        &own.url,
        "payment.settled",
        &["--allow-private", "--payee", &PAYEE.to_string()],
    );
    let payments = [OTHER, PAYEE].map(|payee| Purchase::new(&payer, payee, 2).body());
    settle(&[Caller::clone(&world.facilitator)], &payments).await;
    own.until_taken("the payment to its payee", 1).await;
    assert_eq!(own.taken()[0].event["payee"], PAYEE.to_checksum(None));
    assert_eq!((receiver.taken().len(), own.taken().len()), (4, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_redirects_and_http_are_refused() {
    let world = World::new().await;
    let receiver = Receiver::open(Duration::ZERO).await;
    let refused = |arguments: &[&str]| {
        let output = world.configured(arguments, &[], "");
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["webhooks", "add", &receiver.url, "--events", "payment.*"]);
    assert!(said.contains("--insecure-http"), "{said}");
    let said = refused(&[
        "webhooks",
        "add",
        "https://shop.example",
        "--events",
        "payment.lost",
    ]);
    assert!(said.contains("payment.settled"), "{said}");
    let port = receiver.url.rsplit_once(':').unwrap().1.to_owned();
    let moved = format!("{}moved", receiver.url);
    for (url, further, expected) in [
        (receiver.url.as_str(), &[][..], "its address is not public"),
        (
            &format!("http://localhost:{port}"),
            &[],
            "its address is not public",
        ),
        (&moved, &["--allow-private"], "it answered 307"),
    ] {
        let (id, _) = add(&world, url, "payment.*", further);
        world.command(&["webhooks", "test", &id]);
        let problem = eventually("a try", TOLD, async || {
            let problem = deliveries(&world, &id)[0]["problem"]
                .as_str()
                .map(str::to_owned);
            problem.filter(|_| deliveries(&world, &id)[0]["state"] == "waiting")
        })
        .await;
        assert!(problem.contains(expected), "{url}: {problem}");
    }
    assert!(receiver.taken().is_empty());
}
