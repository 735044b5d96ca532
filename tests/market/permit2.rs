//! Exact payments by Permit2: signatures, missing allowances and EIP-2612 permits.

use std::collections::HashSet;

use alloy::primitives::U256;

use crate::support::*;
use x402d::buyer::{Journal, SessionFailure, SessionUse};
use x402d::protocol::gas_sponsoring::EIP2612;
use x402d::protocol::permit2::{EXACT_PROXY, PERMIT2};
use x402d::protocol::{Eip2612Info, Permit2Payload, Scheme};

fn price() -> Price {
    Price::dollars("0.01").unwrap().by_permit2()
}

async fn hash_of(payment: Payment) -> String {
    payment.payment_id.unwrap_or_else(|| "none".to_owned())
}

fn signed(body: &Value) -> Permit2Payload {
    serde_json::from_value(body["paymentPayload"]["payload"].clone()).unwrap()
}

/// The nonces of all payments that the facilitator received.
fn nonces(market: &Market) -> HashSet<Amount> {
    let calls = market.calls();
    let signed = calls.iter().map(|(_, body)| signed(body));
    signed
        .map(|payload| payload.permit2_authorization.nonce)
        .collect()
}

#[tokio::test]
async fn permit2_purchase_is_signed_for_proxy_and_settled_first() {
    let mut market = Market::default();
    let url = market.sell(price(), Flow::Upfront, hash_of).await;
    let paid = client().get(&url, &cent()).await.unwrap();
    assert_eq!(
        (paid.status.as_u16(), paid.body.as_slice()),
        (200, HASH.as_bytes())
    );
    assert_eq!(paid.charged(), Some("10000".parse().unwrap()));

    assert_eq!(market.call_names(), ["settle"]);
    let body = market.calls().remove(0).1;
    let extra = &body["paymentRequirements"]["extra"];
    assert_eq!(extra["assetTransferMethod"], "permit2");
    assert_eq!(extra["paymentFlow"], "upfront");
    let payload = signed(&body);
    let authorization = payload.permit2_authorization;
    let now = datetime!(2026-01-02 03:04:05 UTC).unix_timestamp();
    assert_eq!(authorization.spender, EXACT_PROXY);
    assert_eq!(authorization.witness.to, Address::repeat_byte(0x22));
    assert_eq!(authorization.witness.facilitator, None);
    assert_eq!(authorization.permitted.token.to_string(), USDC);
    assert_eq!(authorization.permitted.amount.to_string(), "10000");
    assert_eq!(authorization.deadline.to_string(), (now + 300).to_string());
    let digest = authorization.digest(Scheme::Exact, DomainSeparator::of_permit2(BASE_SEPOLIA));
    let signature = Signature::from_raw(&payload.signature).unwrap();
    let signer = signature.recover_address_from_prehash(&digest).unwrap();
    assert_eq!(signer, PAYER);
}

#[tokio::test]
async fn v1_challenge_omits_permit2_offers() {
    let mut market = Market::default();
    let url = market.sell(price(), Flow::Upfront, hash_of).await;
    let response = reqwest::get(&url).await.unwrap();
    assert_eq!(response.status(), 402);
    assert_eq!(response.json::<Value>().await.unwrap(), json!({}));
    assert_eq!(challenge(&url).await.offers().len(), 1);
}

#[tokio::test]
async fn accepted_offer_of_two_methods_is_settled() {
    let mut market = Market::default();
    let facilitator = market.facilitator().await;
    let terms = |price| x402d::seller::Terms::new(BASE_SEPOLIA, Address::repeat_byte(0x22), price);
    let exact = || Price::dollars("0.01").unwrap();
    let paywall = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .sell(x402d::seller::Route::new("/sold", exact()).or(terms(exact().by_permit2())));
    let router = Router::new().route("/sold", get(hash_of));
    let url = market.open(router.layer(paywall.build().unwrap())).await + "/sold";
    let mut challenge = challenge(&url).await;
    challenge.accepts.remove(0);
    assert_eq!(present(&url, &challenge).await.status(), 200);
    let body = market.calls().remove(0).1;
    let extra = &body["paymentRequirements"]["extra"];
    assert_eq!(extra["assetTransferMethod"], "permit2");
}

