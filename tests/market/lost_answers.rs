//! A facilitator whose answers get lost: a payment buys one resource, whoever presents it and however it is spelled.

use std::collections::HashMap;

use crate::support::*;
use x402d::protocol::SettleResponse;

/// How much of a call of `/settle` works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    #[default]
    Good,
    /// The request never arrives.
    RequestLost,
    /// The request arrives, and its answer is lost.
    AnswerLost,
}

/// What a facilitator remembers: to which request it granted each nonce.
#[derive(Default)]
struct Ledger {
    line: Line,
    granted: HashMap<String, String>,
    /// Without it `duplicate_settlement` does not say to whom it was granted, as with other facilitators.
    names_requests: bool,
    settles: usize,
}

type SharedLedger = Arc<Mutex<Ledger>>;

async fn settle(
    State(ledger): State<SharedLedger>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let mut ledger = ledger.lock().unwrap();
    ledger.settles += 1;
    let lost = || StatusCode::BAD_GATEWAY.into_response();
    if ledger.line == Line::RequestLost {
        return lost();
    }
    let nonce = &body["paymentPayload"]["payload"]["authorization"]["nonce"];
    let nonce = nonce.as_str().unwrap().to_lowercase();
    let id = headers["x-request-id"].to_str().unwrap().to_owned();
    let answer = match ledger.granted.get(&nonce).cloned() {
        None => {
            ledger.granted.insert(nonce, id);
            settled()
        }
        Some(granted) => {
            let mut duplicate = failed("duplicate_settlement", HASH);
            if ledger.names_requests {
                duplicate["extra"] = json!({"grantedTo": granted});
            }
            duplicate
        }
    };
    if ledger.line == Line::AnswerLost {
        return lost();
    }
    Json(answer).into_response()
}

/// A facilitator and sellers of `/report` that use it.
struct Shops {
    market: Market,
    ledger: SharedLedger,
    facilitator: String,
}

impl Shops {
    async fn open(names_requests: bool) -> Self {
        let ledger: SharedLedger = Arc::default();
        ledger.lock().unwrap().names_requests = names_requests;
        let router = Router::new()
            .route("/verify", post(async || Json(valid())))
            .route("/settle", post(settle))
            .with_state(Arc::clone(&ledger));
        let mut market = Market::default();
        let facilitator = market.open(router).await;
        Self {
            market,
            ledger,
            facilitator,
        }
    }

    /// The URL of the report at a further seller with the same payee.
    async fn seller(&mut self, flow: Flow) -> String {
        let seller = self.market.seller_with(&self.facilitator, flow).await;
        format!("{seller}/report")
    }

    fn line(&self, line: Line) {
        self.ledger.lock().unwrap().line = line;
    }

    fn settles(&self) -> usize {
        self.ledger.lock().unwrap().settles
    }
}

fn outcome_of(response: &reqwest::Response) -> SettleResponse {
    let text = response.headers()[PAYMENT_RESPONSE].to_str().unwrap();
    header::decode(text).unwrap()
}

#[tokio::test]
async fn success_that_was_lost_is_recovered_for_its_own_request_once() {
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let mut shops = Shops::open(true).await;
        let url = shops.seller(flow).await;
        let payment = unsigned_payment(&challenge(&url).await, HASH);
        shops.line(Line::AnswerLost);
        assert_eq!(send(&url, &payment).await.status(), 502);
        shops.line(Line::Good);
        let elsewhere = format!("{url}?id=2");
        let refused = send(&elsewhere, &payment).await;
        assert_eq!(
            refused.status(),
            402,
            "{flow:?}: it was granted to another request"
        );
        let served = send(&url, &payment).await;
        assert_eq!(served.status(), 200, "{flow:?}");
        let outcome = outcome_of(&served);
        assert_eq!(
            (outcome.success, outcome.transaction.as_str()),
            (true, HASH)
        );
        assert!(outcome.extra.unwrap_or_default().get("grantedTo").is_none());
        assert_eq!(send(&url, &payment).await.status(), 402, "{flow:?}");
    }
}

/// Each spelling is another JSON text of the same signed payment.
fn spelled(challenge: &PaymentRequired, number: usize) -> PaymentHeader {
    let nonce = match number % 2 {
        0 => HASH.to_owned(),
        _ => HASH.to_uppercase().replace('X', "x"),
    };
    let payer = match number % 3 {
        0 => PAYER.to_string(),
        _ => PAYER.to_string().to_lowercase(),
    };
    let payload = json!({"signature": "0x07", "x": number, "authorization": {"from": payer, "to": Address::repeat_byte(0x22).to_string(),
        "value": "10000", "validAfter": "0", "validBefore": "1900000000", "nonce": nonce}});
    PaymentHeader::present(challenge, &challenge.offers().remove(0), &payload).unwrap()
}

#[tokio::test]
async fn spellings_of_one_payment_buy_once_after_an_outage() {
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let mut shops = Shops::open(true).await;
        let url = shops.seller(flow).await;
        let challenge = challenge(&url).await;
        let present_all = async || {
            let mut statuses = Vec::new();
            for number in 0..5 {
                let url = format!("{url}?id={number}");
                let response = send(&url, &spelled(&challenge, number)).await;
                statuses.push(response.status().as_u16());
            }
            statuses
        };
        shops.line(Line::RequestLost);
        assert_eq!(present_all().await, [502; 5]);
        shops.line(Line::Good);
        let statuses = present_all().await;
        assert_eq!(statuses, [200, 402, 402, 402, 402], "{flow:?}");
        assert_eq!(present_all().await, [402; 5], "{flow:?}");
    }
}

