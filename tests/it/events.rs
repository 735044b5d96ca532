//! `/events` in pages, and `x402d events`: every step of a payment once and in order, to those whom it concerns.

use std::time::Duration;

use alloy::primitives::Address;
use serde_json::{Value, json};

use crate::callers::{BOTH, keys_only, verdict};
use crate::support::{Answer, Caller, Chain, Fault, Purchase, Setup, World, eventually};

const PAYEE: Address = Address::repeat_byte(0x5f);
const OTHER: Address = Address::repeat_byte(0x6e);
/// Transactions of other tests on the same server hold the feed back.
const TOLD: Duration = Duration::from_mins(1);

pub(crate) fn payment_id(answer: &Answer) -> String {
    let id = answer.body["extra"]["paymentId"].as_str();
    id.unwrap().to_owned()
}

/// Every event from a place on, and the place where they end.
async fn read(caller: &Caller, query: &str) -> (Vec<Value>, String) {
    let (mut events, mut after) = (Vec::new(), String::new());
    loop {
        let answer = caller.get(&format!("/events?limit=3{query}{after}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let page = answer.body["events"].as_array().unwrap();
        assert!(page.len() <= 3, "{answer:?}");
        events.extend(page.iter().cloned());
        let cursor = answer.body["nextCursor"].as_str().unwrap();
        after = format!("&after={cursor}");
        if answer.body["more"] == false {
            return (events, cursor.to_owned());
        }
    }
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str().unwrap());
    types.collect()
}

/// Waits until so many events are told.
async fn told(caller: &Caller, query: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} events of {query:?}");
    eventually(&what, TOLD, async || {
        let (events, _) = read(caller, query).await;
        (events.len() >= count).then_some(events)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_is_told_from_acceptance_to_its_answer() {
    let world = World::new().await;
    let payer = world.payer().await;
    let settled = world
        .facilitator
        .settle(&Purchase::new(&payer, PAYEE, 1_000).body())
        .await;
    let events = told(&world.facilitator, "&types=payment.*", 4).await;
    assert_eq!(
        types(&events),
        [
            "payment.accepted",
            "payment.sent",
            "payment.settled",
            "payment.granted"
        ]
    );
    for event in &events {
        assert_eq!(event["payment"], payment_id(&settled));
        assert_eq!(event["payer"], payer.address().to_checksum(None));
        assert_eq!(event["payee"], PAYEE.to_checksum(None));
        assert_eq!(event["network"], "eip155:84532");
        assert_eq!(
            (&event["amount"], &event["amountShown"]),
            (&"1000".into(), &"0.001 USDC".into())
        );
    }
    assert!(events[0].get("transaction").is_none(), "{events:?}");
    assert_eq!(events[2]["transaction"], settled.transaction());
    assert_eq!(events[3]["requestId"], settled.request_id);
    let only = told(&world.facilitator, "&types=payment.settled", 1).await;
    assert_eq!(only, events[2..3]);
    let (all, end) = read(&world.facilitator, "").await;
    let (none, same) = read(&world.facilitator, &format!("&after={end}")).await;
    assert_eq!((none.len(), &same), (0, &end));

    let said = world.command(&["events", "--types", "payment.*", "--json"]);
    let said: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(said, events);
    let said = world.command(&["events"]);
    assert_eq!(said.lines().count(), all.len(), "{said}");
    assert!(
        said.contains("payment.settled") && said.contains("0.001 USDC"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_payment_is_told_with_its_reason() {
    let world = World::new().await;
    let (_, failed) = world.settle_cancelled(PAYEE, 7).await;
    assert!(!failed.succeeded());
    let events = told(
        &world.facilitator,
        "&types=payment.failed,payment.refused",
        1,
    )
    .await;
    assert_eq!(events[0]["reason"], failed.reason(), "{events:?}");
    let (all, _) = read(&world.facilitator, "&types=payment.*").await;
    assert_eq!(types(&all).first(), Some(&"payment.accepted"));
    assert!(
        all.iter()
            .all(|event| event["payment"] == events[0]["payment"]),
        "{all:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn holder_of_a_key_is_told_of_its_payees_alone() {
    let world = keys_only().build().await;
    let shop = world.key("shop", PAYEE, BOTH).await;
    let other = world.key("other", OTHER, BOTH).await;
    let blind = world.key("blind", PAYEE, &["--scope", "settle"]).await;
    let payer = world.payer().await;
    let (shop, other) = (
        world.facilitator.with_key(&shop),
        world.facilitator.with_key(&other),
    );
    let own = shop.settle(&Purchase::new(&payer, PAYEE, 1).body()).await;
    let foreign = other.settle(&Purchase::new(&payer, OTHER, 2).body()).await;
    assert!(
        own.succeeded() && foreign.succeeded(),
        "{own:?} {foreign:?}"
    );
    for (caller, settled) in [(&shop, &own), (&other, &foreign)] {
        let events = told(caller, "", 4).await;
        assert_eq!(events.len(), 4, "{events:?}");
        assert!(
            events
                .iter()
                .all(|event| event["payment"] == payment_id(settled)),
            "{events:?}"
        );
    }
    let refused = world.facilitator.with_key(&blind).get("/events").await;
    assert_eq!(verdict(&refused), (403, "scope_missing"));

    let admin = world.command(&["keys", "create", "boss", "--scope", "admin"]);
    let admin = world.facilitator.with_key(admin.lines().next().unwrap());
    let keys = eventually("the key of the operator to be known", TOLD, async || {
        let answer = admin.get("/events?types=key.*").await;
        let keys = answer.body["events"].as_array()?.clone();
        (keys.len() == 4).then_some(keys)
    })
    .await;
    assert!(
        keys.iter()
            .all(|key| key["key"].as_str().unwrap().len() == 12),
        "{keys:?}"
    );
    let all = admin.get("/events").await.body.to_string();
    assert!(!all.contains("x402d_"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_that_is_paused_and_resumed_is_told() {
    let world = World::new().await;
    let signer = Chain::signers(1)[0].address.to_checksum(None);
    for step in ["pause", "resume"] {
        world.command(&["signers", step, &signer]);
    }
    let events = told(&world.facilitator, "&types=signer.paused,signer.resumed", 2).await;
    assert_eq!(types(&events), ["signer.paused", "signer.resumed"]);
    assert!(
        events.iter().all(|event| event["signer"] == signer),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_signer_and_unreachable_network_are_told_once_by_two_processes() {
    let world = Setup::default().shortened().build().await;
    let _replica = world.replica().await;
    let signer = Chain::signers(1)[0].address.to_checksum(None);
    let set_balance = async |wei: &str| {
        world
            .chain
            .call("anvil_setBalance", json!([signer, wei]))
            .await;
    };
    set_balance("0x0").await;
    told(&world.facilitator, "&types=signer.empty", 1).await;
    set_balance("0x8ac7230489e80000").await;
    world.proxy.all(Fault::Unavailable);
    told(&world.facilitator, "&types=network.down", 1).await;
    world.proxy.all(Fault::None);
    let events = told(
        &world.facilitator,
        "&types=signer.empty,signer.low,network.*",
        3,
    )
    .await;
    assert_eq!(
        types(&events),
        ["signer.empty", "network.down", "network.up"]
    );
    assert_eq!(events[0]["signer"], signer);
    assert!(
        events
            .iter()
            .all(|event| event["network"] == "eip155:84532"),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_by_name() {
    let world = World::new().await;
    for wrong in [
        "after=x",
        "types=payment",
        "types=",
        "limit=501",
        "limit=0",
        "cursor=1.1",
        "after=1.1&after=1.1",
    ] {
        let answer = world.facilitator.get(&format!("/events?{wrong}")).await;
        assert_eq!(verdict(&answer), (400, "invalid_parameter"), "{wrong}");
    }
    let unknown = world.facilitator.get("/events?after=999999999.1").await;
    assert_eq!(verdict(&unknown), (410, "cursor_unknown"));
}
