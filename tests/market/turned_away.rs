//! What a paywall keeps of payments that were not settled: nothing of those that were turned away, and the request id of a pending one.

use std::collections::HashMap;

use crate::support::*;

/// A seller of `/report` whose purchases are kept in a file.
async fn seller(market: &mut Market, path: &std::path::Path) -> String {
    let paywall = Paywall::new(market.facilitator().await)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .flow(Flow::Upfront)
        .clock(clock())
        .owed_in(path)
        .route("GET /report", Price::dollars("0.01").unwrap());
    let router = Router::new()
        .route("/report", get(report))
        .with_state(Arc::clone(&market.runs))
        .layer(paywall.build().unwrap());
    format!("{}/report", market.open(router).await)
}

/// The purchases that are open after all lines of the file.
fn open_purchases(path: &std::path::Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    let mut open = HashMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        open.insert(line["key"].to_string(), !line["purchase"].is_null());
    }
    open.values().filter(|is_open| **is_open).count()
}

#[tokio::test]
async fn payments_that_are_turned_away_leave_nothing() {
    let mut market = Market::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let url = seller(&mut market, &path).await;
    let offered = challenge(&url).await;
    for (number, (status, reason)) in [
        (401, "key_required"),
        (401, "key_invalid"),
        (403, "scope_missing"),
        (403, "payee_not_allowed"),
        (429, "rate_limited"),
        (503, "keys_unavailable"),
        (503, "unexpected_settle_error"),
        (200, "unexpected_settle_error"),
        (200, "duplicate_settlement"),
        (200, "sponsorship_exhausted"),
        (200, "invalid_exact_evm_signature"),
    ]
    .into_iter()
    .enumerate()
    {
        let payment = unsigned_payment(&offered, &format!("0x{number:064x}"));
        for _ in 0..2 {
            market.respond([(status, failed(reason, ""))]);
            let answer = send(&url, &payment).await;
            assert_ne!(answer.status(), 200, "{status} {reason}");
            assert_eq!(open_purchases(&path), 0, "{status} {reason}");
        }
        // What is in memory keeps its request id.
        let ids = market.request_ids();
        assert_eq!(ids.len(), 2 * (number + 1), "one call for each");
        assert_ne!(ids[ids.len() - 2], ids[ids.len() - 1], "{status} {reason}");
    }
    assert_eq!(market.runs(), 0);
}

#[tokio::test]
async fn pending_payment_is_kept_and_asked_for_under_its_request_id() {
    let mut market = Market::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let url = seller(&mut market, &path).await;
    let payment = unsigned_payment(&challenge(&url).await, HASH);
    // Being turned away later changes nothing: the first call may still settle.
    let pending = || (200, failed("settlement_pending", HASH));
    let limited = (429, failed("rate_limited", ""));
    market.respond([pending(), pending(), limited]);
    for _ in 0..2 {
        assert_ne!(send(&url, &payment).await.status(), 200);
        assert_eq!(open_purchases(&path), 1);
    }
    assert_eq!(send(&url, &payment).await.status(), 200);
    let ids = market.request_ids();
    assert_eq!(ids.len(), 4);
    assert!(
        ids[0].is_some() && ids.iter().all(|id| *id == ids[0]),
        "{ids:?}"
    );
}