/// Other encodings of a payment header: without padding, with another alphabet, with white space, with a member written twice.
fn encodings(payment: &PaymentHeader) -> Vec<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
    let json = STANDARD.decode(payment.value()).unwrap();
    let text = String::from_utf8(json.clone()).unwrap();
    let other_nonce = HASH.replace('a', "b");
    let payload: Value = serde_json::from_slice(&json).unwrap();
    let mut junk = payload["payload"].clone();
    junk["authorization"]["nonce"] = json!(other_nonce);
    let twice = |first: &Value, second: &Value| {
        let rest = text.trim_start_matches('{');
        let (before, after) = (
            format!("{{\"payload\":{first},"),
            format!(",\"payload\":{second}}}"),
        );
        let end = rest.rfind('}').unwrap();
        STANDARD.encode(format!("{before}{}{after}", &rest[..end]))
    };
    let (half, rest) = payment.value().split_at(40);
    vec![
        payment.value().to_owned(),
        STANDARD_NO_PAD.encode(&json),
        URL_SAFE.encode(&json),
        STANDARD.encode(format!(" {text}\n")),
        format!("{half} {rest}"),
        format!("{half}\t{rest}"),
        format!("{}=", payment.value()),
        twice(&junk, &payload["payload"]),
        format!("\u{feff}{}", payment.value()),
    ]
}

#[tokio::test]
async fn encodings_of_one_header_buy_once() {
    for line in [Line::Good, Line::RequestLost] {
        let mut shops = Shops::open(true).await;
        let url = shops.seller(Flow::Upfront).await;
        let payment = unsigned_payment(&challenge(&url).await, HASH);
        let mut served = 0;
        for line in [line, Line::Good] {
            shops.line(line);
            for (number, value) in encodings(&payment).iter().enumerate() {
                let request = reqwest::Client::new()
                    .get(format!("{url}?id={number}"))
                    .header(payment.name(), value.as_bytes());
                let status = request.send().await.unwrap().status().as_u16();
                assert!([200, 400, 402, 502].contains(&status), "{number}: {status}");
                served += usize::from(status == 200);
            }
        }
        assert_eq!((served, shops.market.runs()), (1, 1), "{line:?}");
    }
}

#[tokio::test]
async fn payment_that_bought_elsewhere_buys_nothing_here() {
    for flow in [Flow::Upfront, Flow::AfterHandler] {
        let mut shops = Shops::open(true).await;
        let (here, elsewhere) = (shops.seller(flow).await, shops.seller(flow).await);
        let payment = unsigned_payment(&challenge(&here).await, HASH);
        shops.line(Line::RequestLost);
        assert_eq!(send(&here, &payment).await.status(), 502);
        shops.line(Line::Good);
        assert_eq!(send(&elsewhere, &payment).await.status(), 200);
        let runs = shops.market.runs();
        let refused = send(&here, &payment).await;
        assert_eq!(refused.status(), 402, "{flow:?}");
        let outcome = outcome_of(&refused);
        assert_eq!(
            outcome.error_reason.as_deref(),
            Some("duplicate_settlement")
        );
        let why = outcome.error_message.unwrap();
        assert!(
            why.contains("granted this payment to another request"),
            "{why}"
        );
        assert_eq!(
            shops.market.runs(),
            runs,
            "{flow:?}: the handler did not run"
        );
    }
}

#[tokio::test]
async fn facilitator_that_names_no_request_gets_an_honest_refusal() {
    let mut shops = Shops::open(false).await;
    let url = shops.seller(Flow::Upfront).await;
    let payment = unsigned_payment(&challenge(&url).await, HASH);
    shops.line(Line::AnswerLost);
    assert_eq!(send(&url, &payment).await.status(), 502);
    shops.line(Line::Good);
    let refused = send(&url, &payment).await;
    assert_eq!(refused.status(), 402);
    let outcome = outcome_of(&refused);
    assert_eq!(outcome.transaction, HASH, "the proof that the money moved");
    let why = outcome.error_message.unwrap();
    assert!(why.contains("Do not pay again"), "{why}");
    assert_eq!(shops.market.runs(), 0);
}

#[tokio::test]
async fn lost_success_is_recovered_after_a_restart_but_not_by_another_instance() {
    let mut shops = Shops::open(true).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("owed");
    let paywall = Paywall::new(&shops.facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .clock(clock())
        .owed_in(&path)
        .route("GET /report", Price::dollars("0.01").unwrap());
    let runs = Arc::clone(&shops.market.runs);
    let router = move |layer| {
        let router = Router::new().route("/report", get(report));
        router.with_state(Arc::clone(&runs)).layer(layer)
    };
    let mut first = Market::default();
    let first_life = router(built(&paywall).await);
    let url = format!("{}/report", first.open(first_life).await);
    let payment = unsigned_payment(&challenge(&url).await, HASH);
    shops.line(Line::AnswerLost);
    assert_eq!(send(&url, &payment).await.status(), 502);
    first.servers.shutdown().await;
    shops.line(Line::Good);
    let elsewhere = shops.seller(Flow::Upfront).await;
    assert_eq!(send(&elsewhere, &payment).await.status(), 402);
    let second_life = router(built(&paywall).await);
    let again = format!("{}/report", shops.market.open(second_life).await);
    assert_eq!(send(&again, &payment).await.status(), 200);
    assert_eq!(send(&again, &payment).await.status(), 402);
    assert_eq!(shops.market.runs(), 1);
    assert_eq!(shops.settles(), 4, "each presentation asks the facilitator");
}

/// The paywall, once the file of the life before is free: connections end a moment after their server.
async fn built(paywall: &Paywall) -> x402d::seller::PaywallLayer {
    for _ in 0..500 {
        if let Ok(layer) = paywall.clone().build() {
            return layer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the file stays locked");
}