#[tokio::test]
async fn missing_allowance_is_412_and_names_the_approval() {
    let invalid = json!({"isValid": false, "invalidReason": "permit2_allowance_required"});
    for (flow, answer) in [
        (Flow::Upfront, failed("permit2_allowance_required", "")),
        (Flow::AfterHandler, invalid),
    ] {
        let mut market = Market::default();
        let url = market.sell(price(), flow, hash_of).await;
        market.respond([(200, answer.clone())]);
        let response = present(&url, &challenge(&url).await).await;
        assert_eq!(response.status(), 412);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let again = response.headers()[PAYMENT_REQUIRED].to_str().unwrap();
        let again: PaymentRequired = header::decode(again).unwrap();
        assert_eq!(again.error.as_deref(), Some("permit2_allowance_required"));
        assert_eq!(again.offers().len(), 1);

        let buyer = retrying_client();
        let before = market.calls().len();
        market.respond([(200, answer.clone())]);
        let error = buyer.get(&url, &cent()).await.unwrap_err();
        assert_eq!(error.code(), "allowance_required", "{error}");
        let text = error.to_string();
        for part in [PERMIT2.to_string().as_str(), USDC, "10000", "eip155:84532"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            error.money_may_have_moved(),
            "the signed payment is valid until it expires"
        );
        assert!(error.signed().unwrap().valid_before.is_some());
        assert_eq!(
            market.calls().len(),
            before + 1,
            "not presented again within the call"
        );
        assert_eq!(buyer.get(&url, &cent()).await.unwrap().status, 200);
        let nonces: HashSet<_> = market.calls()[before..]
            .iter()
            .map(|(_, body)| signed(body).permit2_authorization.nonce)
            .collect();
        assert_eq!(
            nonces.len(),
            1,
            "the same payment is presented once Permit2 is approved"
        );
    }
}

#[tokio::test]
async fn other_refusals_are_402_and_handler_412_is_a_response() {
    let mut market = Market::default();
    let handler = async || StatusCode::PRECONDITION_FAILED;
    let url = market.sell(price(), Flow::AfterHandler, handler).await;
    market.respond([(200, failed("permit2_insufficient_balance", ""))]);
    let settled_first = market.sell(price(), Flow::Upfront, hash_of).await;
    let refused = present(&settled_first, &challenge(&settled_first).await).await;
    assert_eq!(refused.status(), 402);

    let paid = client().get(&url, &cent()).await.unwrap();
    assert_eq!(paid.status, 412);
    assert_eq!(paid.charged(), None);
    assert_eq!(market.call_names(), ["settle", "verify"]);
}

#[tokio::test]
async fn used_permit2_nonce_is_reported_as_payment_used() {
    let mut market = Market::default();
    let url = market.sell(price(), Flow::Upfront, hash_of).await;
    market.respond([(200, failed("permit2_invalid_nonce", HASH))]);
    let error = client().get(&url, &cent()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.transaction()),
        ("payment_used", Some(HASH))
    );
}

#[tokio::test]
async fn permit2_payment_opens_no_session() {
    let mut market = Market::default();
    let url = market.sell(price(), Flow::Upfront, hash_of).await;
    let sessions = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sessions);
    let router = Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        StatusCode::BAD_REQUEST
    });
    let facilitator: reqwest::Url = market.open(router).await.parse().unwrap();
    let buyer = client().facilitator(facilitator);
    for sessions in [SessionUse::PayFirst, SessionUse::Transfer] {
        let options = PayOptions { sessions, ..cent() };
        let error = buyer.get(&url, &options).await.unwrap_err();
        let expected = SessionFailure::PaymentMethod;
        assert!(
            matches!(&error, BuyerError::Session(failure) if *failure == expected),
            "{error}"
        );
        assert_eq!(error.code(), "session_unavailable");
        assert!(!error.money_may_have_moved());
    }
    assert!(market.call_names().is_empty());
    assert_eq!(buyer.get(&url, &cent()).await.unwrap().status, 200);
    assert_eq!(sessions.load(Ordering::SeqCst), 0);
}

