//! Sessions on rail `authorization`: terms first, then the transfer, then the request.

use std::time::Duration;

use alloy::primitives::{Address, U256};
use serde_json::{Value, json};
use tokio::time::Instant;
use x402d::embedded::TEST_USDC;

use crate::support::{OpenSession, Purchase, Setup, World, new_account};

const PAYEE: Address = Address::repeat_byte(0xca);
const RAIL: &str = "authorization";

#[tokio::test(flavor = "multi_thread")]
async fn transfer_precedes_request_with_same_hash_everywhere() {
    let world = World::new().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 700).await;
    assert_eq!(session.opened["state"], "open");
    assert_eq!(session.opened["decimals"], 6);
    let message = &session.opened["authorization"]["message"];
    assert_eq!(message["nonce"], session.nonce().to_string());

    let paid = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert_eq!((paid.status, &paid.body["state"]), (200, &json!("paid")));
    assert_eq!(paid.body["moneyMayMove"], false);
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(700));

    let settled = world.facilitator.settle(&session.presentation()).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(settled.body["extra"]["sessionId"], session.id);
    assert_eq!(settled.body["transaction"], paid.body["transaction"]);
    let consumed = session.outcome(&world.facilitator).await;
    assert_eq!(consumed["state"], "consumed");
    assert_eq!(consumed["transaction"], settled.body["transaction"]);
    let row = world.facilitator.payment(&settled).await;
    assert_eq!(row["transaction"], settled.body["transaction"]);
    assert_eq!(row["id"], consumed["paymentId"]);

    let again = world.facilitator.settle(&session.presentation()).await;
    assert_eq!(again.reason(), "duplicate_settlement");
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubmitted_session_is_paid_by_its_header() {
    let world = World::new().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 5).await;
    let body = session.purchase().body();
    assert!(world.facilitator.verify(&body).await.is_valid());
    assert_eq!(session.read(&world.facilitator).await["state"], "open");
    let settled = world.facilitator.settle(&body).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(settled.body["extra"]["sessionId"], session.id);
    assert_eq!(
        session.outcome(&world.facilitator).await["state"],
        "consumed"
    );
}

