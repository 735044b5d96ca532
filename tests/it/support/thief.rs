//! A thief that reads payments from pending and mined blocks, and presents copies of their headers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256};
use alloy::sol;
use alloy::sol_types::SolCall;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Answer, Caller, Chain, eventually};

sol! {
    function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore,
        bytes32 nonce, uint8 v, bytes32 r, bytes32 s);
    struct Call3 {
        address target;
        bool allowFailure;
        bytes callData;
    }
    function aggregate3(Call3[] calls);
}

/// How often a thief presents each payment that it sees.
const COPIES: usize = 20;

type Answers = Arc<Mutex<HashMap<B256, Vec<Answer>>>>;

/// Steals until it is dropped.
pub(crate) struct Thief {
    answers: Answers,
    _stealing: JoinSet<()>,
}

impl Thief {
    /// A thief that presents what it reads on `chain` to `caller`, with the requirements of `template`, which are public.
    pub(crate) fn of(chain: &Chain, caller: &Caller, mut template: Value) -> Self {
        template["paymentPayload"]["payload"] = Value::Null;
        let answers = Answers::default();
        let (url, caller, told) = (chain.url().to_owned(), caller.clone(), answers.clone());
        let mut stealing = JoinSet::new();
        stealing.spawn(async move { steal(url, caller, template, told).await });
        Self {
            answers,
            _stealing: stealing,
        }
    }

    /// The answers to all copies of the payment with this nonce.
    pub(crate) async fn presented(&self, nonce: B256) -> Vec<Answer> {
        eventually("the thief's answers", Duration::from_mins(1), async || {
            let answers = self.answers.lock().unwrap();
            let found = answers.get(&nonce)?;
            (found.len() == COPIES).then(|| found.clone())
        })
        .await
    }
}

async fn steal(url: String, caller: Caller, template: Value, answers: Answers) {
    let http = Client::builder().no_proxy().build().unwrap();
    let mut presented = HashSet::new();
    let mut copies = JoinSet::new();
    loop {
        for payload in seen(&http, &url).await {
            let nonce: B256 = payload["authorization"]["nonce"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
            if !presented.insert(nonce) {
                continue;
            }
            let mut body = template.clone();
            body["paymentPayload"]["payload"] = payload;
            for _ in 0..COPIES {
                let (caller, body, answers) = (caller.clone(), body.clone(), answers.clone());
                copies.spawn(async move {
                    let answer = caller.settle(&body).await;
                    answers
                        .lock()
                        .unwrap()
                        .entry(nonce)
                        .or_default()
                        .push(answer);
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The payloads of all payments in the pending and the newest block.
async fn seen(http: &Client, url: &str) -> Vec<Value> {
    let mut payloads = Vec::new();
    for block in ["pending", "latest"] {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getBlockByNumber", "params": [block, true]});
        let answer = http.post(url).json(&request).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        let transactions = answer["result"]["transactions"].as_array();
        for transaction in transactions.into_iter().flatten() {
            let input: Bytes = transaction["input"].as_str().unwrap().parse().unwrap();
            payloads.extend(payloads_of(&input));
        }
    }
    payloads
}

/// The payload of a transfer by authorization, or of each one in a batch.
fn payloads_of(input: &Bytes) -> Vec<Value> {
    if let Ok(batch) = aggregate3Call::abi_decode(input) {
        let calls = batch.calls.iter();
        return calls.flat_map(|call| payloads_of(&call.callData)).collect();
    }
    let Ok(call) = transferWithAuthorizationCall::abi_decode(input) else {
        return Vec::new();
    };
    let signature: Bytes = [&call.r[..], &call.s[..], &[call.v]].concat().into();
    let text = |number: U256| number.to_string();
    let address = |address: Address| address.to_string();
    vec![json!({"signature": signature, "authorization": {
        "from": address(call.from), "to": address(call.to), "value": text(call.value), "validAfter": text(call.validAfter),
        "validBefore": text(call.validBefore), "nonce": call.nonce,
    }})]
}
