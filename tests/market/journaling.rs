//! One purchase has at most one payment that can settle: across calls, clients, and restarts of the process.

use std::collections::HashSet;

use crate::support::*;
use x402d::buyer::{Journal, JournalError};

/// The nonces of all payments that the facilitator received.
pub(crate) fn nonces(market: &Market) -> HashSet<String> {
    let calls = market.calls();
    let nonce =
        |body: &Value| body["paymentPayload"]["payload"]["authorization"]["nonce"].to_string();
    calls.iter().map(|(_, body)| nonce(body)).collect()
}

pub(crate) fn at(unix: i64) -> Arc<ManualClock> {
    Arc::new(ManualClock::new(
        time::OffsetDateTime::from_unix_timestamp(unix).unwrap(),
    ))
}

const NOW: i64 = 1_767_323_045;
/// Offers are valid for 300 s, and the buyer adds a margin of 60 s.
pub(crate) const LATER: i64 = NOW + 361;

/// The facilitator fails its next two calls.
pub(crate) fn outage(market: &Market) {
    market.respond([(503, json!({})), (503, json!({}))]);
}

#[tokio::test]
async fn lost_response_presents_same_payment_even_after_restart() {
    let mut market = Market::default();
    let url = format!("{}/report", market.seller(Flow::Upfront).await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("purchases.jsonl");
    for _ in 0..3 {
        market.script.lock().unwrap().answers.clear();
        outage(&market);
        let buyer = client().journal(Journal::open(&path).unwrap());
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert!(error.money_may_have_moved(), "{error}");
    }
    market.script.lock().unwrap().answers.clear();
    let buyer = client().journal(Journal::open(&path).unwrap());
    assert_eq!(buyer.committed().to_string(), "10000");
    assert_eq!(buyer.get(&url, &cent()).await.unwrap().status, 200);
    assert_eq!(nonces(&market).len(), 1);
    assert_eq!(buyer.get(&url, &cent()).await.unwrap().status, 200);
    assert_eq!(
        nonces(&market).len(),
        2,
        "the first purchase is closed, so this is a new one"
    );
    assert_eq!(buyer.committed().to_string(), "20000");
}

#[tokio::test]
async fn request_or_id_identifies_purchase_and_id_keeps_its_url() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let report = format!("{seller}/report");
    let buyer = client();
    let named = |id: &str| PayOptions {
        purchase_id: Some(id.to_owned()),
        ..cent()
    };
    for (url, options) in [
        (report.clone(), cent()),
        (
            format!("{report}?day=7"),
            PayOptions {
                another: true,
                ..cent()
            },
        ),
        (report.clone(), named("first")),
        (report.clone(), named("second")),
        (format!("{report}?day=8"), named("second")),
    ] {
        market.script.lock().unwrap().answers.clear();
        outage(&market);
        buyer.get(&url, &options).await.unwrap_err();
    }
    assert_eq!(nonces(&market).len(), 4);
    let calls = market.calls().len();
    let elsewhere = buyer
        .get(&format!("{seller}/broken"), &named("first"))
        .await;
    let error = elsewhere.unwrap_err();
    assert!(
        matches!(error, BuyerError::Journal(JournalError::OtherRequest)),
        "{error}"
    );
    assert_eq!(market.calls().len(), calls);
}