/// An RPC endpoint with an allowance of `allowance` atomic units of USDC to Permit2 and the permit nonce 5. Also returns the call counter.
async fn chain_with_allowance(
    market: &mut Market,
    allowance: u64,
) -> (reqwest::Url, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let answer = async move |Json(call): Json<Value>| {
        counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!(call["params"][0]["to"], USDC.to_lowercase());
        let data = call["params"][0]["data"].as_str().unwrap();
        let word = |address: Address| format!("{:0>64}", alloy::hex::encode(address));
        let allowance_call = format!("0xdd62ed3e{}{}", word(PAYER), word(PERMIT2));
        let result = match data {
            data if data == allowance_call => allowance,
            data if data == format!("0x7ecebe00{}", word(PAYER)) => 5,
            other => panic!("{other}"),
        };
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": format!("0x{result:064x}")}))
    };
    let url = market.open(Router::new().fallback(answer)).await;
    (url.parse().unwrap(), calls)
}

/// The member `eip2612GasSponsoring.info` of the last payment.
fn sponsoring_info(market: &Market) -> Value {
    let body = market.calls().pop().unwrap().1;
    body["paymentPayload"]["extensions"][EIP2612]["info"].clone()
}

#[tokio::test]
async fn permit_is_attached_only_when_allowance_is_too_low() {
    let mut market = Market::default();
    let url = market.sell(price(), Flow::Upfront, hash_of).await;
    let declared = challenge(&url).await.extensions.unwrap();
    assert_eq!(declared[EIP2612]["info"]["version"], "1");
    assert_eq!(
        declared[EIP2612]["schema"]["required"]
            .as_array()
            .unwrap()
            .len(),
        8
    );

    let (low, _) = chain_with_allowance(&mut market, 9_999).await;
    client()
        .chain(BASE_SEPOLIA, low.clone())
        .get(&url, &cent())
        .await
        .unwrap();
    let info = sponsoring_info(&market);
    let permit: Eip2612Info = serde_json::from_value(info.clone()).unwrap();
    assert_eq!(
        info["description"],
        declared[EIP2612]["info"]["description"]
    );
    assert_eq!((permit.from, permit.spender), (PAYER, PERMIT2));
    assert_eq!(
        (permit.amount.to_string(), permit.nonce.to_string()),
        ("10000".to_owned(), "5".to_owned())
    );
    let payment = signed(&market.calls().pop().unwrap().1);
    assert_eq!(permit.deadline, payment.permit2_authorization.deadline);
    let separator = DomainSeparator::of_token("USDC", "2", BASE_SEPOLIA, permit.asset);
    let signature = Signature::from_raw(&permit.signature).unwrap();
    let owner = signature.recover_address_from_prehash(&permit.digest(separator));
    assert_eq!(owner.unwrap(), PAYER);

    let without_permit = &declared[EIP2612]["info"];
    let (sufficient, _) = chain_with_allowance(&mut market, 10_000).await;
    client()
        .chain(BASE_SEPOLIA, sufficient)
        .get(&url, &cent())
        .await
        .unwrap();
    assert_eq!(
        &sponsoring_info(&market),
        without_permit,
        "the allowance is sufficient"
    );
    client().get(&url, &cent()).await.unwrap();
    assert_eq!(&sponsoring_info(&market), without_permit, "no RPC endpoint");
    let elsewhere = Network::from_chain_id(8453);
    client()
        .chain(elsewhere, low)
        .get(&url, &cent())
        .await
        .unwrap();
    assert_eq!(
        &sponsoring_info(&market),
        without_permit,
        "no RPC endpoint for this network"
    );
    let broken = market.open(Router::new()).await.parse().unwrap();
    client()
        .chain(BASE_SEPOLIA, broken)
        .get(&url, &cent())
        .await
        .unwrap();
    assert_eq!(
        &sponsoring_info(&market),
        without_permit,
        "the RPC endpoint fails"
    );
}

