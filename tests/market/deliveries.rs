//! Answers that break off: a purchase is served again from a copy, or a few times by its handler, and never without end.

use std::collections::HashSet;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::Frame;
use tokio::sync::{Semaphore, mpsc};

use crate::support::*;

/// The tasks that have read a body: first the connection, then the one that copies the rest.
type Readers = Arc<Mutex<HashSet<tokio::task::Id>>>;

/// A body of unknown length, as a stream of events has.
struct Streamed(mpsc::Receiver<Bytes>, Readers);

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.1.lock().unwrap().extend(tokio::task::try_id());
        let polled = self.0.poll_recv(context);
        polled.map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// Waits until the payment of `url` is not being served any more, and returns the next answer.
async fn send_when_free(url: &str, payment: &PaymentHeader) -> reqwest::Response {
    for _ in 0..2_000 {
        let response = send(url, payment).await;
        let claimed = response.status() == 402 && {
            let text = response.headers()[PAYMENT_REQUIRED].to_str().unwrap();
            let challenge: PaymentRequired = header::decode(text).unwrap();
            challenge.error.unwrap().contains("right now")
        };
        if !claimed {
            return response;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the payment stays claimed");
}

#[tokio::test]
async fn handler_of_a_long_answer_runs_four_times_at_most() {
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let mut market = Market::default();
        let runs = Arc::clone(&market.runs);
        // Longer than the buffers of a connection that is not read, and than a copy.
        let handler = async move || {
            runs.fetch_add(1, Ordering::SeqCst);
            vec![b'x'; 15 * 1024 * 1024]
        };
        let url = market
            .sell(Price::dollars("0.01").unwrap(), flow, handler)
            .await;
        let payment = unsigned_payment(&challenge(&url).await, HASH);
        for time in 0..4 {
            let broken = send_when_free(&url, &payment).await;
            assert_eq!(broken.status(), 200, "{flow:?}: {time}");
            drop(broken);
        }
        // The facilitator is asked again, as for any payment that is not known here.
        let (refusal, settles) = match flow {
            Flow::Upfront => (failed("duplicate_settlement", HASH), 2),
            Flow::AfterHandler => {
                let reason = "duplicate_settlement";
                (json!({"isValid": false, "invalidReason": reason}), 1)
            }
        };
        market.respond([(200, refusal)]);
        assert_eq!(send_when_free(&url, &payment).await.status(), 402);
        assert_eq!(market.runs(), 4, "{flow:?}");
        let names = market.call_names();
        let called = names.iter().filter(|name| *name == "settle");
        assert_eq!(called.count(), settles, "{flow:?}");
    }
}

#[tokio::test]
async fn short_answer_is_served_again_from_its_copy() {
    let mut market = Market::default();
    let runs = Arc::clone(&market.runs);
    let (last_part, readers) = (Arc::new(Semaphore::new(0)), Readers::default());
    let (gate, reading) = (Arc::clone(&last_part), Arc::clone(&readers));
    let handler = async move || {
        let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
        let (parts, received) = mpsc::channel(1);
        parts.send(format!("run {run}: ").into()).await.unwrap();
        let gate = Arc::clone(&gate);
        tokio_util::task::TaskTracker::new().spawn(async move {
            gate.acquire().await.unwrap().forget();
            parts.send("the end".into()).await.ok();
        });
        (
            [("x-run", run.to_string())],
            Body::new(Streamed(received, Arc::clone(&reading))),
        )
    };
    let url = market
        .sell(Price::dollars("0.01").unwrap(), Flow::Upfront, handler)
        .await;
    let payment = unsigned_payment(&challenge(&url).await, HASH);
    // Everything is read but the last part, which a hostile buyer leaves out.
    let mut broken = send(&url, &payment).await;
    assert_eq!(&*broken.chunk().await.unwrap().unwrap(), b"run 1: ");
    drop(broken);
    for _ in 0..2_000 {
        if readers.lock().unwrap().len() > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    last_part.add_permits(1);
    let again = send_when_free(&url, &payment).await;
    assert_eq!(again.status(), 200);
    assert_eq!(again.headers()["x-run"], "1");
    assert!(again.headers().contains_key(PAYMENT_RESPONSE));
    assert_eq!(again.text().await.unwrap(), "run 1: the end");
    assert_eq!(market.runs(), 1);
    market.respond([(200, failed("duplicate_settlement", HASH))]);
    assert_eq!(send_when_free(&url, &payment).await.status(), 402);
    assert_eq!(market.runs(), 1);
}

/// A payer whose verified payments do not settle waits before its next one is worked for.
#[tokio::test]
async fn payer_whose_valid_payments_fail_is_not_worked_for() {
    let mut market = Market::default();
    let seller = market.seller(Flow::AfterHandler).await;
    let url = format!("{seller}/report");
    let offered = challenge(&url).await;
    let nonce = |number: usize| format!("0x{number:064x}");
    let attempt = async |number: usize| {
        let response = send(&url, &unsigned_payment(&offered, &nonce(number))).await;
        let text = response.headers().get(PAYMENT_REQUIRED);
        let required = text.map(|text| {
            let required: PaymentRequired = header::decode(text.to_str().unwrap()).unwrap();
            required.error.unwrap()
        });
        (response.status().as_u16(), required.unwrap_or_default())
    };
    market.respond([
        (200, valid()),
        (200, failed("invalid_exact_evm_insufficient_balance", "")),
    ]);
    assert_eq!(attempt(1).await.0, 402);
    assert_eq!(market.runs(), 1);
    for number in 2..20 {
        let (status, error) = attempt(number).await;
        assert_eq!(status, 402);
        assert!(error.starts_with("payer_suspended: "), "{error}");
    }
    assert_eq!(market.runs(), 1, "no work for a payer that has to wait");
    assert_eq!(market.call_names(), ["verify", "settle"]);
    // Payments that are settled first cost nothing.
    let upfront = format!("{}/report", market.seller(Flow::Upfront).await);
    assert_eq!(
        present(&upfront, &challenge(&upfront).await).await.status(),
        200
    );
}
