//! Before another payment is signed in the place of an expired one, the buyer's facilitator is asked what became of it.

use crate::journaling::{LATER, at, nonces, outage};
use crate::support::*;
use x402d::buyer::{Journal, SessionUse};

/// A seller says that nothing was paid, and the buyer's own facilitator is asked. Its answer is the next one of the script.
async fn later_purchase(market: &mut Market, status: (u16, Value)) -> Result<Paid, BuyerError> {
    let facilitator = market.facilitator().await;
    let url = market.seller_with(&facilitator, Flow::Upfront).await;
    let (url, journal) = (format!("{url}/report"), Journal::in_memory());
    let options = PayOptions {
        sessions: SessionUse::Never,
        ..cent()
    };
    outage(market);
    let early = client().journal(journal.clone());
    early.get(&url, &options).await.unwrap_err();
    market.script.lock().unwrap().answers.clear();
    let expired = "invalid_exact_evm_payload_authorization_valid_before";
    market.respond([(200, failed(expired, "")), status]);
    let later = client()
        .journal(journal)
        .clock(at(LATER))
        .facilitator(facilitator.parse().unwrap());
    later.get(&url, &options).await
}

#[tokio::test]
async fn nothing_is_signed_again_when_the_facilitator_has_moved_the_money() {
    let has = |moved: bool, may: bool| {
        json!({"known": true, "state": "settled", "transaction": HASH, "moneyMoved": moved, "moneyMayMove": may,
            "successTold": false, "next": "wait"})
    };
    for status in [has(true, false), has(false, true)] {
        let mut market = Market::default();
        let error = later_purchase(&mut market, (200, status))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "unresolved", "{error}");
        assert_eq!(error.transaction(), Some(HASH));
        let calls = market.calls();
        let (name, body) = calls.last().unwrap();
        assert_eq!(name, "status");
        assert_eq!(body["paymentRequirements"]["amount"], "10000");
        assert_eq!(nonces(&market).len(), 1);
    }
}

#[tokio::test]
async fn facilitator_that_has_not_moved_the_money_or_does_not_say_leaves_it_to_the_seller() {
    let never = json!({"known": false, "moneyMoved": false, "moneyMayMove": false, "successTold": false, "next": "pay"});
    for status in [
        (200, never),
        (404, json!({})),
        (405, json!({})),
        (200, json!({})),
    ] {
        let mut market = Market::default();
        let paid = later_purchase(&mut market, status).await.unwrap();
        assert_eq!(paid.status, 200);
        assert_eq!(nonces(&market).len(), 2);
    }
}