#[tokio::test]
async fn similar_open_purchase_blocks_signing_unless_declared_new() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let report = |query: &str| format!("{seller}/report{query}");
    let (journal, other_seller) = (Journal::in_memory(), market.seller(Flow::Upfront).await);
    let buyer = |now| client().journal(journal.clone()).clock(at(now));
    outage(&market);
    let lost = buyer(NOW).get(&report("?ts=1"), &cent()).await.unwrap_err();
    market.script.lock().unwrap().answers.clear();
    let nonces_before = nonces(&market);
    for again in ["?ts=2", "/", "?ts=1&page=1"] {
        let error = buyer(NOW).get(&report(again), &cent()).await.unwrap_err();
        assert_eq!(error.code(), "may_be_repeated", "{again}: {error}");
        assert_eq!(error.signed(), lost.signed());
        assert!(error.money_may_have_moved());
        let message = error.to_string();
        let until = error.signed().unwrap().valid_before.unwrap().to_string();
        assert!(
            message.contains("/report") && message.contains(&until),
            "{message}"
        );
        assert!(
            !message.contains("ts=1"),
            "a query may be secret: {message}"
        );
        assert!(error.advice().contains("--purchase-id"));
    }
    assert_eq!(nonces(&market), nonces_before, "nothing was signed");
    // Not similar: another seller. Declared new: `another` or a purchase id. Below: an expired payment.
    let elsewhere = format!("{other_seller}/report");
    assert_eq!(
        buyer(NOW).get(&elsewhere, &cent()).await.unwrap().status,
        200
    );
    let (another, id) = (true, Some("mine".to_owned()));
    for options in [
        PayOptions { another, ..cent() },
        PayOptions {
            purchase_id: id,
            ..cent()
        },
    ] {
        let paid = buyer(NOW).get(&report("?ts=3"), &options).await.unwrap();
        assert_eq!(paid.status, 200);
    }
    // The identical call presents its payment again, and closes it.
    let same = buyer(NOW).get(&report("?ts=1"), &cent()).await.unwrap();
    assert_eq!(same.status, 200);
    assert_eq!(same.signed.as_ref(), lost.signed());
    assert_eq!(
        buyer(NOW)
            .get(&report("?ts=4"), &cent())
            .await
            .unwrap()
            .status,
        200
    );
    outage(&market);
    buyer(NOW).get(&report("?ts=5"), &cent()).await.unwrap_err();
    market.script.lock().unwrap().answers.clear();
    assert_eq!(
        buyer(LATER)
            .get(&report("?ts=6"), &cent())
            .await
            .unwrap()
            .status,
        200
    );
}

#[tokio::test]
async fn concurrent_similar_calls_are_separate_purchases() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let (buyer, options) = (client(), cent());
    let urls: Vec<_> = (0..8)
        .map(|day| format!("{seller}/report?day={day}"))
        .collect();
    let mut calls = JoinSet::new();
    for url in urls {
        let (buyer, options) = (buyer.clone(), options.clone());
        calls.spawn(async move { buyer.get(&url, &options).await });
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().unwrap().status, 200);
    }
    assert_eq!(nonces(&market).len(), 8);
}

#[tokio::test]
async fn expired_payment_is_replaced_only_after_refusal_without_hash() {
    for (reason, hash, replaced) in [
        (
            Some("invalid_exact_evm_payload_authorization_valid_before"),
            "",
            true,
        ),
        (Some("duplicate_settlement"), "", false),
        (Some("invalid_exact_evm_nonce_already_used"), "", false),
        (Some("settlement_pending"), HASH, false),
        (Some("invalid_exact_evm_transaction_failed"), HASH, false),
        (None, "", false),
    ] {
        let mut market = Market::default();
        let url = format!("{}/report", market.seller(Flow::Upfront).await);
        let journal = Journal::in_memory();
        outage(&market);
        let early = client().journal(journal.clone());
        early.get(&url, &cent()).await.unwrap_err();
        let signed = nonces(&market);
        market.script.lock().unwrap().answers.clear();
        let later = client().journal(journal.clone()).clock(at(LATER));
        match reason {
            Some(reason) => market.respond(
                (0..2)
                    .map(|_| (200, failed(reason, hash)))
                    .take(if reason == "settlement_pending" { 2 } else { 1 }),
            ),
            None => outage(&market),
        }
        let outcome = later.get(&url, &cent()).await;
        let reason = reason.unwrap_or("an outage");
        if replaced {
            assert_eq!(outcome.unwrap().status, 200, "{reason}");
            assert_eq!(nonces(&market).len(), 2, "{reason}");
            continue;
        }
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), "unresolved", "{reason}: {error}");
        assert_eq!(error.transaction().unwrap_or_default(), hash, "{reason}");
        assert_eq!(nonces(&market), signed, "{reason}");
        // The caller has verified on chain that the nonce is unused.
        market.script.lock().unwrap().answers.clear();
        market.respond([(
            200,
            failed("invalid_exact_evm_payload_authorization_valid_before", ""),
        )]);
        let sign_again = PayOptions {
            sign_again: true,
            ..cent()
        };
        assert_eq!(
            later.get(&url, &sign_again).await.unwrap().status,
            200,
            "{reason}"
        );
        assert_eq!(nonces(&market).len(), 2, "{reason}");
    }
}

