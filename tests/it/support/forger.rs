//! A node that forges heads, account nonces, and receipts of unmined transactions.

use alloy::consensus::transaction::SignerRecoverable as _;
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{B256, Bytes, b256};
use serde_json::{Value, json};

/// How far the forged head is ahead, in blocks.
const HEAD_AHEAD: u64 = 1_000_000;
/// How far forged account nonces are ahead.
const NONCES_AHEAD: u64 = 5;
/// `Transfer(address,address,uint256)` and `AuthorizationUsed(address,bytes32)`.
const TRANSFER: B256 = b256!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef");
const AUTHORIZATION_USED: B256 =
    b256!("98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5");

/// The forged answer in place of `truth`; `None` where the node forges nothing. `raw` are the bytes it has received, `newest` is the
/// chain's newest block.
pub(super) fn forged_answer(
    truth: &Value,
    request: &Value,
    raw: &[Bytes],
    newest: &Value,
) -> Option<Value> {
    let asked = &request["params"][0];
    match request["method"].as_str()? {
        "eth_blockNumber" => Some(increased(truth, HEAD_AHEAD)),
        "eth_getBlockByNumber" if asked == "latest" => Some(forged_head(truth)),
        "eth_getBlockByHash" if truth.is_null() => {
            let forged = forged_head(newest);
            (forged["hash"] == *asked).then_some(forged)
        }
        "eth_getTransactionCount" => Some(increased(truth, NONCES_AHEAD)),
        "eth_getTransactionReceipt" if truth.is_null() => {
            let hash: B256 = serde_json::from_value(asked.clone()).ok()?;
            let raw = raw
                .iter()
                .find(|raw| alloy::primitives::keccak256(raw) == hash)?;
            forged_receipt(raw, newest)
        }
        "eth_getBlockReceipts" => {
            let mut receipts = truth.as_array()?.clone();
            let known = |hash: &Value| truth.to_string().contains(hash.as_str().unwrap_or("-"));
            let block = json!({"hash": asked, "number": newest["number"]});
            let forged = raw.iter().filter_map(|raw| forged_receipt(raw, &block));
            receipts.extend(forged.filter(|receipt| !known(&receipt["transactionHash"])));
            Some(receipts.into())
        }
        _ => None,
    }
}

fn increased(number: &Value, by: u64) -> Value {
    let number: u64 =
        super::rpc_proxy::number(number.as_str().unwrap_or("0x0")).unwrap_or_default();
    format!("0x{:x}", number + by).into()
}

fn forged_head(block: &Value) -> Value {
    let mut forged = block.clone();
    forged["number"] = increased(&block["number"], HEAD_AHEAD);
    forged["parentHash"] = block["hash"].clone();
    let turned = block["hash"].as_str().unwrap_or_default().chars().rev();
    let turned: String = turned.filter(|digit| *digit != 'x').take(64).collect();
    forged["hash"] = format!("0x{turned}").into();
    forged
}

/// The receipt that a payment's transaction would have in `block`.
fn forged_receipt(raw: &Bytes, block: &Value) -> Option<Value> {
    let transaction = TxEnvelope::decode_2718(&mut raw.as_ref()).ok()?;
    let word = |index: usize| {
        let word = transaction.input().get(4 + 32 * index..36 + 32 * index);
        word.map(B256::from_slice)
    };
    let (from, to, value, nonce) = (word(0)?, word(1)?, word(2)?, word(5)?);
    let hash = *transaction.tx_hash();
    let log = |index: u64, topics: Value, data: Value| {
        json!({
            "address": transaction.to(), "topics": topics, "data": data, "logIndex": format!("0x{index:x}"), "removed": false,
            "blockNumber": block["number"], "blockHash": block["hash"], "transactionHash": hash, "transactionIndex": "0x0",
        })
    };
    Some(json!({
        "transactionHash": hash, "transactionIndex": "0x0", "from": transaction.recover_signer().ok()?, "to": transaction.to(),
        "status": "0x1", "type": "0x2", "gasUsed": "0x13880", "cumulativeGasUsed": "0x13880", "effectiveGasPrice": "0x3b9aca00",
        "blockHash": block["hash"], "blockNumber": block["number"], "contractAddress": null,
        "logs": [
            log(0, json!([AUTHORIZATION_USED, from, nonce]), "0x".into()),
            log(1, json!([TRANSFER, from, to]), json!(value)),
        ],
    }))
}