#[tokio::test]
async fn permit_is_not_signed_when_unannounced_or_unusable() {
    let mut market = Market::default();
    let (chain, chain_calls) = chain_with_allowance(&mut market, 0).await;
    let by_token = market
        .sell(Price::dollars("0.01").unwrap(), Flow::Upfront, hash_of)
        .await;
    assert_eq!(
        challenge(&by_token).await.extensions,
        None,
        "EIP-3009 needs no allowance"
    );
    client()
        .chain(BASE_SEPOLIA, chain.clone())
        .get(&by_token, &cent())
        .await
        .unwrap();

    let facilitator = market.facilitator().await;
    let unannounced = Paywall::new(facilitator)
        .pay_to(Address::repeat_byte(0x22))
        .network(BASE_SEPOLIA)
        .route("/sold", price());
    let router = Router::new().route("/sold", get(hash_of));
    let unannounced = market
        .open(router.layer(unannounced.build().unwrap()))
        .await
        + "/sold";
    client()
        .chain(BASE_SEPOLIA, chain.clone())
        .get(&unannounced, &cent())
        .await
        .unwrap();
    let body = market.calls().pop().unwrap().1;
    assert_eq!(body["paymentPayload"].get("extensions"), None);

    let sponsoring = market.sell(price(), Flow::Upfront, hash_of).await;
    let wallet = Signer::for_wallet(KEY, Address::repeat_byte(0x77)).unwrap();
    let mut by_wallet = settled();
    by_wallet["payer"] = json!(wallet.address().to_string());
    market.respond([(200, by_wallet)]);
    let wallet = Client::new(wallet).unwrap().chain(BASE_SEPOLIA, chain);
    wallet.get(&sponsoring, &cent()).await.unwrap();
    assert_eq!(
        sponsoring_info(&market).get("signature"),
        None,
        "tokens accept no permit of a contract wallet"
    );
    assert_eq!(chain_calls.load(Ordering::SeqCst), 0);
}

/// An RPC endpoint whose latest block has the timestamp `time`; `bitmap` returns the word of Permit2's nonce bitmap.
async fn chain_at(
    market: &mut Market,
    time: i64,
    bitmap: impl Fn(U256) -> U256 + Clone + Send + Sync + 'static,
) -> reqwest::Url {
    let answer = async move |Json(call): Json<Value>| {
        let result = if call["method"] == "eth_getBlockByNumber" {
            json!({"number": "0x10", "timestamp": format!("{time:#x}")})
        } else {
            assert_eq!(call["params"][1], "0x10");
            assert_eq!(call["params"][0]["to"], PERMIT2.to_string().to_lowercase());
            let data = call["params"][0]["data"].as_str().unwrap();
            let word = data.strip_prefix("0x4fe02b44").unwrap().get(64..).unwrap();
            json!(format!(
                "0x{:064x}",
                bitmap(U256::from_str_radix(word, 16).unwrap())
            ))
        };
        Json(json!({"jsonrpc": "2.0", "id": call["id"], "result": result}))
    };
    let url = market.open(Router::new().fallback(answer)).await;
    url.parse().unwrap()
}

#[tokio::test]
async fn permit2_bitmap_proves_an_expired_payment_unpaid() {
    const NOW: i64 = 1_767_323_045;
    for (time, used, proven) in [
        (NOW + 301, false, true),
        (NOW + 300, false, false),
        (NOW + 301, true, false),
    ] {
        let mut market = Market::default();
        let url = market.sell(price(), Flow::Upfront, hash_of).await;
        let journal = Journal::in_memory();
        let outage = || market.respond([(503, json!({})), (503, json!({}))]);
        outage();
        client()
            .journal(journal.clone())
            .get(&url, &cent())
            .await
            .unwrap_err();
        let nonce = nonces(&market).into_iter().next().unwrap().atomic();
        market.script.lock().unwrap().answers.clear();
        outage();
        let bit = U256::from(1) << nonce.byte(0);
        let rpc = chain_at(&mut market, time, move |word| {
            assert_eq!(word, nonce >> 8);
            // The other bits of the word must not matter.
            if used { bit } else { !bit }
        })
        .await;
        let later = ManualClock::new(time::OffsetDateTime::from_unix_timestamp(NOW + 361).unwrap());
        let later = client()
            .journal(journal)
            .clock(Arc::new(later))
            .chain(BASE_SEPOLIA, rpc);
        if proven {
            market.script.lock().unwrap().answers.clear();
            assert_eq!(later.get(&url, &cent()).await.unwrap().status, 200);
            assert_eq!(nonces(&market).len(), 2);
        } else {
            let error = later.get(&url, &cent()).await.unwrap_err();
            assert_eq!(error.code(), "unresolved", "{time} {used}");
            assert_eq!(nonces(&market).len(), 1);
        }
    }
}