#[tokio::test]
async fn unexpired_payment_is_not_replaced_even_with_sign_again() {
    let mut market = Market::default();
    let url = format!("{}/report", market.seller(Flow::Upfront).await);
    let buyer = client();
    let sign_again = PayOptions {
        sign_again: true,
        ..cent()
    };
    for _ in 0..2 {
        market.respond([(200, failed("invalid_exact_evm_insufficient_balance", ""))]);
        buyer.get(&url, &sign_again).await.unwrap_err();
    }
    assert_eq!(nonces(&market).len(), 1);
}

#[tokio::test]
async fn identical_calls_run_in_turn_and_each_pays_once() {
    let mut market = Market::default();
    let url = format!("{}/report", market.seller(Flow::Upfront).await);
    let buyer = retrying_client();
    let mut calls = JoinSet::new();
    for _ in 0..8 {
        let (buyer, url) = (buyer.clone(), url.clone());
        calls.spawn(async move { buyer.get(&url, &cent()).await.unwrap().status });
    }
    assert!(calls.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(nonces(&market).len(), 8, "eight separate purchases");
    assert_eq!(buyer.committed().to_string(), "80000");
}

#[tokio::test]
async fn budget_counts_paid_and_open_payments() {
    let mut market = Market::default();
    let seller = market.seller(Flow::Upfront).await;
    let url = |day: u8| format!("{seller}/report?day={day}");
    let buyer = client().budget("25000".parse().unwrap());
    assert_eq!(buyer.get(&url(1), &cent()).await.unwrap().status, 200);
    outage(&market);
    buyer.get(&url(2), &cent()).await.unwrap_err();
    market.script.lock().unwrap().answers.clear();
    let error = buyer.get(&url(3), &cent()).await.unwrap_err();
    assert!(
        matches!(&error, BuyerError::OverBudget { committed, .. } if committed.to_string() == "20000"),
        "{error}"
    );
    assert!(!error.money_may_have_moved());
    assert_eq!(nonces(&market).len(), 2);
    assert_eq!(
        buyer.get(&url(2), &cent()).await.unwrap().status,
        200,
        "a payment that is already signed needs no further budget"
    );

    let hurried = client().budget("30000".parse().unwrap());
    let mut calls = JoinSet::new();
    for day in 10..20 {
        let (hurried, url) = (hurried.clone(), url(day));
        calls.spawn(async move { hurried.get(&url, &cent()).await.is_ok() });
    }
    let bought = calls
        .join_all()
        .await
        .into_iter()
        .filter(|bought| *bought)
        .count();
    assert_eq!(bought, 3, "ten concurrent calls stay within the budget");
}

#[tokio::test]
async fn hooks_run_before_signing_and_after_the_call() {
    let mut market = Market::default();
    let url = format!("{}/report", market.seller(Flow::Upfront).await);
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let (before, after) = (Arc::clone(&events), Arc::clone(&events));
    let buyer = client()
        .before_payment(move |proposed, url| {
            before
                .lock()
                .unwrap()
                .push(format!("{} for {}", proposed.amount, url.path()));
            if url.query() == Some("dear") {
                Err("not today".to_owned())
            } else {
                Ok(())
            }
        })
        .after_payment(move |_, result| {
            let text = match result {
                Ok(paid) => paid.transaction().unwrap_or("no hash").to_owned(),
                Err(error) => error.code().to_owned(),
            };
            after.lock().unwrap().push(text);
        });
    buyer.get(&url, &cent()).await.unwrap();
    market.respond([(200, failed("invalid_exact_evm_insufficient_balance", ""))]);
    buyer.get(&url, &cent()).await.unwrap_err();
    let error = buyer
        .get(&format!("{url}?dear"), &cent())
        .await
        .unwrap_err();
    assert!(matches!(&error, BuyerError::Declined(why) if why == "not today"));
    assert!(!error.money_may_have_moved());
    let events = events.lock().unwrap().clone();
    let proposed = "10000 for /report";
    assert_eq!(
        events,
        [proposed, HASH, proposed, "payment_refused", proposed]
    );
}

#[tokio::test]
async fn every_method_sends_its_body_with_both_requests() {
    let mut market = Market::default();
    let echo = Router::new().fallback(async |method: axum::http::Method, headers: HeaderMap, body: String| {
        if headers.contains_key("payment-signature") {
            let kind = headers.get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            return Json(json!({"method": method.as_str(), "body": body, "kind": kind})).into_response();
        }
        let challenge = json!({"x402Version": 2, "accepts": [{"scheme": "exact", "network": "eip155:84532", "amount": "10000",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "payTo": "0x2222222222222222222222222222222222222222",
            "maxTimeoutSeconds": 300, "extra": {"name": "USDC", "version": "2"}}]});
        (StatusCode::PAYMENT_REQUIRED, [(PAYMENT_REQUIRED, header::encode(&challenge).unwrap())]).into_response()
    });
    let url = market.open(echo).await;
    let (buyer, order) = (client(), json!({"order": 7}));
    let posted = buyer.post(&url, &order, &cent()).await.unwrap();
    let put = buyer.put(&url, &order, &cent()).await.unwrap();
    let deleted = buyer.delete(&url, &cent()).await.unwrap();
    for (paid, method) in [(&posted, "POST"), (&put, "PUT")] {
        let received = json_of(paid);
        assert_eq!(received["method"], method);
        assert_eq!(received["body"], order.to_string());
        assert_eq!(received["kind"], "application/json");
    }
    assert_eq!(json_of(&deleted)["method"], "DELETE");
}

/// An RPC endpoint whose latest block has the timestamp `time`, and on which the payer's nonces are `used` or not.
async fn chain(market: &mut Market, time: i64, used: bool) -> reqwest::Url {
    let answer = async move |Json(call): Json<Value>| {
        let result = if call["method"] == "eth_getBlockByNumber" {
            json!({"number": "0x10", "timestamp": format!("{time:#x}")})
        } else {
            assert_eq!(call["params"][1], "0x10", "the nonce is read at that block");
            json!(format!("0x{:064x}", u8::from(used)))
        };
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
    };
    let router = Router::new().fallback(answer);
    market.open(router).await.parse().unwrap()
}

#[tokio::test]
async fn chain_proves_an_expired_authorization_unpaid() {
    for (time, used, proven) in [
        (NOW + 300, false, true),
        (NOW + 299, false, false),
        (NOW + 300, true, false),
    ] {
        let mut market = Market::default();
        let url = format!("{}/report", market.seller(Flow::Upfront).await);
        let rpc = chain(&mut market, time, used).await;
        let journal = Journal::in_memory();
        outage(&market);
        let early = client().journal(journal.clone());
        early.get(&url, &cent()).await.unwrap_err();
        let before = market.calls().len();
        market.script.lock().unwrap().answers.clear();
        let later = client()
            .journal(journal)
            .clock(at(LATER))
            .chain(BASE_SEPOLIA, rpc);
        if proven {
            assert_eq!(later.get(&url, &cent()).await.unwrap().status, 200);
            assert_eq!(
                market.calls().len(),
                before + 1,
                "the old payment is not presented again"
            );
            assert_eq!(nonces(&market).len(), 2);
        } else {
            outage(&market);
            let error = later.get(&url, &cent()).await.unwrap_err();
            assert_eq!(error.code(), "unresolved", "{time} {used}");
            assert_eq!(nonces(&market).len(), 1);
        }
    }
}

#[tokio::test]
async fn nothing_is_signed_again_when_the_chain_shows_the_nonce_used() {
    let mut market = Market::default();
    let url = format!("{}/report", market.seller(Flow::Upfront).await);
    let rpc = chain(&mut market, NOW + 300, true).await;
    let journal = Journal::in_memory();
    outage(&market);
    let early = client().journal(journal.clone());
    early.get(&url, &cent()).await.unwrap_err();
    market.script.lock().unwrap().answers.clear();
    // A seller that forgot its purchases says that nothing was paid.
    let expired = "invalid_exact_evm_payload_authorization_valid_before";
    market.respond([(200, failed(expired, ""))]);
    let later = client()
        .journal(journal)
        .clock(at(LATER))
        .chain(BASE_SEPOLIA, rpc);
    let error = later.get(&url, &cent()).await.unwrap_err();
    assert_eq!(error.code(), "unresolved", "{error}");
    assert_eq!(nonces(&market).len(), 1);
}
