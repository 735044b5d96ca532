//! Metered purchases that are presented again: the first charge stays.

use crate::metered::{last_call, payment, payment_with_nonce, price, shop, with_query};
use crate::support::*;
use x402d::seller::Charge;

#[tokio::test]
async fn interrupted_response_is_served_again_for_first_charge() {
    let mut market = Market::default();
    let runs = Arc::clone(&market.runs);
    // Longer than the buffers of a connection that is not read.
    let handler = async move || {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        let charge: Charge = (1000 * run).to_string().parse().unwrap();
        (charge, vec![b'x'; 15 * 1024 * 1024])
    };
    let url = market.sell(price(), Flow::Upfront, handler).await;
    let payment = payment(&challenge(&url).await);
    let client = reqwest::Client::new();
    let send = || client.get(&url).header(payment.name(), payment.value());
    let broken = send().send().await.unwrap();
    assert_eq!(broken.status(), 200);
    drop(broken);
    // The payment stays claimed until the server has noticed the closed connection.
    let mut again = send().send().await.unwrap();
    for _ in 0..10_000 {
        if again.status() != 402 {
            break;
        }
        again = send().send().await.unwrap();
    }
    let receipt = again.headers()[PAYMENT_RESPONSE].to_str().unwrap();
    let receipt: x402d::protocol::SettleResponse = header::decode(receipt).unwrap();
    assert_eq!(receipt.amount, Some("1000".parse().unwrap()));
    assert_eq!(again.bytes().await.unwrap().len(), 15 * 1024 * 1024);
    assert_eq!((market.runs(), last_call(&market).1), (2, json!("1000")));
    assert_eq!(market.call_names(), ["supported", "verify", "settle"]);
}

#[tokio::test]
async fn lost_charge_is_asked_for_again_before_the_handler_runs() {
    for charge in ["0", "1000"] {
        let mut market = Market::default();
        let url = with_query(&shop(&mut market).await, &[("typed", charge)]);
        let payment = payment(&challenge(&url).await);
        let client = reqwest::Client::new();
        let send = || client.get(&url).header(payment.name(), payment.value());
        market.respond([(200, valid()), (502, json!({}))]);
        assert_eq!(send().send().await.unwrap().status(), 502);
        // Nobody was granted it, as far as the facilitator says.
        let hash = if charge == "0" { "" } else { HASH };
        market.respond([(200, failed("duplicate_settlement", hash))]);
        assert_eq!(send().send().await.unwrap().status(), 402);

        let again = payment_with_nonce(&challenge(&url).await, "8");
        let send = || client.get(&url).header(again.name(), again.value());
        market.respond([(200, valid()), (502, json!({}))]);
        assert_eq!(send().send().await.unwrap().status(), 502);
        let id = market.request_ids().pop().flatten().unwrap();
        let mut duplicate = failed("duplicate_settlement", hash);
        duplicate["extra"] = json!({"grantedTo": id});
        market.respond([(200, duplicate)]);
        let served = send().send().await.unwrap();
        assert_eq!(served.status(), 200, "{charge}");
        let receipt = served.headers()[PAYMENT_RESPONSE].to_str().unwrap();
        let receipt: x402d::protocol::SettleResponse = header::decode(receipt).unwrap();
        let expected = (true, Some(charge.parse().unwrap()));
        assert_eq!((receipt.success, receipt.amount), expected);
        assert_eq!(last_call(&market), ("settle".to_owned(), json!(charge)));
    }
}