/// The nonce belongs to this session, so the transfer cannot have paid anything else.
#[tokio::test(flavor = "multi_thread")]
async fn session_authorization_submitted_elsewhere_pays_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    for handed_in in [false, true] {
        let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 6).await;
        world.chain.submit(&session.purchase()).await;
        if handed_in {
            let authorization = session.authorization();
            let paid = session.submit(&world.facilitator, &authorization).await;
            assert_eq!((paid.status, &paid.body["state"]), (200, &json!("paid")));
        }
        let body = session.presentation();
        assert!(world.facilitator.verify(&body).await.is_valid());
        let settled = world.facilitator.settle(&body).await;
        assert!(settled.succeeded(), "{}", settled.body);
        let outcome = session.outcome(&world.facilitator).await;
        assert_eq!(outcome["state"], "consumed");
        assert_eq!(outcome["transaction"], settled.body["transaction"]);
        let again = world.facilitator.settle(&body).await;
        assert_eq!(again.reason(), "duplicate_settlement", "{again:?}");
    }
    assert_eq!(world.chain.usdc(PAYEE).await, U256::from(12));
    assert_eq!(
        world.transactions(1).await,
        0,
        "no transaction of ours was needed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_copies_of_a_paid_header_at_two_processes_buy_once() {
    let world = World::new().await;
    let payer = world.payer().await;
    let replica = world.replica().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 9).await;
    let paid = session.submit(&replica, &session.authorization()).await;
    assert_eq!(paid.body["state"], "paid", "{}", paid.body);
    let bodies = || vec![session.presentation(); 25];
    let (here, there) = tokio::join!(
        world.facilitator.settle_all(bodies()),
        replica.settle_all(bodies())
    );
    let answers: Vec<_> = here.into_iter().chain(there).collect();
    let granted = answers.iter().filter(|answer| answer.succeeded()).count();
    assert_eq!(granted, 1);
    for answer in answers.iter().filter(|answer| !answer.succeeded()) {
        assert_eq!(answer.reason(), "duplicate_settlement");
        assert_eq!(answer.body["transaction"], paid.body["transaction"]);
    }
    assert_eq!(world.chain.transfers_to(TEST_USDC, PAYEE).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn seller_asking_other_terms_strands_no_money() {
    let world = World::new().await;
    let payer = world.payer().await;
    let entry = {
        let mut entry = OpenSession::entry(PAYEE, 8);
        entry["extra"]["resourceId"] = "reports".into();
        entry
    };
    let request = OpenSession::request(&entry, payer.address(), RAIL);
    let opened = world.facilitator.post("/sessions", &request).await.unwrap();
    assert_eq!(opened.status, 201, "{}", opened.body);
    let message = &opened.body["authorization"]["message"];
    let mut purchase = Purchase::new(&payer, PAYEE, 8);
    purchase.authorization.nonce = message["nonce"].as_str().unwrap().parse().unwrap();
    purchase.authorization.valid_before = message["validBefore"].as_str().unwrap().parse().unwrap();
    let presented = |required: &Value| {
        let mut body = purchase.body();
        body["paymentPayload"]["accepted"] = entry.clone();
        body["paymentRequirements"] = required.clone();
        body
    };
    for (pointer, value) in [
        ("/amount", json!("9")),
        ("/payTo", json!(Address::repeat_byte(0xcb))),
        ("/extra/resourceId", json!("archive")),
    ] {
        let mut required = entry.clone();
        *required.pointer_mut(pointer).unwrap() = value;
        let refused = world.facilitator.settle(&presented(&required)).await;
        assert_eq!(
            refused.reason(),
            "session_requirements_mismatch",
            "{pointer}: {}",
            refused.body
        );
        let advised = world.facilitator.verify(&presented(&required)).await;
        assert_eq!(
            advised.reason(),
            "session_requirements_mismatch",
            "{pointer}"
        );
    }
    assert_eq!(world.transactions(1).await, 0, "nothing was sent");
    let mut richer = entry.clone();
    richer["extra"]["note"] = "sellers may add to extra".into();
    let settled = world.facilitator.settle(&presented(&richer)).await;
    assert!(settled.succeeded(), "{}", settled.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_session_leaves_its_header_an_ordinary_payment() {
    let world = World::new().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 3).await;
    let path = format!("/sessions/{}/cancel", session.id);
    let other = world
        .facilitator
        .post(&path, &json!({"cancelToken": "ct_00"}))
        .await
        .unwrap();
    assert_eq!(
        (other.status, &other.body["code"]),
        (404, &json!("session_not_found"))
    );
    let cancelled = session.cancel(&world.facilitator).await;
    assert_eq!(
        (cancelled.status, &cancelled.body["state"]),
        (200, &json!("cancelled"))
    );
    assert_eq!(cancelled.body["moneyMayMove"], true, "a header may exist");
    assert_eq!(
        session.cancel(&world.facilitator).await.status,
        200,
        "cancelling twice is harmless"
    );

    let refused = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (409, &json!("session_cancelled"))
    );
    assert_eq!(refused.body["moneyMayMove"], false);
    let settled = world.facilitator.settle(&session.purchase().body()).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(session.read(&world.facilitator).await["state"], "consumed");
    let late = session.cancel(&world.facilitator).await;
    assert_eq!(
        (late.status, late.body["state"].as_str()),
        (200, Some("consumed"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_sessions_own_authorization_is_accepted() {
    let world = World::new().await;
    let (payer, other) = (world.payer().await, world.payer().await);
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 4).await;
    let ours = session.purchase();
    let mut other_nonce = Purchase::new(&payer, PAYEE, 4);
    other_nonce.authorization.valid_before = ours.authorization.valid_before;
    let mut other_payer = ours.clone();
    other_payer.signer = other.clone();
    other_payer.authorization.from = other.address();
    let mut longer = ours.clone();
    longer.authorization.valid_before = "9999999999".parse().unwrap();
    let mut forged = ours.clone();
    forged.signer = other;
    for (purchase, code) in [
        (other_nonce, "session_transfer_mismatch"),
        (other_payer, "session_transfer_mismatch"),
        (longer, "session_transfer_mismatch"),
        (forged, "invalid_exact_evm_signature"),
    ] {
        let body =
            json!({"authorization": purchase.authorization, "signature": purchase.own_signature()});
        let refused = session.submit(&world.facilitator, &body).await;
        assert_eq!(
            (refused.status, refused.body["code"].as_str()),
            (422, Some(code))
        );
    }
    assert_eq!(session.read(&world.facilitator).await["state"], "open");
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unsettleable_terms_are_refused_before_payment() {
    let world = World::new().await;
    let payer = new_account().address();
    let good = OpenSession::entry(PAYEE, 10);
    let calls = world.proxy.calls("eth_call");
    for (pointer, value, code) in [
        ("/scheme", json!("upto"), "unsupported_scheme"),
        ("/network", json!("eip155:1"), "invalid_network"),
        ("/amount", json!("0"), "invalid_payment_requirements"),
        ("/amount", json!("1e3"), "invalid_payment_requirements"),
        ("/asset", json!(PAYEE), "invalid_payment_requirements"),
        (
            "/extra/name",
            json!("USD"),
            "invalid_exact_evm_token_name_mismatch",
        ),
        (
            "/extra/assetTransferMethod",
            json!("permit2"),
            "unsupported_payload_type",
        ),
    ] {
        let mut entry = good.clone();
        match entry.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => entry["extra"]["assetTransferMethod"] = value,
        }
        let request = OpenSession::request(&entry, payer, RAIL);
        let refused = world.facilitator.post("/sessions", &request).await.unwrap();
        assert_eq!(
            (refused.status, refused.body["code"].as_str()),
            (422, Some(code)),
            "{pointer}"
        );
    }
    let mut default_flow = good.clone();
    default_flow["extra"]
        .as_object_mut()
        .unwrap()
        .remove("paymentFlow");
    let request = OpenSession::request(&default_flow, payer, "transfer");
    let refused = world.facilitator.post("/sessions", &request).await.unwrap();
    assert_eq!(refused.body["code"], "session_flow_required");
    for body in [
        json!([]),
        json!({"accepted": good}),
        json!({"accepted": good, "payer": "0x1"}),
    ] {
        let refused = world.facilitator.post("/sessions", &body).await.unwrap();
        assert_eq!(
            (refused.status, refused.body["code"].as_str()),
            (400, Some("invalid_body"))
        );
    }
    let opened = world
        .facilitator
        .post("/sessions", &OpenSession::request(&good, payer, RAIL))
        .await
        .unwrap();
    assert_eq!(opened.status, 201);
    assert_eq!(world.proxy.calls("eth_call"), calls, "no chain call");
    let unknown = world
        .facilitator
        .get("/sessions/ps_00000000000000000000000000")
        .await;
    assert_eq!(
        (unknown.status, unknown.body["code"].as_str()),
        (404, Some("session_not_found"))
    );
    assert_eq!(world.facilitator.get("/sessions/1").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_entries_are_negotiated() {
    let world = World::new().await;
    let payer = world.payer().await;
    let entry = Purchase::new(&payer, PAYEE, 6).v1().body()["paymentRequirements"].clone();
    let mut request = OpenSession::request(&entry, payer.address(), RAIL);
    request["x402Version"] = 1.into();
    let opened = world.facilitator.post("/sessions", &request).await.unwrap();
    assert_eq!(opened.status, 201, "{}", opened.body);
    let message = &opened.body["authorization"]["message"];
    let mut purchase = Purchase::new(&payer, PAYEE, 6).v1();
    purchase.authorization.nonce = message["nonce"].as_str().unwrap().parse().unwrap();
    purchase.authorization.valid_before = message["validBefore"].as_str().unwrap().parse().unwrap();
    let settled = world.facilitator.settle(&purchase.body()).await;
    assert!(settled.succeeded(), "{}", settled.body);
    assert_eq!(settled.body["extra"]["sessionId"], opened.body["sessionId"]);
    request["rail"] = "transfer".into();
    let refused = world.facilitator.post("/sessions", &request).await.unwrap();
    assert_eq!(refused.body["code"], "invalid_x402_version");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sessions_are_bounded_evicting_that_payees_oldest() {
    let setup = Setup {
        toml: "[sessions]\nopen_max_per_client = 4\nopen_max_per_party = 2\n".to_owned(),
        ..Setup::default()
    };
    let world = setup.build().await;
    let payer = new_account();
    let mut sessions = Vec::new();
    for payee in [0xc1, 0xc2, 0xc3, 0xc4_u8] {
        // Two payers, so that no payer or payee has more than two.
        let payer = if payee < 0xc3 { &payer } else { &new_account() };
        let payee = Address::repeat_byte(payee);
        sessions.push(OpenSession::open(&world.facilitator, payer, RAIL, payee, 1).await);
    }
    let request = |payer: Address| OpenSession::request(&OpenSession::entry(PAYEE, 1), payer, RAIL);
    let refused = world
        .facilitator
        .post("/sessions", &request(new_account().address()))
        .await
        .unwrap();
    assert_eq!(
        (refused.status, refused.body["code"].as_str()),
        (429, Some("too_many_sessions"))
    );
    assert_eq!(refused.body["retryable"], true);

    let opened = world
        .facilitator
        .post("/sessions", &request(payer.address()))
        .await
        .unwrap();
    assert_eq!(
        opened.status, 201,
        "the payer's own oldest was evicted: {}",
        opened.body
    );
    assert_eq!(
        sessions[0].read(&world.facilitator).await["state"],
        "expired"
    );
    assert_eq!(sessions[1].read(&world.facilitator).await["state"], "open");
}

#[tokio::test(flavor = "multi_thread")]
async fn session_expires_by_chain_time_without_a_transfer() {
    let world = World::new().await;
    let payer = world.payer().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 2).await;
    let used = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 1).await;
    world.chain.submit(&used.purchase()).await;
    world.chain.call("evm_increaseTime", json!([400])).await;
    world.chain.mine(1).await;
    let expired = crate::support::eventually("the end", Duration::from_secs(20), async || {
        let view = session.read(&world.facilitator).await;
        (view["state"] == "expired").then_some(view)
    })
    .await;
    assert_eq!(expired["moneyMayMove"], false);
    let view = used.read(&world.facilitator).await;
    assert_eq!(view["state"], "open", "settled by another account: {view}");
    let late = session
        .submit(&world.facilitator, &session.authorization())
        .await;
    assert!(late.status >= 400, "{}", late.body);
    assert_eq!(world.transactions(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_waits_for_a_change_by_another_process() {
    let world = World::new().await;
    let payer = world.payer().await;
    let replica = world.replica().await;
    let session = OpenSession::open(&world.facilitator, &payer, RAIL, PAYEE, 2).await;
    let began = Instant::now();
    let path = format!("/sessions/{}?wait=1", session.id);
    let unchanged = world.facilitator.get(&path).await;
    assert_eq!(unchanged.body["state"], "open");
    assert!(began.elapsed() >= Duration::from_secs(1));
    let (seen, cancelled) = tokio::join!(
        session.outcome(&replica),
        session.cancel(&world.facilitator)
    );
    assert_eq!(cancelled.status, 200);
    assert_eq!(seen["state"], "cancelled");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it did not wait for the whole time"
    );
    for wait in ["61", "-1", "x"] {
        let path = format!("/sessions/{}?wait={wait}", session.id);
        assert_eq!(
            world.facilitator.get(&path).await.body["code"],
            "invalid_parameter"
        );
    }
}
